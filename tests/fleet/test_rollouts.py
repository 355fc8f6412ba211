"""What rollouts are made of, each by itself: waves, exposure, windows, conditions, the table. No fleet, no clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import Conflict, Malformed
from fleet.gates.thresholds import parse
from fleet.rollout import table
from fleet.rollout.attempts import attempt_name, rollout_of
from fleet.rollout.conditions import Conditions
from fleet.rollout.exposure import order, room
from fleet.rollout.table import OPEN, STATES, TABLE, move
from fleet.rollout.terms import parse_terms
from fleet.rollout.waves import Wave, limit, parse_waves
from fleet.rollout.windows import Window, is_open, next_opening, parse_window
from wire.units import show_instant

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)  # a Monday


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# --- waves and exposure ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        ("5,10%,100%", "5 10% 100%"),
        ("25,100", "25% 100%"),
        ("100", "100%"),
        ([25, 100], "25% 100%"),
        (["5", "50%", "100%"], "5 50% 100%"),
        (" 1 , 100 % ", "1 100%"),
    ],
)
def test_waves_are_devices_or_percentages(given_: str | list[int | str], shown: str) -> None:
    waves = parse_waves(given_)
    assert " ".join(map(str, waves)) == shown
    assert parse_waves([str(w) for w in waves]) == waves


@pytest.mark.parametrize(
    "waves",
    [
        "",
        "0,100",
        "50",
        "50,50,100",
        "60,40,100",
        "50,101",
        "5",
        "10%,5%,100%",
        "x",
        "5,3,100%",
        "100%,5",
        [],
        [0, 100],
    ],
)
def test_waves_that_do_not_rise_to_all_are_refused(waves: str | list[int | str]) -> None:
    with pytest.raises(Malformed, match="waves"):
        parse_waves(waves)


def test_a_wave_never_takes_devices_away_again() -> None:
    waves = parse_waves("50,10%,100%")
    assert [limit(waves, w, 100) for w in range(3)] == [50, 50, 100]
    assert [limit(waves, w, 7) for w in range(3)] == [7, 7, 7]


WAVES = st.sets(st.integers(1, 99), max_size=4).map(lambda s: (*(Wave(n) for n in sorted(s)), Wave(100)))


@given(WAVES, st.integers(0, 300), st.integers(0, 300))
def test_a_wave_reaches_its_share_rounded_up_and_never_more(
    waves: tuple[Wave, ...], reached: int, waiting: int
) -> None:
    for number, wave in enumerate(waves):
        more, eligible = room(waves, number, reached=reached, waiting=waiting), reached + waiting
        assert 0 <= more <= waiting
        if more:
            assert (reached + more - 1) * 100 < wave.amount * eligible <= (reached + more) * 100


def test_no_device_is_always_the_first() -> None:
    many = [f"device-{i}" for i in range(40)]
    assert len({order(f"r{i}", many)[0] for i in range(10)}) > 3
    assert order("r", many) == order("r", reversed(many))


# --- windows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "opens", "closed"),
    [
        (
            "mon-fri 01:00-05:00 Europe/Berlin",
            ["2026-11-23 00:00", "2026-11-23 03:59"],
            ["2026-11-23 04:00", "2026-11-22 02:00"],
        ),
        ("01:00-05:00", ["2026-11-22 01:00"], ["2026-11-22 05:00", "2026-11-22 00:59"]),
        ("fri 22:00-04:00 UTC", ["2026-11-27 23:00", "2026-11-28 03:59"], ["2026-11-27 03:00", "2026-11-28 22:00"]),
        ("sat,sun 00:00-24:00 America/New_York", ["2026-11-28 05:00"], ["2026-11-28 04:59", "2026-11-30 05:00"]),
        ("fri-mon 10:00-11:00", ["2026-11-23 10:30", "2026-11-27 10:30"], ["2026-11-24 10:30"]),
        # clocks go from 02:00 to 03:00 at 01:00 UTC on 2027-03-28 in Berlin: half past two is not there
        (
            "02:15-02:45 Europe/Berlin",
            ["2027-03-27 01:30", "2027-03-29 00:30"],
            ["2027-03-28 00:30", "2027-03-28 01:30"],
        ),
        (
            "02:15-05:00 Europe/Berlin",
            ["2027-03-28 01:00", "2027-03-28 02:59"],
            ["2027-03-28 00:59", "2027-03-28 03:00"],
        ),
        # and back from 03:00 to 02:00 at 01:00 UTC on 2026-10-25: half past two comes twice
        (
            "02:15-02:45 Europe/Berlin",
            ["2026-10-25 00:30", "2026-10-25 01:30"],
            ["2026-10-25 00:50", "2026-10-25 01:50"],
        ),
    ],
)
def test_a_window_follows_the_clock_on_the_wall(window: str, opens: list[str], closed: list[str]) -> None:
    windows = [parse_window(window)]
    assert [is_open(windows, at(t)) for t in opens] == [True] * len(opens)
    assert [is_open(windows, at(t)) for t in closed] == [False] * len(closed)


def test_without_a_window_it_is_always_open() -> None:
    assert is_open((), NOW)
    assert next_opening((), NOW) == NOW


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mon",
        "01:00",
        "01:00-25:00",
        "01:60-02:00",
        "24:00-01:00",
        "moon 01:00-02:00",
        "01:00-01:00",
        "mon 01:00-02:00 Mars/Base",
        "01:00-02:00 ../etc/passwd",
        "mon-fri-sat 01:00-02:00",
    ],
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="window"):
        parse_window(text)


ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
WINDOWS = st.builds(
    Window, st.frozensets(st.integers(0, 6), min_size=1), st.integers(0, 1439), st.integers(1, 1440), ZONES
).filter(lambda w: w.start != w.end)
# around both changes of the clock, and any other day
MOMENTS = st.sampled_from([at("2027-03-27"), at("2026-10-24"), at("2026-04-04"), NOW]).flatmap(
    lambda day: st.integers(0, 3 * 1440).map(lambda m: day + timedelta(minutes=m))
)


@given(WINDOWS)
def test_a_window_that_is_shown_and_read_again_is_the_same(window: Window) -> None:
    assert parse_window(str(window)) == window


@given(WINDOWS, MOMENTS)
def test_the_next_opening_is_the_first_minute_that_is_open(window: Window, now: datetime) -> None:
    found = next_opening([window], now)
    minutes = (now + timedelta(minutes=n) for n in range(2 * 1440))
    first = next((t for t in minutes if window.is_open(t)), None)
    if first is not None:
        assert found == first
    else:
        assert found is not None
        assert found > now + timedelta(days=2) - timedelta(minutes=1)


# --- conditions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "machine", "why"),
    [
        (Conditions(), None, ""),
        (Conditions(mains=True), None, "does not say how its machine is"),
        (Conditions(mains=True), {}, "does not say what powers it"),
        (Conditions(mains=True), {"power": "mains"}, ""),
        (Conditions(mains=True), {"power": "battery"}, "runs on its battery"),
        (Conditions(mains=True, battery_above=50), {"power": "battery", "battery_percent": 51}, ""),
        (Conditions(battery_above=50), {"power": "battery", "battery_percent": 50.0}, "has 50% left in its battery"),
        (Conditions(battery_above=50), {"power": "battery"}, "runs on its battery"),
        (Conditions(battery_above=50), {"power": "mains"}, ""),
        (Conditions(load_below=1.5), {"load": 1.4}, ""),
        (Conditions(load_below=1.5), {"load": 1.5}, "has a load of 1.5"),
        (Conditions(load_below=1.5), {"power": "mains"}, "does not say its load"),
        (Conditions(load_below=1.5), {"load": 1.0, "at": show_instant(NOW - timedelta(hours=3))}, "3 h ago"),
        (Conditions(load_below=1.5), {"load": 1.0, "at": show_instant(NOW + timedelta(days=9))}, "does not say"),
        (Conditions(load_below=1.5), {"load": 1.0, "at": "yesterday"}, "does not say"),
    ],
)
def test_a_device_that_does_not_say_is_not_reached(
    conditions: Conditions, machine: dict[str, object] | None, why: str
) -> None:
    health = None if machine is None else {"machine": {"at": show_instant(NOW), **machine}}
    said = conditions.hinders(online=True, health=health, now=NOW)
    assert why in said
    assert bool(why) == bool(said)


def test_a_device_that_is_away_is_not_reached_where_it_has_to_be_online() -> None:
    assert Conditions(online=True).hinders(online=False, health=None, now=NOW) == "is not online"
    assert Conditions().hinders(online=False, health=None, now=NOW) == ""


# --- terms and the table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target", "profile="),
        ("waves", "50"),
        ("soak", "5 parsecs"),
        ("soak", "999999999999999 d"),
        ("gates", "strict"),
        ("gates", {"latency": "1.2"}),
        ("gates", {"latency": "NaN times"}),
        ("gates", {"latencyy": "1.2 times"}),
        ("windows", ["at night"]),
        ("per_hour", 0),
        ("battery_above", 100),
        ("load_below", 0.0),
        ("deadline", "tomorrow"),
        ("deadline", "2026-11-23T08:00:00+01:00"),
        ("approval", "maybe"),
    ],
)
def test_terms_that_cannot_be_read_refuse_the_rollout_and_name_the_key(key: str, value: object) -> None:
    with pytest.raises(Malformed, match={"target": "query", "windows": "window"}.get(key, key)):
        parse_terms({key: value}, parse)


def test_terms_are_the_same_when_they_are_read_again() -> None:
    terms = parse_terms(
        {
            "target": "tag:kitchen and not group=lab",
            "waves": "5,10%,100%",
            "soak": "90 min",
            "gates": {"latency": "1.2 times", "accuracy": "off"},
            "windows": ["mon-fri 01:00-05:00 Europe/Berlin", "sat,sun 00:00-24:00 UTC"],
            "per_hour": 100,
            "mains": True,
            "battery_above": 40,
            "load_below": 2.5,
            "online": True,
            "deadline": "2026-12-01T00:00:00.000Z",
            "approval": "every-wave",
        },
        parse,
    )
    assert parse_terms(terms.to_value(), parse) == terms
    assert parse_terms(parse_terms({}, parse).to_value(), parse) == parse_terms({}, parse)


def test_what_the_table_does_not_name_is_refused_in_words() -> None:
    for state, event in product(STATES, get_args(table.Event)):
        if (state, event) in TABLE:
            assert move(state, event, "rollout r-1") == TABLE[state, event]
        else:
            with pytest.raises(Conflict, match=f"rollout r-1: is {state}"):
                move(state, event, "rollout r-1")


def test_what_has_ended_stays_ended_and_everything_open_can_be_aborted() -> None:
    ends = {(state, event): after for (state, event), after in TABLE.items() if state not in OPEN}
    assert ends == {("done", "roll back"): "rolled-back"}
    assert {state for (state, event) in TABLE if event == "abort"} == set(OPEN)


@given(st.from_regex(r"r-[0-9a-f]{12}", fullmatch=True), st.integers(1, 1000))
def test_an_attempt_names_its_rollout(rollout: str, attempt: int) -> None:
    assert rollout_of(attempt_name(rollout, attempt)) == rollout
