"""Windows of evidence: they merge in any order, hold what the records said, and nothing is lost when they grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from evidence_world import MINUTE, NEW, NOON, OLD, World, health, stats
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import select

from fleet.evidence.keeping import Keeper
from fleet.evidence.packing import MOST, Total, pack, unpack
from fleet.evidence.recording import MOST_SUBJECTS, note_golden
from fleet.evidence.windows import DAY, FINE, HOUR, Kept, Window, place
from fleet.gates.values import Behaviour
from fleet.seen import EXACT, Seen
from fleet.store.database import Database
from fleet.store.evidence_tables import EvidenceSubject, EvidenceWindow, HealthWindow, SeenRow
from fleet.store.tables import Device, DeviceStats, TelemetryRow
from wire.messages import TelemetryRecord
from wire.sketch import BINS, Histogram, Sketch
from wire.units import show_instant

buckets = st.dictionaries(st.integers(-1024, 1024), st.integers(1, MOST), max_size=12)
close = st.dictionaries(st.integers(0, 70), st.integers(1, 300), max_size=60)
names = st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=4)
counts = st.integers(0, 99)
windows = st.builds(
    Window,
    ends=counts,
    numbers=st.lists(counts, min_size=6, max_size=6),
    latency=close,
    lengths=close,
    confidence=st.lists(counts, min_size=BINS, max_size=BINS),
    labels=names,
    languages=names,
    checks=names,
)


def merged(*ones: Window) -> dict[str, Any]:
    total = Window()
    for one in ones:
        total.merge(one)
    columns = total.columns()
    return {**columns, "detail": Window.from_columns(0, [], b"", columns["detail"]).labels}


@given(st.one_of(buckets, close))
def test_a_sketch_is_the_same_when_it_is_unpacked(sketch: dict[int, int]) -> None:
    assert unpack(pack(sketch)) == sketch


@given(st.lists(st.one_of(buckets, close), max_size=6))
def test_packed_sketches_behind_each_other_add_up_to_the_sum(sketches: list[dict[int, int]]) -> None:
    total = Total()
    total.add(b"".join(map(pack, sketches)))
    assert total.buckets() == dict(sum((Counter(one) for one in sketches), Counter()))


@given(windows, windows, windows)
def test_windows_merge_in_any_order_and_grouping(a: Window, b: Window, c: Window) -> None:
    def copy(one: Window) -> Window:
        columns = one.columns()
        return Window.from_columns(columns["ends"], list(one.numbers), columns["latency"], columns["detail"])

    left, right = Window(), copy(c)
    for one in (a, b, c):
        left.merge(copy(one))
    inner = copy(b)
    inner.merge(copy(a))
    right.merge(inner)
    assert _plain(left) == _plain(right)
    assert _plain(copy(a)) == _plain(a)
    assert left.numbers == [x + y + z for x, y, z in zip(a.numbers, b.numbers, c.numbers, strict=True)]


def _plain(window: Window) -> dict[str, Any]:
    return {
        name: {k: n for k, n in value.items() if n} if isinstance(value, dict) else value
        for name, value in vars(window).items()
    }


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3)), max_size=120))
def test_what_was_seen_is_known_for_ever_and_takes_little_room(coming: list[tuple[int, int]]) -> None:
    """Whatever comes in whatever order: what was added is held, and so is everything that overlaps it."""
    seen = Seen()
    added = []
    for seq, back in coming:
        first = max(1, seq - back)
        if not seen.holds("inference", first, seq):
            seen.add("inference", first, seq)
            added.append((first, seq))
            seen = Seen.from_text(seen.to_text())
    assert all(seen.holds("inference", first, seq) for first, seq in added)
    assert len({n for first, seq in added for n in range(first, seq + 1)}) == sum(s - f + 1 for f, s in added)
    assert len(seen.to_text()) < 40 + 10 * EXACT


def test_records_in_order_are_all_new_however_many() -> None:
    seen = Seen()
    for seq in range(1, 1000, 2):
        assert not seen.holds("inference", seq, seq)
        seen.add("inference", seq, seq)
        assert not seen.holds("health", seq + 1, seq + 1)
        seen.add("health", seq + 1, seq + 1)


def test_a_record_belongs_to_the_window_of_its_age() -> None:
    now, kept = NOON.timestamp(), Kept()
    assert place(now - 60, now, kept) == (FINE, now - FINE)
    assert place(now - 3 * HOUR - 60, now, kept) == (HOUR, now - 4 * HOUR)
    assert place(now - 20 * DAY, now, kept) == (DAY, (now - 20 * DAY) // DAY * DAY)
    assert place(now + DAY, now, kept) == (FINE, now), "a clock that is ahead"
    assert place(0, now, kept) is None, "a clock that knows no time"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with closing(Database.in_folder(tmp_path)) as database:
        made = World(database)
        made.add("a", "b")
        yield made


def known(behaviour: Behaviour | None) -> Behaviour:
    assert behaviour is not None
    return behaviour


def test_windows_hold_what_the_records_said_for_the_device_and_for_its_profile(world: World) -> None:
    more = {
        "confidence": Histogram.of([0.9] * 5),
        "labels": {"on": 3},
        "lengths": Sketch.of([12.0]),
        "languages": {"en": 1},
        "feedback_total": 2,
        "feedback_correct": 1,
    }
    for device in ("a", "b"):
        for minute in range(3):
            world.say(device, NOON - minute * MINUTE - MINUTE, stats(**more))
    with world.database.transaction() as session:
        subjects = {s.id: s for s in session.exec(select(EvidenceSubject))}
        rows = session.exec(select(EvidenceWindow)).all()
        found = {
            subjects[row.subject].device: Window.from_columns(row.ends, [row.requests], row.latency, row.detail)
            for row in rows
        }
    assert sorted(found) == ["", "a", "b"]
    assert found["a"].numbers == [30]
    both = found[""]
    assert (both.numbers, both.labels, both.languages) == ([60], {"on": 18}, {"en": 6})
    assert (sum(both.latency.values()), sum(both.lengths.values()), sum(both.confidence)) == (60, 6, 30)
    assert both.ends == NOON.timestamp()


def test_a_transaction_that_is_undone_leaves_no_number_behind(world: World) -> None:
    """Accident: the disk is full when the first record of a model is stored."""
    with pytest.raises(RuntimeError):
        _store_in_vain(world)
    world.recorder.forget()
    world.say("a", NOON, stats())
    numbers = {s.id for s in world.all(EvidenceSubject)}
    assert {row.subject for row in world.all(EvidenceWindow)} == numbers


def _store_in_vain(world: World) -> None:
    at = show_instant(NOON)
    with world.database.transaction() as session:
        sheet = world.recorder.sheet(session, NOON)
        sheet.add("a", "pi", TelemetryRecord(seq=1, start=at, end=at, inference=(stats(),)))
        sheet.write()
        raise RuntimeError


def test_windows_become_hours_and_days_and_nothing_is_lost(world: World) -> None:
    for minute in range(0, 180, 10):
        world.say("a", NOON - minute * MINUTE, stats(), health=health(memory=minute))
    assert world.spans()[FINE] > 10
    world.keep(hours=6)
    assert world.spans() == {HOUR: 4}
    world.keep(hours=24 * 16)
    assert world.spans() == {DAY: 1}
    (row,) = [w for w in world.all(EvidenceWindow) if w.subject == 1]
    assert (row.requests, row.errors, sum(unpack(row.latency).values())) == (180, 18, 180)
    (one,) = world.all(HealthWindow)
    assert (one.samples, one.memory) == (18, 170)
    world.keep(hours=24 * 410)
    assert world.all(EvidenceWindow) == world.all(HealthWindow) == world.all(EvidenceSubject) == []
    world.say("a", world.now, stats())
    assert world.spans() == {FINE: 1}, "the number of a subject that is gone is not used again"


def test_who_does_not_lead_merges_nothing(world: World) -> None:
    world.say("a", NOON, stats())
    later = world.now + timedelta(days=30)
    keeper = Keeper(
        world.database, world.recorder, timedelta(hours=1), timedelta(days=90), lambda: later, lambda _: False
    )
    for _ in range(10):
        keeper.tick()
    assert world.spans() == {FINE: 1}


def test_what_comes_late_is_added_to_the_hour_that_was_merged(world: World) -> None:
    """Accident: a device was away for a day."""
    world.say("a", NOON, stats())
    world.keep(hours=24)
    world.say("a", NOON + MINUTE, stats())
    assert world.spans() == {HOUR: 1}
    assert max(w.requests for w in world.all(EvidenceWindow)) == 20


def test_raw_records_go_and_are_known_when_they_come_again(world: World) -> None:
    """Accident: the acknowledgement of a batch was lost, and the device was away until its records were pruned."""
    for minute in range(5):
        world.say("a", NOON + minute * MINUTE, stats())
    assert len(world.all(TelemetryRow)) == 5
    world.keep(hours=2)
    assert world.all(TelemetryRow) == []
    world.seqs["a"] = 2
    with world.database.transaction() as session:
        session.get_one(Device, "a").batch_sent = 0
    for minute in range(2, 6):
        world.say("a", NOON + minute * MINUTE, stats())
    (sums,) = [one for one in world.all(DeviceStats) if one.device == "a"]
    assert (sums.records, sums.duplicates, sums.requests) == (6, 3, 60)
    assert len(world.all(SeenRow)) == 1


def test_events_outlast_raw_records(world: World) -> None:
    with world.database.transaction() as session:
        for seq, stream in enumerate(("event", "health"), 1):
            row = {"device": "a", "boot": "b", "stream": stream, "first": seq, "seq": seq, "record": "{}"}
            session.add(TelemetryRow(**row, received=show_instant(NOON)))
    world.keep(hours=24)
    assert [row.stream for row in world.all(TelemetryRow)] == ["event"]
    world.keep(hours=24 * 91)
    assert world.all(TelemetryRow) == []


def test_a_device_that_makes_up_models_gets_few_rows(world: World) -> None:
    """Attack: every record is of another model."""
    made_up = [stats(f"sha256:{n:064x}") for n in range(MOST_SUBJECTS + 9)]
    for some in range(0, len(made_up), 20):
        world.say("a", NOON, *made_up[some : some + 20])
    assert len(world.all(EvidenceSubject)) == 2 * MOST_SUBJECTS
    world.say("b", NOON, stats())
    assert len(world.all(EvidenceSubject)) == 2 * MOST_SUBJECTS + 2


# --- what gates are shown ---------------------------------------------------------------------------------------------


def test_a_candidate_is_shown_before_and_after_it_committed_and_nothing_between(world: World) -> None:
    since = NOON + 5 * MINUTE
    world.now = NOON + timedelta(hours=1)
    for minute in range(-60, 0, 5):
        world.say("a", NOON + minute * MINUTE, stats(), health=health(memory=50))
    world.say("a", NOON, stats(NEW, 1000), health=health(memory=900))  # in probation: before it committed
    world.say("a", NOON + 4 * MINUTE, stats(NEW, 1000))
    for minute in range(10, 40, 5):
        world.say("a", NOON + minute * MINUTE, stats(NEW, 7), health=health(memory=60, crash=minute // 20))
    one = world.compare(since, "a")["a"]
    before, after = known(one.before), known(one.after)
    assert (before.digest, before.requests, before.errors, before.memory) == (OLD, 120, 12, 50)
    assert (after.digest, after.requests, after.memory, after.restarts) == (NEW, 42, 60, 1)
    assert before.ends <= since <= after.begins
    assert before.latency_ms.count == 120
    assert 19 < (after.latency_ms.quantile(0.5) or 0) < 21


def test_what_is_told_of_after_never_shrinks_while_windows_become_hours(world: World) -> None:
    since = NOON + 5 * MINUTE
    world.now = NOON + timedelta(hours=1)
    world.add("others")
    for minute in range(-50, 50, 10):
        world.say("a", NOON + minute * MINUTE, stats(OLD if minute < 0 else NEW))
        world.say("b", NOON + minute * MINUTE, stats())
    first = world.compare(since, "a", controls=("b",))
    counted = {name: known(one.after).requests for name, one in first.items()}
    assert counted == {"a": 40, "b": 40}
    for _ in range(5):
        world.keep(hours=20)
        world.say("others", world.now, stats())
        now = world.compare(since, "a", controls=("b",))
        assert {name: known(one.after).requests for name, one in now.items()} == counted
        assert {name: known(one.before).requests for name, one in now.items()} == {"a": 50, "b": 50}
    assert world.spans()[HOUR] >= 2, "the hours that nobody asks for are merged"
    world.keep(hours=24 * 4)
    assert FINE not in world.spans(), "nobody asked any more"


def test_a_rollout_may_take_longer_than_hours_are_kept(world: World) -> None:
    """Accident: on the fifteenth day its first day became one window, which lies on the moment it began."""
    since = NOON + 5 * MINUTE
    world.now = NOON + timedelta(hours=12)
    world.add("others")
    for minute in range(-20 * 60, 10 * 60, 30):
        world.say("a", NOON + minute * MINUTE, stats(OLD if minute < 0 else NEW), health=health())
        world.say("b", NOON + minute * MINUTE, stats())
    first = {name: (known(c.before), known(c.after)) for name, c in world.compare(since, "a", controls=("b",)).items()}
    for _ in range(20):
        world.keep(hours=24)
        world.say("others", world.now, stats())
        now = world.compare(since, "a", controls=("b",))
        assert {name: (known(c.before), known(c.after)) for name, c in now.items()} == first
    assert world.spans()[DAY] >= 1, "days of devices that nobody asks for are merged"
    world.keep(hours=24 * 4)
    world.keep(hours=1)
    assert world.spans().keys() <= {HOUR, DAY}
    counts = {w.begins for w in world.all(EvidenceWindow) if w.span == HOUR}
    assert all(begins > since.timestamp() + DAY for begins in counts), "nobody asks any more"


def test_a_control_is_shown_with_its_own_model_on_both_sides(world: World) -> None:
    world.now = NOON + timedelta(hours=1)
    world.say("b", NOON - 30 * MINUTE, stats())
    world.say("b", NOON + 20 * MINUTE, stats(requests=5))
    one = world.compare(NOON, controls=("b",))["b"]
    assert (known(one.before).digest, known(one.after).digest) == (OLD, OLD)
    assert (known(one.before).requests, known(one.after).requests) == (10, 5)
    assert (one.arm, one.profile, one.since) == ("control", "pi", NOON)


def test_a_device_that_says_nothing_is_shown_as_nothing(world: World) -> None:
    one = world.compare(NOON, "a")["a"]
    assert (one.before, one.after) == (None, None)


def test_a_device_that_was_idle_for_days_is_shown_as_it_was_when_it_was_asked_last(world: World) -> None:
    """Accident: idle on Sunday, rolled out on Monday, and nothing was held against anything."""
    for name, idle in (("a", 3), ("b", 13)):
        world.say(name, NOON - timedelta(days=idle), stats(requests=40), health=health(memory=50))
    world.add("c")
    world.say("c", NOON - timedelta(days=20), stats(requests=40))
    world.keep(hours=1)
    for name in ("a", "b", "c"):
        world.say(name, NOON + 20 * MINUTE, stats(NEW, 7), health=health(memory=60))
    found = world.compare(NOON, "a", "c", controls=("b",))
    assert [known(found[name].before).requests for name in ("a", "b")] == [40, 40]
    assert (known(found["a"].before).memory, known(found["a"].after).memory) == (50, 60)
    assert known(found["a"].after).requests == 7
    assert found["c"].before is None, "longer ago than two weeks"
    world.say("a", NOON - 30 * MINUTE, stats(requests=3))
    assert known(world.compare(NOON, "a")["a"].before).requests == 3, "the last day where it did something"


def test_what_was_compared_in_shadow_before_the_commit_stands_with_the_candidate(world: World) -> None:
    """A shadow ends when its release is committed: what it said after that is nothing."""
    world.now = NOON + timedelta(hours=1)
    shadow = replace(stats(NEW, 8), shadow=True, compared=8, agreed=6)
    for back in (timedelta(days=20), timedelta(days=3), 30 * MINUTE, -10 * MINUTE):
        world.say("a", NOON - back, stats(), shadow)
    other = replace(stats("sha256:" + "c" * 64, 99), shadow=True, compared=99, agreed=1)
    world.say("a", NOON - 40 * MINUTE, other)
    assert world.compare(NOON, "a")["a"].after is None, "it answered nobody"
    world.say("a", NOON + 20 * MINUTE, stats(NEW, 3))
    one = world.compare(NOON, "a")["a"]
    after = known(one.after)
    assert (after.requests, after.compared, after.agreed) == (3, 24, 18)
    assert (known(one.before).compared, known(one.before).requests) == (0, 10)


def test_golden_sets_are_shown_with_the_model_they_are_of(world: World) -> None:
    world.now = NOON + timedelta(hours=1)
    world.say("a", NOON - 30 * MINUTE, stats())
    world.say("a", NOON + 30 * MINUTE, stats(NEW))
    with world.database.transaction() as session:
        note_golden(session, {"a": {NEW: True}}, NOON)
        note_golden(session, {"a": {NEW: False}}, NOON)
    one = world.compare(NOON, "a")["a"]
    assert (known(one.before).golden, known(one.after).golden) == (None, False)


def test_restarts_that_were_asked_for_do_not_count_and_those_before_the_first_record_neither(world: World) -> None:
    world.now = NOON + timedelta(hours=1)
    for minute, restarts in ((10, {"clean": 3, "crash": 4}), (20, {"clean": 9, "crash": 4}), (30, {"crash": 6})):
        world.say("a", NOON + minute * MINUTE, stats(NEW), health=health(**restarts))
    assert known(world.compare(NOON, "a")["a"].after).restarts == 2
