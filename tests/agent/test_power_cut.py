"""The power is cut on a real ext4 disk, right after the agent has said that it is done: what it said holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import power_cut
import pytest
from power_cut import Disk
from trust_repository import Repository

from agent.identity.identity import Identity
from agent.identity.keys import load_key
from agent.identity.slots import recover
from agent.store.blobs import Blobs
from agent.store.state import StateFile
from agent.trust.clock import Clock
from agent.trust.keeper import TrustKeeper
from wire import topics
from wire.chunks import digest

TARGET = "models/intents/kitchen/{}.0.0/x86-64"
pytestmark = pytest.mark.skipif(power_cut.why_not() is not None, reason=f"no power to cut: {power_cut.why_not()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path) as disk:
        yield disk


@pytest.fixture
def repo(monkeypatch: pytest.MonkeyPatch) -> Repository:
    repo = Repository()
    monkeypatch.setenv("NOW", repo.now.isoformat())
    repo.release(TARGET.format(1), b"one")
    return repo


def lay_out(repo: Repository, folder: Path) -> str:
    folder.mkdir()
    for name, data in repo.offered().items():
        (folder / name.replace("/", "_")).write_bytes(data)
    return str(folder)


def run_until_the_cut(disk: Disk, story: str, *arguments: str) -> None:
    """Without the spare of the database, so that what is there is what the database itself kept."""
    with disk.child(story, *arguments) as child:
        child.wait_until_done()
        disk.cut()
    disk.mount()
    disk.check_that_the_cut_fired()
    (disk.folder / "agent.spare").unlink(missing_ok=True)


def test_metadata_older_than_what_was_taken_stays_refused_after_a_power_cut(
    disk: Disk, repo: Repository, tmp_path: Path
) -> None:
    """Attack: cut the power and serve yesterday's metadata. The verifier of a well-known library took it."""
    old = dict(repo.documents)
    with disk.child("trust", lay_out(repo, tmp_path / "old")) as child:
        child.wait_until_done()
        disk.cut()
    disk.mount()
    repo.release(TARGET.format(2), b"two")
    run_until_the_cut(disk, "trust", lay_out(repo, tmp_path / "new"))
    state = StateFile.open(disk.folder / "agent.db")
    keeper = TrustKeeper(state, Clock(state, wall=lambda: repo.now))
    assert keeper.trusted.documents.items() >= repo.documents.items()
    for name, data in old.items():
        keeper.take(topics.TrustRole(name), data)
    assert not keeper.settle().changed
    assert "is old" in str(keeper.judge()["timestamp"])
    assert keeper.trusted.release(TARGET.format(2), repo.now)
    state.close()


def test_the_same_cut_takes_the_metadata_of_a_database_that_is_not_synced(
    disk: Disk, repo: Repository, tmp_path: Path
) -> None:
    """What the other tests would show if the agent's database were not opened with synchronous=FULL."""
    with disk.child("trust", lay_out(repo, tmp_path / "old")) as child:
        child.wait_until_done()
        disk.cut()
    disk.mount()
    taken = repo.documents["timestamp"]
    repo.release(TARGET.format(2), b"two")
    run_until_the_cut(disk, "trust", lay_out(repo, tmp_path / "new"), "NORMAL")
    state = StateFile.open(disk.folder / "agent.db")
    assert state.trust_documents()["timestamp"] == taken
    state.close()


def test_a_database_that_lost_its_newest_changes_in_a_power_cut_has_them_back_from_its_spare(
    disk: Disk, repo: Repository, tmp_path: Path
) -> None:
    """Accident: a card that says that it has written and has not: the same database, which is not synced."""
    with disk.child("trust", lay_out(repo, tmp_path / "old")) as child:
        child.wait_until_done()
        disk.cut()
    disk.mount()
    repo.release(TARGET.format(2), b"two")
    with disk.child("trust", lay_out(repo, tmp_path / "new"), "NORMAL") as child:
        child.wait_until_done()
        disk.cut()
    disk.mount()
    disk.check_that_the_cut_fired()
    state = StateFile.open(disk.folder / "agent.db")
    assert "older than its spare" in state.take_rebuilt()
    assert state.trust_documents()["timestamp"] == repo.documents["timestamp"]
    state.close()


def test_nothing_that_the_agent_may_not_forget_is_lost(disk: Disk) -> None:
    """Accident: the power goes after fifty records were queued and ten of them acknowledged."""
    run_until_the_cut(disk, "memory")
    state = StateFile.open(disk.folder / "agent.db")
    assert state.last_desired() == (1, 41)
    assert state.models()["kitchen"].active is not None
    assert state.sealed_keys() == "c2VhbGVk"
    assert state.floor("intents/kitchen") == 7
    assert state.last_command() == ((1, 5), "done")
    assert state.newest_time().year == 2026
    assert state.begin_start() == 2
    assert [record.seq for record in state.next_batch()] == list(range(11, 51))
    assert state.telemetry() == {"produced": 50, "delivered": 10, "merged": 0, "dropped": 0, "waiting": 40}
    state.close()


WHOLE = b"a" * 100_000 + b"b" * 50_000


def test_a_finished_blob_is_there_whole(disk: Disk) -> None:
    run_until_the_cut(disk, "blob")
    store = Blobs(disk.folder / "blobs", 0)
    assert store.is_sound(digest(WHOLE))
    assert store.read(digest(WHOLE)) == WHOLE


def test_the_same_cut_takes_a_blob_that_was_not_synced(disk: Disk) -> None:
    run_until_the_cut(disk, "blob", "no")
    assert not Blobs(disk.folder / "blobs", 0).is_sound(digest(WHOLE))


def test_a_promoted_certificate_is_the_one_in_use_with_its_key(disk: Disk) -> None:
    """The one before it may be revoked by the time the power is back."""
    run_until_the_cut(disk, "renewal")
    recover(disk.folder)
    identity = Identity.load(disk.folder)
    assert identity.certificate().serial_number == 2
    assert load_key((identity.folder / "key.pem").read_bytes()).public_key() == identity.certificate().public_key()
    assert (identity.folder / "sealing.pem").exists()
