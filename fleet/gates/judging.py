"""The verdict on one profile of a rollout, with its reasons in words and numbers.

    judgement, history = judge(gates, "raspberry-pi-4", comparisons, history, now)

`ABORT`: something is plainly broken, or a test is significant and the estimate is over the limit as well. `PROCEED`:
enough devices with enough fresh evidence, and nothing even suspicious. `HOLD`: anything else, missing evidence above
all, also of before; the reasons say what is missing. Only where no model ran before, nothing is waited for. An equal
model is aborted by the tests with a chance of at most `gates.alpha`, over all gates, sizes of evidence, looks and
profiles of a rollout together: it is divided over them (Bonferroni), and each test holds at all looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from fleet.gates.gross import gross
from fleet.gates.history import History, Trial
from fleet.gates.measures import ABSOLUTE, LABELS, MEASURES, WORDS, allowed, before, plain, shown
from fleet.gates.observing import DAY, observe, trials_of
from fleet.gates.peers import Look, is_known
from fleet.gates.thresholds import KINDS, Gates, show
from fleet.gates.values import Comparison, Judgement, Verdict
from wire.units import show_seconds

_NAMED = 5
_OF_FEW = 0.8
"""The share of a few devices that is asked for: one that is hardly used does not hold all."""
_MANY = 1e9


@dataclass(frozen=True)
class Finding:
    """What one gate says: a verdict or, with None, no more than a sentence."""

    verdict: Verdict | None
    reason: str


def judge(
    gates: Gates, profile: str, comparisons: Sequence[Comparison], history: History, now: datetime
) -> tuple[Judgement, History]:
    """The verdict on the devices of one profile, and the history to keep for the next look.

    `comparisons` are of this profile: one for each device that runs the candidate and each that was not updated yet.
    """
    if not gates.measuring:
        return Judgement(profile=profile, verdict="PROCEED", reasons=("only installing counts",)), history
    look = Look(gates, comparisons, now)
    if not look.candidates:
        return Judgement(profile=profile, verdict="HOLD", reasons=("no device runs the candidate yet",)), history
    history = observe(look, history)
    findings = [
        *_plainly(look, history),
        *_tested(gates, history),
        *_missing(look),
        *_unranked(look, history),
        *_unshadowed(look, history),
    ]
    return _joined(look, profile, findings, history), history


def _joined(look: Look, profile: str, findings: Sequence[Finding], history: History) -> Judgement:
    """The worst verdict; its own reasons stand first."""
    numbers = _numbers(look, history)
    for verdict in ("ABORT", "HOLD"):
        reasons = tuple(f.reason for f in findings if f.verdict == verdict)
        if reasons:
            notes = tuple(f.reason for f in findings if f.verdict is None)
            return Judgement(profile=profile, verdict=verdict, reasons=(*reasons, *notes), numbers=numbers)
    sound = tuple(f.reason for f in findings)
    return Judgement(profile=profile, verdict="PROCEED", reasons=sound, numbers=numbers)


def _tested(gates: Gates, history: History) -> Iterator[Finding]:
    """What each gate that tries hypotheses has found."""
    for name, _ in trials_of(gates):
        limit, alpha = gates.limits[name], alpha_of(gates, name)
        found = history.found.get(name)
        if not found:
            continue
        bad = next((one for one in found if _significant(name, one[1], limit, alpha)), None)
        odd = next((one for one in reversed(found) if _suspicious(name, one[1], limit, gates.suspicion)), None)
        if bad:
            yield Finding("ABORT", f"{_told(name, bad, limit)}: worse, {_chance(bad[1].best, alpha)}")
        elif odd:
            yield Finding("HOLD", f"{_told(name, odd, limit)}: suspicious, {_chance(odd[1].evidence, alpha)}")
        else:
            yield Finding(None, _told(name, _telling(found), limit))


def alpha_of(gates: Gates, name: str) -> float:
    """The part of alpha that each size of evidence of a gate has, in each profile."""
    tried = dict(trials_of(gates))
    return gates.alpha / gates.profiles / len(tried) / len(tried[name].sizes)


def _significant(name: str, trial: Trial, limit: float, alpha: float) -> bool:
    return trial.best >= -math.log(alpha) and trial.value > _limit(name, limit)


def _suspicious(name: str, trial: Trial, limit: float, chance: float) -> bool:
    """Over the limit, and not by mere chance. An absolute limit is a promise: being over it is enough."""
    return (name in ABSOLUTE or trial.evidence >= -math.log(chance)) and trial.value > _limit(name, limit)


def _limit(name: str, limit: float) -> float:
    """A limit on the scale of the estimates."""
    if name == "agreement":
        return (100 - limit) / 100
    return limit / 100 if name in ABSOLUTE else allowed(name, limit)


def _telling(found: Sequence[tuple[int, Trial]]) -> tuple[int, Trial]:
    """The largest size with half as many devices as the smallest has."""
    return next(one for one in reversed(found) if 2 * one[1].devices >= found[0][1].devices)


def _told(name: str, found: tuple[int, Trial], limit: float) -> str:
    size, trial = found
    return _sentence(name, size, trial.devices, (trial.value, trial.low, trial.high), limit)


@lru_cache(maxsize=1024)  # the same at every look between two devices
def _sentence(name: str, size: int, devices: int, told: tuple[float, float | None, float | None], limit: float) -> str:
    """An estimate in words: `latency 1.31 times (1.27 to 1.36), 12 devices of 128 requests, at most 1.1 times`."""
    value, low, high = told
    between = ""
    if low is not None and high is not None:
        ends = sorted((_plain(name, low), _plain(name, high)))
        between = f" ({ends[0]:.3g} to {ends[1]:.3g})"
    most = f"at {'least' if KINDS[name].at_least else 'most'} {show(name, limit)}"
    words = WORDS[{**MEASURES, **ABSOLUTE}[name].kind]
    what = f"{_plain(name, value):.3g} %" if name in ABSOLUTE else shown(name, value)
    return f"{name} {what}{between}, {devices} devices of {size} {words}, {most}"


def _plain(name: str, effect: float) -> float:
    """An estimate in the unit of its limit."""
    if name == "agreement":
        return 100 - 100 * effect
    return 100 * effect if name in ABSOLUTE or name == "tail" else plain(name, effect)


def _chance(evidence: float, alpha: float) -> str:
    """How strong evidence is, and what the gate asks for: chance alone reaches 1 in N once in N rollouts at most."""
    found = math.exp(min(evidence, math.log(_MANY)))
    return f"evidence 1 in {found:,.0f}, of 1 in {1 / alpha:,.0f} that abort"


def _plainly(look: Look, history: History) -> Iterator[Finding]:
    """Golden sets that do not hold, and devices that are plainly broken."""
    if "golden" in look.gates.limits:
        yield from _golden(look, look.gates.limits["golden"])
    if "gross" in look.gates.limits:
        found = {c.device: b.gross for c in look.candidates if (b := history.blocks.get(c.device)) and b.gross}
        if found:
            yield _broken(look, found, look.gates.limits["gross"])


def _golden(look: Look, limit: float) -> Iterator[Finding]:
    """A golden set that fails now and did not before; or was run before and mostly not yet now."""
    was = {c.device: c.before.golden for c in look.candidates if c.before is not None}
    now = {c.device: c.after.golden for c in look.candidates if c.after is not None}
    failed = [d for d, held in now.items() if held is False and was.get(d) is not False]
    ran = [d for d in now if was.get(d) is not None]  # who says nothing yet is told of by `_missing`
    silent = [d for d in ran if now[d] is None]
    n, most = len(look.candidates), f"at most {show('golden', limit)}"
    if failed:
        worse = 100 * len(failed) > limit * n
        told = f"golden set does not hold on {len(failed)} of {n} devices, {most}: {_names(failed)}"
        yield Finding("ABORT" if worse else None, told)
    if 2 * len(silent) > len(ran):
        yield Finding("HOLD", f"golden set was not run yet on {len(silent)} of {len(ran)} devices that ran it before")


def _broken(look: Look, found: dict[str, str], limit: float) -> Finding:
    """Enough of the devices that say anything, at least two or the only one, and not the ones without it as well."""
    speaking = sum(c.after is not None for c in look.candidates)
    told = "; ".join(f"{device}: {what}" for device, what in list(found.items())[:_NAMED])
    reason = f"plainly broken on {len(found)} of {speaking} devices: {told}"
    many = 100 * len(found) >= limit * speaking and len(found) >= min(2, len(look.candidates))
    if not many:
        return Finding("HOLD" if len(look.candidates) < look.gates.devices else None, reason)
    others = [c for c in look.controls.values() if c.after is not None]
    hit = sum(bool(gross(c, look.tally(c))) for c in others)
    if 4 * hit > len(others):
        return Finding("HOLD", f"{reason}; and {hit} of {len(others)} devices without the candidate: not the model")
    return Finding("ABORT", reason)


def _missing(look: Look) -> Iterator[Finding]:
    """What has to come before going on, and what there is."""
    gates, had = look.gates, [c for c in look.candidates if c.incumbent]
    if len(had) < len(look.candidates):
        yield Finding(None, _first(look))
    if not had:
        return
    n, enough = len(had), [c for c in had if _speaks_enough(look, c)]
    known = sum(map(is_known, enough))
    asked = max(min(gates.devices, math.ceil(_OF_FEW * n)), math.ceil(gates.covered * n))
    there = f"{len(enough)} of {n} devices have {_much(look)}"
    yield Finding(*(("HOLD", f"{there}: {asked} are asked for") if len(enough) < asked else (None, there)))
    if silent := [c.device for c in had if not is_known(c)]:
        told = f"no evidence of before on {len(silent)} of {n} devices, which ran another model: {_names(silent)}"
        short = len(enough) >= asked > known
        yield Finding(
            *(("HOLD", f"{told}; {known} of the others say enough, {asked} are asked for") if short else (None, told))
        )
    if n < gates.devices:
        few = f"{n} devices are too few for a test of {gates.devices}: only what is plainly broken is seen"
        held = gates.small == "hold"
        yield Finding("HOLD" if held else None, f"{few}; approve by hand, or lower gates.devices" if held else few)
    if not look.controls:
        yield Finding(
            None,
            "no device without the candidate is left to compare with: against before only, wider limits, and after "
            f"{DAY:.0f} h, so that the same hours are compared",
        )
    if "accuracy" in gates.limits:
        yield from _labels(look, asked)


def _speaks_enough(look: Look, one: Comparison) -> bool:
    after = one.after
    return after is not None and look.now - after.ends <= look.gates.fresh and after.requests >= look.gates.requests


def _much(look: Look) -> str:
    return f"{look.gates.requests} requests or more, none older than {_show(look.gates.fresh)}"


def _first(look: Look) -> str:
    """Nobody may ever ask a model that is new: what there is, is judged, and nothing is waited for."""
    first = [c for c in look.candidates if not c.incumbent]
    enough = sum(_speaks_enough(look, c) for c in first)
    told = f"no version of the model was there before on {len(first)} devices: {enough} of them have {_much(look)}"
    return told if enough else f"{told}, so that it installs is all there is to judge by"


def _unranked(look: Look, history: History) -> Iterator[Finding]:
    """Devices that did something before, and of which none was compared with anything, are no evidence."""
    gates, was = look.gates, sum(map(is_known, look.candidates))
    asked = [name for name in ("latency", "errors") if name in gates.limits]
    if asked and was >= gates.devices and not any(name in history.found for name in asked):
        why = "no device without the candidate had a load like theirs" if look.controls else "a day is not over yet"
        yield Finding("HOLD", f"none of {was} devices was compared: {why}")


def _unshadowed(look: Look, history: History) -> Iterator[Finding]:
    """Who asks for agreement by name wants it told, and not passed over."""
    if "agreement" not in look.gates.limits or look.gates.unshadowed != "hold" or "agreement" in history.found:
        return
    n, least = len(look.candidates), ABSOLUTE["agreement"].sizes[0]
    yield Finding(
        "HOLD",
        f"agreement: none of {n} devices has {least} answers that were compared in shadow: abort, run it there first "
        "(`shoal device shadow DEVICE TARGET`) and start again; or start again with agreement=off",
    )


def _labels(look: Look, asked: int) -> Iterator[Finding]:
    """Labels that are on their way are waited for, as long as patience lasts: so many devices want theirs.

    All together would say little: the more devices share them, the worse each is known, and devices are what counts.
    """
    gates, n = look.gates, len(look.candidates)
    have = [c.after.feedback_total for c in look.candidates if c.after is not None]
    enough = sum(labels >= gates.labels for labels in have)
    if enough >= asked:
        return
    given = sum(before(c.before, LABELS) for c in look.candidates)
    if not given:
        yield Finding(None, "accuracy: no labels came before, so it is not judged")
        return
    span = sum((c.before.ends - c.before.begins).total_seconds() for c in look.candidates if c.before)
    expected = given / max(span, 1.0) * gates.patience.total_seconds()
    waited = look.now - min(c.since for c in look.candidates)
    if expected * n < gates.labels * min(gates.devices, n):
        yield Finding(
            None, f"accuracy: about {expected:,.0f} labels a device in {_show(gates.patience)}, too few to wait"
        )
    elif waited < gates.patience:
        there = f"accuracy: {enough} of {n} devices have {gates.labels:,} labels, {sum(have):,} in all"
        yield Finding("HOLD", f"{there}: {asked} are asked for; they are coming")
    else:
        yield Finding(None, f"accuracy: {sum(have):,} labels after {_show(gates.patience)}, and no more are waited for")


def _numbers(look: Look, history: History) -> dict[str, float]:
    """The same for programs: estimates by gate, with their intervals, and counts."""
    after = [c.after for c in look.candidates if c.after is not None]
    numbers = {
        "devices": float(len(look.candidates)),
        "controls": float(len(look.controls)),
        "requests": float(sum(a.requests for a in after)),
        "labels": float(sum(a.feedback_total for a in after)),
    }
    for name, _ in trials_of(look.gates):
        if name in history.found:
            size, trial = _telling(history.found[name])
            numbers[name] = _plain(name, trial.value)
            numbers[f"{name}_devices"], numbers[f"{name}_size"] = float(trial.devices), float(size)
            if trial.low is not None and trial.high is not None:
                ends = sorted((_plain(name, trial.low), _plain(name, trial.high)))
                numbers[f"{name}_low"], numbers[f"{name}_high"] = ends
    return numbers


def _names(devices: Sequence[str]) -> str:
    more = f" and {len(devices) - _NAMED} more" if len(devices) > _NAMED else ""
    return ", ".join(devices[:_NAMED]) + more


def _show(duration: timedelta) -> str:
    return show_seconds(duration.total_seconds())
