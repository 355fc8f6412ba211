"""The queue of telemetry: bounded, by the rule of each stream, and its ledger balances whatever happens."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from power_cut import Disk, why_not
from telemetry_soak import MIB, soak

from agent.store.queue import Queued
from agent.store.state import _STEPS, StateFile
from agent.store.streams import BATCH_BYTES, EVENT, HEALTH, INFERENCE, Row, merged_record, pairs_to_merge
from wire.life import DeviceEvent
from wire.messages import InferenceStats, TelemetryRecord
from wire.sketch import Histogram, Sketch
from wire.units import show_instant

DIGEST = "sha256:" + "1" * 64
TIME = "2026-11-22T08:00:00.000Z"


def record(stream: str, seq: int, *, requests: int = 1, padding: int = 0, ended: str = TIME) -> Queued:
    stats = InferenceStats(
        model="kitchen",
        digest=DIGEST,
        requests=requests,
        errors=0,
        latency_ms=Sketch.of([1.0] * requests),
        labels={"on" + "n" * padding: requests},
    )
    content = {
        INFERENCE: {"inference": (stats,)},
        EVENT: {"events": (DeviceEvent(at=TIME, kind="k", text="x" * padding),)},
        HEALTH: {"extra": {"padding": "x" * padding}},
    }
    made = TelemetryRecord(seq=seq, start=TIME, end=TIME, stream=stream, **content[stream])
    return Queued("b", seq, made.to_bytes(), stream, ended)


def waiting(state: StateFile) -> list[TelemetryRecord]:
    rows = state._rows("SELECT record FROM telemetry ORDER BY seq")
    return [TelemetryRecord.from_bytes(row[0]) for row in rows]


def ledger_of(state: StateFile, stream: str):
    return next(one for one in state.ledger() if one.stream == stream)


steps = st.tuples(st.sampled_from([EVENT, INFERENCE, HEALTH, "deliver", "send"]), st.integers(0, 3000))


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, min_size=1, max_size=80), st.sampled_from([2000, 20_000, 150_000]))
def test_every_ledger_balances_the_queue_is_bounded_and_no_alarm_goes_before_a_sample(
    tmp_path_factory, steps, limit
) -> None:
    with closing(StateFile.open(tmp_path_factory.mktemp("queue") / "agent.db")) as state:
        alarms = made = 0
        for seq, (what, padding) in enumerate(steps, start=1):
            if what == "deliver" and (batch := state.next_batch()):
                alarms -= sum(one.stream == EVENT for one in batch)
                made -= sum(s.requests for r in map(_read, batch) for s in r.inference)
                state.acknowledged("b", [one.seq for one in batch])
            elif what in (EVENT, INFERENCE, HEALTH):
                alarms, made = alarms + (what == EVENT), made + 3 * (what == INFERENCE)
                state.queue([record(what, seq, requests=3, padding=padding)], limit)
            ledgers = {one.stream: one for one in state.ledger()}
            assert all(one.missing == 0 for one in ledgers.values()), ledgers
            assert sum(len(row[0]) for row in state._rows("SELECT record FROM telemetry")) <= limit
            samples = ledgers[INFERENCE].waiting + ledgers[HEALTH].waiting
            if ledgers[EVENT].waiting < alarms:
                assert samples == 0, "an alarm was dropped before a sample"
                alarms = ledgers[EVENT].waiting
            if not ledgers[INFERENCE].dropped:
                assert sum(s.requests for r in waiting(state) for s in r.inference) == made


def _read(queued: Queued) -> TelemetryRecord:
    return TelemetryRecord.from_bytes(queued.record)


def test_what_may_have_been_sent_is_neither_merged_nor_thinned_out(tmp_path: Path) -> None:
    """Accident: the acknowledgement of a batch is lost, and the fleet is away until the queue is full."""
    with closing(StateFile.open(tmp_path / "agent.db")) as state:
        for seq in range(1, 40):
            state.queue([record((INFERENCE, HEALTH)[seq % 2], seq, padding=1500)], MIB)
        sent = state.next_batch()
        for seq in range(40, 400):
            state.queue([record((INFERENCE, HEALTH)[seq % 2], seq, padding=1500)], 200_000)
        assert ledger_of(state, INFERENCE).merged > 50
        assert ledger_of(state, HEALTH).dropped > 50
        assert [one for one in state.next_batch() if one.seq <= sent[-1].seq] == sent
        assert sum(one.doubtful for one in state.ledger()) == 0


def test_alarms_are_sent_before_samples_and_samples_by_age(tmp_path: Path) -> None:
    with closing(StateFile.open(tmp_path / "agent.db")) as state:
        for seq, stream in enumerate((HEALTH, INFERENCE, EVENT, HEALTH, EVENT), start=1):
            state.queue([record(stream, seq)], MIB)
        assert [one.seq for one in state.next_batch()] == [3, 5]
        state.acknowledged("b", [3, 5])
        assert [one.seq for one in state.next_batch()] == [1, 2, 4]
        assert state.telemetry()["waiting"] == 3


def test_two_windows_become_one_whose_counts_add_up() -> None:
    a = InferenceStats(
        model="m", digest=DIGEST, requests=3, errors=1, latency_ms=Sketch.of([1.0, 2.0]),
        confidence=Histogram.of([0.5]), labels={"on": 2}, feedback_total=2, feedback_correct=1,
        lengths=Sketch.of([4]).coarse(), languages={"en": 2},
    )  # fmt: skip
    b = InferenceStats(
        model="m", digest=DIGEST, requests=4, errors=0, latency_ms=Sketch.of([1.0]),
        confidence=Histogram.of([0.5]), labels={"off": 1, "on": 1}, feedback_total=1,
        lengths=Sketch.of([4, 9]).coarse(), languages={"en": 1, "de": 1},
    )  # fmt: skip
    other = InferenceStats(model="n", digest=DIGEST, requests=1, errors=0)
    first = TelemetryRecord(seq=4, start=TIME, end=TIME, stream=INFERENCE, inference=(a,), first=2, merged=1)
    later = "2026-11-22T09:00:00.000Z"
    second = TelemetryRecord(seq=9, start=later, end=later, stream=INFERENCE, inference=(b, other))
    both = merged_record(first, second)
    assert (both.seq, both.first, both.merged, both.start, both.end) == (9, 2, 2, TIME, later)
    m, n = both.inference
    assert (m.requests, m.errors, m.feedback_total, m.feedback_correct) == (7, 1, 3, 1)
    assert (m.labels, m.latency_ms.count, m.confidence.bins[10]) == ({"on": 3, "off": 1}, 3, 2)
    assert (m.lengths.count, m.languages) == (3, {"en": 3, "de": 1})
    assert n == other


def test_old_windows_are_merged_evenly_and_never_over_a_restart() -> None:
    rows = [Row(1, "a", 0, 100), Row(2, "a", 3, 100), Row(3, "a", 0, 100), Row(4, "a", 0, 100), Row(5, "b", 0, 100)]
    assert [(a.id, b.id) for a, b in pairs_to_merge(rows, 9)] == [(3, 4), (1, 2)]
    assert [(a.id, b.id) for a, b in pairs_to_merge(rows, 1)] == [(3, 4)]
    assert pairs_to_merge([Row(1, "a", 0, BATCH_BYTES // 2), Row(2, "a", 0, 100)], 9) == []


@pytest.mark.parametrize(("sure", "left"), [(False, 100), (True, 44)])
def test_old_health_expires_only_where_the_time_is_known_for_sure(tmp_path: Path, sure: bool, left: int) -> None:
    """Accident: a machine whose clock stands at 2100 until the fleet tells the time; it must not forget everything."""
    now = datetime(2026, 11, 22, tzinfo=UTC)
    with closing(StateFile.open(tmp_path / "agent.db")) as state:
        for seq in range(1, 101):
            old = show_instant(now - timedelta(days=31 if seq <= 80 else 1))
            state.queue([record(HEALTH, seq, padding=1500, ended=old)], MIB, now=now if sure else None)
        counts = ledger_of(state, HEALTH)
        assert (counts.waiting, counts.dropped) == (left, 100 - left), "those that may have been sent stay"


def test_the_queue_of_an_older_agent_is_taken_over_with_its_counts(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    with closing(sqlite3.connect(path)) as old:
        for version, step in _STEPS[:3]:
            old.executescript(f"{step}PRAGMA user_version={version + 1};")
        old.execute("INSERT INTO telemetry (boot, seq, record) VALUES ('b', 9, ?)", (record(INFERENCE, 9).record,))
        old.execute("INSERT INTO meta VALUES ('produced', '9'), ('acknowledged', '6'), ('dropped', '2')")
        old.commit()
    with closing(StateFile.open(path)) as state:
        assert state.telemetry() == {"produced": 9, "delivered": 6, "merged": 0, "dropped": 2, "waiting": 1}
        assert [one.seq for one in state.next_batch()] == [9]


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
def test_half_a_day_on_a_disk_whose_power_is_cut_adds_up(tmp_path: Path) -> None:
    """Accident: the power of an ext4 disk goes while the agent writes, four times."""
    with Disk(tmp_path) as disk:
        found = soak(disk.folder, tmp_path / "fleet", days=0.4, cuts=4, queue=MIB // 2, disk=disk)
    assert found.cuts == 4
    assert found.merged > 100


def test_a_day_offline_with_power_cuts_and_a_queue_that_is_too_small_adds_up(tmp_path: Path) -> None:
    """Accident: SIGKILL in the middle of the transaction of a window, five times; every fault is counted."""
    found = soak(tmp_path, tmp_path / "fleet", days=0.4, cuts=5, queue=MIB // 2)
    assert found.cuts == 5
    assert found.merged > 100
    assert found.stored_again > 0
