"""The fleet's MQTT client reads ahead and joins what it writes: every byte arrives, in its order, once."""

from __future__ import annotations

import ssl
from typing import Any, cast

import paho.mqtt.client as mqtt
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from fleet.mqtt.buffered import BufferedClient, BufferedSocket


class Wire:
    """A TLS socket in memory: gives `records` one by one, and takes at most `room` bytes of a write."""

    def __init__(self, records: list[bytes] | None = None, room: int = 1 << 30) -> None:
        self.records, self.room = list(records or []), room
        self.written: list[bytes] = []

    def recv(self, size: int) -> bytes:
        if not self.records:
            raise ssl.SSLWantReadError
        assert len(self.records[0]) <= size
        return self.records.pop(0)

    def pending(self) -> int:
        return 0

    def send(self, data: bytes) -> int:
        self.written.append(bytes(data[: self.room]))
        return min(self.room, len(data))

    def close(self) -> None:
        """As paho does with it at the end."""


class Info:
    """What a publisher waits for."""

    def __init__(self) -> None:
        self.out = False

    def _set_as_published(self) -> None:
        self.out = True


def client_on(wire: Wire) -> BufferedClient:
    client = BufferedClient(CallbackAPIVersion.VERSION2, client_id="fleet", protocol=mqtt.MQTTv5)
    client._sock = BufferedSocket(cast(ssl.SSLSocket, wire))
    return client


def queued(command: int, data: bytes, qos: int = 0, info: Info | None = None) -> Any:
    return {
        "command": command,
        "mid": 1,
        "qos": qos,
        "pos": 0,
        "to_process": len(data),
        "packet": bytearray(data),
        "info": info,
    }


@given(records=st.lists(st.binary(min_size=1, max_size=40), max_size=8), sizes=st.lists(st.integers(1, 50), min_size=1))
def test_what_is_read_ahead_is_given_in_order_and_then_the_socket_says_what_it_says(
    records: list[bytes], sizes: list[int]
) -> None:
    sock = BufferedSocket(cast(ssl.SSLSocket, Wire(records)))
    found, turn = b"", 0
    while True:
        size = sizes[turn % len(sizes)]
        try:
            some = sock.recv(size)
        except ssl.SSLWantReadError:
            break
        assert 0 < len(some) <= size
        assert sock.pending() == sock.held
        found, turn = found + some, turn + 1
    assert found == b"".join(records)
    assert sock.pending() == 0


def test_the_end_of_a_connection_is_the_end() -> None:
    sock = BufferedSocket(cast(ssl.SSLSocket, Wire([b"ab", b""])))
    assert [sock.recv(9), sock.recv(9)] == [b"ab", b""]


def test_small_packets_leave_in_one_write_and_in_their_order() -> None:
    wire = Wire()
    client = client_on(wire)
    client._out_packet.extend([queued(mqtt.PUBACK, b"one"), queued(mqtt.PUBLISH | 2, b"two", qos=1, info=Info())])
    assert client.loop_write() == MQTTErrorCode.MQTT_ERR_SUCCESS
    assert wire.written == [b"onetwo"]


def test_who_waits_for_a_packet_hears_that_it_is_out() -> None:
    """Of one without a receipt paho notes when it left: it is not joined, nor overtaken by what comes after it."""
    wire, info = Wire(), Info()
    client = client_on(wire)
    client._out_packet.extend([queued(mqtt.PUBLISH, b"chunk", info=info), queued(mqtt.PUBACK, b"receipt")])
    client.loop_write()
    assert b"".join(wire.written) == b"chunkreceipt"
    assert info.out


@given(st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=30)), max_size=12), st.integers(1, 20))
def test_a_socket_that_takes_little_gets_every_byte_once(said: list[tuple[bool, bytes]], room: int) -> None:
    wire = Wire(room=room)
    client = client_on(wire)
    client._out_packet.extend(
        queued(mqtt.PUBACK, data) if quiet else queued(mqtt.PUBLISH, data, info=Info()) for quiet, data in said
    )
    while client.want_write():
        assert client.loop_write() == MQTTErrorCode.MQTT_ERR_SUCCESS
    assert b"".join(wire.written) == b"".join(data for _, data in said)
