"""Which of the candidates that were tried serves a profile, and what evidence says of the others. Pure.

A candidate must hold the accuracy (its decision is `pass`) and every limit; among those that do, the one with the
smallest latency, footprint or memory is chosen. Where none does, there is no model: `Infeasible` names the nearest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from compiler.errors import Infeasible
from compiler.judge.figures import percentile
from compiler.judge.gates import accuracy_fault
from compiler.plan.candidates import Candidate, Plan
from wire.evidence import Attempt, Decision, Measurement, Wanted
from wire.units import show_size, size

NEAREST = 3
"""How many candidates a failed search names."""
_MEGA = 1e6


@dataclass(frozen=True)
class Times:
    """Times in ms from example to answer, of one interleaved run, and what may be wrong with them, in words."""

    ms: tuple[float, ...]
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """A candidate, and what is known of it.

    `fault` says why it was not made or does not run; then nothing else is known. `size` is that of the model file,
    `footprint` that of everything on the device's disk, `memory` what a process grows by with it, in bytes.
    """

    candidate: Candidate
    fault: str | None = None
    size: int = 0
    footprint: int = 0
    decision: Decision | None = None
    memory: int = 0
    runtime: str = ""
    measurements: tuple[Measurement, ...] = ()
    times: Times | None = None
    fell_back: Mapping[str, int] = field(default_factory=dict)

    @property
    def ms(self) -> float:
        """The median time from example to answer; infinite where it was not timed."""
        return percentile(self.times.ms, 50) if self.times else math.inf

    @property
    def holds(self) -> bool:
        """Whether it holds the accuracy."""
        return self.decision is not None and self.decision.outcome == "pass"


def cost(trial: Trial, minimise: str) -> float:
    """What is to be made small."""
    if minimise == "size":
        return float(trial.footprint)
    if minimise == "memory":
        return float(trial.memory)
    return trial.ms


def choose(plan: Plan, trials: Sequence[Trial], wanted: Wanted) -> Trial:
    """The candidate that serves best. Raises `Infeasible`, naming the nearest, when none does."""
    good = [t for t in trials if limit_fault(t, plan, wanted) is None and t.holds]
    if good:
        return min(good, key=lambda t: (cost(t, wanted.minimise), t.footprint, t.candidate.name))
    raise Infeasible(_nobody(plan, trials, wanted))


def limit_fault(trial: Trial, plan: Plan, wanted: Wanted) -> str | None:
    """Why a candidate is beyond a limit of the build or the profile, the accuracy aside; None when it is not."""
    room = size(plan.profile.limits.disk)
    if trial.footprint > room:
        allowed = plan.profile.limits.disk
        return f"its bundle takes {show_size(trial.footprint)} on the device's disk, the profile allows {allowed}"
    if wanted.max_mb and trial.footprint > wanted.max_mb * _MEGA:
        return f"its bundle takes {trial.footprint / _MEGA:.2f} MB, at most {wanted.max_mb:g} are allowed"
    if wanted.max_ms and trial.times and trial.ms > wanted.max_ms:
        return f"its median answer takes {trial.ms:.2f} ms{_where(trial, plan)}, at most {wanted.max_ms:g} are allowed"
    return None


def attempt(trial: Trial, chosen: Trial, plan: Plan, wanted: Wanted) -> Attempt:
    """What evidence says of a candidate beside the one that was chosen."""
    outcome, reason = _outcome(trial, chosen, plan, wanted)
    recipe = trial.candidate.recipe
    return Attempt(
        recipe=recipe.name,
        outcome=outcome,
        reason=reason,
        runtime=recipe.runtime,
        precision=recipe.precision,
        measurements=trial.measurements,
        kept_float=trial.candidate.kept_float,
        fell_back=trial.fell_back,
    )


Outcome = Literal["chosen", "pass", "fail", "inconclusive", "broken"]


def _outcome(trial: Trial, chosen: Trial, plan: Plan, wanted: Wanted) -> tuple[Outcome, str]:
    if trial.decision is None:
        return "broken", trial.fault or ""
    if not trial.holds:
        return ("fail" if trial.decision.outcome == "fail" else "inconclusive"), accuracy_fault(trial.decision) or ""
    over = limit_fault(trial, plan, wanted)
    if over:
        return "fail", over
    if trial is chosen:
        known = f", that of {wanted.max_ms:g} ms{_where(trial, plan)}," if wanted.max_ms else ""
        return "chosen", f"holds every limit{known} with the smallest {wanted.minimise}"
    return "pass", _behind(trial, chosen, wanted)


def _where(trial: Trial, plan: Plan) -> str:
    return " emulated on this machine" if plan.emulated(trial.candidate) else ""


def _behind(trial: Trial, chosen: Trial, wanted: Wanted) -> str:
    name = chosen.candidate.name
    if wanted.minimise == "latency":
        return f"{trial.ms:.2f} ms, {name} takes {chosen.ms:.2f}"
    mine, best = cost(trial, wanted.minimise), cost(chosen, wanted.minimise)
    return f"{show_size(mine)} of {wanted.minimise}, {name} takes {show_size(best)}"


def _nobody(plan: Plan, trials: Sequence[Trial], wanted: Wanted) -> str:
    """The message of a search that found nothing."""
    made = [t for t in trials if t.decision]
    told = [_near(t, plan, wanted) for t in sorted(made, key=lambda t: _distance(t, plan, wanted))[:NEAREST]]
    broken = [f"{t.candidate.name} {t.fault}" for t in trials if not t.decision][:NEAREST]
    head = f"profile {plan.profile.name}: none of {len(trials)} candidates holds every limit"
    nearest = "; the nearest:\n  " + "\n  ".join(told) if told else "; none runs:\n  " + "\n  ".join(broken)
    return f"{head}{nearest}\n{_advice(made)}"


def _near(trial: Trial, plan: Plan, wanted: Wanted) -> str:
    assert trial.decision is not None
    over = limit_fault(trial, plan, wanted)
    faults = [fault for fault in (accuracy_fault(trial.decision), over) if fault]
    ms = f", p50 {trial.ms:.2f} ms" if trial.times else ""
    return f"{trial.candidate.name} ({trial.footprint / _MEGA:.2f} MB{ms}): {' and '.join(faults)}"


def _distance(trial: Trial, plan: Plan, wanted: Wanted) -> tuple[bool, bool, float]:
    """Candidates that hold the accuracy come first, then those that are only undecided, then by what they lose."""
    assert trial.decision is not None
    if trial.holds:
        return (False, False, cost(trial, wanted.minimise))
    return (True, trial.decision.outcome == "fail", trial.decision.drop + 100 * (not within(trial, plan, wanted)))


def within(trial: Trial, plan: Plan, wanted: Wanted) -> bool:
    """Whether a candidate is within every limit, the accuracy aside."""
    return limit_fault(trial, plan, wanted) is None


def _advice(made: Sequence[Trial]) -> str:
    if any(t.decision and t.decision.outcome == "inconclusive" for t in made):
        return "Give more test examples, allow a larger max_drop, or train a better model"
    return "Allow a larger max_drop, max_ms or max_mb, or train a better model"
