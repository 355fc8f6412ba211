"""Damage on the disk while an agent is off, or runs: the last good model answers, and all else comes back by itself."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from agent.errors import Damaged, Unavailable
from agent.identity.identity import FOLDER
from agent.store import spare
from agent.store.spare import JUMP, Spare
from agent.store.state import StateFile
from wire import topics
from wire.messages import TelemetryBatch
from wire.units import instant

ON = "turn the light on"
TIME = instant("2026-11-22T08:00:00Z")


def overwritten(path: Path) -> None:
    """Accident: the first pages are another file's."""
    data = path.read_bytes()
    path.write_bytes(b"\xff" * 8192 + data[8192:])


def torn(path: Path) -> None:
    """Accident: the second half was never written."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    """Accident: what many file systems make of a file that was open when the power went."""
    path.write_bytes(b"")


def gone(path: Path) -> None:
    """Accident: a repair of the file system put it aside."""
    path.unlink()


def flipped(path: Path) -> None:
    """Accident: one bit in a row. SQLite has no sums and gives it out as it is."""
    data = path.read_bytes()
    at = data.rindex(b'"state":"committed"') + len(b'"state":"')
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def older(path: Path) -> None:
    """Accident: a card that said that it had written, and had not."""
    path.write_bytes(path.with_name("older").read_bytes())


def renumbered(path: Path) -> None:
    """Accident: the header says another version of the schema; this looked like the file of a newer agent."""
    data = bytearray(path.read_bytes())
    data[60:64] = (99).to_bytes(4, "big")
    path.write_bytes(data)


def misspelt(path: Path) -> None:
    """Accident: a byte of the schema is no UTF-8, and stands in what SQLite says of it."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b"CREATE TABLE telemetry", b"CREATE \xf4ABLE telemetry"))
    assert path.read_bytes() != data


DAMAGES: tuple[Callable[[Path], None], ...] = (overwritten, torn, emptied, gone, flipped, older, renumbered, misspelt)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_is_made_again_and_the_last_good_model_answers_at_once(
    new_device, sim, bundles, tmp_path, damage
) -> None:
    async def story() -> None:
        device = new_device()
        (tmp_path / "state" / FOLDER).mkdir()
        path = tmp_path / "state" / "agent.db"
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        await device.stop()
        path.with_name("older").write_bytes(path.read_bytes())
        device = new_device()
        await device.core.start()
        sim.release(bundles["two"], counter=2)
        sim.desire(bundles["two"], rollout="r2")
        device.connect()
        await device.until(lambda: device.active() == [bundles["two"].digest])
        number, starts = device.state.last_desired(), device.core.voice.starts()
        trusted, floors = device.state.trust_documents(), device.state.newest_time()
        await device.stop()
        assert not path.with_name("agent.db-wal").exists(), "the damage must be in the file that is read"

        damage(path)
        again = new_device()
        await again.core.start()
        assert again.state.fault == ""
        assert (await again.service.infer("kitchen", (ON,))).digest == bundles["two"].digest
        assert {slot.slot: slot.digest for slot in again.installer.slots()} == {
            "active": bundles["two"].digest,
            "previous": bundles["one"].digest,
        }
        assert (again.state.last_desired(), again.state.trust_documents()) == (number, trusted)
        assert again.state.newest_time() >= floors.replace(microsecond=0) or damage is older
        assert again.core.voice.starts() > starts, "or the fleet would take its reports for old ones"
        assert path.with_name("agent.db.damaged").exists() == (damage is not gone)

        again.connect()
        await again.until(lambda: bool(sim.reports) and sim.reports[-1].starts > starts)
        await again.until(lambda: "memory" in events(again))
        again.hear(topics.Desired("kitchen-1"), sim.desire(bundles["one"], rollout="r3"))
        await again.until(lambda: again.active() == [bundles["one"].digest])
        await again.stop()

    asyncio.run(story())


def events(device) -> list[str]:
    """Kinds of the events that the fleet was told."""
    batches = (data for topic, data in device.link.published if topic.endswith("/telemetry"))
    found = (TelemetryBatch.from_bytes(_payload(data)) for data in batches)
    return [event.kind for batch in found for record in batch.records for event in record.events]


def _payload(envelope: bytes) -> bytes:
    return base64.b64decode(json.loads(envelope)["payload"])


def check_sound(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA quick_check").fetchone() == ("ok",)


def filled(folder: Path) -> StateFile:
    (folder / FOLDER).mkdir(exist_ok=True)
    state = StateFile.open(folder / "agent.db")
    state.save_trust({"root": b"1"}, {"intents/kitchen": 7})
    state.accept_desired((3, 41), {}, "sealed")
    state.accept_command((3, 5), "done")
    state.note_enrolment(TIME)
    state.begin_start()
    return state


def test_nothing_that_protects_against_a_rollback_falls(tmp_path) -> None:
    filled(tmp_path).close()
    emptied(tmp_path / "agent.db")
    state = StateFile.open(tmp_path / "agent.db")
    assert "is gone" in state.take_rebuilt()
    assert state.take_rebuilt() == "", "it is said once"
    assert (state.trust_documents(), state.floor("intents/kitchen")) == ({"root": b"1"}, 7)
    assert (state.last_desired(), state.last_command()) == ((3, 41), ((3, 5), "done"))
    assert (state.sealed_keys(), state.newest_time(), state.enrolled()) == ("sealed", TIME, TIME)
    assert state.begin_start() == 1 + JUMP + 1
    state.close()


@pytest.mark.parametrize("seed", range(40))
def test_bytes_that_are_changed_anywhere_in_the_database_take_nothing_back(tmp_path, seed) -> None:
    """Accident: a card that gives back other bytes than were written: in the header, the schema, a row, or nowhere."""
    state = filled(tmp_path)
    state.close()
    path = tmp_path / "agent.db"
    data, chance = bytearray(path.read_bytes()), random.Random(seed)
    at = chance.randrange(100) if seed % 2 else chance.randrange(len(data))
    for i in range(at, min(at + chance.choice((1, 4, 64)), len(data))):
        data[i] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    state = StateFile.open(path)
    assert state.fault == ""
    assert (state.trust_documents(), state.floor("intents/kitchen")) == ({"root": b"1"}, 7)
    assert (state.last_desired(), state.last_command()) == ((3, 41), ((3, 5), "done"))
    assert state.begin_start() > 1
    state.close()


def test_a_database_that_is_damaged_while_the_agent_runs_is_made_again(tmp_path) -> None:
    state = filled(tmp_path)
    state._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    state._db.execute("PRAGMA cache_size=0").fetchall()
    overwritten(tmp_path / "agent.db")
    with suppress(Unavailable):  # it may be seen in this write, or when the log is written into the file
        state.accept_command((3, 6), "done")
    state.accept_command((3, 6), "done")
    assert "damaged" in state.take_rebuilt(), "the fault must fire"
    assert (state.last_desired(), state.last_command()[0]) == ((3, 41), (3, 6))
    state.close()


def test_without_a_spare_a_damaged_database_says_what_to_do(tmp_path) -> None:
    filled(tmp_path).close()
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")):
        damage(tmp_path / "agent.spare")
        overwritten(tmp_path / "agent.db")
        with pytest.raises(Damaged, match="enrol this device again with a new kit"):
            StateFile.open(tmp_path / "agent.db")
        (tmp_path / "agent.db").unlink()
        filled(tmp_path).close()


def test_a_process_killed_while_it_makes_a_database_again_finds_all_of_it_at_the_next_start(tmp_path) -> None:
    """Accident: the power goes after the damaged file was set aside; and before, with the new one half made."""
    filled(tmp_path).close()
    (tmp_path / "agent.db").rename(tmp_path / "agent.db.damaged")
    (tmp_path / "agent.db.new").write_bytes(b"half of a database")
    (tmp_path / "agent.db.new-wal").write_bytes(b"and its log")
    state = StateFile.open(tmp_path / "agent.db")
    assert state.last_desired() == (3, 41)
    assert not list(tmp_path.glob("agent.db.new*"))
    state.close()


def test_a_log_that_is_damaged_takes_nothing_back(tmp_path) -> None:
    """Accident: SQLite leaves out what follows a bad sum in its log, without a word: what was committed is undone."""
    state = filled(tmp_path)
    log = (tmp_path / "agent.db-wal").read_bytes()
    data = (tmp_path / "agent.db").read_bytes()
    state.close()
    (tmp_path / "agent.db").write_bytes(data)
    (tmp_path / "agent.db-wal").write_bytes(log[:-3000] + b"?" + log[-2999:])
    state = StateFile.open(tmp_path / "agent.db")
    assert "older than its spare" in state.take_rebuilt()
    assert state.last_desired() == (3, 41)
    state.close()
    check_sound(tmp_path / "agent.db")


def test_a_file_of_an_older_agent_has_no_sum_and_is_believed_once(tmp_path) -> None:
    state = filled(tmp_path)
    state._db.execute("DELETE FROM meta WHERE key IN ('sum', 'change')")
    state.close()
    (tmp_path / "agent.spare").unlink()
    state = StateFile.open(tmp_path / "agent.db")
    assert (state.take_rebuilt(), state.last_desired()) == ("", (3, 41))
    assert Spare.read(spare.path_of(tmp_path / "agent.db")) is not None
    state.close()


def test_an_enrolment_never_finds_an_earlier_life_in_a_spare(tmp_path) -> None:
    """The database was moved away by hand, as the message says; the spare was forgotten."""
    filled(tmp_path).close()
    (tmp_path / "agent.db").unlink()
    (tmp_path / FOLDER).rmdir()
    state = StateFile.open(tmp_path / "agent.db")
    assert (state.last_desired(), state.trust_documents()) == ((0, 0), {})
    state.save_trust({"root": b"2"})
    state.close()
    found = Spare.read(tmp_path / "agent.spare")
    assert found is not None
    assert found.rows["floors"] == []


def test_a_spare_that_cannot_be_written_holds_up_nothing(tmp_path, monkeypatch) -> None:
    state = filled(tmp_path)

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agent.store.spare.write_whole", full)
    state.accept_desired((3, 42), {}, "")
    assert state.last_desired() == (3, 42)
    monkeypatch.undo()
    state.close()
    again = StateFile.open(tmp_path / "agent.db")
    assert again.last_desired() == (3, 42)
    again.close()
    found = Spare.read(tmp_path / "agent.spare")
    assert ["desired", "3.42"] in found.rows["meta"], "the next start brings it up"


def test_telemetry_does_not_wear_out_the_card_by_the_spare(tmp_path) -> None:
    state = filled(tmp_path)
    before = (tmp_path / "agent.spare").stat().st_mtime_ns
    state._db.execute("INSERT INTO security (at, subject, reason) VALUES ('', '', '')")
    state.note_time(instant("2026-11-22T08:01:00Z"))
    assert (tmp_path / "agent.spare").stat().st_mtime_ns == before
    state.note_time(instant("2026-11-22T09:01:00Z"))
    assert (tmp_path / "agent.spare").stat().st_mtime_ns > before
    state.close()
    check_sound(tmp_path / "agent.db")
