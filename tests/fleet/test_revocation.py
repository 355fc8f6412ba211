"""A device that was put out: what its certificates, its live connection, its session and its will are good for."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from fleet_process import FleetProcess, initialise_trust, until
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from sqlmodel import select

from fleet.errors import StorageFull, Unanswered
from fleet.mqtt import broker as broker_module
from fleet.mqtt.broker import REVOKED, Broker, BrokerAddress
from fleet.mqtt.link import Link
from fleet.store.database import Database
from fleet.store.tables import CertificateRow, ClaimRow, Device
from fleet.trust import revocation
from fleet.trust.ca import Authority, serial_text
from fleet.trust.issuer import key_to_pem, to_pem
from fleet.trust.revocation import Revocations
from wire import topics
from wire.units import show_instant

WITHIN = 10.0
"""Seconds within which a revoked device is out."""
HELLO = b"\x10\x13\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x06victim"
"""CONNECT of the device `victim`."""


class Client:
    """A raw MQTT client with a certificate. What arrives waits in `inbox` as (topic, payload)."""

    def __init__(self, rig: Rig, name: str, certificate: Path, *, session: int = 0, clean: bool = True) -> None:
        self.inbox: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.reconnects = -1
        self.up, self.down, self.subscribed = threading.Event(), threading.Event(), threading.Event()
        self.session_present = False
        self.mqtt = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        context = ssl.create_default_context(cafile=str(rig.authority.believed_path))
        context.load_cert_chain(certificate)
        self.mqtt.tls_set_context(context)
        self.mqtt.reconnect_delay_set(60, 60)
        self.mqtt.will_set(topics.State(name).topic, b"died", 1, retain=True)
        self.mqtt.on_message = lambda _c, _u, m: self.inbox.put((m.topic, m.payload))
        self.mqtt.on_connect = self._connected
        self.mqtt.on_disconnect = lambda *_: self.down.set()
        self.mqtt.on_subscribe = lambda *_: self.subscribed.set()
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = session
        self.mqtt.connect("127.0.0.1", rig.broker.address.port, clean_start=clean, properties=properties)
        self.mqtt.loop_start()
        assert self.up.wait(10)

    def _connected(self, _client: object, _data: object, flags: Any, _code: object, _properties: object) -> None:
        self.session_present = flags.session_present
        self.up.set()

    def listen(self, *filters: str) -> None:
        self.subscribed.clear()
        self.mqtt.subscribe([(f, 1) for f in filters])
        assert self.subscribed.wait(10)

    def say(self, topic: topics.Topic, payload: bytes) -> None:
        """Until the broker has answered, so that it was judged before whatever comes next."""
        self.mqtt.publish(topic.topic, payload, qos=1).wait_for_publish(10)

    def close(self) -> None:
        self.mqtt.disconnect()
        self.mqtt.loop_stop()

    def cut(self) -> None:
        connection = self.mqtt.socket()
        assert connection is not None
        connection.shutdown(socket.SHUT_RDWR)
        self.mqtt.loop_stop()


class Rig:
    """The fleet's authority, broker, client and revocations, and a database to put devices into."""

    def __init__(self, folder: Path) -> None:
        now = datetime.now(UTC)
        self.folder, self.now = folder, now
        self.database = Database.in_folder(folder)
        self.authority = Authority.open(folder / "ca", now)
        server, client = self.authority.server(["127.0.0.1"], now), self.authority.client(topics.FLEET_CLIENT, now)
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = BrokerAddress("127.0.0.1", free.getsockname()[1])
        believed = self.authority.believed_path
        self.broker = Broker("mosquitto", folder / "broker", address, server, client, believed)
        self.link = Link(client, believed, session="s")
        self.seen: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.stands: datetime | None = None
        self.revocations = Revocations(self.database, self.authority, self.broker, self.link, self.clock)
        self.clients: list[Client] = []

    def clock(self) -> datetime:
        return self.stands or datetime.now(UTC)

    def start(self) -> None:
        self.revocations.apply()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._run(self.broker.start())
        address = self.broker.address
        take = lambda message: self.seen.put((message.topic, message.payload))  # noqa: E731
        self.link.start(address.local, address.port, receive=take, connected=lambda: None)
        self.link.wait_until_up(10)

    def stop(self) -> None:
        for client in self.clients:
            client.close()
        self.link.stop()
        self._run(self.broker.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.database.close()

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def device(self, name: str, *, stem: str | None = None) -> Path:
        """An enrolled device, or one more certificate for it: a file with its certificate and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.authority.issue_device(name, key.public_key(), lifetime=timedelta(days=1), now=self.now)
        path = self.folder / f"{stem or name}.pem"
        path.write_bytes(to_pem(certificate) + key_to_pem(key))
        with self.database.transaction() as session:
            fields = {"created": show_instant(self.now), "token_hash": name, "token_expires": ""}
            session.merge(Device(id=name, profile="x86-64", state="enrolled", **fields))
            session.add(
                CertificateRow(
                    serial=serial_text(certificate),
                    device=name,
                    pem=to_pem(certificate).decode(),
                    issued=show_instant(self.now),
                    expires=show_instant(certificate.not_valid_after_utc),
                    state="current",
                )
            )
        return path

    def mark(self, name: str, *, device: str, certificate: str) -> None:
        """What the API does to a device and its certificates before it calls `apply`."""
        with self.database.transaction() as session:
            session.get_one(Device, name).state = device
            for row in session.exec(select(CertificateRow).where(CertificateRow.device == name)):
                row.state = certificate

    def connect(self, name: str, path: Path, **how: Any) -> Client:
        client = Client(self, name, path, **how)
        self.clients.append(client)
        return client

    def refuses(self, path: Path) -> bool:
        context = ssl.create_default_context(cafile=str(self.authority.believed_path))
        context.load_cert_chain(path)
        return refuses(context, "127.0.0.1", self.broker.address.port)

    def settle(self) -> None:
        """Tick as the fleet's housekeeping does, until who was shut out is gone."""
        deadline = time.monotonic() + WITHIN
        while self.revocations._leaving and time.monotonic() < deadline:
            self.revocations.tick()
            time.sleep(0.05)
        assert not self.revocations._leaving

    def heard(self, *, until_payload: bytes) -> list[tuple[str, bytes]]:
        """All that reached the fleet up to and with a payload."""
        found: list[tuple[str, bytes]] = []
        while not found or found[-1][1] != until_payload:
            found.append(self.seen.get(timeout=10))
        return found


@contextmanager
def running(folder: Path) -> Iterator[Rig]:
    made = Rig(folder)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with running(tmp_path) as made:
        yield made


def test_a_live_connection_of_a_revoked_device_sends_and_hears_nothing_more(rig: Rig) -> None:
    """Attack: a stolen device stays connected after it was revoked. The access list alone acts here: no tick comes."""
    victim, other = rig.connect("victim", rig.device("victim")), rig.connect("other", rig.device("other"))
    for name, client in (("victim", victim), ("other", other)):
        client.listen(topics.Desired(name).topic, topics.Ack(name).topic, "shoal/1/trust/#", "shoal/1/blob/#")
    victim.say(topics.Telemetry("victim"), b"before")
    rig.heard(until_payload=b"before")

    rig.mark("victim", device="revoked", certificate="revoked")
    rig.revocations.apply()
    assert not delivered(rig, victim)

    for topic in (topics.Telemetry, topics.Reported, topics.State, topics.Want, topics.Reply):
        victim.say(topic("victim"), b"forged")
    for topic in (topics.Desired("victim"), topics.TrustRole("timestamp"), topics.Chunk("sha256:" + "0" * 64, 0)):
        rig.link.publish(topic.topic, b"secret")
    rig.link.publish(topics.Desired("other").topic, b"last")
    seen = [other.inbox.get(timeout=10) for _ in range(3)]
    assert [payload for _, payload in seen] == [b"secret", b"secret", b"last"]
    other.say(topics.Telemetry("other"), b"still here")
    assert b"forged" not in {payload for _, payload in rig.heard(until_payload=b"still here")}
    assert b"secret" not in {payload for _, payload in victim.inbox.queue}
    # Its connection was up all the time: it is the rights that were gone.
    assert victim.mqtt.is_connected()
    assert not other.down.is_set()


def delivered(rig: Rig, client: Client) -> bool:
    """Whether a message of the victim still gets through: it is followed by one of ours that surely does."""
    client.say(topics.Telemetry("victim"), b"probe")
    mark = str(time.monotonic_ns()).encode()
    rig.link.publish(topics.State("probe").topic, mark)
    return b"probe" in {payload for _, payload in rig.heard(until_payload=mark)}


def test_a_revoked_device_is_thrown_out_cannot_come_back_and_leaves_nothing(rig: Rig) -> None:
    path = rig.device("victim")
    victim, other = rig.connect("victim", path, session=3600), rig.connect("other", rig.device("other"))
    victim.listen(topics.Desired("victim").topic)
    rig.link.publish(topics.Desired("victim").topic, b"desired", retain=True)
    victim.mqtt.publish(topics.Reported("victim").topic, b"reported", qos=1, retain=True)
    rig.heard(until_payload=b"reported")

    rig.mark("victim", device="revoked", certificate="revoked")
    begun = time.monotonic()
    rig.revocations.apply()
    rig.settle()
    assert victim.down.wait(WITHIN)
    assert rig.refuses(path)
    assert time.monotonic() - begun < WITHIN
    assert not other.down.is_set()
    other.say(topics.Telemetry("other"), b"still here")
    payloads = [payload for _, payload in rig.heard(until_payload=b"still here")]
    assert b"died" not in payloads

    # Its id comes in again, with another certificate: no session, nothing queued, nothing retained of the one before.
    again = rig.device("victim", stem="again")
    rig.revocations.apply()
    assert not rig.refuses(again)
    back = rig.connect("victim", again, clean=False)
    assert not back.session_present
    back.listen(topics.Desired("victim").topic)
    back.say(topics.Telemetry("victim"), b"back")
    rig.heard(until_payload=b"back")
    assert back.inbox.empty()
    assert rig.refuses(path)


def test_the_will_of_a_revoked_device_is_not_heard(rig: Rig) -> None:
    """Attack: the device dies on purpose after it was revoked, so that the broker writes for it."""
    victim, other = rig.connect("victim", rig.device("victim")), rig.connect("other", rig.device("other"))
    rig.mark("victim", device="revoked", certificate="revoked")
    rig.revocations.apply()
    assert not delivered(rig, victim)
    victim.cut()
    other.cut()
    # The other's will proves that the broker saw both ends: it handles them in this order.
    died = [topic for topic, payload in rig.heard(until_payload=b"died") if payload == b"died"]
    assert died == [topics.State("other").topic]


def test_a_connection_that_was_kept_open_has_no_rights_when_the_id_is_enrolled_again(rig: Rig) -> None:
    """Attack: a revoked device keeps its connection and waits until its id is let in again."""
    victim = rig.connect("victim", rig.device("victim"))
    rig.mark("victim", device="revoked", certificate="revoked")
    rig.revocations.apply()
    rig.device("victim", stem="again")
    rig.revocations.apply()  # at once: before the connection was ended
    assert rig.revocations.applied is not None
    assert "victim" in rig.revocations.applied.held
    rig.settle()
    assert victim.down.wait(WITHIN)
    assert "victim" not in rig.revocations.applied.held


def test_a_renewed_certificate_makes_the_old_one_useless_and_the_device_stays(rig: Rig) -> None:
    old = rig.device("a")
    rig.mark("a", device="enrolled", certificate="old")
    new = rig.device("a", stem="new")
    live = rig.connect("a", new)
    rig.revocations.apply()
    assert rig.refuses(old)
    assert not live.down.is_set()
    live.say(topics.Telemetry("a"), b"here")
    assert rig.heard(until_payload=b"here")


def test_a_device_that_is_held_is_out_for_a_while_and_keeps_what_it_had(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocation, "HELD_FOR", 2.0)
    path = rig.device("a")
    live = rig.connect("a", path)
    rig.link.publish(topics.Desired("a").topic, b"desired", retain=True)
    rig.revocations.hold("a")
    rig.settle()
    assert live.down.wait(WITHIN)
    assert rig.refuses(path)
    until(lambda: rig.revocations.tick() or not rig.refuses(path), within=WITHIN, what="the end of the minute")
    back = rig.connect("a", path)
    back.listen(topics.Desired("a").topic)
    assert back.inbox.get(timeout=10)[1] == b"desired"


def test_a_claim_certificate_gets_nothing_from_the_broker(rig: Rig) -> None:
    """Attack: whoever holds a batch's kit connects to the broker, whose patterns would give it topics of its name."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = rig.authority.issue_claim("lot-7", key.public_key(), lifetime=timedelta(days=1), now=rig.now)
    path = rig.folder / "claim.pem"
    path.write_bytes(to_pem(certificate) + key_to_pem(key))
    assert not rig.refuses(path)  # it is one of ours: only what comes now keeps it out
    with rig.database.transaction() as session:
        session.add(
            ClaimRow(
                batch="lot-7",
                profile="x86-64",
                group="default",
                quota=1,
                created=show_instant(rig.now),
                expires=show_instant(certificate.not_valid_after_utc),
                serial=serial_text(certificate),
                certificate=to_pem(certificate).decode(),
            )
        )
    rig.revocations.apply()
    assert rig.refuses(path)
    assert "user lot-7\ntopic deny #" in (rig.folder / "broker" / "acl").read_text()


def test_what_nobody_applied_is_found_by_the_next_look(rig: Rig) -> None:
    """Accident: whoever revoked was interrupted between the database and the broker."""
    path = rig.device("victim")
    victim = rig.connect("victim", path)
    rig.revocations.tick()
    rig.mark("victim", device="retired", certificate="revoked")
    until(lambda: rig.revocations.tick() or victim.down.is_set(), within=WITHIN, what="the end of the connection")
    assert rig.refuses(path)


def test_a_revocation_that_a_full_disk_stopped_is_tried_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accident: there is no room for the lists, and room again a moment later."""
    path = rig.device("victim")
    victim = rig.connect("victim", path)
    rig.revocations.tick()
    rig.mark("victim", device="revoked", certificate="revoked")
    with monkeypatch.context() as full:
        full.setattr(rig.broker, "restrict", _no_room)
        with pytest.raises(StorageFull):
            rig.revocations.apply()
        assert not rig.refuses(path)
    until(lambda: rig.revocations.tick() or victim.down.is_set(), within=WITHIN, what="the end of the connection")
    assert rig.refuses(path)


def _no_room(_rules: str, _revoked: bytes) -> None:
    raise StorageFull("no room")


def test_lists_that_follow_one_another_at_once_are_all_in_force(rig: Rig) -> None:
    """Accident: somebody is revoked while the broker still reads what was before. It forgets a signal of that time."""
    victim, lists = rig.connect("victim", rig.device("victim")), rig.authority.current.revocation_list([], rig.now)
    long = "".join(f"user somebody-{i}\ntopic deny #\n" for i in range(4000))
    for _ in range(3):
        rig.broker.restrict(topics.access_rules() + long, lists)
        assert delivered(rig, victim)
        for denied in ((), ("victim",)):
            rig.broker.restrict(topics.access_rules(denied) + long, lists)
            socket.create_connection(("127.0.0.1", rig.broker.address.port)).close()  # it wakes up, and reads
        assert not delivered(rig, victim)


def test_a_broker_that_does_not_answer_is_told_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Accident: the broker hangs while somebody is revoked. Nobody is told that it is done, and it is done later."""
    path = rig.device("victim")
    victim = rig.connect("victim", path)
    rig.revocations.tick()
    before = rig.revocations.applied
    rig.mark("victim", device="revoked", certificate="revoked")
    assert rig.broker.pid is not None
    os.kill(rig.broker.pid, signal.SIGSTOP)
    try:
        rig.revocations.apply()
        assert rig.revocations.applied == before
    finally:
        os.kill(rig.broker.pid, signal.SIGCONT)
    assert "does not answer" in caplog.text
    assert "who was shut out may be in" in caplog.text
    until(lambda: rig.revocations.tick() or victim.down.is_set(), within=WITHIN, what="the end of the connection")
    assert rig.refuses(path)


def test_what_is_undone_while_the_broker_does_not_answer_is_undone_there_too(rig: Rig) -> None:
    """Accident: the broker hangs, was told that a device is out, and wakes up after it is in again."""
    path = rig.device("a")
    rig.revocations.tick()
    assert rig.broker.pid is not None
    os.kill(rig.broker.pid, signal.SIGSTOP)
    try:
        rig.mark("a", device="revoked", certificate="revoked")
        rig.revocations.apply()
        rig.mark("a", device="enrolled", certificate="current")
    finally:
        os.kill(rig.broker.pid, signal.SIGCONT)
    until(lambda: rig.refuses(path), what="the broker's reading of what it was told")
    until(lambda: rig.revocations.tick() or not rig.refuses(path), within=WITHIN, what="the end of that")
    assert not rig.broker.unread


def test_a_signal_that_follows_one_without_an_answer_is_not_lost(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accident: the broker reads for so long that it is told again meanwhile, of another change."""
    victim, lists = rig.connect("victim", rig.device("victim")), rig.authority.current.revocation_list([], rig.now)
    long = "".join(f"user somebody-{i}\ntopic deny #\n" for i in range(8000))
    with monkeypatch.context() as hasty:
        hasty.setattr(broker_module, "READ_WITHIN", 0.02)
        with pytest.raises(Unanswered, match="does not answer"):
            rig.broker.restrict(topics.access_rules() + long, lists)
    assert rig.broker.unread
    rig.broker.restrict(topics.access_rules(("victim",)) + long, lists)
    assert not rig.broker.unread
    assert not delivered(rig, victim)


def test_a_connection_that_shows_its_certificate_late_is_ended_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: a device connects before it is revoked, and shows its certificate after it was."""
    monkeypatch.setattr(revocation, "LATE", 1.0)
    context = ssl.create_default_context(cafile=str(rig.authority.believed_path))
    context.load_cert_chain(rig.device("victim"))
    with socket.create_connection(("127.0.0.1", rig.broker.address.port), timeout=10) as raw:
        assert handshake(rig, context, None) is not None  # it came later, so the one before is accepted as well
        rig.broker.reload()  # what mosquitto accepted before this hears of this change, and of none after it
        rig.mark("victim", device="revoked", certificate="revoked")
        rig.revocations.apply()
        rig.settle()
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as late:
            late.sendall(HELLO)
            assert late.recv(1) == b"\x20", "the case that this is about"
            until(lambda: rig.revocations.tick() or not rig.revocations._late, within=WITHIN, what="the second time")
            while late.recv(100):
                pass
    assert handshake(rig, context, None) is None


def test_who_is_revoked_while_the_broker_starts_is_out_when_it_runs(rig: Rig) -> None:
    for i, state in enumerate(("restarting", "starting")):
        path = rig.device(f"d{i}")
        assert not rig.refuses(path)
        assert rig.broker.pid is not None
        os.kill(rig.broker.pid, signal.SIGKILL)
        until(lambda state=state: rig.broker.state == state, what=f"a broker that is {state}")  # type: ignore[misc]
        rig.mark(f"d{i}", device="revoked", certificate="revoked")
        rig.revocations.apply()
        until(lambda: rig.broker.state == "running", what="a broker that runs")
        assert rig.refuses(path)


def test_a_certificate_that_is_forgotten_does_not_hide_one_that_was_replaced(rig: Rig) -> None:
    """Accident: one certificate leaves the database in the same moment in which another one becomes old."""
    rig.device("forgotten")
    path = rig.device("replaced")
    rig.mark("forgotten", device="enrolled", certificate="old")
    rig.revocations.apply()
    rig.revocations.tick()
    assert not rig.refuses(path)
    with rig.database.transaction() as session:
        session.delete(session.exec(select(CertificateRow).where(CertificateRow.device == "forgotten")).one())
    rig.mark("replaced", device="enrolled", certificate="old")
    rig.now += timedelta(seconds=1)
    rig.device("renewed")
    until(lambda: rig.revocations.tick() or rig.refuses(path), within=WITHIN, what="the refusal of the old one")


def test_a_session_that_was_resumed_does_not_get_round_the_list(rig: Rig) -> None:
    """Attack: TLS resumes an earlier session, which shows no certificate again."""
    path = rig.device("victim")
    context = ssl.create_default_context(cafile=str(rig.authority.believed_path))
    context.load_cert_chain(path)
    session = handshake(rig, context, None)
    assert session is not None
    assert handshake(rig, context, session) is not None  # resumption works as long as the device may come in
    rig.mark("victim", device="enrolled", certificate="old")
    rig.revocations.apply()
    assert handshake(rig, context, session) is None


def handshake(rig: Rig, context: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLSession | None:
    """Connect over MQTT; the TLS session when the broker answers, None when it refuses."""
    try:
        with (
            socket.create_connection(("127.0.0.1", rig.broker.address.port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1", session=session) as connection,
        ):
            connection.sendall(HELLO)
            assert connection.recv(4)[:1] in (b"\x20", b"")
            assert session is None or connection.session_reused
            return connection.session
    except OSError:
        return None


def test_lists_follow_one_another_whatever_the_clock_does(rig: Rig) -> None:
    """Accident: the clock stands still, then jumps back. A broker heeds the newer of two lists; none may expire."""
    dates = []
    for i, year in enumerate((2026, 2026, 1970, 2026)):
        rig.stands = datetime(year, 1, 1, tzinfo=UTC)
        rig.device(f"d{i}")
        rig.mark(f"d{i}", device="revoked", certificate="revoked")
        rig.revocations.apply()
        data = (rig.folder / "broker" / REVOKED).read_bytes()
        found = x509.load_pem_x509_crl(data)
        assert found.is_signature_valid(rig.authority.certificate.public_key())  # type: ignore[arg-type]
        assert len(list(found)) == i + 1
        assert found.next_update_utc is not None
        assert found.next_update_utc - found.last_update_utc > timedelta(days=3000)
        dates.append(found.last_update_utc)
    assert dates == sorted(set(dates))


def test_every_authority_has_a_list_for_without_one_the_broker_refuses_its_devices(rig: Rig) -> None:
    old = rig.device("old")
    rig.authority.use(rig.authority.prepare(rig.now).fingerprint)
    rig.revocations.reissue()
    new = rig.device("new")
    assert not rig.refuses(new)
    assert not rig.refuses(old)
    rig.mark("old", device="revoked", certificate="revoked")
    rig.revocations.apply()
    assert rig.refuses(old)
    assert not rig.refuses(new)


def test_a_revoked_device_is_out_everywhere_and_stays_out_after_a_restart(tmp_path: Path, enrolling: Any) -> None:
    """The whole way: `POST .../revoke` on a real fleet, with another device that lives on undisturbed."""
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        victim, other = new_device("victim"), new_device("other")
        dropped = {"victim": threading.Event(), "other": threading.Event()}
        for device in (victim, other):
            device.connect()
            device.client.on_disconnect = lambda *_, name=device.id: dropped[name].set()
            device.until_status("online")
        begun = time.monotonic()
        fleet.api("POST", "/api/v1/devices/victim/revoke", {"reason": "stolen"})
        assert dropped["victim"].wait(WITHIN)
        refused_after = until(lambda: broker_refuses(fleet, victim) and time.monotonic() - begun, what="the refusal")
        assert refused_after < WITHIN
        assert fleet.request("GET", "/v1/models", tls=victim.tls())[0] in (401, 403)
        body = b"AAAA"
        assert fleet.request("POST", "/.well-known/est/simplereenroll", body, tls=victim.tls())[0] in (401, 403)
        other.send(other.batch(1))
        assert other.next_ack().stored == 1
        assert not dropped["other"].is_set()
        assert victim.view()["status"] == "revoked"

        fleet.stop()
        fleet.start()
        assert broker_refuses(fleet, victim)
        assert not broker_refuses(fleet, other)


def broker_refuses(fleet: FleetProcess, device: Any) -> bool:
    host, port = fleet.broker.split(":")
    return refuses(device.tls(), host, int(port))


def refuses(context: ssl.SSLContext, host: str, port: int) -> bool:
    """Whether the handshake fails. Nothing is said over MQTT, which would end a live connection of the same name.

    In TLS 1.3 a client hears of it with its first read; a broker that lets it in waits for it to speak.
    """
    try:
        with (
            socket.create_connection((host, port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=host) as connection,
        ):
            connection.settimeout(0.5)
            return not connection.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True
