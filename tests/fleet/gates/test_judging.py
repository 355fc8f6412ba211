"""Verdicts: what is missing holds, what all devices do is nobody's fault, and a device counts once."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from gate_devices import LABELS, NOW, REQUESTS, SINCE, candidates, controls, times
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.gates.history import History
from fleet.gates.judging import judge
from fleet.gates.thresholds import Gates, parse
from fleet.gates.values import Behaviour, Comparison, Judgement
from wire.errors import Malformed


def look(comparisons: Sequence[Comparison], gates: Gates = Gates(), now: datetime = NOW) -> Judgement:  # noqa: B008
    return judge(gates, "pi", comparisons, History(), now)[0]


def told(judgement: Judgement, words: str) -> bool:
    return any(words in reason for reason in judgement.reasons)


def a_day_ago(devices: list[Comparison]) -> list[Comparison]:
    """The same devices, which have had the candidate for a day longer."""
    return [replace(one, since=one.since - timedelta(days=1)) for one in devices]


def test_no_device_and_no_evidence_hold() -> None:
    assert look(controls(20)).verdict == "HOLD"
    silent = [replace(c, after=None) for c in candidates(6)]
    held = look(silent + controls(60))
    assert held.verdict == "HOLD"
    assert told(held, "0 of 6 devices have 128 requests or more")


def test_stale_evidence_holds() -> None:
    comparisons = candidates(6) + controls(60)
    assert look(comparisons, now=NOW + timedelta(hours=1)).verdict == "PROCEED"
    stale = look(comparisons, now=NOW + timedelta(hours=3))
    assert stale.verdict == "HOLD"
    assert told(stale, "none older than 2 h")


def test_too_few_requests_hold_and_one_idle_device_of_five_does_not() -> None:
    assert look(candidates(6, requests=100, errors=0) + controls(60)).verdict == "HOLD"
    assert look(candidates(4) + candidates(5, requests=3, errors=0)[4:] + controls(60)).verdict == "PROCEED"


def test_many_silent_devices_hold_though_enough_speak() -> None:
    """A candidate that makes devices fall silent is not judged by the others."""
    comparisons = candidates(20)
    silent = [replace(c, after=None) if i >= 8 else c for i, c in enumerate(comparisons)]
    held = look(silent + controls(60))
    assert held.verdict == "HOLD"
    assert told(held, "8 of 20 devices")
    assert told(held, "10 are asked for")


def test_labels_that_are_coming_are_waited_for_and_not_for_ever() -> None:
    few = candidates(6, feedback_total=200, feedback_correct=182) + controls(60)
    held = look(few)
    assert held.verdict == "HOLD"
    assert told(held, "0 of 6 devices have 2,000 labels, 1,200 in all: 5 are asked for")
    assert look(few, parse({"patience": "2 h"})).verdict == "PROCEED"
    many = {"feedback_total": 2000, "feedback_correct": 1820}
    assert look(candidates(6, **many)[:4] + few[4:]).verdict == "HOLD"
    assert look(candidates(6, **many)[:5] + few[5:]).verdict == "PROCEED"
    shared = {"feedback_total": 500, "feedback_correct": 455}
    assert look(candidates(20, **shared) + controls(100)).verdict == "HOLD", "all together they have 10,000"
    rare = {"feedback_total": 20, "feedback_correct": 18}
    unlabelled = look(candidates(6, was=rare, **rare) + controls(60))
    assert unlabelled.verdict == "PROCEED"
    assert told(unlabelled, "too few to wait")


def test_a_profile_of_two_devices_sees_what_is_plainly_broken_and_says_that_it_sees_no_more() -> None:
    passed = look(candidates(2) + controls(1))
    assert passed.verdict == "PROCEED"
    assert told(passed, "too few for a test")
    assert look(candidates(2) + controls(1), parse({"small": "hold"})).verdict == "HOLD"
    stopped = look(candidates(2, errors=1500) + controls(1))
    assert stopped.verdict == "ABORT"
    assert told(stopped, "71 % of 2100 requests fail")
    assert look(candidates(1, restarts=4)).verdict == "ABORT"
    assert look(candidates(1) + candidates(2, restarts=4)[1:]).verdict == "HOLD"


def test_without_devices_to_compare_with_the_limits_are_wider_and_it_is_said() -> None:
    last = look(a_day_ago(candidates(40, slower=1.15)))
    assert last.verdict == "PROCEED"
    assert told(last, "against before only")
    assert look(a_day_ago(candidates(40, slower=1.5))).verdict == "ABORT"


def test_without_devices_to_compare_with_a_busy_hour_is_not_the_models_fault() -> None:
    """Accident: the last wave was reached at the busiest hour, and equal models were aborted in all of eight fleets."""
    busy = look(candidates(40, slower=1.5))
    assert busy.verdict == "HOLD"
    assert told(busy, "none of 40 devices was compared: a day is not over yet")
    # Plainly broken needs no hour of comparison.
    assert look(candidates(40, errors=1500)).verdict == "ABORT"


def test_devices_of_which_none_could_be_compared_hold() -> None:
    """A candidate three times as slow passed where the others had been idle, or a hundred times as busy."""
    idle = [replace(c, before=None, after=None) for c in controls(60)]
    for others in (idle, controls(60, was={"requests": 100 * REQUESTS})):
        held = look(candidates(20, slower=3.0) + others)
        assert held.verdict == "HOLD"
        assert told(held, "none of 20 devices was compared")


def test_devices_that_ran_a_model_of_which_nothing_is_known_hold() -> None:
    """Accident: nobody asked them anything for two weeks. Three times as slow and 30 points worse, all went on."""
    bad = candidates(20, slower=3.0, feedback_correct=1400)
    held = look([replace(c, before=None) for c in bad] + controls(200))
    assert held.verdict == "HOLD"
    assert told(held, "no evidence of before on 20 of 20 devices, which ran another model: candidate-0")


def test_a_few_idle_devices_hold_nobody_and_the_others_are_judged() -> None:
    some = [replace(c, before=None) if i < 3 else c for i, c in enumerate(candidates(20))]
    passed = look(some + controls(200))
    assert passed.verdict == "PROCEED"
    assert told(passed, "no evidence of before on 3 of 20 devices")
    bad = [replace(c, before=None) if i < 3 else c for i, c in enumerate(candidates(20, slower=3.0))]
    assert look(bad + controls(200)).verdict == "ABORT"


def test_a_device_whose_evidence_of_before_comes_late_is_compared_then() -> None:
    """Accident: it was away, and sends the newest records first."""
    complete = candidates(12, slower=1.2)
    _, history = judge(Gates(), "pi", [replace(c, before=None) for c in complete] + controls(110), History(), NOW)
    assert {block.mode for block in history.blocks.values()} == {"unknown"}
    judgement, _ = judge(Gates(), "pi", complete + controls(110), history, NOW)
    assert judgement.verdict == "ABORT", judgement.reasons


def test_agreement_that_was_asked_for_by_name_holds_where_nothing_was_compared() -> None:
    equal, asked = candidates(6) + controls(60), parse({"agreement": "95 %"})
    held = look(equal, asked)
    assert held.verdict == "HOLD"
    assert told(held, "agreement: none of 6 devices has 32 answers that were compared in shadow")
    assert told(held, "`shoal device shadow DEVICE TARGET`")
    assert look(equal).verdict == "PROCEED"
    assert look(equal, parse({"agreement": "off"})).verdict == "PROCEED"
    compared = candidates(6, compared=100, agreed=99) + controls(60)
    assert look(compared, asked).verdict == "PROCEED"
    assert look(candidates(20, compared=512, agreed=300) + controls(200), asked).verdict == "ABORT"


def test_a_first_installation_that_nobody_asks_anything_does_not_hold_and_a_bad_one_is_stopped() -> None:
    silent = [replace(c, after=None) for c in candidates(12, first=True)]
    passed = look(silent)
    assert passed.verdict == "PROCEED"
    assert told(passed, "no version of the model was there before on 12 devices: 0 of them have 128 requests")
    assert told(passed, "that it installs is all there is to judge by")
    assert look(candidates(12, first=True, errors=900)).verdict == "ABORT"
    assert look(silent[:6] + candidates(12)[6:] + controls(60)).verdict == "PROCEED", "the others have all evidence"


def test_a_first_installation_is_judged_by_absolute_limits() -> None:
    passed = look(candidates(12, first=True))
    assert passed.verdict == "PROCEED"
    assert told(passed, "first_errors")
    assert not told(passed, "latency")


def test_numbers_are_the_reasons_for_programs() -> None:
    stopped = look(candidates(12, slower=1.2) + controls(110))
    assert stopped.verdict == "ABORT"
    assert stopped.numbers["latency"] == pytest.approx(1.2, abs=0.03)
    assert stopped.numbers["latency_low"] <= stopped.numbers["latency"] <= stopped.numbers["latency_high"]
    assert stopped.numbers["devices"] == 12
    assert told(stopped, "latency 1.2")
    json.dumps(stopped.numbers, allow_nan=False)


def test_a_device_counts_once_however_often_one_looks() -> None:
    comparisons = candidates(3, slower=1.2) + controls(30)
    judgement, history = judge(Gates(), "pi", comparisons, History(), NOW)
    for minutes in range(1, 100):
        judgement, again = judge(Gates(), "pi", comparisons, history, NOW + timedelta(minutes=minutes))
        assert again is history
    assert judgement.verdict == "HOLD"
    assert history.trials["latency/32"].devices == 3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 12), st.integers(0, 30), st.booleans())
def test_a_history_is_read_as_it_was_written(n: int, others: int, first: bool) -> None:
    comparisons = candidates(n, first=first) + controls(others)
    judgement, history = judge(Gates(), "pi", comparisons, History(), NOW)
    again = History.from_text(history.to_text())
    assert again == history
    more = [*comparisons, *candidates(14)[12:]]
    assert judge(Gates(), "pi", more, again, NOW) == judge(Gates(), "pi", more, history, NOW)
    assert judgement.reasons


def test_a_history_that_cannot_be_read_is_refused() -> None:
    assert History.from_text("") == History()
    with pytest.raises(Malformed):
        History.from_text('{"blocks": 3}')


@settings(max_examples=10, deadline=None)
@given(st.randoms())
def test_the_order_of_the_comparisons_changes_no_verdict(rng: random.Random) -> None:
    comparisons = candidates(12, slower=1.2) + controls(110)
    rng.shuffle(comparisons)
    assert look(comparisons).verdict == "ABORT"


def test_no_peer_is_used_twice_and_each_block_is_ranked_among_its_own() -> None:
    _, history = judge(Gates(), "pi", candidates(12) + controls(50), History(), NOW)
    peers = [peer for block in history.blocks.values() for peer in block.peers]
    assert len(peers) == len(set(peers)) <= 50
    assert len(peers) > 40


def test_a_device_that_commits_late_is_compared_with_the_same_hours() -> None:
    """All were quick in the morning and are slow in the evening, when it commits: its peers count from then on, too."""
    evening, now = NOW - timedelta(minutes=10), NOW + timedelta(hours=2)
    late = [replace(c, since=evening, after=replace(_after(c), requests=5)) for c in candidates(6)]
    judgement, history = judge(Gates(), "pi", late + controls(60), History(), NOW)
    assert all(block.start for block in history.blocks.values())
    slow = [replace(c, after=_with_an_evening(c, now)) for c in controls(60)]
    grown = [replace(c, after=_with_an_evening(c, now)) for c in late]
    judgement, history = judge(Gates(), "pi", grown + slow, history, now)
    assert history.trials["latency/512"].devices == 6
    assert judgement.numbers["latency"] == pytest.approx(1.0, abs=0.1)
    naive, _ = judge(Gates(), "pi", grown + slow, History(), now)
    assert judgement.verdict == "PROCEED", naive.reasons


def _with_an_evening(one: Comparison, now: datetime) -> Behaviour:
    """As much again as in the morning, and half as slow again."""
    after = _after(one)
    return replace(
        after, ends=now, requests=after.requests + REQUESTS, latency_ms=after.latency_ms.merge(times(30.0)),
        feedback_total=2 * LABELS, feedback_correct=2 * after.feedback_correct,
    )  # fmt: skip


def test_a_peer_that_is_silent_is_left_out_and_one_that_is_slow_is_waited_for() -> None:
    slow = controls(9, requests=20, feedback_total=20, feedback_correct=18)
    _, history = judge(Gates(), "pi", candidates(1, requests=100) + slow, History(), NOW)
    assert "latency/32" not in history.trials
    silent = [replace(c, after=replace(_after(c), ends=SINCE)) for c in slow]
    (peers,) = (block.peers for block in history.blocks.values())
    spoken = [d if d.device == min(peers) else c for c, d in zip(silent, controls(9), strict=True)]
    _, history = judge(Gates(), "pi", candidates(1, requests=100) + spoken, history, NOW)
    assert history.trials["latency/32"].devices == 1


def _after(one: Comparison) -> Behaviour:
    assert one.after is not None
    return one.after
