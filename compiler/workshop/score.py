"""The process that answers all examples with one variant, and the file in which its answers travel.

`score` is the child: a `ScoreJob` in, answers in an `.npz` file out, with facts about them. `read_results` is the
parent's side. Arrays travel without pickle, labels are found again in the scores.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from compiler.errors import Incompatible
from compiler.plan.recipes import MODEL_FILES
from compiler.variant import LABELS, PIPELINE, Variant
from compiler.workshop.child import Lines
from compiler.workshop.machine import resident
from wire.bundle import Precision, Runtime
from wire.document import Document
from wire.pipeline import SCORES, Labels, Pipeline

if TYPE_CHECKING:
    from wire.processing import Array, Example, Result


INPUTS = ("lengths", "languages")
"""Arrays of what is known of the inputs, in the file of answers."""


@dataclass(frozen=True, kw_only=True)
class Rows(Document):
    """Examples for a child: the file, the source that says how to read it, and which rows (None for all)."""

    LIMIT: ClassVar[int] = 8 * 1024 * 1024

    path: str
    source: str
    describe: str | None = None
    rows: tuple[int, ...] | None = None

    def read(self) -> list[Example]:
        """The examples in the order of `rows`."""
        from compiler.examples import examples
        from compiler.sources.read import read

        source = read(self.source, Path(self.describe) if self.describe else None)
        found = examples.read(Path(self.path), source).rows
        return [found[i].example for i in (range(len(found)) if self.rows is None else self.rows)]


@dataclass(frozen=True, kw_only=True)
class Lying(Document):
    """Where a variant lies, for a child: see `compiler.variant.Variant`."""

    folder: str
    runtime: Runtime
    worker: str | None = None

    @property
    def model(self) -> Path:
        """The file that the runtime loads."""
        return Path(self.folder) / MODEL_FILES[self.runtime]

    @classmethod
    def of(cls, variant: Variant) -> Lying:
        """For the question to a child."""
        return cls(folder=str(variant.folder.absolute()), runtime=variant.runtime, worker=variant.worker)

    @property
    def pipeline(self) -> Pipeline:
        """What stands around the graph."""
        return Pipeline.from_bytes((Path(self.folder) / PIPELINE).read_bytes())

    def open(self) -> Callable[[Example], Result]:
        """Load the variant in its runtime, with everything that stands around it. Raises `Incompatible`."""
        from compiler.runtimes import open_graph
        from wire.processing import Processor

        folder, pipeline = Path(self.folder), self.pipeline
        tokenizer = (folder / pipeline.tokenizer.file).read_bytes() if pipeline.tokenizer else None
        processor = Processor(pipeline, labels_of(folder), tokenizer)
        graph = open_graph(self.runtime, self.model, pipeline, self.worker)
        return lambda example: processor.run(example, graph)


@dataclass(frozen=True, kw_only=True)
class ScoreJob(Document):
    """Answer examples with a variant; `made` is the file to write.

    With a `precision`, also count the operators that do not run in it.
    """

    LIMIT: ClassVar[int] = 8 * 1024 * 1024

    variant: Lying
    examples: Rows
    precision: Precision | None = None
    made: str


def score(question: IO[bytes], lines: Lines) -> Mapping[str, Any]:
    """The child: answer one question. `memory` is what the process grew by with the model loaded."""
    import wire.processing  # noqa: F401  before the memory is measured: a process that serves has it in any case

    job = ScoreJob.from_bytes(question.read())
    examples = job.examples.read()
    before = resident()
    run = job.variant.open()
    results: list[Result] = []
    memory = 0
    for done, example in enumerate(examples):
        lines.progress(done, len(examples))
        results.append(run(example))
        memory = memory or max(resident() - before, 1)
    with Path(job.made).open("wb") as file:
        names = write_results(file, results)
    return {"names": names, "memory": memory, "fell_back": _fell_back(job)}


def _fell_back(job: ScoreJob) -> dict[str, int]:
    from compiler.runtimes import fell_back

    variant = job.variant
    return fell_back(variant.runtime, variant.model, variant.pipeline, job.precision) if job.precision else {}


def write_results(file: IO[bytes], results: Sequence[Result]) -> list[str]:
    """Write the outputs of all rows; their names. Raises `Incompatible` when rows have other outputs than the first.

    An output's numbers stand one row after the other in `data_<i>`, the shape of each row in `shapes_<i>`: words and
    frames differ in number from row to row. What is known of the inputs stands in `lengths`, -1 for nothing, and
    `languages`.
    """
    import numpy as np

    names = list(results[0].outputs) if results else []
    arrays: dict[str, Array] = {}
    for i, name in enumerate(names):
        rows = [r.outputs.get(name) for r in results]
        kinds = {None if row is None else (row.dtype.str, row.ndim) for row in rows}
        if len(kinds) != 1 or None in kinds:
            raise Incompatible(f"output {name}: missing or of another kind for some examples: {kinds}")
        whole = [row for row in rows if row is not None]
        arrays[f"data_{i}"] = np.concatenate([row.ravel() for row in whole])
        arrays[f"shapes_{i}"] = np.asarray([row.shape for row in whole], np.int64).reshape(len(whole), -1)
    arrays["lengths"] = np.asarray([-1 if r.length is None else r.length for r in results], np.int64)
    arrays["languages"] = np.asarray([r.language for r in results], np.str_)
    np.savez(file, allow_pickle=False, **arrays)
    return names


def read_results(path: Path, names: Sequence[str], labels: tuple[str, ...]) -> tuple[Result, ...]:
    """The inverse of `write_results`."""
    import numpy as np

    from wire.processing import Result

    columns: dict[str, list[Array]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for i, name in enumerate(names):
            shapes = stored[f"shapes_{i}"]
            ends = np.cumsum(shapes.prod(axis=1))[:-1]
            parts = np.split(stored[f"data_{i}"], ends)
            columns[name] = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        inputs = [(n if n >= 0 else None, s) for n, s in zip(*(stored[k].tolist() for k in INPUTS), strict=True)]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return tuple(
        Result(outputs, _best(outputs, labels), length=length, language=language)
        for outputs, (length, language) in zip(rows, inputs, strict=True)
    )


def labels_of(folder: Path) -> tuple[str, ...]:
    """The labels that lie beside a variant, none where it has none."""
    path = folder / LABELS
    return Labels.from_bytes(path.read_bytes()).labels if path.exists() else ()


def _best(outputs: Mapping[str, Array], labels: tuple[str, ...]) -> tuple[str, ...]:
    if not labels or SCORES not in outputs:
        return ()
    return tuple(labels[i] for i in outputs[SCORES].argmax(axis=-1).reshape(-1))
