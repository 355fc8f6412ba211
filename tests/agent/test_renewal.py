"""Renewal against a real EST server and a real broker, both with mutual TLS."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from est_server import Est, another
from mosquitto import free_port, mosquitto
from securesystemslib.signer import SSlibKey

import agent.enrolment.est
from agent.enrolment import renewal as renewing
from agent.enrolment.renewal import Renewal, due
from agent.identity.credentials import Credentials
from agent.identity.identity import FOLDER, Identity, Joined
from agent.identity.keys import key_pem, new_key
from agent.identity.slots import NEXT
from agent.line.link import MqttLink
from agent.store.state import StateFile
from agent.trust.clock import Clock
from wire.dsse import open_by_key, seal
from wire.messages import Reply
from wire.profile import Profile

PROFILE = Profile.from_toml((Path(__file__).parents[2] / "firmware-profiles/x86-64.toml").read_bytes())
HALF = timedelta(hours=6)
"""The test authority's certificates begin two days ago: one that ends in six hours is far beyond its middle."""


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """No test waits for the pauses of a real device."""
    monkeypatch.setattr("agent.line.link.BACK_OFF", (0.05, 0.1))
    monkeypatch.setattr("agent.enrolment.renewal.GRACE", 0.0)
    monkeypatch.setattr("agent.enrolment.renewal.BACK_OFF", (0.1, 0.2))


@pytest.fixture
def est(authority) -> Est:
    return Est(authority)


def now() -> datetime:
    return datetime.now(UTC)


def enrolled(folder: Path, authority, expires: datetime, fleet: str, broker: int) -> None:
    """A device whose certificate ends then, as enrolment leaves it."""
    shutil.rmtree(folder, ignore_errors=True)
    identity = folder / FOLDER
    identity.mkdir(parents=True)
    key = new_key()
    certificate = authority.issue("kitchen-1", key.public_key(), expires)
    (identity / "key.pem").write_bytes(key_pem(key))
    (identity / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (identity / "ca.pem").write_text(authority.pem)
    (identity / "sealing.pem").write_bytes(key_pem(new_key()))
    joined = Joined(device="kitchen-1", fleet=fleet, broker=f"localhost:{broker}", profile=PROFILE)
    (identity / "device.json").write_bytes(joined.to_bytes())
    state = StateFile.open(folder / "agent.db")
    state.note_time(certificate.not_valid_before_utc)
    state.close()


class Running:
    """Line and renewal of a device, as the agent wires them."""

    def __init__(self, folder: Path, state: StateFile, wall: Callable[[], datetime]) -> None:
        self.folder = folder
        self.state = state
        self.credentials = Credentials.open(folder)
        self.clock = Clock(state, wall=wall)
        self.renewal = Renewal(
            self.credentials,
            self.clock,
            state,
            spread=0,
            on_renewed=lambda: self.link.hang_up("the certificate was renewed"),
        )
        self.ups: list[int] = []
        self.link = MqttLink(
            self.credentials,
            now=self.clock.signed,
            on_up=lambda: self.ups.append(self.credentials.certificate.serial_number),
            on_down=lambda: None,
            on_message=lambda _topic, _payload: None,
            on_expired=self.renewal.expired,
            on_authority=self.renewal.served_by,
        )

    @property
    def words(self) -> str:
        return str(self.renewal.status()["renewal"])

    async def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.renewal.status()
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(folder: Path, wall: Callable[[], datetime] = now):
    state = StateFile.open(folder / "agent.db")
    device = Running(folder, state, wall)
    device.link.start()
    task = asyncio.create_task(device.renewal.run())
    try:
        yield device
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await device.link.stop()
        state.close()


def has_taken_over(device: Running, est: Est) -> bool:
    if not device.link.up or device.credentials.renewed or not est.requests:
        return False
    return device.credentials.certificate.public_key() == est.requests[-1].public_key()


def assert_renewed(device: Running, est: Est, sealing: bytes) -> None:
    """The renewed identity is the only one, on the disk and in use, and its key signs."""
    identity = Identity.load(device.folder)
    assert identity.certificate().public_key() == est.requests[-1].public_key()
    assert device.ups[-1] == identity.certificate().serial_number
    assert (identity.folder / "sealing.pem").read_bytes() == sealing, "the fleet seals to the same key as before"
    left = {path.name for path in device.folder.iterdir()} - {"agent.db", "agent.db-wal", "agent.db-shm", "agent.spare"}
    assert left == {FOLDER}
    reply = Reply(device="kitchen-1", epoch=1, seq=1, outcome="done")
    envelope = seal(reply, device.credentials.signer())
    assert open_by_key(envelope, Reply, SSlibKey.from_crypto(est.requests[-1].public_key())) == reply


def test_a_certificate_past_the_middle_of_its_life_is_renewed_while_the_line_is_up(authority, est, tmp_path) -> None:
    state = tmp_path / "state"

    async def story() -> None:
        sealing = (state / FOLDER / "sealing.pem").read_bytes()
        async with running(state) as device:
            await device.until(lambda: has_taken_over(device, est))
            await device.until(lambda: device.ups[-1] == device.credentials.certificate.serial_number)
            assert est.paths == ["simplereenroll"]
            assert_renewed(device, est, sealing)
            assert device.words.startswith("due ")
            await asyncio.sleep(0.3)
        assert est.paths == ["simplereenroll"], "once is enough"

    with mosquitto(tmp_path / "broker", authority) as port, est.running() as url:
        enrolled(state, authority, now() + HALF, url, port)
        asyncio.run(story())


@pytest.mark.parametrize(
    "wall", [now, lambda: datetime(1970, 1, 1, tzinfo=UTC), lambda: datetime(2100, 1, 1, tzinfo=UTC)]
)
def test_a_device_whose_certificate_ran_out_while_it_was_off_comes_back_by_a_signed_request(
    authority, est, tmp_path, wall
) -> None:
    """Accident: off for too long, and then with the right clock, one at 1970 and one at 2100."""
    state = tmp_path / "state"

    async def story() -> None:
        sealing = (state / FOLDER / "sealing.pem").read_bytes()
        async with running(state, wall) as device:
            await device.until(lambda: has_taken_over(device, est))
            await device.until(lambda: device.ups)
            assert est.paths[-1] == "renewals"
            assert_renewed(device, est, sealing)

    with mosquitto(tmp_path / "broker", authority) as port, est.running() as url:
        enrolled(state, authority, now() - timedelta(hours=1), url, port)
        asyncio.run(story())
    assert "certificate" in (tmp_path / "broker" / "log").read_text()


def test_a_device_that_is_told_by_the_fleet_that_its_certificate_ran_out_signs_its_request(
    authority, est, tmp_path
) -> None:
    """Accident: a clock that stands still, two hours behind the end of the certificate; the broker is away."""
    state = tmp_path / "state"

    async def story() -> None:
        async with running(state, lambda: datetime(1970, 1, 1, tzinfo=UTC)) as device:
            await device.until(lambda: device.credentials.renewed)

    with est.running() as url:
        enrolled(state, authority, now() - timedelta(hours=1), url, free_port())
        file = StateFile.open(state / "agent.db")
        file.note_time(now() - timedelta(hours=2))
        file.close()
        asyncio.run(story())
    assert est.paths == ["renewals"], "the handshake of simplereenroll was refused"


def test_a_renewal_that_fails_is_shown_and_tried_again_with_the_same_key(authority, est, tmp_path, caplog) -> None:
    """Accidents: the fleet is down, then it fails, then its answer is no certificate."""
    state, port = tmp_path / "state", free_port()
    est.answers = [(500, b""), (200, b"!")]

    async def story() -> None:
        async with running(state) as device:
            await device.until(lambda: "did not answer" in device.words)
            assert device.words.startswith("failed ")
            with est.running(port=port):
                await device.until(lambda: has_taken_over(device, est))
            assert len(est.paths) == 3
            assert device.words.startswith("due ")

    with mosquitto(tmp_path / "broker", authority) as broker:
        enrolled(state, authority, now() + HALF, f"https://localhost:{port}", broker)
        asyncio.run(story())
    assert "the certificate is not renewed" in caplog.text


def test_a_lost_answer_is_asked_for_again_with_the_same_key_also_after_a_restart(authority, est, tmp_path) -> None:
    """Accident: the fleet signed, and the answer broke off; then the device is restarted."""
    state = tmp_path / "state"
    est.lose = 2

    async def story() -> None:
        async with running(state) as device:
            await device.until(lambda: est.lose == 1)
        async with running(state) as device:
            await device.until(lambda: has_taken_over(device, est))

    with mosquitto(tmp_path / "broker", authority) as port, est.running() as url:
        enrolled(state, authority, now() + HALF, url, port)
        asyncio.run(story())
    assert len(est.requests) == 3
    assert len(est.signed) == 1


def test_a_renewed_certificate_that_the_broker_refuses_is_given_up_for_the_one_before(authority, est, tmp_path) -> None:
    """Accident: the fleet signs with an authority that its broker does not believe yet."""
    state, other = tmp_path / "state", another(authority, tmp_path / "other")
    est.authority = Signing(authority, other)

    async def story() -> None:
        async with running(state) as device:
            device.credentials.believe([authority.pem, other.pem])
            await device.until(lambda: device.credentials.renewed)
            await device.until(lambda: not device.credentials.renewed)
            assert device.link.up
            assert not (state / NEXT).exists()
            assert device.ups[-1] == first == Identity.load(state).certificate().serial_number
            assert "the broker refused the renewed certificate" in device.words

    with mosquitto(tmp_path / "broker", authority) as port, est.running() as url:
        enrolled(state, authority, now() + HALF, url, port)
        first = Identity.load(state).certificate().serial_number
        asyncio.run(story())


def test_a_broker_that_is_away_does_not_cost_the_renewed_certificate(authority, est, tmp_path) -> None:
    """Accident: the broker goes down while a renewed certificate waits to be tried; the device is restarted too."""
    state, port = tmp_path / "state", free_port()

    async def story() -> None:
        async with running(state) as device:
            await device.until((state / NEXT).exists)
            assert device.words == "a renewed certificate is tried"
        async with running(state) as device:
            assert device.credentials.renewed
            with mosquitto(tmp_path / "broker", authority, port):
                await device.until(lambda: has_taken_over(device, est))

    with est.running() as url:
        enrolled(state, authority, now() + HALF, url, port)
        asyncio.run(story())
    assert len(est.requests) == 1


def test_a_renewal_that_meets_a_bug_is_not_the_last_one(authority, est, tmp_path, monkeypatch) -> None:
    """Accident: an answer that nobody thought of. The task that renews ended without a word, and the certificate ran
    out."""
    state, faults = tmp_path / "state", [RuntimeError("nobody thought of it")]
    check = agent.enrolment.est.check_answer

    def check_answer(*arguments: object) -> None:
        if faults:
            raise faults.pop()
        check(*arguments)

    monkeypatch.setattr(agent.enrolment.est, "check_answer", check_answer)

    async def story() -> None:
        async with running(state) as device:
            await device.until(lambda: "RuntimeError: nobody thought of it" in device.words)
            await device.until(lambda: has_taken_over(device, est))

    with mosquitto(tmp_path / "broker", authority) as port, est.running() as url:
        enrolled(state, authority, now() + HALF, url, port)
        asyncio.run(story())


def test_a_certificate_for_another_key_is_not_taken(authority, est, tmp_path) -> None:
    """Attack: a fleet in hostile hands answers with a certificate for a key of its own."""
    state, est.key = tmp_path / "state", new_key().public_key()

    async def story() -> None:
        async with running(state) as device:
            await device.until(lambda: "for another key or device" in device.words)
            assert not (state / NEXT).exists()

    with est.running() as url:
        enrolled(state, authority, now() + HALF, url, free_port())
        asyncio.run(story())


def test_a_server_that_expired_by_signed_time_is_not_asked(authority, est, tmp_path) -> None:
    state = tmp_path / "state"

    async def story() -> None:
        async with running(state) as device:
            await device.until(lambda: "server's certificate expired" in device.words)
            assert est.paths == []

    with est.running(now() - timedelta(days=1)) as url:
        enrolled(state, authority, now() + HALF, url, free_port())
        file = StateFile.open(state / "agent.db")
        file.note_time(now())
        file.close()
        asyncio.run(story())


def test_the_moment_of_a_renewal_is_spread_over_the_fleet_and_does_not_move(authority) -> None:
    certificates = [authority.issue("kitchen-1", new_key().public_key()) for _ in range(64)]
    moments = [due(certificate) for certificate in certificates]
    assert moments == [due(certificate) for certificate in certificates]
    for moment, certificate in zip(moments, certificates, strict=True):
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        part = (moment - certificate.not_valid_before_utc) / life
        assert 0.5 <= part < 0.5 + renewing.SPREAD
    assert max(moments) - min(moments) > timedelta(days=3)


def test_a_device_that_does_not_know_the_time_waits_a_moment_before_it_believes_its_clock(
    authority, est, tmp_path, monkeypatch
) -> None:
    """Accident: a clock at 2100, and a certificate that is good for a month."""
    monkeypatch.setattr("agent.enrolment.renewal.GRACE", 30.0)
    state = tmp_path / "state"

    async def story() -> None:
        async with running(state, lambda: datetime(2100, 1, 1, tzinfo=UTC)) as device:
            await device.until(lambda: device.link.up)
            device.clock.learn(now(), latest=now() + timedelta(days=30))
            await asyncio.sleep(1.2)  # longer than it waits between two looks
            assert est.paths == []

    with mosquitto(tmp_path / "broker", authority) as port, est.running() as url:
        enrolled(state, authority, now() + timedelta(days=30), url, port)
        asyncio.run(story())


def test_a_device_of_a_restored_fleet_renews_soon_and_once_also_after_a_restart(authority, est, tmp_path) -> None:
    """Accident: the fleet may have forgotten this certificate, which is good for a month; the device is restarted
    before it could show it."""
    state, port = tmp_path / "state", free_port()

    def desired(device: Running, *number: int) -> None:
        device.state.accept_desired((number[0], number[1]), {})
        device.renewal.look_at_epoch()

    async def story() -> None:
        async with running(state) as device:
            desired(device, 1, 1)
            desired(device, 1, 2)
            assert device.words.startswith("due ")
            desired(device, 7, 3)
            await device.until(lambda: "did not answer" in device.words)
        with est.running(port=port):
            async with running(state) as device:
                await device.until(lambda: has_taken_over(device, est))
                desired(device, 7, 4)
                await asyncio.sleep(0.3)
                assert device.words.startswith("due ")
            async with running(state) as device:
                await device.until(lambda: device.ups)
                await asyncio.sleep(0.3)
        assert est.paths == ["simplereenroll"]

    with mosquitto(tmp_path / "broker", authority) as broker:
        enrolled(state, authority, now() + timedelta(days=30), f"https://localhost:{port}", broker)
        asyncio.run(story())


def test_a_device_follows_the_authority_of_the_broker_soon_and_once(authority, est, tmp_path) -> None:
    """Rotation: and a fleet that signs with another authority than its broker's must not be asked for ever."""
    state, other = tmp_path / "state", another(authority, tmp_path / "other")
    first = other.issue("kitchen-1", new_key().public_key())
    assert first.issuer != authority.certificate.subject

    async def story() -> None:
        async with running(state) as device:
            await device.until(lambda: device.ups)
            device.renewal.served_by(authority.certificate.subject)
            await asyncio.sleep(0.3)
            assert est.paths == [], "the same authority as ours"
            device.renewal.served_by(first.issuer)
            assert device.words.startswith("soon: the fleet has another authority")
            await device.until(lambda: has_taken_over(device, est))
            device.renewal.served_by(first.issuer)
            await asyncio.sleep(0.3)
        assert est.paths == ["simplereenroll"]

    with mosquitto(tmp_path / "broker", authority) as port, est.running() as url:
        enrolled(state, authority, now() + timedelta(days=30), url, port)
        asyncio.run(story())


def test_devices_that_are_all_called_at_once_do_not_come_at_once(authority, est, tmp_path) -> None:
    """Accident: ten thousand devices hear within a second that their fleet was restored."""
    moments = []
    for n in range(16):
        state = tmp_path / str(n)
        enrolled(state, authority, now() + timedelta(days=30), "https://localhost:1", 1)
        file = StateFile.open(state / "agent.db")
        file.accept_desired((7, 1), {})
        file.note_renewed_in(1)
        renewal = Renewal(Credentials.open(state), Clock(file), file, spread=600, on_renewed=lambda: None)
        renewal.look_at_epoch()
        moments.append(renewal._left())
        file.close()
    assert all(0 < moment <= 600 for moment in moments)
    assert max(moments) - min(moments) > 60


class Signing:
    """Serves TLS as one authority and signs as another."""

    def __init__(self, serving, signing) -> None:
        self.pem, self.files, self.certificate, self.issue = (
            serving.pem,
            serving.files,
            signing.certificate,
            signing.issue,
        )
