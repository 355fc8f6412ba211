"""One build: a source model in, one bundle per profile out.

    build(BuildJob.from_bytes(data), Reporter(lines))

The story is `build`. Heavy libraries are imported only when a profile is not in the cache; a failure leaves the
output as it was.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from compiler import cache, source, testset
from compiler.errors import Incompatible, Infeasible
from compiler.layout import Descriptor
from compiler.made import Made
from compiler.pack import Packer, bundle_files, pack
from compiler.progress import Reporter
from compiler.recipes import Recipe, recipes_of, target_of
from compiler.report import card, measurements
from compiler.source import Source
from compiler.testset import TestSet
from wire.build import BuildJob
from wire.bundle import Role, target_path
from wire.evidence import Attempt, Evidence
from wire.profile import Profile
from wire.units import show_size, size

if TYPE_CHECKING:
    from compiler.candidates import Bench, Candidate

TOKEN_COUNTS = (16, 32, 64, 128, 256, 512)
"""Lengths of graphs without dynamic shapes."""


def build(job: BuildJob, report: Reporter) -> None:
    """Write a bundle for every profile of the job into its output. Raises a `CompilerError` and writes nothing else."""
    inputs = Inputs.read(job)
    results = cache.Cache(Path(job.cache))
    found = {p.name: results.get(inputs.key(p)) for p in job.profiles}
    missing = [p for p in job.profiles if found[p.name] is None]
    report.total = len(job.profiles) + sum(len(p.recipes) + 1 for p in missing) + (2 if missing else 0)
    with Packer(Path(job.output)) as packer, _scratch() as scratch:
        compiler = Compiler(inputs, report, scratch)
        for profile in job.profiles:
            made = found[profile.name] or compiler.compile(profile, results)
            report.step(f"packing {made.recipe}", profile=profile.name)
            blobs = {f.digest: results.read(f.digest) for f in made.files}
            bundle, evidence = _pack(packer, job, profile, made, blobs)
            report.variant(
                _summary(made),
                profile=profile.name,
                digest=bundle.digest,
                evidence=evidence.digest,
                cached=profile not in missing,
            )
        packer.publish()
    report.finish(f"{len(job.profiles)} bundles of {job.name} {job.version} written to {job.output}")


@dataclass(frozen=True)
class Inputs:
    """What a job names, read and checked against each other."""

    job: BuildJob
    source: Source
    test: TestSet

    @classmethod
    def read(cls, job: BuildJob) -> Inputs:
        """Raises `Malformed` or `Incompatible`; imports nothing heavy."""
        for profile in job.profiles:
            recipes_of(profile)
        read, test = source.read(Path(job.source)), testset.read(Path(job.test_set))
        testset.check_labels(test, read.labels, Path(job.test_set))
        return cls(job=job, source=read, test=test)

    def key(self, profile: Profile) -> str:
        """Where the cache keeps a profile's result."""
        return cache.key(
            source=self.source.digest, test_set=self.test.digest, profile=profile, max_drop=self.job.max_drop
        )

    @property
    def dataset(self) -> Mapping[str, str]:
        """How evidence names the test set: by its file name and digest, never by its folder."""
        return {
            "name": Path(self.job.test_set).name,
            "digest": self.test.digest,
            "split": "test",
            "rows": str(len(self.test.rows)),
        }


@dataclass
class Compiler:
    """Compiles the profiles that the cache does not hold."""

    inputs: Inputs
    report: Reporter
    scratch: Path

    def compile(self, profile: Profile, results: cache.Cache) -> Made:
        """Try the profile's recipes, choose, prove, and keep the result. Raises `Infeasible` when none holds."""
        tried = self._try_recipes(profile)
        chosen = choose(profile, tried)
        self.report.step(f"golden set and saboteur for {chosen.recipe.name}", profile=profile.name)
        self.bench.prove(chosen)
        files, blobs = bundle_files(_files_of(chosen))
        made = Made(
            recipe=chosen.recipe.name,
            runtime=chosen.recipe.runtime,
            precision=chosen.recipe.precision,
            architecture=self.inputs.source.architecture,
            files=files,
            device=_this_machine(),
            versions=cache.tool_versions(),
            dataset=self.inputs.dataset,
            measurements=measurements(
                variant=chosen.accuracy,
                source=self.bench.source.accuracy,
                ms=chosen.scored.ms,
                size=chosen.size,
                source_size=self.bench.source.size,
                kind="measured" if profile.matches(machine=platform.machine(), board=_board()) else "emulated",
            ),
            attempts=tuple(t.attempt(chosen) for t in tried),
        )
        return results.put(self.inputs.key(profile), made, blobs)

    @cached_property
    def bench(self) -> Bench:
        """The candidates of this job; the first use reads the tokenizer and measures the source."""
        from compiler import tokenizer
        from compiler.candidates import Bench
        from compiler.work import Work

        self.report.step("making the device's tokenizer and comparing it with the source's")
        read, texts = self.inputs.source, self.inputs.test.texts
        made = tokenizer.for_device(read.tokenizer)
        tokenizer.check_parity(read.tokenizer, made, [*tokenizer.HARD_TEXTS, *texts])
        bench = Bench(Work(read, made, texts, self.scratch), self.inputs.test, self.inputs.job.max_drop)
        self.report.step(f"measuring the source on {len(texts)} texts")
        _ = bench.source
        return bench

    @cached_property
    def _tokens(self) -> int:
        """The smallest fixed length with room for texts twice as long as the longest of the test set."""
        from compiler.tokenizer import DeviceTokenizer

        work = self.bench.work
        tokenizer = DeviceTokenizer(work.tokenizer.data, work.tokenizer.tokenizer(self.inputs.source.max_length))
        longest = max(len(tokenizer.row(text)) for text in self.inputs.test.texts)
        roomy = next((n for n in TOKEN_COUNTS if n >= 2 * longest), TOKEN_COUNTS[-1])
        return min(roomy, self.inputs.source.max_length)

    def _try_recipes(self, profile: Profile) -> list[Tried]:
        tried: list[Tried] = []
        bench = self.bench
        for recipe in recipes_of(profile):
            if profile.choose == "first" and tried and tried[-1].fault is None:
                self.report.skip(1)
                continue
            self.report.step(f"compiling and evaluating {recipe.name}", profile=profile.name)
            tokens = self._tokens if recipe.runtime == "litert" else 0
            try:
                candidate = bench.candidate(recipe, target_of(recipe, profile, tokens))
            except Incompatible as e:
                tried.append(Tried(recipe, None, str(e)))
                continue
            tried.append(Tried(recipe, candidate, self._fault(candidate, profile)))
        return tried

    def _fault(self, candidate: Candidate, profile: Profile) -> str | None:
        from compiler.gates import accuracy_fault

        if candidate.footprint > size(profile.limits.disk):
            return (
                f"its bundle takes {show_size(candidate.footprint)} on the device's disk, "
                f"the profile allows {profile.limits.disk}"
            )
        return accuracy_fault(candidate.accuracy, self.bench.source.accuracy, self.inputs.job.max_drop)


@dataclass(frozen=True)
class Tried:
    """A recipe with the candidate it made, if it made one, and why that does not do."""

    recipe: Recipe
    candidate: Candidate | None
    fault: str | None

    def attempt(self, chosen: Candidate) -> Attempt:
        """How the evidence tells it."""
        candidate = self.candidate
        if candidate is None:
            return Attempt(recipe=self.recipe.name, outcome="failed", reason=self.fault or "")
        outcome, reason = self._outcome(candidate, chosen)
        return Attempt(
            recipe=self.recipe.name,
            outcome=outcome,
            reason=reason,
            bytes=candidate.size,
            accuracy=candidate.accuracy.value,
        )

    def _outcome(self, candidate: Candidate, chosen: Candidate) -> tuple[Literal["chosen", "passed", "failed"], str]:
        if self.fault:
            return "failed", self.fault
        if candidate is chosen:
            return "chosen", "holds the accuracy"
        return "passed", f"larger than {chosen.recipe.name}"


def choose(profile: Profile, tried: list[Tried]) -> Candidate:
    """The first candidate that holds, or the smallest. Raises `Infeasible`, naming the nearest, when none does."""
    good = [t.candidate for t in tried if t.candidate and not t.fault]
    if good:
        return min(good, key=lambda c: c.size) if profile.choose == "smallest" else good[0]
    made = [t for t in tried if t.candidate]
    nearest = max(made, key=lambda t: t.candidate.accuracy.value if t.candidate else 0.0, default=tried[0])
    raise Infeasible(
        f"profile {profile.name}: none of {', '.join(t.recipe.name for t in tried)} holds; the nearest, "
        f"{nearest.recipe.name}: {nearest.fault}. "
        "Allow a larger max_drop, train a better model or add a recipe to the profile"
    )


def _pack(
    packer: Packer, job: BuildJob, profile: Profile, made: Made, blobs: Mapping[str, bytes]
) -> tuple[Descriptor, Descriptor]:
    named = {"family": job.family, "name": job.name, "version": job.version, "profile": profile.name}
    bundle, _ = pack(packer, named, made, blobs)
    evidence = Evidence(
        subject=bundle.digest,
        target=target_path(**named),
        recipe=made.recipe,
        runtime=made.runtime,
        precision=made.precision,
        device=made.device,
        versions=made.versions,
        dataset=made.dataset,
        measurements=made.measurements,
        attempts=made.attempts,
    )
    return bundle, packer.add_evidence(bundle, evidence, card(evidence, named))


def _files_of(candidate: Candidate) -> Iterator[tuple[Role, str, bytes]]:
    from compiler.runtime import GOLDEN, LABELS, PIPELINE
    from compiler.tokenizer import FILE

    roles: dict[str, Role] = {PIPELINE: "pipeline", LABELS: "labels", GOLDEN: "golden", FILE: "tokenizer"}
    roles[candidate.model.name] = "model"
    for path in sorted(candidate.folder.iterdir()):
        yield roles[path.name], path.name, path.read_bytes()


def _summary(made: Made) -> str:
    values = {m.metric: m.value for m in made.measurements}
    return (
        f"{made.recipe}: {show_size(values['size'])}, accuracy {values['accuracy']:.4f} "
        f"(source {values['source_accuracy']:.4f}), p50 {values['latency_p50']:.2f} ms"
    )


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="shoal-build-") as folder:
        yield Path(folder)


def _board() -> str:
    """The device-tree model of this machine, or "" where there is none."""
    try:
        return Path("/proc/device-tree/model").read_text(encoding="utf-8").rstrip("\0")
    except OSError:
        return ""


def _this_machine() -> str:
    """What figures were taken on: board or processor, and its kind."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{_board() or model or 'unknown processor'} ({platform.machine()})"
