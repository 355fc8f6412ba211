"""The search for language models: for each profile the variant that is best, proven on the test texts.

    made = search_language(inputs, job, profiles, cache, report)        # by the name of the profile

The story is `search_language`. Every variant is asked in the worker process that serves it on a device. What a Hugging
Face source answers, its graph in float32 answers for it; a GGUF file ships as it came, and answers for itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.bundle.made import Made
from compiler.bundle.pack import bundle_files
from compiler.errors import CompilerError, Incompatible
from compiler.inputs import Inputs, describe_of
from compiler.judge import figures
from compiler.judge import reference as reference_of
from compiler.judge.figures import Where
from compiler.language.variant import Lying, files_of, lay_out, precision
from compiler.plan.candidates import Candidate, Plan, candidate
from compiler.plan.recipes import RECIPES
from compiler.progress import Reporter
from compiler.search.choose import Times, Trial, attempt, choose
from compiler.workshop.cache import Cache, tool_versions
from compiler.workshop.children import Failed
from compiler.workshop.workshop import Product, Workshop
from wire.build import BuildJob
from wire.evidence import Kind, Measurement, Sabotage
from wire.profile import Profile
from wire.units import size

if TYPE_CHECKING:
    from compiler.language.judge import Answers
    from wire.pipeline import Golden

EVERY = 20
"""Texts between two lines of progress."""
_STEPS = 4
"""Of one candidate: made, asked, its golden set, and as much again where it is proven."""


@dataclass(frozen=True)
class Tried:
    """A candidate that runs: where it lies, what it guessed, and its golden set."""

    lying: Lying
    answers: Answers
    golden: Golden


@dataclass
class Bench:
    """The candidates of one build, each made and asked once. `scratch` is a folder for variants."""

    inputs: Inputs
    job: BuildJob
    shop: Workshop
    report: Reporter
    scratch: Path
    tried: dict[str, Tried] = field(default_factory=dict)
    trials: dict[str, Trial] = field(default_factory=dict)


def search_language(
    inputs: Inputs, job: BuildJob, profiles: Sequence[Profile], results: Cache, report: Reporter
) -> dict[str, Made]:
    """Compile for profiles that the cache does not hold, and keep what came of it. Raises as `search` does."""
    with results.scratch() as scratch:
        bench = _bench(inputs, job, results, report, scratch)
        plans = [inputs.plan(job, profile, ()) for profile in profiles]
        reference = _reference(inputs)
        candidates = list({c.key: c for c in [reference, *(c for plan in plans for c in plan.candidates)]}.values())
        report.more(_STEPS * len(candidates) + len(plans))
        products = bench.shop.make([c.passes for c in candidates])
        for one, product in zip(candidates, products, strict=True):
            _try(one, product, reference, bench)
        chosen = {p.profile.name: choose(p, _of(p, bench), job.wanted(p.profile)) for p in plans}
        proven = {t.candidate.key: _prove(t.candidate, reference, bench) for t in chosen.values()}
        return {p.profile.name: _keep(p, chosen[p.profile.name], proven, reference, bench, results) for p in plans}


def _bench(inputs: Inputs, job: BuildJob, results: Cache, report: Reporter, scratch: Path) -> Bench:
    shop = Workshop(
        cache=results,
        scratch=scratch,
        reference=inputs.source.reference,
        source=inputs.source,
        describe=describe_of(job),
        memory=size(job.memory),
        processes=job.processes,
        note=report.still,
        ended=report.tick,
    )
    return Bench(inputs, job, shop, report, scratch)


def _reference(inputs: Inputs) -> Candidate:
    """What answers for the source."""
    recipe = RECIPES["gguf" if inputs.source.kind == "gguf" else "genai-fp32"]
    return candidate(recipe, inputs.source, (), opset=0, ir=0)


def _try(one: Candidate, product: Product | Failed, reference: Candidate, bench: Bench) -> None:
    """Ask a candidate, and compare it with the reference, which comes first. Raises when that does not run."""
    if isinstance(product, Failed):
        fault = f"{product.name}: {product.reason}"
        if one.key == reference.key:
            raise Incompatible(f"source {bench.inputs.source.place}: {fault}")
        bench.trials[one.key] = Trial(one, fault=fault)
        return
    try:
        bench.trials[one.key] = _ask(one, product, reference, bench)
    except CompilerError as e:
        if one.key == reference.key:
            raise
        bench.trials[one.key] = Trial(one, fault=str(e))


def _ask(one: Candidate, product: Product, reference: Candidate, bench: Bench) -> Trial:
    from compiler.judge import paired  # noqa: PLC0415  numpy: a cached build does not wait for it
    from compiler.language import judge  # noqa: PLC0415  as above

    folder, rows = bench.scratch / f"{one.recipe.name}-{len(bench.tried)}", bench.inputs.test.rows
    lying = lay_out(folder, one, product.path, bench.inputs.source, bench.job.workers.get(one.recipe.runtime))

    def tell(done: int) -> None:
        if done % EVERY == 0:
            bench.report.still(f"{one.name}: {done} of {len(rows)} texts")

    bench.report.step(f"asking {one.name} {len(rows)} texts")
    with lying.session() as session:
        answers = judge.ask(session, rows, tell)
        golden = judge.golden_set(session, rows, one.recipe.tolerance)
        memory, runtime = session.memory, session.version
    bench.tried[one.key] = Tried(lying, answers, golden)
    source = bench.tried[reference.key].answers.values
    lying.complete(golden, bench.inputs, one)
    job = bench.job
    return Trial(
        one,
        size=lying.weights,
        footprint=lying.footprint,
        decision=paired.decide(source, answers.values, job.max_drop, job.confidence, "accuracy"),
        memory=memory,
        runtime=runtime,
        times=Times(answers.ms),
    )


def _of(plan: Plan, bench: Bench) -> list[Trial]:
    return [bench.trials[c.key] for c in plan.candidates]


def _prove(one: Candidate, reference: Candidate, bench: Bench) -> tuple[Sabotage, ...]:
    """A fresh process repeats the golden set, and both gates refuse a scrambled copy. Raises `Untrusted` where not."""
    from compiler.judge import paired  # noqa: PLC0415  as above
    from compiler.language import judge  # noqa: PLC0415
    from compiler.language.scramble import scramble  # noqa: PLC0415

    tried, rows, job = bench.tried[one.key], bench.inputs.test.rows, bench.job
    bench.report.step(f"proving {one.name}: its golden set again, and a scrambled copy")
    with tried.lying.session() as session:
        judge.check_repeats(tried.golden, judge.again(session, tried.golden))
    folder = bench.scratch / f"{tried.lying.folder.name}-scrambled"
    shutil.copytree(tried.lying.folder, folder)
    scramble(folder, one.recipe.runtime)
    with replace(tried.lying, folder=folder).session() as session:
        values = judge.ask(session, rows, lambda _: None).values
        results = judge.again(session, tried.golden)
    source = bench.tried[reference.key].answers.values
    decision = paired.decide(source, values, job.max_drop, job.confidence, "accuracy")
    return (judge.verdicts("scrambled weights (largest 1)", tried.golden, results, decision),)


def _keep(
    plan: Plan,
    chosen: Trial,
    proven: dict[str, tuple[Sabotage, ...]],
    reference: Candidate,
    bench: Bench,
    results: Cache,
) -> Made:
    """Put the chosen variant into the cache, with everything that evidence says of it."""
    inputs, job, one = bench.inputs, bench.job, chosen.candidate
    wanted = job.wanted(plan.profile)
    told = {
        t.candidate.key: replace(t, measurements=_measurements(t, plan, reference, bench)) for t in _of(plan, bench)
    }
    best = told[one.key]
    files, blobs = bundle_files(files_of(bench.tried[one.key].lying.folder))
    assert best.decision is not None
    made = Made(
        files=files,
        recipe=one.recipe.name,
        runtime=one.recipe.runtime,
        precision=precision(one.recipe, Path(inputs.source.place)),
        task=inputs.source.task,
        source=inputs.source.digest,
        architecture=inputs.source.architecture,
        tools=tool_versions(),
        datasets=inputs.datasets(one),
        wanted=wanted,
        decision=best.decision,
        measurements=best.measurements,
        attempts=(*(attempt(t, best, plan, wanted) for t in told.values()), *plan.refused),
        classes=(),
        sabotage=proven[one.key],
        reference=reference_of.of_texts(inputs.test),
    )
    return results.put(inputs.key(job, plan.profile), made, blobs)


def _measurements(trial: Trial, plan: Plan, reference: Candidate, bench: Bench) -> tuple[Measurement, ...]:
    if trial.decision is None:
        return ()
    kind: Kind = "emulated" if plan.emulated(trial.candidate) else "measured"
    where = Where(kind, figures.this_machine(), trial.runtime, bench.job.confidence)
    values, source = (bench.tried[key].answers.values for key in (trial.candidate.key, reference.key))
    assert trial.times is not None
    return (
        *figures.answers(trial.decision, values, source, where),
        *figures.sizes(model=trial.size, footprint=trial.footprint, source=bench.inputs.source.size),
        figures.memory(trial.memory, where),
        *figures.speed(trial.times.ms, (), where),
    )
