"""A fleet and a line in memory, both able to fail as the real ones do, and a real certificate authority.

sim.release(bundle)                       # sign and publish it
device.connect(); await device.desire(bundle)
sim.faults.lose = 0.3                     # every third chunk is lost, with .corrupt, .repeat and .shuffle beside it
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from securesystemslib.signer import CryptoSigner
from tiny_bundle import TinyBundle, make_layout
from trust_repository import Repository

from agent.blobs import Blobs
from agent.inbox import Inbox
from agent.install.fetch import Fetcher
from agent.install.installer import Installer
from agent.keeper import TrustKeeper
from agent.serving.service import Service
from agent.settings import AgentSettings
from agent.state import StateFile
from agent.telemetry import Outbox, Recorder, WindowMeter
from wire import topics
from wire.chunks import ChunkList, from_bitmap, single
from wire.dsse import open_by_key, seal
from wire.messages import Ack, Desired, DesiredModel, Health, Presence, TelemetryBatch, Want
from wire.units import show_instant

DEVICE = "kitchen-1"


@dataclass
class Faults:
    """What goes wrong on the way; probabilities per message. `fired` counts how often each did."""

    lose: float = 0.0
    corrupt: float = 0.0
    repeat: float = 0.0
    shuffle: bool = False
    lose_acks: int = 0
    tampered: set[int] = field(default_factory=set)
    fired: dict[str, int] = field(default_factory=dict)

    def fire(self, what: str) -> None:
        self.fired[what] = self.fired.get(what, 0) + 1


class SimFleet:
    """The fleet's side of the wire: publishes trust, desired states and chunks, stores telemetry; no network."""

    def __init__(self, device_key) -> None:
        self.repo = Repository()
        self.repo.now = datetime.now(UTC)
        self.repo.expires = self.repo.now + timedelta(days=30)
        self.repo.sign_targets()
        self.repo.sign_release()
        self.faults = Faults()
        self.random = random.Random(7)
        self.device_key = device_key
        self.bundles: list[TinyBundle] = []
        self.seq = 0
        self.desired: bytes | None = None
        self.records: dict[tuple[str, int], int] = {}
        self.wants = 0
        self.sent_chunks = 0

    # what is published

    def release(self, bundle: TinyBundle) -> None:
        self.bundles.append(bundle)
        self.repo.release(bundle.target, bundle.manifest_bytes)

    def desire(self, *bundles: TinyBundle, rollout: str | None = "r1", device: str = DEVICE) -> bytes:
        self.seq += 1
        models = tuple(DesiredModel(target=b.target, digest=b.digest, rollout=rollout) for b in bundles)
        now = datetime.now(UTC)
        statement = Desired(
            device=device,
            epoch=1,
            seq=self.seq,
            issued=show_instant(now),
            expires=show_instant(now + timedelta(days=1)),
            models=models,
        )
        self.desired = seal(statement, self.repo.keys["fleet"][0])
        return self.desired

    def retained(self) -> list[tuple[str, bytes]]:
        def topic(name: str) -> topics.Topic:
            return topics.TrustRoot(int(name[5:])) if name.startswith("root/") else topics.TrustRole(name)

        found = [(topic(name).topic, data) for name, data in self.repo.offered().items()]
        found.append((topics.FleetState().topic, Presence(session="f1", online=True).to_bytes()))
        if self.desired is not None:
            found.append((topics.Desired(DEVICE).topic, self.desired))
        return found

    # what it answers

    def answer(self, topic: str, payload: bytes) -> list[tuple[str, bytes]]:
        match topics.parse(topic):
            case topics.Want():
                return self._chunks(Want.from_bytes(payload))
            case topics.Telemetry(device):
                return self._ack(device, payload)
        return []

    def _chunks(self, want: Want) -> list[tuple[str, bytes]]:
        self.wants += 1
        data = self._blob(want.digest)
        if data is None:
            return []
        chunks = self._chunk_list(want.digest, data)
        wanted = sorted(from_bitmap(want.missing, want.count))
        if self.faults.shuffle:
            self.random.shuffle(wanted)
        found = []
        for i in wanted:
            start = chunks.offsets[i]
            found += self._on_the_way(want.digest, i, data[start : start + chunks.chunks[i].size])
        self.sent_chunks += len(found)
        return found

    def _on_the_way(self, blob: str, index: int, data: bytes) -> list[tuple[str, bytes]]:
        faults, topic = self.faults, topics.Chunk(blob, index).topic
        if index in faults.tampered and len(data) > 1000:
            faults.fire("tampered")
            return [(topic, data[:-1] + bytes([data[-1] ^ 1]))]
        if self.random.random() < faults.lose:
            faults.fire("lost")
            return []
        if self.random.random() < faults.corrupt:
            faults.fire("corrupt")
            return [(topic, data[:-1] + bytes([data[-1] ^ 1]))]
        if self.random.random() < faults.repeat:
            faults.fire("repeat")
            return [(topic, data), (topic, data)]
        return [(topic, data)]

    def _blob(self, name: str) -> bytes | None:
        paths = (bundle.blob(name) for bundle in self.bundles)
        return next((path.read_bytes() for path in paths if path.exists()), None)

    def _chunk_list(self, name: str, data: bytes) -> ChunkList:
        for bundle in self.bundles:
            for file in bundle.manifest.files:
                if file.digest == name and file.chunks:
                    return ChunkList.from_bytes(bundle.blob(file.chunks).read_bytes())
        return single(name, len(data))

    def _ack(self, device: str, payload: bytes) -> list[tuple[str, bytes]]:
        batch = open_by_key(payload, TelemetryBatch, self.device_key)
        for record in batch.records:
            key = (batch.boot, record.seq)
            self.records[key] = self.records.get(key, 0) + 1
        if self.faults.lose_acks > 0:
            self.faults.lose_acks -= 1
            self.faults.fire("lost ack")
            return []
        ack = Ack(
            device=device,
            nonce=batch.nonce,
            time=show_instant(datetime.now(UTC)),
            boot=batch.boot,
            stored=batch.records[-1].seq,
            desired_epoch=1,
            desired_seq=self.seq,
        )
        return [(topics.Ack(device).topic, seal(ack, self.repo.keys["fleet"][0]))]


class SimLink:
    """A line in memory: the interface of the real one, and messages that come later, on the loop."""

    def __init__(self, sim: SimFleet) -> None:
        self.sim = sim
        self.up = False
        self.subscribed: set[str] = set()
        self.published: list[tuple[str, bytes]] = []
        self.deliver: Callable[[str, bytes], None] = lambda _topic, _payload: None

    def publish(self, topic: topics.Topic, payload: bytes, **_retain: bool) -> None:
        if not self.up:
            return
        self.published.append((topic.topic, payload))
        for answer in self.sim.answer(topic.topic, payload):
            asyncio.get_running_loop().call_soon(self._arrive, *answer)

    def _arrive(self, topic: str, payload: bytes) -> None:
        if self.up and (not topic.startswith("shoal/1/blob/") or topic.rsplit("/", 1)[0] + "/+" in self.subscribed):
            self.deliver(topic, payload)

    def subscribe(self, pattern: str, **_qos: int) -> None:
        if self.up:
            self.subscribed.add(pattern)

    def unsubscribe(self, pattern: str) -> None:
        self.subscribed.discard(pattern)


class Device:
    """An agent's inner parts on a line in memory; `stop()` and a new `Device` on the same folder is a restart."""

    def __init__(self, folder: Path, sim: SimFleet, key: CryptoSigner, **settings: object) -> None:
        defaults = {"fetch_timeout": 0.05, "probation_requests": 2, "probation_time": 0.2, "min_free": 0}
        self.settings = AgentSettings(
            state=folder, socket=folder / "agent.sock", **{**defaults, "ack_timeout": 0.1, **settings}
        )
        self.sim = sim
        self.events: list[tuple[str, str]] = []
        self.link = SimLink(sim)
        self.state = StateFile.open(folder / "agent.db")
        if not self.state.trust_documents():
            self.state.save_trust({"root": sim.repo.roots[1]})
        self.keeper = TrustKeeper(self.state, self.now)
        self.store = Blobs(folder / "blobs", self.settings.min_free)
        self.fetcher = Fetcher(
            *(DEVICE, self.link, self.store),
            timeout=self.settings.fetch_timeout,
            bad_chunks=self.settings.bad_chunks,
            on_bad=self.note,
        )
        self.meter = WindowMeter()
        self.service = Service(self.meter)
        self.installer = Installer(
            settings=self.settings,
            state=self.state,
            store=self.store,
            fetcher=self.fetcher,
            service=self.service,
            trusted=self.keeper.trusted,
            now=self.now,
            profile="x86-64",
            runtimes=frozenset({"onnxruntime"}),
            on_change=lambda: None,
        )
        self.outbox = Outbox(
            *(DEVICE, self.state, self.link, key, self.keeper.trusted), timeout=self.settings.ack_timeout
        )
        self.recorder = Recorder(
            *(self.state, self.meter),
            boot=f"b{time.monotonic_ns()}",
            limit=self.settings.queue,
            now=self.now,
            health=_health,
        )
        self.inbox = Inbox(
            device=DEVICE,
            state=self.state,
            keeper=self.keeper,
            installer=self.installer,
            fetcher=self.fetcher,
            outbox=self.outbox,
            now=self.now,
            note_security=self.note,
        )
        self.link.deliver = self.inbox.take
        self.inbox.start()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def note(self, subject: str, reason: str) -> None:
        self.events.append((subject, reason))

    def connect(self) -> None:
        self.link.up = True
        self.inbox.line_is_up()
        self.fetcher.line_is_up()
        self.outbox.again()
        self.hear_retained()

    def hear_retained(self) -> None:
        messages = self.sim.retained()
        self.sim.random.shuffle(messages)
        for topic, payload in messages:
            self.inbox.take(topic, payload)

    def disconnect(self) -> None:
        self.link.up = False
        self.link.subscribed.clear()
        self.inbox.line_is_down()
        self.outbox.forget()

    async def stop(self) -> None:
        self.disconnect()
        await self.installer.stop()
        await self.inbox.stop()
        self.service.close()
        self.state.close()

    async def until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (self.phases(), self.events, self.sim.faults.fired)
            await asyncio.sleep(0.01)

    async def until_phase(self, phase: str) -> None:
        await self.until(lambda: phase in self.phases())

    def phases(self) -> dict[str, str]:
        return {report.phase: report.reason for report in self.installer.updates()}

    def active(self) -> list[str]:
        return [slot.digest for slot in self.installer.slots() if slot.slot == "active"]


def _health() -> Health:
    return Health(cpu_percent=1.0, memory_used=1, memory_total=2, agent_memory=1, disk_free=1, disk_total=2)


class Authority:
    """A certificate authority of the test's own; keys are made at run time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        self.name = name
        self.certificate = self._certificate(name, self.key.public_key(), ca=True)
        self.pem = self.certificate.public_bytes(Encoding.PEM).decode()

    def issue(self, common_name: str, public_key, expires: datetime | None = None) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        return self._certificate(name, public_key, ca=False, expires=expires)

    def files(self, common_name: str, expires: datetime | None = None) -> tuple[Path, Path]:
        """Certificate and key files for a server or client."""
        key = ec.generate_private_key(ec.SECP256R1())
        cert_path, key_path = self.folder / f"{common_name}.pem", self.folder / f"{common_name}-key.pem"
        cert_path.write_bytes(self.issue(common_name, key.public_key(), expires).public_bytes(Encoding.PEM))
        key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cert_path, key_path

    def _certificate(self, subject, public_key, *, ca: bool, expires: datetime | None = None) -> x509.Certificate:
        now = datetime.now(UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(expires or now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a path short enough for a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="sh-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture(scope="session")
def device_key() -> CryptoSigner:
    return CryptoSigner(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def sim(device_key: CryptoSigner) -> SimFleet:
    return SimFleet(device_key.public_key)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyBundle]:
    """Version 1 and 2, and a third whose weights were scrambled after its golden set was made."""
    layout = tmp_path_factory.mktemp("layout")
    return {
        "one": make_layout(layout, version="1.0.0"),
        "two": make_layout(layout, version="2.0.0"),
        "broken": make_layout(layout, version="3.0.0", broken=True),
    }


@pytest.fixture
def new_device(tmp_path: Path, sim: SimFleet, device_key: CryptoSigner) -> Callable[..., Device]:
    """Make the device of the test, or make it again on the same folder."""
    folder = tmp_path / "state"
    folder.mkdir()
    return lambda **settings: Device(folder, sim, device_key, **settings)
