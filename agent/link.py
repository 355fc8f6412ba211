"""The line to the broker: MQTT 5 over mutual TLS 1.3. paho runs in its thread and posts to the asyncio loop.

Nothing is queued here while the line is down: what a device says is state (said again on every connect) or telemetry
(kept on disk until acknowledged). The way in is bounded: when the loop falls behind, paho's thread stops reading and
the broker feels it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Protocol

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import Untrusted
from agent.identity import Identity, check_certificate
from wire import topics
from wire.messages import Presence

log = logging.getLogger("agent.link")

PACKET_LIMIT: Final = 8 * 1024 * 1024
"""Largest packet in bytes that is read at all; the largest document is a release role of 5 MB."""
IN_FLIGHT: Final = 64
"""Pieces of `PACKET_LIMIT / IN_FLIGHT` bytes between paho's thread and the loop; every message takes at least one."""
KEEPALIVE: Final = 30
BACK_OFF: Final = (1, 60)
"""Shortest and longest pause in seconds between two attempts to connect."""


class Link(Protocol):
    """What the rest of the agent may ask of the line."""

    @property
    def up(self) -> bool:
        """Whether the broker can be reached now."""

    def publish(self, topic: topics.Topic, payload: bytes, *, retain: bool = False) -> None:
        """Send at QoS 1 if the line is up; otherwise nothing happens."""

    def subscribe(self, pattern: str, qos: int = 1) -> None:
        """Ask for a topic filter if the line is up."""

    def unsubscribe(self, pattern: str) -> None:
        """Stop it."""


class MqttLink:
    """The real line. Callbacks run on the loop; `on_up` first, after every connect."""

    def __init__(
        self,
        identity: Identity,
        *,
        now: Callable[[], datetime],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_message: Callable[[str, bytes], None],
    ) -> None:
        self._identity = identity
        self._now = now
        self._on_up, self._on_down, self._on_message = on_up, on_down, on_message
        self._loop = asyncio.get_running_loop()
        self._room = threading.BoundedSemaphore(IN_FLIGHT)
        self._state = topics.State(identity.device)
        self._session = ""
        self._up = False
        self._stopping = False
        self._client = self._new_client()

    def _new_client(self) -> _Client:
        client = _Client(
            CallbackAPIVersion.VERSION2, client_id=self._identity.device, protocol=MQTTProtocolVersion.MQTTv5
        )
        client.check_peer = lambda connection: check_certificate(connection, self._now())
        client.tls_set_context(self._identity.tls())
        client.reconnect_delay_set(*BACK_OFF)
        client.on_pre_connect = self._before_connect
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        return client

    # --- on the loop ------------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Whether the broker can be reached now."""
        return self._up

    def start(self) -> None:
        """Connect in the background, and again for ever."""
        self._client.connect_async(self._identity.broker_host, self._identity.broker_port, keepalive=KEEPALIVE)
        self._client.loop_start()

    async def stop(self) -> None:
        """Say goodbye and end the thread. The loop stays free meanwhile: the thread may wait for it."""
        self._stopping = True
        if self._up:
            self._say(online=False)
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    def publish(self, topic: topics.Topic, payload: bytes, *, retain: bool = False) -> None:
        """Send at QoS 1 if the line is up; otherwise nothing happens."""
        if self._up:
            self._client.publish(topic.topic, payload, qos=1, retain=retain)

    def subscribe(self, pattern: str, qos: int = 1) -> None:
        """Ask for a topic filter if the line is up."""
        if self._up:
            self._client.subscribe(pattern, qos)

    def unsubscribe(self, pattern: str) -> None:
        """Stop it."""
        if self._up:
            self._client.unsubscribe(pattern)

    def _say(self, *, online: bool) -> None:
        self.publish(self._state, Presence(session=self._session, online=online).to_bytes(), retain=True)

    def _went_up(self) -> None:
        self._up = True
        log.info("connected to %s:%s", self._identity.broker_host, self._identity.broker_port)
        self._say(online=True)
        self._on_up()

    def _went_down(self, reason: str) -> None:
        if self._up:
            self._up = False
            if not self._stopping:
                log.warning("lost the broker (%s): trying again for ever", reason)
            self._on_down()

    def _deliver(self, topic: str, payload: bytes) -> None:
        self._room.release(_pieces(payload))
        self._on_message(topic, payload)

    # --- on paho's thread -------------------------------------------------------------------------------------

    def _before_connect(self, client: mqtt.Client, _userdata: Any) -> None:
        """A session id of its own for every connection, so that an old will cannot bury a new birth."""
        self._session = uuid.uuid4().hex
        death = Presence(session=self._session, online=False).to_bytes()
        client.will_set(self._state.topic, death, qos=1, retain=True)

    def _connected(
        self, _client: mqtt.Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            log.warning("the broker refused this device (%s): is it enrolled, and not revoked?", reason)
            return
        self._post(self._went_up)

    def _disconnected(
        self, _client: mqtt.Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._post(self._went_down, str(reason))

    def _received(self, _client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        for _ in range(_pieces(message.payload)):
            while not self._room.acquire(timeout=0.2):
                if self._stopping:
                    return
        self._post(self._deliver, message.topic, bytes(message.payload))

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed: the agent is gone
            log.debug("dropped after the end: %s", callback)


def _pieces(payload: bytes | bytearray) -> int:
    """What a message takes of the room between paho's thread and the loop."""
    return min(IN_FLIGHT, 1 + len(payload) * IN_FLIGHT // PACKET_LIMIT)


class _Client(mqtt.Client):
    """paho with three of its gaps closed.

    * A packet above the limit is cut off before it is buffered: `MaximumPacketSize` is only a request.
    * The peer is checked (`check_peer`, raises `Untrusted`) before anything is said to it. Hanging up later, in
      `on_connect`, would end paho's thread: a broker whose certificate was renewed would never be tried again.
    * An attempt that failed is logged with its reason, once for as long as it stays the same.
    """

    check_peer: Callable[[ssl.SSLSocket], None] | None = None
    _last_fault = ""

    def reconnect(self) -> MQTTErrorCode:
        try:
            found = super().reconnect()
        except OSError as e:
            self._note_fault(str(e) or type(e).__name__)
            raise
        self._last_fault = ""
        return found

    def _note_fault(self, fault: str) -> None:
        if fault != self._last_fault:
            log.warning("no line to the broker at %s:%s (%s): trying again for ever", self.host, self.port, fault)
        self._last_fault = fault

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        connection = super()._ssl_wrap_socket(tcp_sock)
        if self.check_peer is not None:
            try:
                self.check_peer(connection)
            except Untrusted as e:
                connection.close()
                raise ConnectionAbortedError(str(e)) from e  # an OSError is what paho takes for "try again"
        return connection

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > PACKET_LIMIT:
            raise ConnectionAbortedError(f"a packet of {bufsize} bytes, the limit is {PACKET_LIMIT}")
        return super()._sock_recv(bufsize)
