"""Makes a bundle again by its recorded recipe, and compares: the same bytes or not.

    verify(VerifyJob.from_bytes(data), Reporter(lines))

The search is not repeated: the lineage in the bundle says which passes ran with which parameters. Everything is made
anew, nothing is taken from a cache.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from compiler.bundle.layout import FoundBundle, Layout
from compiler.bundle.pack import bundle_files, folder_files, manifest_of
from compiler.errors import Incompatible, Malformed, Unavailable, Untrusted
from compiler.inputs import Inputs, describe_of
from compiler.plan.candidates import Candidate, references
from compiler.plan.recipes import RECIPES
from compiler.progress import Reporter
from compiler.search.bench import complete
from compiler.search.calibrate import lay, learn, rows_of
from compiler.variant import Variant, lay_out, pipeline_of
from compiler.workshop.cache import Cache, tool_versions
from compiler.workshop.children import Failed
from compiler.workshop.workshop import Workshop
from wire.build import VerifyJob
from wire.bundle import BundleFile, Precision, Role
from wire.chunks import digest
from wire.lineage import Lineage
from wire.pipeline import Calibration, Pipeline
from wire.units import size

_MEMORY = "3 GiB"


def verify(job: VerifyJob, report: Reporter) -> None:
    """Raises `Malformed` for inputs other than recorded, `Incompatible` for tools, `Untrusted` for bytes."""
    report.total = 3
    layout = Layout(Path(job.layout))
    found = layout.find(job.target)
    recorded = Lineage.from_bytes(layout.read(found.manifest.file("lineage").digest))
    report.step(f"reading what {job.target} was made of")
    inputs = Inputs.read(job)
    _check_inputs(job, inputs, recorded)
    _check_tools(recorded)
    with tempfile.TemporaryDirectory(prefix="shoal-verify-") as folder:
        report.step(f"making {recorded.recipe} again")
        pipeline = Pipeline.from_bytes(layout.read(found.manifest.file("pipeline").digest))
        made = _make(job, inputs, recorded, pipeline.calibration, Path(folder), report)
        report.step("comparing")
        files, _ = bundle_files(_files(made, inputs))
        precision = _precision(recorded, inputs)
    _compare(found, files, recorded, precision)
    report.finish(f"{job.target}: the same bytes, {found.digest}", digest=found.digest)


def _check_inputs(job: VerifyJob, inputs: Inputs, recorded: Lineage) -> None:
    if inputs.source.digest != recorded.source:
        raise Malformed(
            f"source {job.source}: its digest is {inputs.source.digest}, the bundle was made of {recorded.source}"
        )
    for dataset in recorded.datasets:
        if dataset.use == "train":
            continue  # the source's own record of what it learned from, which its digest covers
        given = {"test": inputs.test, "calibration": inputs.calibration}.get(dataset.use)
        if given is None:
            raise Malformed(
                f"{dataset.use} examples: the bundle was made with {dataset.name}, {dataset.digest}: give it"
            )
        if given.digest != dataset.digest:
            raise Malformed(
                f"{dataset.use} examples {given.name}: their digest is {given.digest}, the bundle was made with "
                f"{dataset.name}, {dataset.digest}"
            )


def _check_tools(recorded: Lineage) -> None:
    here = tool_versions()
    others = [
        f"{tool} {version}, here {here.get(tool)}"
        for tool, version in recorded.tools.items()
        if here.get(tool) != version
    ]
    if others:
        raise Incompatible(f"tools: the bundle was made with {'; '.join(others)}: install those to make it again")
    if recorded.recipe not in RECIPES:
        raise Incompatible(f"recipe {recorded.recipe!r}: this compiler has none of that name")


def _files(folder: Path, inputs: Inputs) -> list[tuple[Role, str, bytes]]:
    if inputs.source.language is None:
        return folder_files(folder)
    from compiler.language.variant import files_of  # noqa: PLC0415  for language models alone

    return files_of(folder)


def _precision(recorded: Lineage, inputs: Inputs) -> Precision:
    recipe = RECIPES[recorded.recipe]
    if inputs.source.language is None:
        return recipe.precision
    from compiler.language.variant import precision  # noqa: PLC0415  as above

    return precision(recipe, Path(inputs.source.place))


def _make(
    job: VerifyJob,
    inputs: Inputs,
    recorded: Lineage,
    calibration: Calibration | None,
    folder: Path,
    report: Reporter,
) -> Path:
    """The folder of the variant, with golden set and lineage, calibrated for the recorded target error if it was."""
    recipe = RECIPES[recorded.recipe]
    candidate = Candidate(recipe, recorded.passes, tuple(recorded.passes[0].parameters.get("lengths", ())))
    shop = Workshop(
        cache=Cache(folder / "cache"),
        scratch=folder,
        reference=inputs.source.reference,
        source=inputs.source,
        describe=describe_of(job),
        calibration=Path(job.calibration.path) if job.calibration else None,
        memory=size(_MEMORY),
        processes=1,
        note=report.still,
    )
    (made,) = shop.make([candidate.passes])
    if isinstance(made, Failed):
        raise Unavailable(f"recipe {recipe.name}: {made.name}: {made.reason}")
    if inputs.source.language is not None:
        from compiler.language.variant import repeat  # noqa: PLC0415  as above

        python = job.workers.get(recipe.runtime)
        return repeat(folder / "variant", candidate, made.path, _licensed(inputs, recorded), python)
    around = pipeline_of(inputs.source, recipe.runtime, candidate.lengths)
    lay_out(folder / "variant", made.path, recipe.runtime, around)
    variant = Variant(folder / "variant", recipe.runtime, job.workers.get(recipe.runtime))
    (scored,) = shop.score([variant], inputs.test_path)
    if isinstance(scored, Failed):
        raise Unavailable(f"recipe {recipe.name}: {scored.name}: {scored.reason}")
    named = _licensed(inputs, recorded)
    complete(variant.folder, named, candidate, scored.results)
    if calibration is not None:
        asked = rows_of(inputs, report.note)
        if asked is None:
            raise Malformed(f"calibration of {job.target}: these examples give none: give those of its lineage")
        source = _source(job, inputs, candidate, shop, folder)
        fitted = learn(variant, source, asked, shop, inputs, calibration.target_error)
        lay(variant, fitted.calibration, named)
    return variant.folder


def _source(job: VerifyJob, inputs: Inputs, candidate: Candidate, shop: Workshop, folder: Path) -> Variant:
    """The graph that stood for the source, made as the search makes it: the first that can be."""
    faults = []
    for one in references(inputs.source, candidate.lengths, job.workers.keys()):
        (made,) = shop.make([one.passes])
        if isinstance(made, Failed):
            faults.append(made.reason)
            continue
        runtime = one.recipe.runtime
        lay_out(folder / "source", made.path, runtime, pipeline_of(inputs.source, runtime, one.lengths))
        return Variant(folder / "source", runtime, job.workers.get(runtime))
    raise Unavailable(f"source {job.source}: no graph can stand for it: {faults[0]}")


def _licensed(inputs: Inputs, recorded: Lineage) -> Inputs:
    """The same inputs under the names and licences that the bundle gives them: only their digests are to be checked."""
    named = {d.use: d for d in recorded.datasets}
    job = replace(inputs.job, test=replace(inputs.job.test, licence=named["test"].licence))
    test = replace(inputs.test, name=named["test"].name)
    calibration = inputs.calibration
    if "calibration" in named and job.calibration and calibration:
        job = replace(job, calibration=replace(job.calibration, licence=named["calibration"].licence))
        calibration = replace(calibration, name=named["calibration"].name)
    return Inputs(job, inputs.source, test, calibration)


def _compare(found: FoundBundle, files: tuple[BundleFile, ...], recorded: Lineage, precision: Precision) -> None:
    """Raises `Untrusted` with the first file that differs, or when only the manifest does."""
    old = found.manifest
    again = {f.path: f.digest for f in files}
    for file in old.files:
        if again.get(file.path) != file.digest:
            raise Untrusted(
                f"bundle {old.target}: {file.path} has the digest {file.digest}, made again "
                f"{again.get(file.path, 'it is not there')}: it is not what its lineage says"
            )
    recipe = RECIPES[recorded.recipe]
    named = {key: getattr(old, key) for key in ("family", "name", "version", "profile")}
    manifest, _ = manifest_of(
        named, runtime=recipe.runtime, precision=precision, architecture=recorded.architecture, files=files
    )
    made = digest(manifest.to_bytes())
    if made != found.digest:
        raise Untrusted(f"bundle {old.target}: its manifest has the digest {found.digest}, made again {made}")
