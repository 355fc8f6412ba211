"""The MQTT client, reading and writing much at a time.

paho asks its socket for one byte, then one more, then the rest of a packet, and writes each packet by itself. Each of
those is a call into TLS, which gives the interpreter away and waits for its turn to get it back.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final, cast

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode

AT_ONCE: Final = 64 * 1024
"""Bytes of one read, and of one write, about."""
PACKETS: Final = 100
"""How many are taken in a row at most: what is to be sent waits meanwhile."""


class BufferedSocket:
    """A TLS socket that reads ahead. All else is the socket's own."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._data, self._at = b"", 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    @property
    def held(self) -> int:
        """Bytes that were read and not asked for yet."""
        return len(self._data) - self._at

    def recv(self, size: int) -> bytes:
        """At most `size` bytes; b"" at the end of the connection. Raises what the socket raises."""
        if not self.held:
            self._data, self._at = self._sock.recv(AT_ONCE), 0
        begin, self._at = self._at, min(self._at + size, len(self._data))
        return self._data[begin : self._at]

    def pending(self) -> int:
        """Bytes that `recv` gives although nothing more may come: whoever waits for the socket must ask for these."""
        return self.held + self._sock.pending()


class BufferedClient(mqtt.Client):
    """A client over TLS that reads ahead."""

    def _ssl_wrap_socket(self, tcp_sock: Any) -> ssl.SSLSocket:
        return cast(ssl.SSLSocket, BufferedSocket(super()._ssl_wrap_socket(tcp_sock)))

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Take all packets that were read, without waiting for the socket between them."""
        for _ in range(PACKETS):
            code = super().loop_read(max_packets)
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS or not isinstance(self._sock, BufferedSocket):
                return code
            if not self._sock.held:
                break
        return code

    def _packet_write(self) -> MQTTErrorCode:
        """Write what waits, small packets at the head of the queue as one.

        Only those of which paho notes nothing once they are out: receipts, and what the broker sends a receipt for.
        """
        joined = bytearray()
        while self._out_packet and len(joined) < AT_ONCE and _is_quiet(self._out_packet[0]):
            packet = self._out_packet.popleft()
            joined += packet["packet"][packet["pos"] :]
        if joined:
            self._out_packet.appendleft(
                {
                    "command": mqtt.PUBACK,
                    "mid": 0,
                    "qos": 0,
                    "pos": 0,
                    "to_process": len(joined),
                    "packet": joined,
                    "info": None,
                }
            )
        return super()._packet_write()


def _is_quiet(packet: Mapping[str, Any]) -> bool:
    kind = packet["command"] & 0xF0
    return bool(kind == mqtt.PUBACK or (kind == mqtt.PUBLISH and packet["qos"]))
