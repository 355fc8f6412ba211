"""The folder in which a language model lies: the runtime's own files, `pipeline.json`, golden set and lineage.

lying = lay_out(folder, candidate, product, source, python=None)
with lying.session() as session: ...
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.inputs import Inputs
from compiler.passes.genai import CONFIG, TOKENIZER, WEIGHTS, unpack
from compiler.plan.candidates import Candidate
from compiler.plan.recipes import MODEL_FILES, Recipe
from compiler.sources.language import bits
from compiler.sources.source import Source
from compiler.variant import GOLDEN, LINEAGE, PIPELINE, link
from compiler.workshop.cache import tool_versions
from wire.bundle import Precision, Role, Runtime
from wire.chunks import AVERAGE, WHOLE
from wire.lineage import Lineage
from wire.pipeline import Golden, Language, Pipeline

if TYPE_CHECKING:
    from compiler.language.session import Session

_ROLES: dict[str, Role] = {
    PIPELINE: "pipeline",
    GOLDEN: "golden",
    LINEAGE: "lineage",
    WEIGHTS: "weights",
    **dict.fromkeys((CONFIG, *TOKENIZER), "runtime-config"),
    **dict.fromkeys((MODEL_FILES["gguf"], MODEL_FILES["onnxruntime-genai"]), "model"),
}
_CHUNK_ENTRY = 110
"""Bytes that one chunk takes in a chunk list."""


@dataclass(frozen=True)
class Lying:
    """A variant's folder. `python` is that of its runtime, None for this one."""

    folder: Path
    runtime: Runtime
    language: Language
    python: str | None

    def session(self) -> Session:
        """A process with the model. Raises as `Session` does."""
        from compiler.language.session import Session  # noqa: PLC0415  numpy: a cached build does not wait for it

        return Session(self.folder, self.runtime, self.language, self.python)

    def complete(self, golden: Golden, inputs: Inputs, one: Candidate) -> None:
        """Add what a bundle has besides."""
        (self.folder / GOLDEN).write_bytes(golden.to_bytes())
        (self.folder / LINEAGE).write_bytes(_lineage(inputs, one).to_bytes())

    @property
    def weights(self) -> int:
        """Bytes of the model file and its weights."""
        return sum(p.stat().st_size for p in self.folder.iterdir() if _ROLES[p.name] in ("model", "weights"))

    @property
    def footprint(self) -> int:
        """Bytes of everything that a device stores: the files, and the chunk lists of the large ones."""
        sizes = [path.stat().st_size for path in self.folder.iterdir()]
        return sum(sizes) + sum(n // AVERAGE * _CHUNK_ENTRY for n in sizes if n > WHOLE)


def lay_out(folder: Path, one: Candidate, made: Path, source: Source, python: str | None) -> Lying:
    """Fill a new folder with what the passes of a candidate made; a single file is linked, and must not be changed."""
    assert source.language is not None
    folder.mkdir(parents=True)
    runtime = one.recipe.runtime
    if runtime == "gguf":
        link(made, folder / MODEL_FILES[runtime])
    else:
        unpack(made, folder)
    pipeline = Pipeline(task="text-generation", inputs=(), outputs=(), activation="none", language=source.language)
    (folder / PIPELINE).write_bytes(pipeline.to_bytes())
    return Lying(folder, runtime, source.language, python)


def files_of(folder: Path) -> list[tuple[Role, str, bytes]]:
    """Role, name and bytes of each file of a variant's folder."""
    return [(_ROLES[path.name], path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def repeat(folder: Path, one: Candidate, made: Path, inputs: Inputs, python: str | None) -> Path:
    """The folder of a variant again, with its golden set and lineage. Raises as a session does."""
    from compiler.language.judge import golden_set  # noqa: PLC0415  as above

    lying = lay_out(folder, one, made, inputs.source, python)
    with lying.session() as session:
        golden = golden_set(session, inputs.test.rows, one.recipe.tolerance)
    lying.complete(golden, inputs, one)
    return folder


def precision(recipe: Recipe, source: Path) -> Precision:
    """In what the weights are stored; of a GGUF file, which mixes forms, those of most."""
    if recipe.runtime != "gguf":
        return recipe.precision
    stored = bits(source)
    named: Sequence[tuple[int, Precision]] = ((5, "int4"), (9, "int8"), (16, "fp16"))
    return next((name for most, name in named if stored <= most), "fp32")


def _lineage(inputs: Inputs, one: Candidate) -> Lineage:
    return Lineage(
        source=inputs.source.digest,
        source_kind=inputs.source.kind,
        architecture=inputs.source.architecture,
        recipe=one.recipe.name,
        passes=one.passes,
        datasets=inputs.datasets(one),
        tools=tool_versions(),
        machine=platform.machine(),
    )
