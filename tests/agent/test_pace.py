"""When a device reports, asks again, takes the other way and raises an alarm: decisions without a clock."""

from __future__ import annotations

import math

import pytest

from agent.install.pace import FEW, LONGEST_WAIT, PATIENCE, REPORT_BYTES, REPORT_EVERY, Pace, SlowWatch, by_range
from agent.install.ranges import LARGEST, runs
from wire.chunks import WHOLE, ChunkList, ChunkRef

SHORTEST, LONGEST = REPORT_EVERY


def pace_that_asked() -> Pace:
    pace = Pace(2.0)
    pace.asked(100.0)
    return pace


def test_nothing_is_reported_while_nothing_comes() -> None:
    assert pace_that_asked().report_in(1000.0) == math.inf


def test_many_bytes_are_reported_soon_and_few_after_a_while() -> None:
    pace = pace_that_asked()
    pace.heard(1)
    assert pace.report_in(100.1) == pytest.approx(LONGEST - 0.1)
    pace.heard(REPORT_BYTES)
    assert pace.report_in(100.05) == pytest.approx(SHORTEST - 0.05)
    pace.reported(101.0)
    assert pace.report_in(200.0) == math.inf


def test_a_device_never_reports_more_often_than_the_fleet_takes() -> None:
    assert 1 / SHORTEST < 20


def test_silence_grows_while_requests_bring_nothing_and_is_short_again_after_a_chunk() -> None:
    pace = pace_that_asked()
    assert pace.quiet_in(101.0) == pytest.approx(1.0)
    for _ in range(8):
        pace.gave_up()
        pace.asked(200.0)
    assert pace.quiet_in(200.0) == LONGEST_WAIT
    assert pace.fruitless == 8
    pace.came(201.0, new=True)
    assert pace.fruitless == 0
    assert pace.quiet_in(201.0) == pytest.approx(2.0)


def test_chunks_that_are_here_already_are_no_progress() -> None:
    pace = pace_that_asked()
    pace.came(101.0, new=False)
    pace.gave_up()
    assert pace.fruitless == 1


@pytest.mark.parametrize(
    ("missing", "fruitless", "expected"),
    [
        (1, 0, False),
        (FEW, 0, False),
        (FEW, 1, True),
        (FEW + 1, 1, False),
        (FEW + 1, PATIENCE, True),
        (1 << 32, PATIENCE, True),
    ],
)
def test_the_other_way_is_taken_for_a_few_chunks_that_nobody_sends_or_when_nothing_comes(
    missing: int, fruitless: int, expected: bool
) -> None:
    assert by_range(missing, fruitless) is expected


def test_a_transfer_below_the_rate_for_the_time_is_told_with_its_rate() -> None:
    watch = SlowWatch(1000, 60.0)
    assert watch.look(0.0, up=True) is None
    watch.came(30_000)
    assert watch.look(59.0, up=True) is None
    assert watch.look(60.0, up=True) == pytest.approx(500)
    watch.came(60_000)
    assert watch.look(120.0, up=True) is None


def test_a_line_that_is_down_is_no_attack() -> None:
    watch = SlowWatch(1000, 60.0)
    watch.look(0.0, up=True)
    assert watch.look(59.0, up=False) is None
    assert watch.look(61.0, up=True) is None
    assert watch.look(120.0, up=True) is None
    assert watch.look(121.0, up=True) == 0


def test_a_rate_of_zero_never_tells() -> None:
    watch = SlowWatch(0, 1.0)
    watch.look(0.0, up=True)
    assert watch.look(1000.0, up=True) is None


def test_neighbours_are_fetched_in_one_range_of_a_bounded_size() -> None:
    refs = tuple(ChunkRef(digest="sha256:" + "0" * 64, size=WHOLE) for _ in range(40))
    chunks = ChunkList(blob="sha256:" + "1" * 64, size=40 * WHOLE, chunks=refs)
    assert list(runs({3, 4, 5, 9}, chunks)) == [(3, 5), (9, 9)]
    most = LARGEST // WHOLE
    assert list(runs(range(40), chunks)) == [(0, most - 1), (most, 2 * most - 1), (2 * most, 39)]
    assert list(runs([], chunks)) == []
