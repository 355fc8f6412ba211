"""Makes and runs variants in child processes: several at once within the memory allowed, each result made once.

    shop = Workshop(cache=cache, scratch=scratch, reference=job.source, source=source, memory=3 << 30, processes=2,
                    note=print)
    products = shop.make([(export, prepare, int8), (export,)])    # `export` runs once; Product or Failed for each
    scored = shop.score(variants, test_examples)                  # Scored or Failed for each

What was made lies in the cache under the digest of everything that decides it: an interrupted search finds it again.
A child that crashes, hangs or runs out of memory is a `Failed` with a reason, and the others go on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.errors import CompilerError
from compiler.passes.job import PassJob
from compiler.plan.recipes import RECIPES
from compiler.sources.source import Source
from compiler.variant import Variant
from compiler.workshop.cache import Cache, Entry, file_digest, work_key
from compiler.workshop.children import COMMAND, Answer, Children, Failed, Task
from compiler.workshop.score import Lying, Rows, ScoreJob, labels_of, read_results
from wire.bundle import Precision, Runtime
from wire.lineage import PassRecord
from wire.units import show_seconds, show_size

if TYPE_CHECKING:
    from wire.processing import Result

PASS_DEADLINE, SCORE_DEADLINE = 1800.0, 3600.0
"""Seconds after which a child hangs: far above what the slowest takes."""
_MB = 10**6
_PASS_MEMORY: tuple[tuple[str, int, float], ...] = (
    (r"onnx\.export", 450 * _MB, 5.0),
    (r"litert\.convert", 700 * _MB, 6.0),
    (r"torch\.", 450 * _MB, 5.0),
    (r"genai\.", 700 * _MB, 4.0),
    (r"gguf\.", 50 * _MB, 0.0),
    (r".*static", 300 * _MB, 6.0),
    (r"", 200 * _MB, 5.0),
)
"""What a pass takes at most before it was seen: bytes for its libraries, and for each byte of the source."""
_PRUNE_MEMORY = (150 * _MB, 2.0)
"""What a pass takes besides when it prunes: the states of the examples, and a second module."""
_SCORE_MEMORY = (220 * _MB, 1.5)
_OBSERVING = frozenset(r.passes[-1] for r in RECIPES.values() if r.calibrated and r.keep == 1)


@dataclass(frozen=True)
class Product:
    """A file at the end of some passes. It lies in the cache and must not be written to.

    `cached` says that an earlier build made it; `peak` in bytes and `seconds` are what its last pass took.
    """

    path: Path
    digest: str
    size: int
    cached: bool
    peak: int
    seconds: float


@dataclass(frozen=True)
class Scored:
    """What a variant answered: a result for each row, in order.

    `runtime` is its name and version, `memory` the bytes by which the process grew with the model loaded, `fell_back`
    counts operators that do not run in the precision that was asked about.
    """

    results: tuple[Result, ...]
    runtime: str
    memory: int
    fell_back: Mapping[str, int]
    cached: bool


@dataclass(frozen=True)
class _Step:
    """A pass on what the step before it makes: `given` and `key` are keys of the cache."""

    key: str
    record: PassRecord
    given: str | None


@dataclass(kw_only=True)
class Workshop:
    """The workshop of one build.

    `reference` and `describe` are what a child reads the source with, `calibration` is a file of examples for passes
    that observe activations. `memory` in bytes and `processes` bound what runs at the same time; `note` is told what
    runs and what it took, the latter `ended` where it is given. `scratch` is a folder that `Cache.scratch` gave.
    """

    cache: Cache
    scratch: Path
    reference: str
    source: Source
    describe: Path | None = None
    calibration: Path | None = None
    memory: int
    processes: int
    note: Callable[[str], None]
    ended: Callable[[str], None] | None = None
    command: Sequence[str] = COMMAND
    deadline: float = PASS_DEADLINE
    _peaks: dict[str, int] = field(default_factory=dict)
    _versions: dict[tuple[str, str | None], str] = field(default_factory=dict)
    _numbers: Iterable[int] = field(default_factory=count)

    def make(self, wanted: Sequence[Sequence[PassRecord]]) -> list[Product | Failed]:
        """What stands at the end of each list of passes; a beginning that several share is made once.

        A pass that fails fails everything that was to be made of its file.
        """
        chains = [self._chain(records) for records in wanted]
        made: dict[str, Product | Failed] = {}
        waiting = self._missing(chains, made)
        _fail_dependents(waiting, made)
        started: dict[Task, _Step] = {}
        with self._children() as children:
            while waiting or started:
                for step in sorted(_ready(waiting, made), key=self._pass_memory, reverse=True):
                    if children.fits(self._pass_memory(step)):
                        given = made[step.given] if step.given else None
                        task = self._task(waiting.pop(step.key), given)
                        started[task] = step
                        children.start(task)
                task, ended = children.wait()
                step = started.pop(task)
                made[step.key] = self._keep(step, task, ended)
                _fail_dependents(waiting, made)
        return [made[chain[-1].key] for chain in chains]

    def score(
        self,
        variants: Sequence[Variant],
        examples: Path,
        *,
        rows: Sequence[int] | None = None,
        precisions: Sequence[Precision | None] | None = None,
        fresh: bool = False,
    ) -> list[Scored | Failed]:
        """The answers of each variant to the examples of a file: to all, or to those in `rows`, in that order.

        With the `precisions` that the variants are meant to run in, they also say what fell back. `fresh` asks the
        runtime even where the cache knows its answers: for a gate that must see it answer.
        """
        questions = self._questions(variants, examples, rows, precisions)
        keys = [self._score_key(q) for q in questions]
        found = {k: None if fresh else self.cache.find(k) for k in keys if isinstance(k, str)}
        missing = {k: q for k, q in zip(keys, questions, strict=True) if isinstance(k, str) and not found[k]}
        tasks = {k: self._score_task(q) for k, q in missing.items()}
        kept: dict[str, Entry | Failed] = {k: e for k, e in found.items() if e}
        for key, (task, ended) in zip(tasks, self.run(tasks.values()), strict=True):
            kept[key] = ended if isinstance(ended, Failed) else self._keep_score(key, task, ended)
        return [
            k if isinstance(k, Failed) else self._scored(kept[k], v, cached=k not in missing)
            for k, v in zip(keys, variants, strict=True)
        ]

    def run(self, tasks: Iterable[Task]) -> list[tuple[Task, Answer | Failed]]:
        """Run independent children, several at once; the answers are in the order of `tasks`."""
        order = {task: i for i, task in enumerate(tasks)}
        # The largest model is the slowest: started last, it would run alone at the end.
        waiting = sorted(order, key=lambda task: -task.memory)
        ended: list[tuple[Task, Answer | Failed]] = []
        with self._children() as children:
            while waiting or children.running:
                while waiting and children.fits(waiting[0].memory):
                    children.start(waiting.pop(0))
                ended.append(children.wait())
                self._tell(*ended[-1])
        return sorted(ended, key=lambda pair: order[pair[0]])

    def version(self, runtime: Runtime, worker: str | None) -> str:
        """Name and version of a runtime. Raises `CompilerError` when it is not here."""
        from compiler import runtimes  # noqa: PLC0415  a cached build asks no runtime

        if (runtime, worker) not in self._versions:
            self._versions[runtime, worker] = runtimes.version(runtime, worker)
        return self._versions[runtime, worker]

    # --- passes -----------------------------------------------------------------------------------------------

    @cached_property
    def _calibration_digest(self) -> str:
        return file_digest(self.calibration) if self.calibration else ""

    def _chain(self, records: Sequence[PassRecord]) -> list[_Step]:
        steps: list[_Step] = []
        for record in records:
            given = steps[-1].key if steps else None
            decides = {
                "given": given or self.source.digest,
                "parameters": dict(record.parameters),
                "calibration": self._calibration_digest if _calibrated(record) else "",
            }
            steps.append(_Step(work_key(record.name, **decides), record, given))
        return steps

    def _missing(self, chains: Sequence[Sequence[_Step]], made: dict[str, Product | Failed]) -> dict[str, _Step]:
        """The steps to run; what the cache holds goes into `made`. What leads to a file that is there is not needed."""
        waiting: dict[str, _Step] = {}
        for chain in chains:
            for step in reversed(chain):
                if step.key in waiting or step.key in made:
                    break
                found = self._found(step)
                if found:
                    made[step.key] = found
                    break
                waiting[step.key] = step
        return waiting

    def _found(self, step: _Step) -> Product | Failed | None:
        entry = self.cache.find(step.key)
        if entry is None:
            return None
        if "failed" in entry.facts:
            return Failed(step.record.name, entry.facts["failed"], "Incompatible")
        return self._product(entry, cached=True)

    def _product(self, entry: Entry, *, cached: bool) -> Product:
        name = entry.files["made"]
        path = self.cache.path(name)
        facts = entry.facts
        return Product(path, name, path.stat().st_size, cached, facts["peak"], facts["seconds"])

    def _task(self, step: _Step, given: Product | Failed | None) -> Task:
        assert not isinstance(given, Failed)
        calibration = self.calibration if _calibrated(step.record) else None
        job = PassJob(
            name=step.record.name,
            parameters=step.record.parameters,
            source=self.reference,
            describe=str(self.describe) if self.describe else None,
            given=str(given.path) if given else None,
            calibration=str(calibration) if calibration else None,
            made=str(self._new_file("made")),
        )
        return Task(step.record.name, ("pass",), job.to_bytes(), self._pass_memory(step), self.deadline)

    def _keep(self, step: _Step, task: Task, ended: Answer | Failed) -> Product | Failed:
        name = step.record.name
        made = Path(PassJob.from_bytes(task.question).made)
        if isinstance(ended, Answer) and not made.is_file():
            ended = Failed(name, "it ended well and wrote no file", "Malformed")
        self._tell(task, ended)
        if isinstance(ended, Failed):
            if ended.kind == "Incompatible":  # what cannot be expressed today cannot be tomorrow
                self.cache.keep(step.key, {}, {"failed": ended.reason})
            return ended
        kind = _kind(step.record)
        self._peaks[kind] = max(self._peaks.get(kind, 0), ended.peak)
        facts = {"peak": ended.peak, "seconds": ended.seconds}
        return self._product(self.cache.keep(step.key, {"made": made}, facts), cached=False)

    def _pass_memory(self, step: _Step) -> int:
        """What the pass took when it ran in this build, or else what the table says."""
        kind = _kind(step.record)
        if kind in self._peaks:
            return self._peaks[kind]
        base, factor = next((b, f) for pattern, b, f in _PASS_MEMORY if re.match(pattern, step.record.name))
        more, steeper = _PRUNE_MEMORY if "keep" in step.record.parameters else (0, 0.0)
        return base + more + int((factor + steeper) * self.source.size)

    # --- scores -----------------------------------------------------------------------------------------------

    def _questions(
        self,
        variants: Sequence[Variant],
        examples: Path,
        rows: Sequence[int] | None,
        precisions: Sequence[Precision | None] | None,
    ) -> list[ScoreJob]:
        asked = self.rows(examples, rows)
        return [
            ScoreJob(
                variant=Lying.of(variant), examples=asked, precision=precision, made=str(self._new_file("answers"))
            )
            for variant, precision in zip(variants, precisions or [None] * len(variants), strict=True)
        ]

    def rows(self, examples: Path, rows: Sequence[int] | None) -> Rows:
        """Examples as a child is told of them."""
        return Rows(
            path=str(examples.absolute()),
            source=self.reference,
            describe=str(self.describe) if self.describe else None,
            rows=None if rows is None else tuple(rows),
        )

    def _score_key(self, question: ScoreJob) -> str | Failed:
        variant = question.variant
        try:
            runtime = self.version(variant.runtime, variant.worker)
        except CompilerError as e:
            return Failed(variant.runtime, str(e), type(e).__name__)
        return work_key(
            "score",
            files={path.name: file_digest(path) for path in sorted(Path(variant.folder).iterdir())},
            runtime=runtime,
            precision=question.precision,
            examples=file_digest(Path(question.examples.path)),
            source=self.source.digest,
            rows=question.examples.rows,
        )

    def _score_task(self, question: ScoreJob) -> Task:
        variant = question.variant
        memory = memory_of(variant.model)
        return Task(f"scoring {Path(variant.folder).name}", ("score",), question.to_bytes(), memory, SCORE_DEADLINE)

    def _keep_score(self, key: str, task: Task, answer: Answer) -> Entry:
        made = Path(ScoreJob.from_bytes(task.question).made)
        facts = {name: answer.facts[name] for name in ("names", "memory", "fell_back")}
        return self.cache.keep(key, {"answers": made}, facts)

    def _scored(self, kept: Entry | Failed, variant: Variant, *, cached: bool) -> Scored | Failed:
        if isinstance(kept, Failed):
            return kept
        path = self.cache.path(kept.files["answers"])
        results = read_results(path, kept.facts["names"], labels_of(variant.folder))
        runtime = self.version(variant.runtime, variant.worker)
        return Scored(results, runtime, kept.facts["memory"], kept.facts["fell_back"], cached)

    # --- both -------------------------------------------------------------------------------------------------

    def _children(self) -> Children:
        return Children(self.command, self.scratch, processes=self.processes, memory=self.memory, note=self.note)

    def _new_file(self, kind: str) -> Path:
        return self.scratch / f"{kind}-{next(iter(self._numbers))}"

    def _tell(self, task: Task, ended: Answer | Failed) -> None:
        tell = self.ended or self.note
        if isinstance(ended, Failed):
            tell(f"{task.name} failed: {ended.reason}")
        else:
            tell(f"{task.name} took {show_seconds(ended.seconds)} and {show_size(ended.peak)} at its peak")


def memory_of(model: Path) -> int:
    """What a process that runs a model file takes at most, in bytes."""
    base, factor = _SCORE_MEMORY
    return base + int(factor * model.stat().st_size)


def _calibrated(record: PassRecord) -> bool:
    """Whether a pass looks at calibration examples."""
    return record.name in _OBSERVING or "keep" in record.parameters


def _kind(record: PassRecord) -> str:
    """Passes of one kind take about the same memory."""
    return f"{record.name} pruned" if "keep" in record.parameters else record.name


def _ready(waiting: Mapping[str, _Step], made: Mapping[str, Any]) -> list[_Step]:
    return [step for step in waiting.values() if step.given is None or step.given in made]


def _fail_dependents(waiting: dict[str, _Step], made: dict[str, Product | Failed]) -> None:
    while lost := [s for s in waiting.values() if s.given and isinstance(made.get(s.given), Failed)]:
        for step in lost:
            assert step.given is not None
            made[step.key] = made[step.given]
            del waiting[step.key]
