"""A running fleet per test, and devices that are only a key, a certificate and a real MQTT connection.

A `Device` here does what the wire asks of an agent and nothing else, so a test can make it lie in one line.
"""

from __future__ import annotations

import base64
import queue
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID
from fleet_process import FleetProcess, Publisher, initialise_trust, until
from paho.mqtt.enums import CallbackAPIVersion
from securesystemslib.signer import CryptoSigner

from wire import topics
from wire.chunks import to_bitmap
from wire.dsse import open_by_role, seal
from wire.kit import EnrolmentKit
from wire.messages import (
    Presence,
    Reply,
    Reported,
    SlotReport,
    Statement,
    TelemetryBatch,
    TelemetryRecord,
    UpdateReport,
    Want,
)
from wire.orders import Ack, Command, Desired
from wire.secrecy import open_keys, public_text
from wire.trust import TrustedSet

TIME = "2026-11-22T08:00:00.000Z"


def request_for(name: str, key: Any) -> bytes:
    """A PKCS#10 request in DER."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def enrol_raw(fleet: FleetProcess, device: str, token: str, request: bytes) -> tuple[int, bytes]:
    """EST simpleenroll with any values."""
    basic = base64.b64encode(f"{device}:{token}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/pkcs10"}
    return fleet.request("POST", "/.well-known/est/simpleenroll", base64.b64encode(request), headers=headers)


def certificate_in(body: bytes) -> x509.Certificate:
    """The one certificate of an EST answer."""
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(body, validate=True))
    return certificate


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


@dataclass
class Device:
    """A device. What arrives waits in `inbox` as (topic, payload).

    `starts`, `seq` and `sent` are what the wire wants to rise. `key` is that of the certificate it uses; a test takes
    the one that `renew` brings with `use`. `sealing` is the private half of its sealing key.
    """

    fleet: FleetProcess
    kit: EnrolmentKit
    folder: Path
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    sealing: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    boot: str = "boot-1"
    starts: int = 1
    seq: int = 0
    sent: int = 0
    client: mqtt.Client | None = None

    def __post_init__(self) -> None:
        assert self.kit.device is not None
        self.id = self.kit.device
        self.signer = CryptoSigner(self.key)
        self.inbox: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.connected = False

    def enrol(self) -> None:
        status, body = enrol_raw(self.fleet, self.id, self.kit.token or "", request_for(self.id, self.key))
        assert status == 200, body
        self.use(certificate_in(body), self.key)

    def use(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        """Use another certificate from now on: for connections after this, and signatures."""
        self.certificate, self.key, self.signer = certificate, key, CryptoSigner(key)
        self.pem_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + key_pem(key))

    @property
    def pem_file(self) -> Path:
        """Certificate and key in use."""
        return self.folder / f"{self.id}.pem"

    def tls(self) -> ssl.SSLContext:
        context = self.fleet.tls()
        context.load_cert_chain(self.pem_file)
        return context

    def renew(self, key: ec.EllipticCurvePrivateKey, *, name: str | None = None) -> tuple[int, bytes]:
        """EST simplereenroll with the certificate in use."""
        body = base64.b64encode(request_for(name or self.id, key))
        return self.fleet.request("POST", "/.well-known/est/simplereenroll", body, tls=self.tls())

    def connect(self, *filters: str, client_id: str | None = None) -> None:
        """Connect, subscribe to its own topics and `filters`, and say that it is there."""
        mine = [kind(self.id).topic for kind in (topics.Desired, topics.Ack, topics.Command)]
        own = [*mine, f"{topics.PREFIX}/trust/#", *filters]
        subscribed: queue.Queue[bool] = queue.Queue()
        self.client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id or self.id, protocol=mqtt.MQTTv5
        )
        client.tls_set_context(self.tls())
        client.reconnect_delay_set(1, 1)
        client.will_set(topics.State(self.id).topic, self.presence(online=False), 1, retain=True)
        client.on_message = lambda _c, _u, m: self.inbox.put((m.topic, m.payload))
        client.on_subscribe = lambda *_: subscribed.put(True)

        def on_connect(client: mqtt.Client, *_: object) -> None:
            client.subscribe([(f, 1) for f in own])
            client.publish(topics.State(self.id).topic, self.presence(online=True), 1, retain=True)

        client.on_connect = on_connect
        host, port = self.fleet.broker.split(":")
        client.connect(host, int(port), keepalive=10)
        client.loop_start()
        subscribed.get(timeout=10)

    def disconnect(self) -> None:
        if self.client is not None:
            self.client.disconnect()
            self.client.loop_stop()
            self.client = None

    def cut(self) -> None:
        """Lose the connection without a goodbye, and do not come back."""
        assert self.client is not None
        client, self.client = self.client, None
        connection = client.socket()
        assert connection is not None
        client.reconnect_delay_set(60, 60)
        connection.shutdown(socket.SHUT_RDWR)
        client.loop_stop()

    def presence(self, *, online: bool) -> bytes:
        return Presence(session=self.boot, online=online).to_bytes()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert self.client is not None
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10)

    def next(self, kind: type[topics.Topic], *, within: float = 10) -> tuple[topics.Topic, bytes]:
        """The next message of a kind; others before it are dropped."""
        while True:
            topic, payload = self.inbox.get(timeout=within)
            if isinstance(parsed := topics.parse(topic), kind):
                return parsed, payload

    def nothing_of(self, kind: type[topics.Topic], *, after: Callable[[], object]) -> bool:
        """Whether none of a kind came by the time that `after` is through."""
        after()
        waiting = [self.inbox.get() for _ in range(self.inbox.qsize())]
        return not any(isinstance(topics.parse(topic), kind) for topic, _ in waiting)

    def trust(self) -> TrustedSet:
        documents = {name: text.encode() for name, text in self.kit.trust.items()}
        return TrustedSet.from_root(documents["root/1"])

    def verify(self, payload: bytes, kind: type[Any]) -> Any:
        """A statement of the fleet, verified as an agent does."""
        offered = {n: d.encode() for n, d in self.fleet.api("GET", "/api/v1/trust")["documents"].items()}
        trust = self.trust()
        assert trust.offer(offered, datetime.now(UTC)) == ()
        return open_by_role(payload, kind, trust.targets())

    def next_desired(self, *, seq: int) -> Desired:
        """The verified desired state of at least this sequence."""
        while True:
            desired: Desired = self.verify(self.next(topics.Desired)[1], Desired)
            if desired.seq >= seq:
                return desired

    def next_ack(self, *, within: float = 10) -> Ack:
        """The next acknowledgement of telemetry; those of reports store nothing."""
        while (ack := self._ack(within=within)).stored == 0:
            pass
        return ack

    def send_until_stored(self, batch: TelemetryBatch, stored: int, *, within: float = 20) -> None:
        """Say it again until it is acknowledged, as an agent does: a broker that is new or full lost what was said."""
        deadline = time.monotonic() + within
        while True:
            self.send(batch)
            try:
                while self.next_ack(within=1).stored != stored:
                    pass  # the late answer to what was said twice
            except queue.Empty:
                assert time.monotonic() < deadline, f"no acknowledgement of {batch.nonce} within {within} s"
            else:
                return

    def answer_to(self, reported: Reported) -> Ack:
        """The acknowledgement of a report."""
        while (ack := self._ack()).nonce != reported.nonce:
            pass
        return ack

    def until_answer(self, reported: Reported) -> list[type[topics.Topic]]:
        """The kinds of all that came up to the acknowledgement of a report: what is not among them was not sent."""
        kinds: list[type[topics.Topic]] = []
        while True:
            topic, payload = self.inbox.get(timeout=10)
            kinds.append(type(topics.parse(topic)))
            if kinds[-1] is topics.Ack and self.verify(payload, Ack).nonce == reported.nonce:
                return kinds

    def _ack(self, *, within: float = 10) -> Ack:
        ack: Ack = self.verify(self.next(topics.Ack, within=within)[1], Ack)
        return ack

    def say(
        self, topic: topics.Topic, statement: Statement, *, signer: CryptoSigner | None = None, retain: bool = False
    ) -> None:
        self.publish(topic.topic, seal(statement, signer or self.signer), retain=retain)

    def report(self, *updates: UpdateReport, slots: tuple[SlotReport, ...] = (), **changes: Any) -> Reported:
        """Report the outcome of updates; `changes` bend the report."""
        self.seq += 1
        values: dict[str, Any] = {
            "device": self.id,
            "boot": self.boot,
            "starts": self.starts,
            "seq": self.seq,
            "nonce": f"report-{self.starts}-{self.seq}",
            "time": TIME,
            "sealing_key": public_text(self.sealing.public_key()),
            "agent": "0.1.0",
            "profile": self.kit.profile.name,
            "hardware": "test",
            "emulated": True,
            "desired_epoch": 1,
            "desired_seq": 1,
        }
        reported = Reported(**{**values, **changes}, updates=updates, slots=slots)
        self.say(topics.Reported(self.id), reported, retain=True)
        return reported

    def batch(self, *seqs: int, nonce: str = "n", **record: Any) -> TelemetryBatch:
        """The next batch that this device would send."""
        self.sent += 1
        records = tuple(TelemetryRecord(seq=s, start=TIME, end=TIME, **record) for s in seqs)
        return TelemetryBatch(
            device=self.id, boot=self.boot, starts=self.starts, sent=self.sent, nonce=nonce, records=records
        )

    def send(self, batch: TelemetryBatch, *, signer: CryptoSigner | None = None) -> None:
        self.say(topics.Telemetry(self.id), batch, signer=signer)

    def next_command(self) -> Command:
        command: Command = self.verify(self.next(topics.Command)[1], Command)
        return command

    def reply(self, command: Command, outcome: Any = "done") -> None:
        reply = Reply(device=self.id, epoch=command.epoch, seq=command.seq, outcome=outcome)
        self.say(topics.Reply(self.id), reply)

    def keys(self, desired: Desired) -> dict[str, bytes]:
        """The keys of blobs that a desired state brings."""
        return open_keys(desired.keys, self.sealing, self.id)

    def want(self, digest: str, indexes: range, count: int) -> None:
        want = Want(digest=digest, count=count, missing=to_bitmap(indexes, count))
        self.publish(topics.Want(self.id).topic, want.to_bytes())

    def view(self) -> Any:
        return self.fleet.api("GET", f"/api/v1/devices/{self.id}")

    def until_status(self, status: str) -> None:
        until(lambda: self.view()["status"] == status, what=f"{self.id} {status}")


NewDevice = Callable[..., Device]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    """One fleet for a file's tests: they use device ids and versions of their own."""
    with FleetProcess(tmp_path_factory.mktemp("module") / "fleet", gather="100 ms") as process:
        yield process


@pytest.fixture(scope="module")
def publisher(fleet: FleetProcess) -> Publisher:
    return initialise_trust(fleet)


@contextmanager
def devices_of(fleet: FleetProcess, folder: Path) -> Iterator[NewDevice]:
    made: list[Device] = []

    def make(name: str, group: str = "default") -> Device:
        kit = fleet.api("POST", "/api/v1/devices", {"device": name, "profile": "x86-64", "group": group})
        device = Device(fleet, EnrolmentKit.from_value(kit), folder)
        device.enrol()
        made.append(device)
        return device

    try:
        yield make
    finally:
        for device in made:
            device.disconnect()


@pytest.fixture
def new_device(fleet: FleetProcess, publisher: Publisher, tmp_path: Path) -> Iterator[NewDevice]:
    """Makes enrolled devices, and disconnects them in the end."""
    with devices_of(fleet, tmp_path) as make:
        yield make


@pytest.fixture
def enrolling() -> Callable[[FleetProcess, Path], AbstractContextManager[NewDevice]]:
    """The same for a fleet that a test starts itself."""
    return devices_of


@dataclass(frozen=True)
class Est:
    """`request(name, key)` makes a certificate request, `enrol(fleet, device, token, request)` sends it."""

    request: Callable[[str, Any], bytes]
    enrol: Callable[[FleetProcess, str, str, bytes], tuple[int, bytes]]


@pytest.fixture
def est() -> Est:
    """Enrolment by hand."""
    return Est(request_for, enrol_raw)
