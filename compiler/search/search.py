"""The search: for each profile the variant that is best by measuring, proven on the test examples.

    made = search(inputs, job, profiles, cache, report)        # by the name of the profile

The story is `search`. What profiles ask for together is made, asked and timed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.bundle.made import Made
from compiler.bundle.pack import bundle_files, folder_files
from compiler.inputs import Inputs, describe_of
from compiler.judge import figures, reference
from compiler.judge.figures import Where
from compiler.plan.candidates import Candidate, Plan
from compiler.progress import Reporter
from compiler.search.bench import Bench, footprint
from compiler.search.calibrate import Rows, calibrate_all, measurements, rows_of
from compiler.search.choose import Trial, attempt, choose, cost, limit_fault
from compiler.search.mixed import mix
from compiler.search.prove import ahead, prove
from compiler.workshop.cache import Cache, tool_versions
from compiler.workshop.workshop import Workshop
from wire.build import BuildJob
from wire.evidence import Kind, Measurement, Sabotage
from wire.profile import Profile
from wire.units import size

if TYPE_CHECKING:
    from compiler.judge.calibrate import Fitted

SAMPLES = 200
"""Times of each variant in the run that evidence quotes."""
FEW_SAMPLES = 40
"""Times that tell whether a step of mixed precision still pays."""
MIXED = 2
"""Failed candidates of one profile that mixed precision is tried on: those that would be best if they held."""
MARGIN = 0.9
"""They must cost a tenth less than what holds: layers in float take some of it back, and the steps take minutes."""
_TOKENIZER, _TIMING, _PROOF, _CALIBRATION = 1, 2, 5, 2
"""Steps of progress: about as long as a pass or the answers of a candidate."""
Trials = dict[str, Trial]
"""By the candidate's key."""


def search(
    inputs: Inputs, job: BuildJob, profiles: Sequence[Profile], results: Cache, report: Reporter
) -> dict[str, Made]:
    """Compile for profiles that the cache does not hold, and keep what came of it.

    Raises `Infeasible` when nothing holds for one of them, `Untrusted` when a gate is blind; then nothing is kept but
    what the candidates were made of.
    """
    with results.scratch() as scratch:
        bench = _bench(inputs, job, results, report, scratch)
        asked = rows_of(inputs, report.note)
        report.more(_TIMING + _PROOF * len(profiles))
        _tell_needed(inputs, job, report)
        if inputs.source.text:
            report.more(_TOKENIZER)
            with report.stage("making the device's tokenizer and comparing it with the source's", _TOKENIZER):
                bench.check_tokenizer()
        plans = [inputs.plan(job, profile, bench.lengths) for profile in profiles]
        _tell_emulated(plans, job, report)
        trials = _try(plans, bench)
        trials = _time(trials, bench)
        trials = _mix(plans, trials, bench)
        chosen = {plan.profile.name: _choose(plan, trials, bench) for plan in plans}
        proven = _prove(list(chosen.values()), bench)
        # After the proof: a saboteur's folder is linked to what lies in the variant's.
        fitted = _calibrate(list(chosen.values()), asked, bench)
        return {
            plan.profile.name: _keep(plan, chosen[plan.profile.name], trials, proven, fitted, bench, results)
            for plan in plans
        }


def _bench(inputs: Inputs, job: BuildJob, results: Cache, report: Reporter, scratch: Path) -> Bench:
    shop = Workshop(
        cache=results,
        scratch=scratch,
        reference=inputs.source.reference,
        source=inputs.source,
        describe=describe_of(job),
        calibration=Path(job.calibration.path) if job.calibration else None,
        memory=size(job.memory),
        processes=job.processes,
        note=report.still,
        ended=report.tick,
    )
    return Bench(inputs, job, shop, report, scratch)


def _tell_needed(inputs: Inputs, job: BuildJob, report: Reporter) -> None:
    """Say before the work how many examples the question asks for."""
    from compiler.judge import paired  # noqa: PLC0415  a cached build asks no question

    wanted, there = paired.needed(job.max_drop, job.confidence, paired.CHANGED), len(inputs.test.rows)
    told = (
        f"about {wanted} test examples decide about a drop of {job.max_drop:g} points at {job.confidence * 100:g} % "
        f"when {paired.CHANGED * 100:g} % of the answers change; there are {there}"
    )
    report.note(told if there >= wanted else f"{told}: some candidates may stay inconclusive")


def _tell_emulated(plans: Sequence[Plan], job: BuildJob, report: Reporter) -> None:
    """Say whose latency is compared with the limit: not that of another machine."""
    elsewhere = [p.profile.name for p in plans if any(map(p.emulated, p.candidates))]
    if job.max_ms and elsewhere:
        report.note(
            f"the limit of {job.max_ms:g} ms is held against latencies emulated on this machine, no promise for "
            f"{', '.join(elsewhere)}: 'shoal measure' takes them on a device"
        )


def _try(plans: Sequence[Plan], bench: Bench) -> Trials:
    """Every candidate of every plan, made and compared with the source."""
    candidates = list({c.key: c for plan in plans for c in plan.candidates}.values())
    steps = bench.steps(candidates)
    bench.report.more(steps)
    rows = len(bench.inputs.test.rows)
    with bench.report.stage(f"making {len(candidates)} candidates and asking them {rows} examples", steps):
        bench.ahead(candidates)
        return {t.candidate.key: t for t in bench.try_all(candidates)}


def _time(trials: Trials, bench: Bench) -> Trials:
    """One run for all: times of different runs cannot be compared."""
    running = sum(t.decision is not None for t in trials.values())
    with bench.report.stage(f"timing {running} candidates against each other", _TIMING):
        return {t.candidate.key: t for t in bench.timed(list(trials.values()), samples=SAMPLES)}


def _mix(plans: Sequence[Plan], trials: Trials, bench: Bench) -> Trials:
    """Where a quantized candidate fails that would be the best: some of its layers go back to float."""
    if not bench.decidable:
        bench.report.note("no mixed precision: there are too few examples to accept even the source itself")
        return trials
    tried = dict(trials)
    for trial in _worth_mixing(plans, trials, bench):
        for step in mix(trial, bench, lambda step: _pays(step, plans, tried, bench)):
            tried[step.candidate.key] = step
    new = [t for key, t in tried.items() if key not in trials]
    if not any(t.holds for t in new):
        return tried
    bench.report.more(_TIMING)
    return _time(tried, bench)


def _worth_mixing(plans: Sequence[Plan], trials: Trials, bench: Bench) -> list[Trial]:
    """Failed candidates that would beat what holds by far enough, the best first; each once."""
    found: Trials = {}
    for plan in plans:
        failed = [
            trials[c.key]
            for c in plan.candidates
            if c.recipe.mixed and trials[c.key].decision and not trials[c.key].holds
        ]
        better = [t for t in failed if _beats(t, plan, trials, bench, MARGIN)]
        minimise = bench.job.wanted(plan.profile).minimise
        for trial in sorted(better, key=lambda t: cost(t, minimise))[:MIXED]:
            found.setdefault(trial.candidate.key, trial)
    return list(found.values())


def _beats(trial: Trial, plan: Plan, trials: Trials, bench: Bench, margin: float = 1.0) -> bool:
    """Whether a candidate is within the limits and better than everything that holds for a profile, by that factor."""
    wanted = bench.job.wanted(plan.profile)
    best = _best(plan, trials, bench)
    beaten = best is None or cost(trial, wanted.minimise) < margin * cost(best, wanted.minimise)
    return beaten and limit_fault(trial, plan, wanted) is None


def _best(plan: Plan, trials: Trials, bench: Bench) -> Trial | None:
    """What would be chosen for a profile, if anything."""
    wanted = bench.job.wanted(plan.profile)
    good = [t for t in _of(plan, trials) if t.holds and limit_fault(t, plan, wanted) is None]
    return min(good, key=lambda t: cost(t, wanted.minimise), default=None)


def _pays(step: Trial, plans: Sequence[Plan], trials: Trials, bench: Bench) -> bool:
    """Whether a step of mixed precision is still better for some profile than what holds there.

    Times are compared within one short run of the step and its rivals.
    """
    asking = [p for p in plans if any(c.unmixed == step.candidate.unmixed for c in p.candidates)]
    rivals = {t.candidate.key: t for p in asking if (t := _best(p, trials, bench))}
    short = {t.candidate.key: t for t in bench.timed([step, *rivals.values()], samples=FEW_SAMPLES)}
    return any(_beats(short[step.candidate.key], plan, short, bench) for plan in asking)


def _of(plan: Plan, trials: Trials) -> list[Trial]:
    """The trials that count for a profile: those of its candidates, and those mixed from them."""
    mine = {c.unmixed for c in plan.candidates}
    return [t for t in trials.values() if t.candidate.unmixed in mine]


def _choose(plan: Plan, trials: Trials, bench: Bench) -> Trial:
    return choose(plan, _of(plan, trials), bench.job.wanted(plan.profile))


def _prove(chosen: Sequence[Trial], bench: Bench) -> Mapping[str, tuple[Sabotage, ...]]:
    """What the gates said of the saboteurs of each; profiles that chose the same share the proof."""
    different = {t.candidate.key: t for t in chosen}
    bench.report.skip(_PROOF * (len(chosen) - len(different)))
    found: dict[str, tuple[Sabotage, ...]] = {}
    with bench.report.stage(f"golden sets and saboteurs of {_names(different.values())}", _PROOF * len(different)):
        ahead(different.values(), bench)
        for key, trial in different.items():
            found[key] = prove(trial, bench)
    return found


def _calibrate(chosen: Sequence[Trial], asked: Rows | None, bench: Bench) -> Mapping[str, Fitted]:
    """How sure the answers of each are; profiles that chose the same share it."""
    if asked is None:
        return {}
    bench.report.more(_CALIBRATION)
    with bench.report.stage(f"asking {_names(chosen)} {len(asked.rows)} examples how sure it is", _CALIBRATION):
        return calibrate_all(chosen, asked, bench)


def _names(trials: Iterable[Trial]) -> str:
    return ", ".join(t.candidate.name for t in trials)


def _keep(
    plan: Plan,
    chosen: Trial,
    trials: Trials,
    proven: Mapping[str, tuple[Sabotage, ...]],
    fitted: Mapping[str, Fitted],
    bench: Bench,
    results: Cache,
) -> Made:
    """Put the chosen variant into the cache, with everything that evidence says of it."""
    inputs, job, profile = bench.inputs, bench.job, plan.profile
    wanted, candidate = job.wanted(profile), chosen.candidate
    told = [replace(t, measurements=_measurements(t, plan, fitted, bench)) for t in _of(plan, trials)]
    best = next(t for t in told if t.candidate.key == candidate.key)
    files, blobs = bundle_files(folder_files(bench.variant(candidate).folder))
    assert best.decision is not None
    made = Made(
        files=files,
        recipe=candidate.recipe.name,
        runtime=candidate.recipe.runtime,
        precision=candidate.recipe.precision,
        task=inputs.source.task,
        source=inputs.source.digest,
        architecture=inputs.source.architecture,
        tools=tool_versions(),
        datasets=inputs.datasets(candidate, calibrated=candidate.key in fitted),
        wanted=wanted,
        decision=best.decision,
        measurements=best.measurements,
        attempts=(*(attempt(t, best, plan, wanted) for t in told), *plan.refused),
        classes=bench.classes(candidate),
        sabotage=proven[candidate.key],
        reference=reference.of(inputs.test, bench.held(candidate)),
    )
    return results.put(inputs.key(job, profile), made, blobs)


def _measurements(trial: Trial, plan: Plan, fitted: Mapping[str, Fitted], bench: Bench) -> tuple[Measurement, ...]:
    """The figures of a candidate; `measured` only on a machine of the profile, in the runtime that serves there."""
    if trial.decision is None:
        return ()
    kind: Kind = "emulated" if plan.emulated(trial.candidate) else "measured"
    where = Where(kind, figures.this_machine(), trial.runtime, bench.job.confidence)
    candidate: Candidate = trial.candidate
    found = (
        *figures.answers(trial.decision, bench.values(candidate), bench.reference.values, where),
        *figures.sizes(
            model=trial.size, footprint=footprint(bench.variant(candidate).folder), source=bench.inputs.source.size
        ),
        figures.memory(trial.memory, where),
        *measurements(fitted.get(candidate.key), where),
    )
    return (*found, *figures.speed(trial.times.ms, trial.times.doubts, where)) if trial.times else found
