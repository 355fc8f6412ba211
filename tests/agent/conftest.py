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
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from paho.mqtt.client import topic_matches_sub
from securesystemslib.signer import CryptoSigner, Key
from tiny_bundle import TinyBundle, make_layout
from trust_repository import Repository

from agent.core import About, Core
from agent.settings import AgentSettings
from agent.store.state import StateFile
from agent.trust.clock import Clock
from wire import topics
from wire.chunks import ChunkList, from_bitmap, single
from wire.dsse import open_by_key, seal
from wire.messages import InferenceStats, Presence, Reply, Reported, Statement, TelemetryBatch, TelemetryRecord, Want
from wire.orders import Ack, Command, DeltaOffer, Desired, DesiredModel, MeasureJob
from wire.secrecy import blob_key, encrypt_chunk, public_key, seal_keys
from wire.shadow import ShadowModel
from wire.units import show_instant

DEVICE = "kitchen-1"
ABOUT = About(
    device=DEVICE,
    profile="x86-64",
    hardware="a test",
    emulated=True,
    agent="0",
    runtimes=frozenset({"onnxruntime"}),
)


@dataclass
class Faults:
    """What goes wrong on the way; probabilities per message. `fired` counts how often each did."""

    lose: float = 0.0
    corrupt: float = 0.0
    repeat: float = 0.0
    shuffle: bool = False
    lose_acks: int = 0
    mute: bool = False
    """The fleet, or somebody between, answers nothing."""
    hold_desired: bool = False
    """Somebody keeps the newest desired state back."""
    tampered: set[int] = field(default_factory=set)
    """Chunks whose bytes the source changed before it encrypted them."""
    fired: dict[str, int] = field(default_factory=dict)

    def fire(self, what: str) -> None:
        self.fired[what] = self.fired.get(what, 0) + 1


class SimFleet:
    """The fleet's side of the wire: publishes trust, desired states, commands and encrypted chunks; no network.

    It answers every report and batch as the real one does, and takes none whose number did not rise. `ahead` moves its
    clock; `sealing` is the key that it seals key rings to, None until a report names it.
    """

    def __init__(self, device_key: Key, sealing: EllipticCurvePublicKey | None) -> None:
        self.repo = Repository()
        self.repo.now = datetime.now(UTC)
        self.repo.expires, self.repo.versions["root"] = self.repo.now + timedelta(days=365), 0
        self.repo.sign_root()
        self.repo.expires = self.repo.now + timedelta(days=30)
        self.repo.sign_targets()
        self.repo.sign_release()
        self.faults = Faults()
        self.random = random.Random(7)
        self.device_key = device_key
        self.sealing = sealing
        self.secret = bytes(range(32))
        self.ahead = timedelta(0)
        self.bundles: list[TinyBundle] = []
        self.wanted: tuple[TinyBundle, ...] = ()
        self.measure: dict[str, TinyBundle] = {}
        self.shadows: tuple[tuple[ShadowModel, TinyBundle], ...] = ()
        self.seq = self.ack_seq = self.command_seq = 0
        self.desired: bytes | None = None
        self.records: dict[tuple[str, int], int] = {}
        self.kept: list[TelemetryRecord] = []
        self.reports: list[Reported] = []
        self.replies: list[Reply] = []
        self.numbers: dict[type[Statement], tuple[int, int]] = {}
        self.replays: list[Statement] = []
        self.acks: list[bytes] = []
        self.wants = 0
        self.sent_chunks = 0
        self.sent_bytes: Counter[str] = Counter()
        self.offers: tuple[DeltaOffer, ...] = ()
        self.deltas: dict[str, tuple[bytes, str | None]] = {}
        """What offers name, by digest: its bytes and the digest of its chunk list."""
        self.missing: set[str] = set()
        """Blobs that are asked for in vain."""

    # what is published

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def release(self, bundle: TinyBundle, *, counter: int = 1) -> None:
        self.bundles.append(bundle)
        self.repo.release(bundle.target, bundle.manifest_bytes, counter=counter)

    def sign(self, statement: Statement) -> bytes:
        return seal(statement, self.repo.keys["fleet"][0])

    def desire(self, *bundles: TinyBundle, rollout: str | None = "r1", device: str = DEVICE, **changes: str) -> bytes:
        self.seq += 1
        self.wanted = bundles
        needed = (*bundles, *self.measure.values(), *(bundle for _, bundle in self.shadows))
        keys = seal_keys(self.keys(*needed), self.sealing, device) if needed and self.sealing else ""
        statement = Desired(
            device=device,
            epoch=1,
            seq=self.seq,
            **self._times(timedelta(days=1), changes),
            models=tuple(DesiredModel(target=b.target, digest=b.digest, rollout=rollout) for b in bundles),
            keys=keys,
            measure=tuple(
                MeasureJob(id=id_, target=b.target, digest=b.digest, rounds=5) for id_, b in self.measure.items()
            ),
            offers=self.offers,
            shadows=tuple(shadow for shadow, _ in self.shadows),
        )
        if not self.faults.hold_desired:
            self.desired = self.sign(statement)
        return self.sign(statement)

    def shadow(self, bundle: TinyBundle | None, **budget: Any) -> None:
        """What the next desired state has in shadow; None: nothing."""
        if bundle is None:
            self.shadows = ()
            return
        model = ShadowModel(target=bundle.target, digest=bundle.digest, **{"share": 100, "cpu": 100, **budget})
        self.shadows = ((model, bundle),)

    def command(self, action: str, *, device: str = DEVICE, **changes: str) -> bytes:
        self.command_seq += 1
        times = self._times(timedelta(minutes=10), changes)
        return self.sign(Command(device=device, epoch=1, seq=self.command_seq, action=action, **times))

    def ack(self, nonce: str, boot: str, *, device: str = DEVICE, stored: int = 0, **changes: str) -> bytes:
        self.ack_seq += 1
        ack = Ack(
            device=device,
            epoch=1,
            seq=self.ack_seq,
            **self._times(timedelta(minutes=10), changes),
            nonce=nonce,
            boot=boot,
            stored=stored,
            desired_epoch=1,
            desired_seq=self.seq,
        )
        return self.sign(ack)

    def _times(self, life: timedelta, changes: dict[str, str]) -> dict[str, str]:
        now = self.now()
        return {"issued": show_instant(now), "expires": show_instant(now + life), **changes}

    def keys(self, *bundles: TinyBundle) -> dict[str, bytes]:
        """Key by blob, of everything in these bundles, and of the deltas."""
        found = {blob: blob_key(self.secret, blob, chunks) for blob, (_, chunks) in self.deltas.items()}
        for bundle in bundles:
            lists = {f.digest: f.chunks for f in bundle.manifest.files}
            for blob in (bundle.digest, bundle.manifest.config.digest, *lists):
                found[blob] = blob_key(self.secret, blob, lists.get(blob))
        return found

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
                return self._store(device, payload)
            case topics.Reported(device):
                return self._note_report(device, payload)
            case topics.Reply():
                self.replies.append(open_by_key(payload, Reply, self.device_key))
        return []

    def _chunks(self, want: Want) -> list[tuple[str, bytes]]:
        self.wants += 1
        data = self._blob(want.digest)
        if data is None or want.digest in self.missing:
            self.faults.fire("gone")
            return []
        chunks = self._chunk_list(want.digest, data)
        wanted = sorted(from_bitmap(want.missing, want.count))
        if self.faults.shuffle:
            self.random.shuffle(wanted)
        key = self.keys(*self.bundles)[want.digest]
        found = []
        for i in wanted:
            chunk = data[chunks.offsets[i] :][: chunks.chunks[i].size]
            if i in self.faults.tampered and len(chunk) > 1000:
                self.faults.fire("tampered")
                chunk = _flipped(chunk)
            found += self._on_the_way(topics.Chunk(want.digest, i).topic, encrypt_chunk(key, i, chunk))
        self.sent_chunks += len(found)
        self.sent_bytes[want.digest] += sum(len(chunk) for _, chunk in found)
        return found

    def _on_the_way(self, topic: str, data: bytes) -> list[tuple[str, bytes]]:
        faults = self.faults
        if self.random.random() < faults.lose:
            faults.fire("lost")
            return []
        if self.random.random() < faults.corrupt:
            faults.fire("corrupt")
            return [(topic, _flipped(data))]
        if self.random.random() < faults.repeat:
            faults.fire("repeat")
            return [(topic, data), (topic, data)]
        return [(topic, data)]

    def _blob(self, name: str) -> bytes | None:
        if name in self.deltas:
            return self.deltas[name][0]
        paths = (bundle.blob(name) for bundle in self.bundles)
        return next((path.read_bytes() for path in paths if path.exists()), None)

    def _chunk_list(self, name: str, data: bytes) -> ChunkList:
        _, listed = self.deltas.get(name, (b"", None))
        if listed is not None:
            return ChunkList.from_bytes(self.deltas[listed][0])
        for bundle in self.bundles:
            for file in bundle.manifest.files:
                if file.digest == name and file.chunks:
                    return ChunkList.from_bytes(bundle.blob(file.chunks).read_bytes())
        return single(name, len(data))

    def _store(self, device: str, payload: bytes) -> list[tuple[str, bytes]]:
        batch = open_by_key(payload, TelemetryBatch, self.device_key)
        if not self._rises(batch):
            return []
        for record in batch.records:
            key = (batch.boot, record.seq)
            self.records[key] = self.records.get(key, 0) + 1
            self.kept.append(record)
        if self.faults.lose_acks > 0:
            self.faults.lose_acks -= 1
            self.faults.fire("lost ack")
            return []
        return self._answer(device, batch.nonce, batch.boot, batch.records[-1].seq)

    def _note_report(self, device: str, payload: bytes) -> list[tuple[str, bytes]]:
        reported = open_by_key(payload, Reported, self.device_key)
        if not self._rises(reported):
            return []
        self.reports.append(reported)
        answers = self._answer(device, reported.nonce, reported.boot, 0)
        if self.sealing is None and not self.faults.mute:
            self.sealing = public_key(reported.sealing_key)
            if self.wanted:
                answers.append((topics.Desired(DEVICE).topic, self.desire(*self.wanted)))
        return answers

    def _rises(self, statement: Reported | TelemetryBatch) -> bool:
        last = self.numbers.get(type(statement), (0, 0))
        if statement.number <= last:
            self.replays.append(statement)
            return False
        self.numbers[type(statement)] = statement.number
        return True

    def _answer(self, device: str, nonce: str, boot: str, stored: int) -> list[tuple[str, bytes]]:
        if self.faults.mute:
            self.faults.fire("mute")
            return []
        self.acks.append(self.ack(nonce, boot, device=device, stored=stored))
        return [(topics.Ack(device).topic, self.acks[-1])]


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


class SimLink:
    """A line in memory: the interface of the real one, and messages that come later, on the loop.

    As with a broker, every subscription brings what is retained, in any order.
    """

    def __init__(self, sim: SimFleet) -> None:
        self.sim = sim
        self.up = False
        self.fault = ""
        self.subscribed: set[str] = set()
        self.published: list[tuple[str, bytes]] = []
        self.deliver: Callable[[str, bytes], None] = lambda _topic, _payload: None
        self._wanted: set[str] = set()

    def publish(self, topic: topics.Topic, payload: bytes, **_retain: bool) -> None:
        if not self.up:
            return
        self.published.append((topic.topic, payload))
        for answer in self.sim.answer(topic.topic, payload):
            asyncio.get_running_loop().call_soon(self._arrive, *answer)

    def _arrive(self, topic: str, payload: bytes) -> None:
        if self.up and any(topic_matches_sub(pattern, topic) for pattern in self.subscribed):
            self.deliver(topic, payload)

    def subscribe(self, pattern: str, **_qos: int) -> None:
        if self.up:
            self.subscribed.add(pattern)
            if not self._wanted:
                asyncio.get_running_loop().call_soon(self._retained)
            self._wanted.add(pattern)

    def _retained(self) -> None:
        wanted, self._wanted = self._wanted, set()
        messages = [m for m in self.sim.retained() if any(topic_matches_sub(pattern, m[0]) for pattern in wanted)]
        self.sim.random.shuffle(messages)
        for topic, payload in messages:
            self._arrive(topic, payload)

    def unsubscribe(self, pattern: str) -> None:
        self.subscribed.discard(pattern)


class Device:
    """An agent's core on a line in memory; `stop()` and a new `Device` on the same folder is a restart.

    `events` are the security events as they come, before equal ones are folded. `wall` is the machine's clock.
    """

    def __init__(
        self,
        folder: Path,
        sim: SimFleet,
        key: CryptoSigner,
        sealing_key: EllipticCurvePrivateKey,
        *,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        **settings: object,
    ) -> None:
        defaults = {"fetch_timeout": 0.05, "probation_requests": 2, "probation_time": 0.2, "min_free": 0}
        self.settings = AgentSettings(
            state=folder, socket=folder / "agent.sock", **{**defaults, "ack_timeout": 0.1, **settings}
        )
        self.sim = sim
        self.events: list[tuple[str, str]] = []
        self.wiped = 0
        self.link = SimLink(sim)
        self.state = StateFile.open(folder / "agent.db")
        if not self.state.trust_documents():
            self.state.save_trust({"root": sim.repo.roots[1]})
        self.clock = Clock(self.state, wall=wall, monotonic=monotonic)
        self.core = Core(
            about=ABOUT,
            settings=self.settings,
            state=self.state,
            clock=self.clock,
            link=self.link,
            signer=lambda: key,
            sealing_key=sealing_key,
            wipe=self._wipe,
        )
        self.keeper, self.store, self.installer = self.core.keeper, self.core.store, self.core.installer
        self.outbox, self.recorder, self.inbox = self.core.outbox, self.core.recorder, self.core.inbox
        self.service, self.meter = self.core.service, self.core.meter
        self._note = self.core.security.note
        self.core.security.note = self._heard  # type: ignore[method-assign]
        self.link.deliver = self.core.take
        self.inbox.start()

    def _heard(self, subject: str, reason: str) -> None:
        self.events.append((subject, reason))
        self._note(subject, reason)

    def _wipe(self) -> None:
        self.wiped += 1

    def now(self) -> datetime:
        return self.clock.now()

    def connect(self) -> None:
        self.link.up = True
        self.core.line_is_up()

    def hear_retained(self) -> None:
        """What the fleet publishes now, and a live connection therefore hears."""
        messages = self.sim.retained()
        self.sim.random.shuffle(messages)
        for topic, payload in messages:
            self.core.take(topic, payload)

    def hear(self, topic: topics.Topic, payload: bytes) -> None:
        self.core.take(topic.topic, payload)

    def disconnect(self) -> None:
        self.link.up = False
        self.link.subscribed.clear()
        self.core.line_is_down()

    async def stop(self) -> None:
        self.disconnect()
        await self.core.stop()
        self.state.close()

    async def until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (
                self.phases(),
                self.installer.shadows.view(),
                self.events,
                self.sim.faults.fired,
            )
            await asyncio.sleep(0.01)

    async def until_phase(self, phase: str) -> None:
        await self.until(lambda: phase in self.phases())

    def phases(self) -> dict[str, str]:
        return {report.phase: report.reason for report in self.installer.updates()}

    def meter_records(self) -> list[tuple[InferenceStats, ...]]:
        """What the models did in each window that is on the disk."""
        rows = self.state._rows("SELECT record FROM telemetry WHERE stream = 'inference' ORDER BY id")
        return [TelemetryRecord.from_bytes(row[0]).inference for row in rows]

    def active(self) -> list[str]:
        return [slot.digest for slot in self.installer.slots() if slot.slot == "active"]

    def trust(self) -> dict[str, Any]:
        return self.core.status()["trust"]


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


@pytest.fixture(scope="session")
def sealing_key() -> EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def sim(device_key: CryptoSigner, sealing_key: EllipticCurvePrivateKey) -> SimFleet:
    return SimFleet(device_key.public_key, sealing_key.public_key())


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
def new_device(
    tmp_path: Path, sim: SimFleet, device_key: CryptoSigner, sealing_key: EllipticCurvePrivateKey
) -> Callable[..., Device]:
    """Make the device of the test, or make it again on the same folder."""
    folder = tmp_path / "state"
    folder.mkdir()
    return lambda **settings: Device(folder, sim, device_key, sealing_key, **settings)
