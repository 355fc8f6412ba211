"""The line to the broker: MQTT 5 over mutual TLS 1.3. paho runs in its thread and posts to the asyncio loop.

Nothing is queued here while the line is down, and nothing that a lost connection held is sent by the next: what a
device says is state (said again on every connect) or telemetry (kept on disk until acknowledged), each time under a
new number, and the fleet takes an older number for a replay. The way in is bounded: when the loop falls behind, paho's
thread stops reading and the broker feels it.

Every connection shows the certificate and believes the authorities that `Credentials` hold at that moment.
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

from cryptography import x509
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import AgentError, Unavailable, Untrusted
from agent.identity.credentials import Credentials, Slot
from agent.identity.tls import check_expiry, expiry, issuer, says_expired
from wire import topics
from wire.messages import Presence

log = logging.getLogger("agent.line.link")

PACKET_LIMIT: Final = 8 * 1024 * 1024
"""Largest packet in bytes that is read at all; the largest document is a release role of 5 MB."""
IN_FLIGHT: Final = 64
"""Pieces of `PACKET_LIMIT / IN_FLIGHT` bytes between paho's thread and the loop; every message takes at least one."""
UNACKNOWLEDGED: Final = 64
"""Messages that may wait for the broker's PUBACK; one that owes more is hung up on."""
QOS_1: Final = 1
"""The most that is ever asked for. A message above it would be held by the client library until the broker lets go."""
KEEPALIVE: Final = 30
BACK_OFF: Final = (1, 60)
"""Shortest and longest pause in seconds between two attempts to connect."""


class Link(Protocol):
    """What the rest of the agent may ask of the line."""

    @property
    def up(self) -> bool:
        """Whether the broker can be reached now."""

    @property
    def fault(self) -> str:
        """Why there is no line, in words; "" while there is one, and before the first attempt has ended."""

    def publish(self, topic: topics.Topic, payload: bytes, *, retain: bool = False) -> None:
        """Send at QoS 1 if the line is up; otherwise nothing happens."""

    def subscribe(self, pattern: str, qos: int = QOS_1) -> None:
        """Ask for a topic filter if the line is up."""

    def unsubscribe(self, pattern: str) -> None:
        """Stop it."""


class MqttLink:
    """The real line. Callbacks run on the loop; `on_up` first, after every connect."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        now: Callable[[], datetime],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_message: Callable[[str, bytes], None],
        on_expired: Callable[[], None] = lambda: None,
        on_authority: Callable[[x509.Name], None] = lambda _issuer: None,
    ) -> None:
        """`now` is signed time: the broker's certificate is held against it. `on_expired`: ours ran out, it says.

        `on_authority` hears after every connect who issued the broker's certificate.
        """
        self._credentials = credentials
        self._now = now
        self._on_up, self._on_down, self._on_message, self._on_expired = on_up, on_down, on_message, on_expired
        self._on_authority = on_authority
        self._loop = asyncio.get_running_loop()
        self._room = threading.BoundedSemaphore(IN_FLIGHT)
        self._state = topics.State(credentials.device)
        self._host, self._port = credentials.identity.broker_host, credentials.identity.broker_port
        self._session = ""
        self._shown, self._terms = credentials.offer(), credentials.terms()
        self._peer_expires: datetime | None = None
        self._peer_issuer: x509.Name | None = None
        self._up = False
        self._stopping = False
        self._client = self._new_client()

    def _new_client(self) -> _Client:
        client = _Client(
            CallbackAPIVersion.VERSION2, client_id=self._credentials.device, protocol=MQTTProtocolVersion.MQTTv5
        )
        client.check_peer = self._check_peer
        client.new_context = self._new_context
        client.tls_set_context(self._new_context())
        client.reconnect_delay_set(*BACK_OFF)
        client.max_queued_messages_set(UNACKNOWLEDGED)
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

    @property
    def fault(self) -> str:
        """Why there is no line, in words; "" while there is one, and before the first attempt has ended."""
        return "" if self._up else self._client.fault

    def start(self) -> None:
        """Connect in the background, and again for ever."""
        self._client.connect_async(self._host, self._port, keepalive=KEEPALIVE)
        self._client.loop_start()

    async def stop(self) -> None:
        """Say goodbye and end the thread. The loop stays free meanwhile: the thread may wait for it."""
        self._stopping = True
        if self._up:
            self._say(online=False)
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    def hang_up(self, reason: str) -> None:
        """End this connection and make another, with the certificate and the authorities that count now."""
        if self._up:
            log.info("connecting again: %s", reason)
            self._client.cut()

    def check_again(self) -> None:
        """The time was learnt: hang up if it shows that the broker's certificate had expired when it was taken."""
        try:
            if self._up and self._peer_expires is not None:
                check_expiry(self._peer_expires, self._now())
        except Untrusted as e:
            self.hang_up(str(e))

    def publish(self, topic: topics.Topic, payload: bytes, *, retain: bool = False) -> None:
        """Send at QoS 1 if the line is up; otherwise nothing happens."""
        if self._up:
            sent = self._client.publish(topic.topic, payload, qos=QOS_1, retain=retain)
            if sent.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                self.hang_up(f"the broker owes the acknowledgement of {UNACKNOWLEDGED} messages")

    def subscribe(self, pattern: str, qos: int = QOS_1) -> None:
        """Ask for a topic filter if the line is up."""
        if self._up:
            self._client.subscribe(pattern, qos)

    def unsubscribe(self, pattern: str) -> None:
        """Stop it."""
        if self._up:
            self._client.unsubscribe(pattern)

    def _say(self, *, online: bool) -> None:
        self.publish(self._state, Presence(session=self._session, online=online).to_bytes(), retain=True)

    def _went_up(self, shown: Slot, terms: tuple[object, ...]) -> None:
        self._with_disk(self._credentials.accepted, shown)
        if self._credentials.terms() != terms:
            log.info("connecting again: certificate or authorities changed while the connection was made")
            self._client.cut()
            return
        self._up = True
        log.info("connected to %s:%s", self._host, self._port)
        self._say(online=True)
        self._on_up()
        if self._peer_issuer is not None:
            self._on_authority(self._peer_issuer)

    def _went_down(self, reason: str) -> None:
        if self._up:
            self._up = False
            if not self._stopping:
                self._client.fault = self._client.fault or reason
                log.warning("lost the broker (%s): trying again for ever", reason)
            self._on_down()

    def _was_refused(self, shown: Slot, fault: str) -> None:
        self._with_disk(self._credentials.refused, shown)
        if says_expired(fault):
            self._on_expired()

    def _with_disk(self, note: Callable[[Slot], None], shown: Slot) -> None:
        try:
            note(shown)
        except Unavailable as e:
            log.error("the renewed certificate is not kept: %s", e)  # noqa: TRY400  a full disk, not a bug

    def _deliver(self, topic: str, payload: bytes) -> None:
        self._room.release(_pieces(payload))
        self._on_message(topic, payload)

    # --- on paho's thread -------------------------------------------------------------------------------------

    def _before_connect(self, client: mqtt.Client, _userdata: Any) -> None:
        """A session id of its own for every connection, so that an old will cannot bury a new birth."""
        self._session = uuid.uuid4().hex
        death = Presence(session=self._session, online=False).to_bytes()
        client.will_set(self._state.topic, death, qos=1, retain=True)

    def _new_context(self) -> ssl.SSLContext:
        self._terms = self._credentials.terms()
        self._shown = self._credentials.offer()
        return self._credentials.tls_of(self._shown)

    def _check_peer(self, connection: ssl.SSLSocket) -> None:
        self._peer_expires, self._peer_issuer = expiry(connection), issuer(connection)
        check_expiry(self._peer_expires, self._now())

    def _connected(
        self, client: mqtt.Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._client.last_error = str(reason)
            return
        client.drop_out_messages()  # said between the loss of the last connection and now
        self._client.is_accepted()
        self._post(self._went_up, self._shown, self._terms)

    def _disconnected(
        self, _client: mqtt.Client, _userdata: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if self._client.knocking and not self._stopping:
            self._client.knocking = False  # this is called twice for some connections
            fault = self._client.last_error or str(reason)
            self._client.note_fault(f"the broker refused this device: {fault}: is it enrolled, and not revoked?")
            self._post(self._was_refused, self._shown, fault)
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
    """paho with eight of its gaps closed.

    * A packet that it cannot read ends the connection, not the thread: it would never connect again.
    * A message of QoS 2, which nobody asked for, ends it too: each would be held in memory until the broker lets go.
    * A packet above the limit is cut off before it is buffered: `MaximumPacketSize` is only a request.
    * The peer is checked (`check_peer`, raises `Untrusted`) before anything is said to it. Hanging up later, in
      `on_connect`, would end paho's thread: a broker whose certificate was renewed would never be tried again.
    * Every connection has a new TLS context (`new_context`, raises `AgentError`): paho keeps its first one for ever.
    * A handshake that failed closes its socket.
    * What a lost connection still held is dropped, not sent again.
    * An attempt that failed is logged with its reason, once for as long as it stays the same.
    """

    check_peer: Callable[[ssl.SSLSocket], None] | None = None
    new_context: Callable[[], ssl.SSLContext] | None = None
    knocking = False
    """Whether this connection waits for the broker's CONNACK."""
    last_error = ""
    """What broke this connection, as TLS or the socket said it: paho forgets it."""
    fault = ""
    """Why there is no line, as it was said last; "" after a connection was accepted."""

    def reconnect(self) -> MQTTErrorCode:
        self.knocking, self.last_error = True, ""
        try:
            if self.new_context is not None:
                self._ssl_context = self._made_context(self.new_context)
            return super().reconnect()
        except OSError as e:
            self.note_fault(str(e) or type(e).__name__)
            raise
        except Exception as e:  # a bug, or a certificate that nobody thought of: paho tries again after an OSError only
            log.exception("the connection was not made")
            raise ConnectionAbortedError(str(e)) from e

    def _loop(self, timeout: float = 1.0) -> MQTTErrorCode:
        try:
            return super()._loop(timeout)
        except Exception as e:  # whatever a broker can write; paho's thread would end with it
            self.last_error = f"a packet that cannot be read: {type(e).__name__}: {e}"[:200]
            log.warning("hanging up on the broker: %s", self.last_error, exc_info=True)
            return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_PROTOCOL)

    def _handle_publish(self) -> MQTTErrorCode:
        qos = (self._in_packet["command"] & 0x06) >> 1
        if qos > QOS_1:
            raise ValueError(f"a message of QoS {qos}, and {QOS_1} is the most that was asked for")
        return super()._handle_publish()

    def _made_context(self, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        try:
            return make()
        except AgentError as e:
            raise ConnectionAbortedError(str(e)) from e  # an OSError is what paho takes for "try again"

    def is_accepted(self) -> None:
        """The broker took this connection."""
        self.knocking, self.fault = False, ""

    def note_fault(self, fault: str) -> None:
        """Say once why there is no line."""
        if fault != self.fault:
            log.warning("no line to the broker at %s:%s (%s): trying again for ever", self.host, self.port, fault)
        self.fault = fault

    def cut(self) -> None:
        """End the connection from another thread; paho's makes the next one."""
        sock = self.socket()
        if isinstance(sock, socket.socket):
            try:
                # Not that of SSLSocket, which takes the TLS state away from under the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError as e:
                log.debug("the connection was gone already: %s", e)

    def _messages_reconnect_reset_out(self) -> None:
        self.drop_out_messages()
        self._inflight_messages = 0

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        assert self._ssl_context is not None
        connection = self._ssl_context.wrap_socket(tcp_sock, server_hostname=self.host, do_handshake_on_connect=False)
        try:
            connection.settimeout(self.connect_timeout)
            connection.do_handshake()
            if self.check_peer is not None:
                self.check_peer(connection)
        except OSError:
            connection.close()  # paho leaves it open
            raise
        except Untrusted as e:
            connection.close()
            raise ConnectionAbortedError(str(e)) from e
        return connection

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > PACKET_LIMIT:
            raise ConnectionAbortedError(f"a packet of {bufsize} bytes, the limit is {PACKET_LIMIT}")
        try:
            return super()._sock_recv(bufsize)
        except BlockingIOError:
            raise
        except OSError as e:
            self.last_error = str(e) or type(e).__name__
            raise
