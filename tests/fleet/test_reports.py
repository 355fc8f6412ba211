"""What a report is, by itself: no fleet, no broker."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import Untrusted
from fleet.reports import check_batch, judge_report
from wire.messages import Reported, TelemetryBatch, TelemetryRecord

TIME = "2026-11-22T08:00:00.000Z"
LAST = Reported(
    device="kitchen-1",
    boot="boot-3",
    starts=3,
    seq=5,
    nonce="n",
    time=TIME,
    sealing_key="",
    agent="0.1.0",
    profile="x86-64",
    hardware="test",
    emulated=True,
    desired_epoch=1,
    desired_seq=1,
)
NUMBERS = st.tuples(st.integers(0, 5), st.integers(0, 5))


def batch(starts: int, sent: int) -> TelemetryBatch:
    records = (TelemetryRecord(seq=1, start=TIME, end=TIME),)
    return TelemetryBatch(device="kitchen-1", boot="boot-3", starts=starts, sent=sent, nonce="n", records=records)


def test_the_first_report_a_higher_one_and_one_of_a_later_start_are_news() -> None:
    assert judge_report(None, LAST, retained=False) == "new"
    assert judge_report(LAST, replace(LAST, seq=6), retained=False) == "new"
    assert judge_report(LAST, replace(LAST, starts=4, boot="boot-4", seq=1), retained=True) == "new"


@pytest.mark.parametrize("retained", [False, True])
def test_the_same_bytes_again_are_a_repeat(retained: bool) -> None:
    assert judge_report(LAST, replace(LAST), retained=retained) == "repeat"


@pytest.mark.parametrize("older", [replace(LAST, seq=4), replace(LAST, starts=2, boot="boot-2", seq=9)])
def test_an_older_one_is_refused_unless_only_the_brokers_memory_brings_it(older: Reported) -> None:
    """Attack: a recorded report is sent again. Accident: the broker lost what it had saved last."""
    assert judge_report(LAST, older, retained=True) == "stale"
    with pytest.raises(Untrusted, match="came before: a recording"):
        judge_report(LAST, older, retained=False)


@pytest.mark.parametrize("retained", [False, True])
def test_another_report_of_the_same_number_is_refused(retained: bool) -> None:
    """Attack: two machines with one key and one disk image count the same."""
    with pytest.raises(Untrusted, match="second machine"):
        judge_report(LAST, replace(LAST, agent="9.9.9"), retained=retained)


@pytest.mark.parametrize("seq", [4, 5, 6])
@pytest.mark.parametrize("retained", [False, True])
def test_one_start_with_two_boots_is_two_machines(seq: int, retained: bool) -> None:
    """Attack: a cloned identity: both machines count the same start, and each made a boot id of its own."""
    with pytest.raises(Untrusted, match="two machines use this identity"):
        judge_report(LAST, replace(LAST, boot="another", seq=seq), retained=retained)


@given(NUMBERS, NUMBERS)
def test_a_batch_below_the_last_number_never_passes(last: tuple[int, int], number: tuple[int, int]) -> None:
    if number < last:
        with pytest.raises(Untrusted, match="came before"):
            check_batch(last, batch(*number))
    else:
        assert check_batch(last, batch(*number)) == ("repeat" if number == last else "new")


@given(st.lists(NUMBERS, max_size=20))
def test_what_is_taken_live_never_goes_back(numbers: list[tuple[int, int]]) -> None:
    last: Reported | None = None
    for starts, seq in numbers:
        report = replace(LAST, starts=starts, boot=f"boot-{starts}", seq=seq)
        try:
            judgement = judge_report(last, report, retained=False)
        except Untrusted:
            assert last is not None
            assert report.number < last.number
            continue
        assert judgement == ("repeat" if report == last else "new")
        assert last is None or report.number >= last.number
        last = report
