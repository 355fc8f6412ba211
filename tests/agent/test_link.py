"""What a hostile broker can do to the line."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.identity import Identity, Joined
from agent.link import IN_FLIGHT, PACKET_LIMIT, MqttLink, _Client, _pieces
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


def hostile_broker(server: socket.socket, size: int, taken: list[int]) -> None:
    """Accept one client, announce a packet of `size` bytes, and count how many of them it takes."""
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(CONNACK + b"\x30" + varint(size))
        try:
            while sum(taken) < size:
                taken.append(connection.send(b"\0" * 65536))
        except OSError:
            return


def run_against(size: int) -> tuple[int, bool]:
    """Bytes that the broker could send, and whether the client hung up."""
    taken: list[int] = []
    gone = threading.Event()
    client = _Client(CallbackAPIVersion.VERSION2, client_id="d", protocol=MQTTProtocolVersion.MQTTv5)
    client.on_disconnect = lambda *_: gone.set()
    with socket.create_server(("127.0.0.1", 0)) as server:
        broker = threading.Thread(target=hostile_broker, args=(server, size, taken))
        broker.start()
        client.connect("127.0.0.1", server.getsockname()[1])
        while not gone.is_set() and (broker.is_alive() or sum(taken) < size):
            client.loop(0.05)
        hung_up = gone.is_set()
        client.disconnect()
        broker.join(10)
    return sum(taken), hung_up


def test_the_line_is_cut_at_a_packet_over_the_limit_before_it_is_buffered() -> None:
    """Attack: a broker announces 200 MB; paho's own MaximumPacketSize would have taken all of it."""
    taken, hung_up = run_against(200_000_000)
    assert hung_up
    assert taken < PACKET_LIMIT


def test_a_large_packet_below_the_limit_is_taken() -> None:
    taken, _ = run_against(1_000_000)
    assert taken >= 1_000_000


@dataclass
class TlsBroker:
    """A broker that greets every client; `context` may be exchanged between two connections."""

    server: socket.socket
    context: ssl.SSLContext
    greeted: int = 0
    refused: int = 0

    def serve(self) -> None:
        while True:
            try:
                plain, _ = self.server.accept()
            except OSError:
                return
            plain.settimeout(10)
            try:
                with self.context.wrap_socket(plain, server_side=True) as connection:
                    if not connection.recv(4096):
                        self.refused += 1
                        continue
                    self.greeted += 1
                    connection.sendall(CONNACK)
                    while connection.recv(4096):
                        pass
            except OSError:
                self.refused += 1


@contextmanager
def tls_broker(context: ssl.SSLContext) -> Iterator[TlsBroker]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        broker = TlsBroker(server, context)
        thread = threading.Thread(target=broker.serve)
        thread.start()
        try:
            yield broker
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def server_context(authority, name: str, expires: datetime) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.files(name, expires=expires))
    return context


def device_identity(authority, port: int) -> Identity:
    certificate, key = authority.files("kitchen-1")
    certificate.rename(authority.folder / "cert.pem")
    key.rename(authority.folder / "key.pem")
    (authority.folder / "ca.pem").write_text(authority.pem)
    return Identity(
        authority.folder,
        Joined(device="kitchen-1", fleet="https://localhost:1", broker=f"localhost:{port}", profile=PROFILE),
    )


def test_an_expired_broker_is_told_nothing_and_tried_again_until_its_certificate_is_renewed(
    authority, monkeypatch, caplog
) -> None:
    """Accident: the fleet let the broker's certificate run out, and renews it while the agents go on running."""
    monkeypatch.setattr("agent.link.BACK_OFF", (0.05, 0.1))
    now = datetime.now(UTC)
    expired = server_context(authority, "localhost", now - timedelta(hours=1))

    async def until(condition) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)

    async def story(broker: TlsBroker) -> None:
        identity = device_identity(authority, broker.server.getsockname()[1])
        link = MqttLink(
            identity,
            now=lambda: datetime.now(UTC),
            on_up=lambda: None,
            on_down=lambda: None,
            on_message=lambda _topic, _payload: None,
        )
        link.start()
        try:
            await until(lambda: broker.refused >= 2)
            assert (broker.greeted, link.up) == (0, False)
            assert "certificate expired" in caplog.text
            broker.context = server_context(authority, "localhost", now + timedelta(days=1))
            await until(lambda: link.up)
        finally:
            await link.stop()

    with tls_broker(expired) as broker:
        asyncio.run(story(broker))


def test_large_messages_take_more_of_the_room_between_the_line_and_the_loop() -> None:
    """Attack: 64 messages of 8 MB would be half a gigabyte before the loop has seen the first."""
    assert _pieces(b"x") == 1
    assert _pieces(bytes(PACKET_LIMIT)) == IN_FLIGHT
    assert IN_FLIGHT // _pieces(bytes(PACKET_LIMIT // 4)) < 4
