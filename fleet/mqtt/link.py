"""The fleet's connection to its broker: MQTT 5 over mutual TLS, in paho's own thread.

What arrives is handed to `receive` in that thread, which also sends: it must not block. What is published while the
link is down is dropped: on every connect `connected` is called, and the fleet publishes again all that it owns.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fleet.errors import Unavailable
from fleet.trust.ca import KeyPair
from wire.messages import Presence
from wire.topics import FLEET_CLIENT, FleetState, Reply, Reported, State, Telemetry, Want, every


class Message(NamedTuple):
    """What came, and whether the broker only remembered it."""

    topic: str
    payload: bytes
    retained: bool
    came: float | None = None
    """When, by the monotonic clock: it may wait for long."""

    @property
    def is_wish(self) -> bool:
        """Whether it asks for chunks."""
        return self.topic.endswith("/want")

    def size(self) -> int:
        """Bytes that it takes in memory, about."""
        return len(self.payload) + 500


AT_ONCE: Final = 250
"""Messages that the broker may hand over before it waits for receipts."""
Receive = Callable[[Message], None]

_SUBSCRIPTIONS = [(every(kind), 1) for kind in (State, Reported, Telemetry, Reply, Want)]
_log = logging.getLogger(__name__)


class Link:
    """A client that connects, subscribes, and connects again by itself until it is stopped."""

    def __init__(self, pair: KeyPair, authority: Path, session: str) -> None:
        self._session, self._pair, self._authority = session, pair, authority
        self._up = threading.Event()
        self._up_at = 0.0
        self._client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=FLEET_CLIENT, protocol=mqtt.MQTTv5, reconnect_on_failure=True
        )
        self._tls = tls_context(pair, authority)
        client.tls_set_context(self._tls)
        client.reconnect_delay_set(min_delay=1, max_delay=5)
        client.will_set(FleetState().topic, self._presence(online=False), qos=1, retain=True)
        client.on_pre_connect = self._before_connect
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect

    def start(self, host: str, port: int, receive: Receive, connected: Callable[[], None]) -> None:
        """Connect in the background. Both are called in the client's thread."""
        self._connected = connected
        self._client.on_message = lambda _c, _d, m: receive(
            Message(m.topic, bytes(m.payload), m.retain, time.monotonic())
        )
        self._client.connect_async(host, port, keepalive=30, properties=_terms())
        self._client.loop_start()

    def wait_until_up(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the connection. Raises `Unavailable`."""
        if not self._up.wait(timeout):
            raise Unavailable(f"broker: the fleet's own client could not connect within {timeout:.0f} s: see the log")

    def stop(self) -> None:
        """Say goodbye and disconnect."""
        if self.is_up:
            self.publish(FleetState().topic, self._presence(online=False), retain=True, wait=2)
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def is_up(self) -> bool:
        """Whether the broker answers."""
        return self._up.is_set()

    @property
    def up_for(self) -> timedelta | None:
        """How long the broker has answered without a break; None while it does not."""
        return timedelta(seconds=time.monotonic() - self._up_at) if self.is_up else None

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, wait: float = 0
    ) -> mqtt.MQTTMessageInfo | None:
        """Publish, from any thread, and wait at most `wait` seconds until it is out; None when the link is down."""
        if not self.is_up:
            return None
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        if wait and info.rc == mqtt.MQTT_ERR_SUCCESS:
            info.wait_for_publish(wait)
        return info

    def _presence(self, *, online: bool) -> bytes:
        return Presence(session=self._session, online=online).to_bytes()

    def _before_connect(self, _client: mqtt.Client, _data: object) -> None:
        """Certificate and authorities may have been renewed since the last connection."""
        try:
            self._tls.load_cert_chain(self._pair.certificate, self._pair.key)
            self._tls.load_verify_locations(self._authority)
        except OSError as e:  # read between two writes: the attempt fails, and the next one finds both
            _log.warning("%s: not read for the connection to the broker: %s", self._pair.certificate, e)

    def _on_connect(
        self,
        client: mqtt.Client,
        _data: object,
        _flags: mqtt.ConnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if code.is_failure:
            _log.warning("broker refused the fleet's client: %s", code)
            return
        client.subscribe(_SUBSCRIPTIONS)
        self._up_at = time.monotonic()
        self._up.set()
        self._connected()
        self.publish(FleetState().topic, self._presence(online=True), retain=True)
        _log.info("connected to the broker")

    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _data: object,
        _flags: mqtt.DisconnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if self._up.is_set():  # paho may call this twice
            self._up.clear()
            _log.info("disconnected from the broker: %s", code)


def _terms() -> Properties:
    """The broker hands a client few messages before it waits for their receipts (`broker.configuration`).

    The fleet takes many: its thread of the client waits milliseconds for its turn, and those receipts with it.
    """
    terms = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    terms.ReceiveMaximum = AT_ONCE
    return terms


def tls_context(pair: KeyPair, authority: Path) -> ssl.SSLContext:
    """A client's TLS 1.3 with a certificate of its own, trusting only the fleet's authority."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(authority))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(pair.certificate, pair.key)
    return context
