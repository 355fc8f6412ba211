"""The agent's memory: its schema, and that a process killed at any moment finds all of a change, or nothing of it."""

from __future__ import annotations

import os
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import Unavailable
from agent.measuring import Task
from agent.store.queue import Queued
from agent.store.state import SCHEMA_VERSION, StateFile
from agent.update import ModelState
from wire.messages import SecurityEvent
from wire.orders import MeasureJob
from wire.units import instant

TIME = instant("2026-11-22T08:00:00Z")

SCHEMA_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE trust (name TEXT PRIMARY KEY, document BLOB NOT NULL) STRICT;
CREATE TABLE models (name TEXT PRIMARY KEY, document BLOB NOT NULL) STRICT;
CREATE TABLE telemetry (id INTEGER PRIMARY KEY, boot TEXT NOT NULL, seq INTEGER NOT NULL, record BLOB NOT NULL,
                        UNIQUE (boot, seq)) STRICT;
CREATE TABLE security (id INTEGER PRIMARY KEY, at TEXT NOT NULL, subject TEXT NOT NULL, reason TEXT NOT NULL) STRICT;
INSERT INTO meta VALUES ('desired', '1.41'), ('time', '2026-11-22T08:00:00.000Z'), ('produced', '7');
INSERT INTO trust VALUES ('root', x'01');
PRAGMA user_version=1;
"""


def test_a_file_of_the_first_schema_is_taken_over_with_all_that_it_holds(tmp_path) -> None:
    path = tmp_path / "agent.db"
    old = sqlite3.connect(path)
    old.executescript(SCHEMA_1)
    old.execute("INSERT INTO models VALUES ('kitchen', ?)", (ModelState().to_bytes(),))
    old.commit()
    old.close()
    for _ in range(2):
        state = StateFile.open(path)
        assert (state.last_desired(), state.newest_time(), list(state.models())) == ((1, 41), TIME, ["kitchen"])
        assert (state.trust_documents(), state.telemetry()["produced"]) == ({"root": b"\1"}, 7)
        assert (state.floor("intents/kitchen"), state.last_command(), state.sealed_keys()) == (0, ((0, 0), "done"), "")
        state.save_trust({"root": b"\1"})
        assert state._rows("PRAGMA user_version") == [(SCHEMA_VERSION,)]
        state.close()


def test_floors_only_rise_and_outlive_the_release_that_named_them(tmp_path) -> None:
    state = StateFile.open(tmp_path / "agent.db")
    state.save_trust({"root": b"1"}, {"intents/kitchen": 7})
    state.save_trust({"root": b"2"}, {"intents/kitchen": 3, "intents/lock": 1})
    state.save_trust({"root": b"3"}, {})
    assert [state.floor(f"intents/{name}") for name in ("kitchen", "lock", "other")] == [7, 1, 0]
    state.close()


def test_trust_floors_and_time_change_together_or_not_at_all(tmp_path) -> None:
    """Accident: the disk fails after the documents and before the floors of one change."""
    state = StateFile.open(tmp_path / "agent.db")
    state.note_time(TIME)
    state.save_trust({"root": b"1"}, {"intents/kitchen": 1})
    state._db.execute("CREATE TRIGGER full BEFORE UPDATE ON floors BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    with pytest.raises(Unavailable, match="disk full"):
        state.save_trust({"root": b"2"}, {"intents/kitchen": 2}, forget_time=True)
    assert (state.trust_documents(), state.floor("intents/kitchen"), state.newest_time()) == ({"root": b"1"}, 1, TIME)
    state.close()


def test_every_change_is_flushed_to_the_disk(tmp_path) -> None:
    state = StateFile.open(tmp_path / "agent.db")
    assert state._rows("PRAGMA journal_mode") == [("wal",)]
    assert state._rows("PRAGMA synchronous") == [(2,)]  # FULL
    state.close()


# --- killed at every transaction --------------------------------------------------------------------------------------

TASK = Task(job=MeasureJob(id="m-1", target="models/a/b/1/c", digest=f"sha256:{'0' * 64}", rounds=1))
STEPS = (
    lambda s: s.begin_start(),
    lambda s: s.save_trust({"root": b"1", "timestamp": b"1"}, {"intents/kitchen": 1}),
    lambda s: s.note_enrolment(TIME),
    lambda s: s.accept_desired((1, 2), {"kitchen": ModelState()}, "sealed"),
    lambda s: s.save_model("lock", ModelState()),
    lambda s: s.accept_desired((1, 3), {"kitchen": ModelState()}, "", {"m-1": TASK}),
    lambda s: s.save_task(replace(TASK, phase="done")),
    lambda s: s.accept_command((1, 3), "refused"),
    lambda s: s.queue([Queued("b", 1, b"record")], 1000),
    lambda s: s.acknowledged("b", [1]),
    lambda s: s.note_security(SecurityEvent(at="2026-11-22T08:00:00.000Z", subject="s", reason="r")),
    lambda s: s.fold_security({1: " ... and 3 more"}),
    lambda s: s.save_trust({"root": b"2"}, {"intents/kitchen": 9}, forget_time=True),
    lambda s: s.accept_desired((1, 4), {}, ""),
)


def snapshot(path: Path) -> str:
    db = sqlite3.connect(path)
    try:
        return "\n".join(line for line in db.iterdump() if "'memory'" not in line)  # another one in each file
    finally:
        db.close()


def killed_at(fatal: int, path: Path) -> bool:
    """Every step on a fresh file, in a process that kills itself at the statement of this number; whether it did."""
    child = os.fork()
    if child == 0:
        try:
            run_steps(path, fatal)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def run_steps(path: Path, fatal: int) -> None:
    state, seen = StateFile.open(path), 0

    def count(_sql: str) -> None:
        nonlocal seen
        seen += 1
        if seen == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    state._db.set_trace_callback(count)
    for step in STEPS:
        step(state)


def test_a_process_killed_at_any_statement_leaves_every_change_whole_or_undone(tmp_path) -> None:
    """Accident: SIGKILL before each statement of each transaction in turn, `COMMIT` included."""
    state, whole = StateFile.open(tmp_path / "whole.db"), {}
    whole[snapshot(tmp_path / "whole.db")] = 0
    for number, step in enumerate(STEPS, start=1):
        step(state)
        whole[snapshot(tmp_path / "whole.db")] = number
    state.close()
    reached, fatal = set(), 0
    while len(STEPS) not in reached:
        fatal += 1
        path = tmp_path / f"{fatal}.db"
        killed = killed_at(fatal, path)
        StateFile.open(path).close()
        found = snapshot(path)
        assert found in whole, f"killed at statement {fatal}: a change is there in part"
        reached.add(whole[found])
        assert killed or whole[found] == len(STEPS)
    assert reached >= set(range(len(STEPS)))
    assert fatal > 2 * len(STEPS)
