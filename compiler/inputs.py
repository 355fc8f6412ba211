"""What a job names, read and checked against each other. Imports nothing heavy.

inputs = Inputs.read(job)
inputs.source, inputs.test, inputs.key(profile)
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import Malformed
from compiler.examples import examples
from compiler.examples.examples import Examples
from compiler.judge.figures import board, this_machine
from compiler.plan.candidates import Candidate, Plan, plan
from compiler.sources import read as sources
from compiler.sources.source import Source
from compiler.workshop import cache
from wire.build import BuildJob, Data, VerifyJob
from wire.lineage import Dataset, Use
from wire.profile import Profile


@dataclass(frozen=True)
class Inputs:
    """Source and examples of a job. `calibration` is None where the job names none."""

    job: BuildJob | VerifyJob
    source: Source
    test: Examples
    calibration: Examples | None

    @classmethod
    def read(cls, job: BuildJob | VerifyJob) -> Inputs:
        """Raises `Malformed` or `Incompatible`."""
        safe = isinstance(job, BuildJob) and job.safe
        source = sources.read(job.source, describe_of(job), safe=safe)
        test = examples.read(Path(job.test.path), source)
        examples.check(test, source)
        calibration = _calibration(job.calibration, source, test) if job.calibration else None
        for learned in source.trained:
            if learned.digest == test.digest:
                raise Malformed(
                    f"test {job.test.path}: the source learned from these very examples ({learned.name}): its accuracy "
                    "on them says nothing; give examples that were held out"
                )
        return cls(job, source, test, calibration)

    @property
    def test_path(self) -> Path:
        """The file of test examples."""
        return Path(self.job.test.path)

    @property
    def calibration_path(self) -> Path | None:
        """The file of calibration examples."""
        return Path(self.job.calibration.path) if self.job.calibration else None

    def plan(self, job: BuildJob, profile: Profile, lengths: tuple[int, ...]) -> Plan:
        """What is to be tried for a profile. Raises `Incompatible` when its rules refuse everything."""
        return plan(
            profile,
            self.source,
            lengths,
            recipes=job.recipes,
            calibrated=self.calibration is not None,
            workers=job.workers.keys(),
            here=profile.matches(machine=platform.machine(), board=board()),
        )

    def datasets(self, candidate: Candidate, *, calibrated: bool = False) -> tuple[Dataset, ...]:
        """The examples that took part in a candidate, `calibrated` or not: by file name and digest, never by folder."""
        found = (*self.source.trained, _dataset(self.job.test, self.test, "test"))
        return (*found, *self.calibration_set()) if candidate.recipe.calibrated or calibrated else found

    def calibration_set(self) -> tuple[Dataset, ...]:
        """The calibration examples, where there are some."""
        if self.calibration is None or self.job.calibration is None:
            return ()
        return (_dataset(self.job.calibration, self.calibration, "calibration"),)

    def key(self, job: BuildJob, profile: Profile) -> str:
        """Where the cache keeps a profile's result."""
        decides: Mapping[str, Any] = {
            "source": self.source.digest,
            "test": [self.test.digest, self.test.name, job.test.licence],
            "calibration": [self.calibration.digest, self.calibration.name, job.calibration.licence]
            if self.calibration and job.calibration
            else None,
            "profile": profile.to_value(),
            "wanted": job.wanted(profile).to_value(),
            "recipes": list(job.recipes),
            "target_error": job.target_error,
            "workers": _workers(job.workers),
            "device": this_machine(),
        }
        return cache.cache_key("made", **decides)


def _workers(pythons: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Each runtime with its Python and its version there: it may be another one tomorrow. Raises `Unavailable`."""
    if not pythons:
        return []
    from compiler import runtimes  # noqa: PLC0415  numpy: only a build with workers waits for it

    named = [runtime for runtime in runtimes.WORKERS if runtime in pythons]
    return [(runtime, pythons[runtime], runtimes.version(runtime, pythons[runtime])) for runtime in named]


def describe_of(job: BuildJob | VerifyJob) -> Path | None:
    """The file that says what the source does not say itself."""
    return Path(job.describe) if job.describe else None


def _calibration(data: Data, source: Source, test: Examples) -> Examples:
    """What is observed, and what confidence is learnt from. Raises `Malformed` where a test example is among it."""
    found = examples.read(Path(data.path), source)
    both = examples.shared(found, test)
    if both:
        raise Malformed(
            f"calibration {data.path}: {len(both)} of its {len(found.rows)} rows are test examples too, the first is "
            f"row {both[0] + 1}: a variant that observed them is not held out; give others, of the training set say"
        )
    return found


def _dataset(data: Data, found: Examples, use: Use) -> Dataset:
    return Dataset(name=found.name, digest=found.digest, use=use, rows=len(found.rows), licence=data.licence)
