"""Drift over days: drawn fleets in a real database, judged by the clock of the drawing (`drift_worlds`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from drift_worlds import BEGAN, DIGEST, Change, Shape, World
from sqlmodel import col, func, select

from fleet.drift import views, windows
from fleet.drift.drift import GRACE, Drift, judge_one
from fleet.drift.looks import WINDOW, Look, window_of
from fleet.drift.windows import GAP, MOST_MODELS
from fleet.errors import NotFound
from fleet.store.drift_tables import DriftAlarm, DriftDay, DriftLook, DriftPast
from wire.messages import InferenceStats, TelemetryRecord
from wire.units import show_instant

Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[World] = []

    def new(shape: Shape, seed: int, **more: Any) -> World:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(World(shape, seed, folder, **more))
        return made[-1]

    yield new
    for world in made:
        world.close()


WORLDS = {
    "five": Shape(5),
    "twenty that are far apart, with other weekends": Shape(
        20, apart=0.8, bursts=0.4, shared=0.1, weekend=0.3, requests=60
    ),
}


def test_who_does_not_lead_judges_nothing_and_takes_over_where_the_other_stopped(make: Make) -> None:
    world = make(Shape(3), seed=1)
    now, leading = BEGAN + WINDOW + GRACE + timedelta(seconds=1), world.drift
    stands_by = Drift(world.database, world.serial, lambda: now, leads=lambda _: False)
    world._tell()
    assert stands_by.catch_up(now) == []
    stands_by._write(window_of(BEGAN), [])  # it led when it read the window
    assert leading.catch_up(now) == [window_of(BEGAN)]


@pytest.mark.parametrize("name", WORLDS)
def test_no_alarm_in_a_hundred_windows_in_which_nothing_changes(make: Make, name: str) -> None:
    """Days and nights, weekends, devices that differ and are loud: none of it is drift. More: `scripts/bench drift`."""
    world = make(WORLDS[name], seed=11)
    world.live(100)
    assert world.opened == []
    with world.database.transaction() as session:
        (judged,) = views.overview(session)["models"]
    assert {s["subject"] for s in judged["scores"]} == {"labels", "confidence", "lengths", "languages"}
    assert {s["against"] for s in judged["scores"]} == {"reference", "past"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Change("labels", 0.25), "label `intent-11` from"),
        (Change("confidence", 0.4), "confidence median 0."),
        (Change("lengths", 0.4), "input length median"),
        (Change("languages", 0.3), "language `fr` from"),
        (Change("labels", 0.3, "group:g1"), "on group g1"),
        (Change("languages", 0.3, "tag:kitchen"), "on tag kitchen"),
    ],
    ids=lambda value: f"{value.kind}-{value.stratum}" if isinstance(value, Change) else "",
)
def test_a_change_is_found_in_at_most_three_windows_and_named_where_it_is(
    make: Make, change: Change, words: str
) -> None:
    world = make(Shape(32, requests=60), seed=12)
    world.live(10)
    assert world.opened == []
    world.change = change
    world.live(3)
    found = [alarm for _, alarm in world.opened]
    assert {(a["subject"], a["stratum"]) for a in found} == {(change.kind, change.stratum)}
    assert {a["against"] for a in found} == {"reference", "past"}
    assert all(words in a["what"] for a in found), found
    with world.database.transaction() as session:
        told = views.drifting(session)
    place = "all devices" if change.stratum == "all" else change.stratum
    assert list(told) == [f"kitchen {DIGEST[:19]} {change.kind}, {place}"], "one line, against whatever it is seen"
    assert words in next(iter(told.values()))
    assert all(a["first_seen"][:10] == "2026-01-15" for a in found), "the day of the change"


def test_a_change_without_a_past_is_found_against_the_reference_alone(make: Make) -> None:
    world = make(Shape(32, requests=60), seed=13, change=Change("confidence", 0.4))
    world.live(3)
    assert {(a["subject"], a["against"]) for _, a in world.opened} == {("confidence", "reference")}


def test_one_device_is_held_against_its_own_days(make: Make) -> None:
    world = make(Shape(1, requests=200), seed=14, reference=False)
    world.live(15)
    assert world.opened == []
    world.change = Change("languages", 0.5)
    world.live(3)
    assert [(a["subject"], a["devices"]) for _, a in world.opened] == [("languages", 1)]
    assert "1 device" in world.opened[0][1]["what"]


def test_an_alarm_recovers_when_the_change_is_undone_and_its_days_are_no_past(make: Make) -> None:
    world = make(Shape(20, requests=60), seed=15, reference=False)
    world.live(12)
    world.change = Change("languages", 0.3)
    world.live(6)
    assert len(world.open_now()) == 1
    world.change = None
    world.live(3)
    assert world.open_now() == []
    with world.database.transaction() as session:
        (row,) = session.exec(select(DriftAlarm).where(DriftAlarm.state == "recovered"))
        assert (row.ended or "") > row.last > row.first
        drifted = session.exec(select(DriftDay.calm).where(DriftDay.window >= row.first, DriftDay.window <= row.last))
        assert not any(drifted)
    world.live(8)
    assert len(world.opened) == 1, "the days of the alarm were taken for the past"


def test_what_stays_is_an_alarm_until_its_past_is_too_long_ago_and_then_how_things_are(make: Make) -> None:
    world = make(Shape(6, requests=60), seed=16, reference=False)
    world.live(12)
    world.change = Change("lengths", 0.6)
    world.live(28)
    assert [a["subject"] for a in world.open_now()] == ["lengths"]
    world.live(4)
    assert world.open_now() == []
    with world.database.transaction() as session:
        assert [row.state for row in session.exec(select(DriftAlarm))] == ["settled"]
    world.live(12)
    assert len(world.opened) == 1


@dataclass
class Told(World):
    """A fleet with feedback: the devices with the tag are right less often by so much."""

    worse: float = 0.0

    def _looks(self) -> list[Look]:
        looks = super()._looks()
        right = [0.9 - self.worse * (i % 3 == 0) + 0.02 * (i % 4) for i in range(self.shape.devices)]
        return [
            replace(look, feedback=20, correct=int(self.chance.binomial(20, p)))
            for look, p in zip(looks, right, strict=True)
        ]


@pytest.mark.parametrize(("worse", "subjects"), [(0.25, ["accuracy"]), (0.0, [])])
def test_a_cohort_whose_answers_are_wrong_more_often_is_an_alarm(
    tmp_path: Path, worse: float, subjects: list[str]
) -> None:
    world = Told(Shape(30, requests=30), 22, tmp_path, worse=worse)
    world.live(5)
    world.close()
    assert [a["subject"] for _, a in world.opened] == subjects
    for _, alarm in world.opened:
        assert (alarm["stratum"], alarm["against"], alarm["devices"]) == ("tag:kitchen", "rest", 10)
        assert "accuracy by feedback" in alarm["what"]
        assert "on tag kitchen, 10 devices" in alarm["what"]


def test_the_tables_do_not_grow_with_time(make: Make, monkeypatch: Any) -> None:
    kept = 20
    monkeypatch.setattr(windows, "KEPT", kept)
    world = make(Shape(4, requests=20), seed=17, reference=False)
    world.live(kept + 10)
    with world.database.transaction() as session:
        counted = {t: session.exec(select(func.count()).select_from(t)).one() for t in (DriftLook, DriftPast, DriftDay)}
        assert session.exec(select(func.count(col(DriftLook.window).distinct()))).one() == GAP
    assert counted[DriftLook] <= 4 * GAP
    assert counted[DriftPast] == 4
    assert counted[DriftDay] <= 2 * (kept + 1)


def test_a_fleet_that_stopped_while_it_judged_begins_the_window_anew(make: Make, monkeypatch: Any) -> None:
    """Accident: killed after a window was written, in the middle of making it the past."""
    a, b = (make(Shape(8, requests=60), seed=18) for _ in range(2))
    for world in (a, b):
        world.live(9)
    with monkeypatch.context() as patch:
        patch.setattr("fleet.drift.windows._AT_ONCE", 3)
        patch.setattr(b.drift, "_fold", lambda _window: 0)  # as if it ended here
        b.live(1)
    a.live(1)
    with b.database.transaction() as session:
        assert session.exec(select(func.count()).select_from(DriftLook)).one() == 8 * (GAP + 1), "nothing was cut short"
    for world in (a, b):
        world.live(2)
    pasts = []
    for world in (a, b):
        with world.database.transaction() as session:
            rows = session.exec(select(DriftPast.device, DriftPast.look).order_by(DriftPast.device)).all()
            pasts.append([tuple(row) for row in rows])
    assert pasts[0] == pasts[1]


def test_two_processes_of_one_database_judge_a_window_once(make: Make) -> None:
    """Race: both saw that the window had ended, both judged it, the slower one writes last."""
    world = make(Shape(20, requests=60), seed=23, reference=False)
    world.live(10)
    world.change = Change("languages", 0.4)
    world.live(1)
    window = show_instant(BEGAN + 10 * WINDOW)
    with world.database.transaction() as session:
        before = [row.signs for row in session.exec(select(DriftAlarm).where(DriftAlarm.subject == "languages"))]
    assert set(before) == {"1"}
    again = [judge_one(world.drift._read(window, DIGEST))]
    assert any(score.effect >= score.limit for score in again[0].scores), "there is a sign to count twice"
    world.drift._write(window, again)
    with world.database.transaction() as session:
        assert [
            row.signs for row in session.exec(select(DriftAlarm).where(DriftAlarm.subject == "languages"))
        ] == before
    assert world.open_now() == []


def told(digest: str, at: Any, *, shadow: bool = False) -> TelemetryRecord:
    stats = InferenceStats(model="m", digest=digest, requests=5, errors=0, languages={"en": 5}, shadow=shadow)
    return TelemetryRecord(seq=1, start=show_instant(at), end=show_instant(at), inference=(stats,))


def test_what_devices_tell_is_kept_by_day_and_what_comes_too_late_or_cannot_be_is_not(make: Make) -> None:
    """Attacks: a clock at 1970 or in the future, answers in shadow, a device that makes up models."""
    world, now = make(Shape(2), seed=19, reference=False), BEGAN + 20 * WINDOW + timedelta(hours=13)
    later = "sha256:" + "b" * 64
    with world.database.transaction() as session:
        for at in (now, now - timedelta(hours=1), now - 2 * WINDOW):
            windows.add(session, [("d0000", told(DIGEST, at))], now)
        for at in (BEGAN, now - 5 * WINDOW, now + timedelta(hours=2)):
            windows.add(session, [("d0000", told(later, at))], now)
        windows.add(session, [("d0000", told(later, now, shadow=True))], now)
        for i in range(50):
            windows.add(session, [("d0001", told(f"sha256:{i:064}", now))], now)
    with world.database.transaction() as session:
        mine = session.exec(select(DriftLook).where(DriftLook.device == "d0000").order_by(DriftLook.window))
        assert [(row.window[:10], row.look) for row in mine] == [
            ("2026-01-23", '{"languages":{"en":5}}'),
            ("2026-01-25", '{"languages":{"en":10}}'),
        ]
        liar = select(func.count()).select_from(DriftLook).where(DriftLook.device == "d0001")
        assert session.exec(liar).one() == MOST_MODELS


def test_records_of_many_devices_at_once_are_the_same_as_one_by_one(make: Make) -> None:
    together, apart = (make(Shape(5), seed=24, reference=False) for _ in range(2))
    now = BEGAN + 20 * WINDOW + timedelta(hours=1)
    records = [
        (f"d{i % 5:04}", told(digest, now - timedelta(hours=i % 7)))
        for i in range(60)
        for digest in (DIGEST, "sha256:" + "b" * 64)
    ]
    with together.database.transaction() as session:
        windows.add(session, records[:70], now)
        windows.add(session, records[70:], now)
    for device, record in records:
        with apart.database.transaction() as session:
            windows.add(session, [(device, record)], now)
    found = []
    for world in (together, apart):
        with world.database.transaction() as session:
            rows = session.exec(select(DriftLook).order_by(DriftLook.window, DriftLook.digest, DriftLook.device))
            found.append([row.model_dump() for row in rows])
    assert found[0] == found[1]
    assert len(found[0]) == 2 * 2 * 5, "two days, two models, five devices"


def test_a_model_that_was_not_judged_is_told_to_be_so(make: Make) -> None:
    world = make(Shape(3), seed=20)
    with world.database.transaction() as session, pytest.raises(NotFound, match="a day must end"):
        views.model(session, DIGEST)
    world.live(2)
    with world.database.transaction() as session:
        shown = views.model(session, DIGEST)
    assert (shown["model"], shown["devices"], len(shown["history"]), shown["alarms"]) == ("kitchen", 3, 2, [])
    assert [part["stratum"] for part in shown["strata"]] == ["all", "tag:kitchen"]


def test_who_is_given_groups_sees_no_drift_of_another_one(make: Make) -> None:
    world = make(Shape(20), seed=21)
    world.live(1)
    with world.database.transaction() as session:
        for stratum in ("all", "group:g0", "group:g1"):
            session.add(
                DriftAlarm(
                    digest=DIGEST, model="kitchen", stratum=stratum, subject="labels", against="past", state="open",
                    signs="", first="", last="", ended="", score='{"words": "more of one"}',
                )
            )  # fmt: skip
        session.flush()
        mine = frozenset({"g1"})
        for shown in (views.model(session, DIGEST, mine), views.overview(session, mine)):
            assert {one["stratum"] for one in shown["alarms"]} == {"all", "group:g1"}
        assert len(views.overview(session)["alarms"]) == 3
        strata = {one["stratum"] for one in views.model(session, DIGEST)["strata"]}
        assert {"group:g0", "group:g1"} < strata
        of_mine = {one["stratum"] for one in views.model(session, DIGEST, mine)["strata"]}
        assert of_mine == strata - {"group:g0", "group:g2", "group:g3"}
