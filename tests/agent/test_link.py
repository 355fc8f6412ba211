"""What a hostile broker can do to the line."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from est_server import another

from agent.identity.credentials import Credentials
from agent.identity.identity import FOLDER, Joined
from agent.identity.keys import key_pem, new_key
from agent.line.link import IN_FLIGHT, PACKET_LIMIT, UNACKNOWLEDGED, MqttLink, _Client, _pieces
from wire import topics
from wire.profile import Profile

PROFILE = Profile.from_toml((Path(__file__).parents[2] / "firmware-profiles/x86-64.toml").read_bytes())

CONNACK = bytes([0x20, 3, 0, 0, 0])


def varint(n: int) -> bytes:
    """A remaining length of MQTT: seven bits a byte, lowest first."""
    found = bytearray()
    while True:
        n, low = divmod(n, 128)
        found.append(low | (0x80 if n else 0))
        if not n:
            return bytes(found)


@dataclass
class TlsBroker:
    """A broker that greets every client and acknowledges nothing. `context` may be exchanged between two connections;
    `after` is what it does behind the greeting."""

    server: socket.socket
    context: ssl.SSLContext
    after: Callable[[ssl.SSLSocket], None] = lambda _connection: None
    greeted: int = 0
    refused: int = 0
    heard: list[bytes] = field(default_factory=list)
    live: ssl.SSLSocket | None = None

    def serve(self) -> None:
        while True:
            try:
                plain, _ = self.server.accept()
            except OSError:
                return
            plain.settimeout(10)
            try:
                with self.context.wrap_socket(plain, server_side=True) as connection:
                    self._talk(connection)
            except OSError:
                self.refused += 1

    def _talk(self, connection: ssl.SSLSocket) -> None:
        if not connection.recv(4096):
            self.refused += 1
            return
        self.greeted += 1
        self.live = connection
        self.heard.append(b"")
        connection.sendall(CONNACK)
        self.after(connection)
        while data := connection.recv(4096):
            self.heard[-1] += data


@contextmanager
def tls_broker(context: ssl.SSLContext, **how: object) -> Iterator[TlsBroker]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        broker = TlsBroker(server, context, **how)
        thread = threading.Thread(target=broker.serve)
        thread.start()
        try:
            yield broker
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def server_context(authority, expires: datetime | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.files("localhost", expires=expires))
    return context


def credentials(authority, port: int) -> Credentials:
    """A device that is enrolled by this authority, in `<authority's folder>/state`."""
    folder = authority.folder / "state" / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    certificate, key = authority.files("kitchen-1")
    certificate.rename(folder / "cert.pem")
    key.rename(folder / "key.pem")
    (folder / "ca.pem").write_text(authority.pem)
    (folder / "sealing.pem").write_bytes(key_pem(new_key()))
    joined = Joined(device="kitchen-1", fleet="https://localhost:1", broker=f"localhost:{port}", profile=PROFILE)
    (folder / "device.json").write_bytes(joined.to_bytes())
    return Credentials.open(folder.parent)


@asynccontextmanager
async def line(credentials: Credentials, now: Callable[[], datetime] = lambda: datetime.now(UTC)):
    """A link that was started; `.ups` counts its connections."""
    ups: list[int] = []
    link = MqttLink(
        credentials,
        now=now,
        on_up=lambda: ups.append(1),
        on_down=lambda: None,
        on_message=lambda _topic, _payload: None,
    )
    link.ups = ups
    link.start()
    try:
        yield link
    finally:
        await link.stop()


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.fixture
def quick(monkeypatch) -> None:
    """Connect again at once."""
    monkeypatch.setattr("agent.line.link.BACK_OFF", (0.05, 0.1))


# --- a packet over the limit ------------------------------------------------------------------------------------

HUGE = 200_000_000
LINE = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
import agent.line.link
from agent.identity.credentials import Credentials
from agent.line.link import MqttLink

agent.line.link.PACKET_LIMIT = int(sys.argv[2])

def memory():
    "The peak of this program: getrusage would count what the process was before its exec, a large pytest."
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

async def story():
    downs, got = [], []
    link = MqttLink(
        Credentials.open(Path(sys.argv[1])),
        now=lambda: datetime.now(UTC),
        on_up=lambda: None,
        on_down=lambda: downs.append(1),
        on_message=lambda topic, payload: got.append(len(payload)),
    )
    before = memory()
    link.start()
    while not downs and not got:
        await asyncio.sleep(0.01)
    print(memory() - before, len(downs), flush=True)
    await link.stop()

asyncio.run(story())
"""


@dataclass
class Flood:
    """Announces a PUBLISH of `HUGE` bytes and sends it as fast as it is taken."""

    sent: int = 0

    def __call__(self, connection: ssl.SSLSocket) -> None:
        topic = b"\0\1t\0"
        connection.sendall(b"\x30" + varint(HUGE + len(topic)) + topic)
        piece = b"\0" * 65536
        try:
            while self.sent < HUGE:
                self.sent += connection.send(piece[: HUGE - self.sent])
        except OSError:
            return  # the client hung up


def flooded(authority, limit: int) -> tuple[int, int, int]:
    """What the flood could send, by how much the memory of the process with the line grew, how often it hung up."""
    flood = Flood()
    with tls_broker(server_context(authority), after=flood) as broker:
        state = credentials(authority, broker.server.getsockname()[1]).state
        command = [sys.executable, "-c", LINE, str(state), str(limit)]
        ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    grown, downs = map(int, ended.stdout.split())
    return flood.sent, grown, downs


def test_the_line_is_cut_at_a_packet_over_the_limit_before_it_is_buffered(authority) -> None:
    """Attack: a broker sends 200 MB in one packet over TLS; paho's own MaximumPacketSize would have taken all of it."""
    sent, grown, downs = flooded(authority, PACKET_LIMIT)
    assert downs == 1
    assert sent < PACKET_LIMIT
    assert grown < 16_000_000


def test_without_the_limit_the_same_flood_fills_the_memory(authority) -> None:
    """Proves the test above: the flood is real, and so is the measure of memory."""
    sent, grown, downs = flooded(authority, 2**30)
    assert downs == 0
    assert sent == HUGE
    assert grown > HUGE


def test_a_packet_that_cannot_be_read_ends_the_connection_and_never_the_line(authority, quick) -> None:
    """Attack: bytes on which the client library stumbles; its thread ended, and the device was never heard again."""
    publish_with_a_name_that_is_no_text = b"\x30\x06\0\2\xff\xfe\0x"
    connack_with_an_unknown_property = b"\x20\x05\0\0\2\xee\xee"
    puback_without_a_number = b"\x40\x00"
    unasked_qos_2 = b"\x34\x08\0\1t\0\7\0xx"
    attacks = [
        *(publish_with_a_name_that_is_no_text, connack_with_an_unknown_property),
        *(puback_without_a_number, unasked_qos_2),
    ]

    def after(connection: ssl.SSLSocket) -> None:
        if attacks:
            connection.sendall(attacks.pop(0))

    async def story(broker: TlsBroker) -> None:
        async with line(credentials(authority, broker.server.getsockname()[1])) as link:
            await until(lambda: broker.greeted == 5 and link.up)
            assert not link._client._in_messages

    with tls_broker(server_context(authority), after=after) as broker:
        asyncio.run(story(broker))
        assert attacks == []


def test_a_broker_that_acknowledges_nothing_fills_no_memory(authority, quick) -> None:
    """Attack, or accident: everything said waits for a PUBACK; a batch every few seconds was half a gigabyte a day."""

    async def story(broker: TlsBroker) -> None:
        async with line(credentials(authority, broker.server.getsockname()[1])) as link:
            await until(lambda: link.up)
            for _ in range(2 * UNACKNOWLEDGED):
                link.publish(topics.Telemetry("kitchen-1"), bytes(1000))
            assert len(link._client._out_messages) <= UNACKNOWLEDGED
            await until(lambda: broker.greeted == 2 and link.up)
            assert not link.fault
            assert len(link._client._out_messages) == 1, "the birth of the new connection"

    with tls_broker(server_context(authority)) as broker:
        asyncio.run(story(broker))


# --- certificates -----------------------------------------------------------------------------------------------


def test_an_expired_broker_is_told_nothing_and_tried_again_until_its_certificate_is_renewed(
    authority, quick, caplog
) -> None:
    """Accident: the fleet let the broker's certificate run out, and renews it while the agents go on running."""

    async def story(broker: TlsBroker) -> None:
        async with line(credentials(authority, broker.server.getsockname()[1])) as link:
            await until(lambda: broker.refused >= 2)
            assert (broker.greeted, link.up) == (0, False)
            assert "certificate expired" in caplog.text
            broker.context = server_context(authority, datetime.now(UTC) + timedelta(days=1))
            await until(lambda: link.up)

    with tls_broker(server_context(authority, datetime.now(UTC) - timedelta(hours=1))) as broker:
        asyncio.run(story(broker))


def test_a_broker_that_proves_expired_when_the_time_is_learnt_is_hung_up_on(authority, quick, caplog) -> None:
    """Attack: an old key of the broker is used against a device whose clock stands at 1970, until it hears the time."""
    caplog.set_level("INFO")
    time_now = datetime(1970, 1, 1, tzinfo=UTC)

    async def story(broker: TlsBroker) -> None:
        nonlocal time_now
        async with line(credentials(authority, broker.server.getsockname()[1]), lambda: time_now) as link:
            await until(lambda: link.up)
            link.check_again()
            await asyncio.sleep(0)
            assert link.up
            time_now = datetime.now(UTC)
            link.check_again()
            await until(lambda: not link.up and broker.refused >= 2)
            assert broker.greeted == 1
            assert "connecting again: the server's certificate expired" in caplog.text

    with tls_broker(server_context(authority, datetime.now(UTC) - timedelta(hours=1))) as broker:
        asyncio.run(story(broker))


def test_a_broker_of_another_authority_is_believed_once_signed_metadata_names_it(authority, quick, tmp_path) -> None:
    """Rotation: the kit's authority is replaced while the agent runs; then the old one is believed no more."""
    other = another(authority, tmp_path / "other")

    async def story(broker: TlsBroker) -> None:
        held = credentials(authority, broker.server.getsockname()[1])
        async with line(held) as link:
            await until(lambda: broker.refused >= 2)
            assert not link.up
            assert not held.believe([authority.pem, other.pem])
            await until(lambda: link.up)
            broker.context = server_context(authority)
            link.hang_up("a test")
            await until(lambda: broker.greeted == 2 and link.up)
            refused = broker.refused
            assert held.believe([other.pem]), "one is gone: the agent connects again"
            link.hang_up("an authority is not believed any more")
            await until(lambda: broker.refused >= refused + 2)
            assert broker.greeted == 2

    with tls_broker(server_context(other)) as broker:
        asyncio.run(story(broker))


# --- nothing twice ----------------------------------------------------------------------------------------------


def test_what_the_broker_did_not_acknowledge_before_it_died_is_not_sent_again(authority, quick) -> None:
    """Accident: the broker dies between a message and its PUBACK. The fleet would take a second copy for a replay."""

    async def story(broker: TlsBroker) -> None:
        async with line(credentials(authority, broker.server.getsockname()[1])) as link:
            await until(lambda: link.up)
            link.publish(topics.Reported("kitchen-1"), b"the first report")
            await until(lambda: b"the first report" in broker.heard[0])
            assert broker.live is not None
            socket.socket.shutdown(broker.live, socket.SHUT_RDWR)
            await until(lambda: broker.greeted == 2 and link.up)
            link.publish(topics.Reported("kitchen-1"), b"the second report")
            await until(lambda: b"the second report" in broker.heard[1])
            assert b"the first report" not in broker.heard[1]

    with tls_broker(server_context(authority)) as broker:
        asyncio.run(story(broker))


def test_the_client_library_alone_would_send_it_again(authority, quick, monkeypatch) -> None:
    """Proves the test above."""
    monkeypatch.delattr(_Client, "_messages_reconnect_reset_out")
    monkeypatch.setattr(_Client, "drop_out_messages", lambda _self: [])
    with pytest.raises(AssertionError, match="the first report"):
        test_what_the_broker_did_not_acknowledge_before_it_died_is_not_sent_again(authority, None)


def test_large_messages_take_more_of_the_room_between_the_line_and_the_loop() -> None:
    """Attack: 64 messages of 8 MB would be half a gigabyte before the loop has seen the first."""
    assert _pieces(b"x") == 1
    assert _pieces(bytes(PACKET_LIMIT)) == IN_FLIGHT
    assert IN_FLIGHT // _pieces(bytes(PACKET_LIMIT // 4)) < 4
