"""One build: a source model in, one bundle per profile out.

    build(BuildJob.from_bytes(data), Reporter(lines))

The story is `build`; how a variant is found for a profile tells `compiler.search.search`. Heavy libraries are imported
only when a profile is not in the cache; a failure leaves the output as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler.bundle.layout import Descriptor
from compiler.bundle.made import Made
from compiler.bundle.pack import Packer, pack
from compiler.inputs import Inputs
from compiler.progress import Reporter
from compiler.report.bom import bom
from compiler.report.card import card
from compiler.workshop.cache import Cache
from wire.build import BuildJob
from wire.bundle import target_path
from wire.profile import Profile
from wire.units import show_size


def build(job: BuildJob, report: Reporter) -> None:
    """Write a bundle for every profile of the job into its output. Raises a `CompilerError` and writes nothing else."""
    inputs = Inputs.read(job)
    results = Cache(Path(job.cache))
    made = {p.name: results.get(inputs.key(job, p)) for p in job.profiles}
    missing = [p for p in job.profiles if made[p.name] is None]
    report.total = len(job.profiles)
    try:
        with Packer(Path(job.output)) as packer:
            if missing:
                made |= _search(inputs, job, missing, results, report)
            for profile in job.profiles:
                found = made[profile.name]
                assert found is not None
                report.step(f"packing {found.recipe}", profile=profile.name)
                bundle, evidence = _pack(packer, inputs, job, profile, found)
                report.variant(
                    _summary(found, profile),
                    profile=profile.name,
                    digest=bundle.digest,
                    evidence=evidence.digest,
                    cached=profile not in missing,
                )
            packer.publish()
    finally:
        results.prune()  # a build that failed may have filled the cache, too
    report.finish(f"{len(job.profiles)} bundles of {job.name} {job.version} written to {job.output}")


def _search(
    inputs: Inputs, job: BuildJob, missing: Sequence[Profile], results: Cache, report: Reporter
) -> dict[str, Made]:
    """What the cache answers must not wait for what is imported here."""
    if inputs.source.language is not None:
        from compiler.language.build import search_language  # noqa: PLC0415

        return search_language(inputs, job, missing, results, report)
    from compiler.search.search import search  # noqa: PLC0415

    return search(inputs, job, missing, results, report)


def _pack(packer: Packer, inputs: Inputs, job: BuildJob, profile: Profile, made: Made) -> tuple[Descriptor, Descriptor]:
    named = {"family": job.family, "name": job.name, "version": job.version, "profile": profile.name}
    results = Cache(Path(job.cache))
    bundle, manifest = pack(packer, named, made, {f.digest: results.read(f.digest) for f in made.files})
    evidence = made.evidence(
        bundle.digest,
        target_path(**named),
        compile_only=profile.compile_only(made.runtime),
        registered=inputs.source.registered,
    )
    return bundle, packer.add_evidence(bundle, evidence, card=card(evidence, named), bom=bom(evidence, manifest))


def _summary(made: Made, profile: Profile) -> str:
    """One line on a variant. A runtime that was never seen working on the profile is said to be so."""
    values = {m.metric: m for m in made.measurements}
    metric, p50 = values[made.decision.metric], values["latency_p50"]
    unseen = " (compile-only)" if profile.compile_only(made.runtime) else ""
    return (
        f"{made.recipe}{unseen}: {show_size(values['size'].value)}, "
        f"{metric.metric} {metric.value:.4f}, drop {made.decision.drop:.2f} points "
        f"({made.decision.low:.2f} to {made.decision.high:.2f}), p50 {p50.value:.2f} ms {p50.kind}"
    )
