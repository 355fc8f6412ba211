"""For every gate a candidate that it must stop, and one that it must hold; without the gate neither happens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from gate_devices import LABELS, NOW, REQUESTS, SINCE, candidates, controls

from fleet.gates.history import History
from fleet.gates.judging import judge
from fleet.gates.measures import MEASURES
from fleet.gates.thresholds import KINDS, Gates, parse
from fleet.gates.values import Comparison, Judgement, Verdict
from fleet.rollout import deciding
from fleet.rollout.deciding import Course, Decision, Judged, Member, MemberState, decide
from fleet.rollout.terms import parse_terms

WORSE: dict[str, dict[str, Any]] = {
    "latency": {"slower": 1.2},
    "tail": {"tail": 0.03},
    "errors": {"errors": 100},
    "accuracy": {"feedback_correct": 1900},
    "agreement": {"compared": REQUESTS, "agreed": REQUESTS // 2},
    "memory": {"memory": 120_000_000},
    "temperature": {"temperature_c": 70.0},
    "restarts": {"restarts": 2},
    "first_errors": {"first": True, "errors": 900},
    "first_restarts": {"first": True, "restarts": 2},
    "golden": {"golden": False},
    "gross": {"slower": 8.0},
}
"""What is worse on the devices with the candidate, so that one gate alone stops it when there are twelve of them."""
OTHERS = {"gross": ("latency", "tail")}
"""Gates that see the same."""
HELD = {
    **{name: candidates(4, **worse) for name, worse in WORSE.items()},
    "golden": candidates(12, golden=None),
    "gross": [*candidates(3), *candidates(4, slower=8.0)[3:]],
}
"""Four of them are enough to be suspicious, and too few for a verdict."""


def verdict(gates: Gates, comparisons: Sequence[Comparison]) -> tuple[Verdict, str]:
    judgement, _ = judge(gates, "pi", comparisons, History(), NOW)
    return judgement.verdict, " / ".join(judgement.reasons)


def test_equal_devices_pass() -> None:
    assert verdict(Gates(), candidates(12) + controls(110))[0] == "PROCEED"
    assert verdict(Gates(), candidates(12, first=True))[0] == "PROCEED"


def test_no_gate_is_without_a_saboteur() -> None:
    assert {*WORSE, "installs"} == set(KINDS) == {*HELD, "installs"}


@pytest.mark.parametrize("name", WORSE)
def test_a_gate_stops_what_is_worse_and_nothing_else_would(name: str) -> None:
    comparisons = candidates(12, **WORSE[name]) + controls(110)
    gates = Gates().without(*OTHERS.get(name, ()))
    found, reasons = verdict(gates, comparisons)
    assert found == "ABORT", reasons
    assert verdict(gates.without(name), comparisons)[0] != "ABORT"


@pytest.mark.parametrize("name", HELD)
def test_a_gate_holds_what_it_cannot_tell_yet_and_nothing_else_would(name: str) -> None:
    comparisons = HELD[name] + controls(36)
    gates = Gates().without(*OTHERS.get(name, ()))
    found, reasons = verdict(gates, comparisons)
    assert found == "HOLD", reasons
    assert verdict(gates.without(name), comparisons)[0] == "PROCEED"


@pytest.mark.parametrize("name", [*MEASURES, "gross"])
def test_what_is_worse_on_all_devices_alike_is_not_the_candidates_fault(name: str) -> None:
    """A busy hour, a hot day, a broken network. Absolute limits compare with nothing."""
    comparisons = candidates(12, **WORSE[name]) + controls(110, **WORSE[name])
    found, reasons = verdict(Gates(), comparisons)
    assert found != "ABORT", reasons
    assert found == ("HOLD" if name == "gross" else "PROCEED"), reasons


def installing(gates: Gates, failed: int, silent: int = 0) -> Decision:
    """A wave of 40 that answered, but for those that are silent; the other gates say `PROCEED`."""
    states: list[MemberState] = ["failed"] * failed + ["sent"] * silent
    states += ["committed"] * (40 - len(states))
    members = [Member(f"pi-{i}", "pi", state, SINCE, "no room") for i, state in enumerate(states)]
    passed = Judgement(profile="pi", verdict="PROCEED", reasons=())
    return decide(
        deciding.Look(
            terms=parse_terms({"gates": gates.to_value(), "waves": "100"}, parse),
            course=Course("r", "running", 0, SINCE),
            members=members,
            waiting=(),
            hinders=lambda _: "",
            judged={"pi": Judged(passed, NOW, 0)},
            now=NOW,
            settle_after=NOW - SINCE,
            valid=timedelta(hours=1),
        )
    )


def test_installing_has_a_gate_of_its_own() -> None:
    gates = Gates()
    stopped = installing(gates, 3)
    assert (stopped.verdict, stopped.course.state, len(stopped.back)) == ("ABORT", "aborted", 40)
    assert stopped.reasons == ("pi-0: no room", "pi-1: no room", "pi-2: no room")
    passed = installing(gates.without("installs"), 3)
    assert (passed.verdict, passed.course.state, passed.back) == ("PROCEED", "done", ())
    assert installing(gates, 2).verdict == "PROCEED"


def test_what_was_not_answered_is_no_success_whatever_the_limit() -> None:
    """Who is silent holds the wave by itself: there is no gate to take away."""
    held = installing(Gates(), 2, silent=1)
    assert (held.verdict, held.back) == ("HOLD", ())
    assert "no answer yet from pi-2" in held.reasons[-1]


def test_the_saboteurs_have_all_the_evidence_that_any_gate_asks_for() -> None:
    """Else a gate could pass them for want of it."""
    (one,) = candidates(1)
    assert one.after is not None
    assert one.after.requests >= Gates().requests
    assert Gates().labels <= LABELS
