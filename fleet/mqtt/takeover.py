"""Ending a client's live connection: mosquitto has no command for it, but a client id can be connected only once.

take_over("kitchen-1", authority, broker.address, now)    # its connection ends, its session and queue are gone
"""

from __future__ import annotations

import socket
import ssl
from datetime import datetime, timedelta
from typing import Final

from fleet.errors import Unavailable
from fleet.mqtt.broker import ANSWER_WITHIN, DISCONNECT, BrokerAddress
from fleet.mqtt.link import tls_context
from fleet.trust.ca import Authority

LIFETIME: Final = timedelta(minutes=5)
_CONNACK: Final = 0x20


def take_over(client: str, authority: Authority, address: BrokerAddress, now: datetime) -> None:
    """Connect in a client's name with a clean start, and leave. Raises `Unavailable` when the broker does not answer.

    The certificate is good for minutes, and gone when this returns.
    """
    with authority.passing(client, LIFETIME, now) as pair:
        context = tls_context(pair, authority.believed_path)
    try:
        with (
            socket.create_connection((address.local, address.port), timeout=ANSWER_WITHIN) as raw,
            context.wrap_socket(raw, server_hostname=address.local) as connection,
        ):
            connection.sendall(_connect(client))
            answer = connection.recv(1)
            connection.sendall(DISCONNECT)
    except (OSError, ssl.SSLError) as e:
        raise Unavailable(f"broker: the connection of {client} was not ended ({e}): it is tried again") from e
    if answer[:1] != bytes([_CONNACK]):
        raise Unavailable(f"broker: the connection of {client} was not ended, no answer came: it is tried again")


def _connect(client: str) -> bytes:
    """MQTT 5, section 3.1: CONNECT with a clean start, ten seconds of keep-alive, no properties, no will."""
    name = client.encode()
    body = b"\x00\x04MQTT\x05\x02\x00\x0a\x00" + len(name).to_bytes(2, "big") + name
    return b"\x10" + bytes([len(body)]) + body
