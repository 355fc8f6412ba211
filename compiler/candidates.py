"""Makes candidates for a profile, evaluates them on the test set, and proves the one that is chosen.

Everything is made once per job: profiles that ask for the same graph share the candidate and its evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from compiler import gates, litert_passes, onnx_passes
from compiler.errors import Untrusted
from compiler.gates import Accuracy
from compiler.recipes import RECIPES, Recipe
from compiler.runtime import GOLDEN, LABELS, MODEL_FILES, PIPELINE
from compiler.sabotage import scramble_file
from compiler.score import Scored, score
from compiler.testset import TestSet
from compiler.work import Target, Work
from wire.bundle import Golden, Labels
from wire.chunks import AVERAGE, WHOLE

BASELINE = Target(opset=17, ir=8, tokens=None)
"""The graph that stands for the source when its accuracy is measured."""
SABOTEUR_TEXTS = 200
_CHUNK_ENTRY = 110
"""Bytes that one chunk takes in a chunk list."""


@dataclass(frozen=True)
class Candidate:
    """A variant that runs: its folder, the size of its model in bytes, and how it did on the test set."""

    recipe: Recipe
    folder: Path
    size: int
    accuracy: Accuracy
    scored: Scored

    @property
    def model(self) -> Path:
        """The file that the runtime loads."""
        return self.folder / MODEL_FILES[self.recipe.runtime]

    @property
    def footprint(self) -> int:
        """Bytes of everything that a device stores of it: the files, and the chunk lists of the large ones."""
        sizes = [path.stat().st_size for path in self.folder.iterdir()]
        return sum(sizes) + sum(n // AVERAGE * _CHUNK_ENTRY for n in sizes if n > WHOLE)


@dataclass
class Bench:
    """The candidates of one job."""

    work: Work
    test: TestSet
    max_drop: float
    _made: dict[tuple[str, Target], Candidate] = field(default_factory=dict)
    _proven: set[Path] = field(default_factory=set)

    @cached_property
    def source(self) -> Candidate:
        """The source itself: its fp32 graph, which the export compared with the torch module."""
        return self.candidate(RECIPES["onnx-fp32"], BASELINE)

    def candidate(self, recipe: Recipe, target: Target) -> Candidate:
        """Make and evaluate. Raises `Incompatible` when the source cannot be expressed or the runtime refuses it."""
        key = (recipe.name, target)
        if key not in self._made:
            folder = self._lay_out(recipe, target)
            scored = score(folder, self.test.texts)
            found = gates.accuracy(scored.scores, self.test.rows, self.work.source.labels)
            size = (folder / MODEL_FILES[recipe.runtime]).stat().st_size
            self._made[key] = Candidate(recipe=recipe, folder=folder, size=size, accuracy=found, scored=scored)
        return self._made[key]

    def prove(self, candidate: Candidate) -> None:
        """Give the candidate its golden set; see that a fresh process agrees, and that both gates refuse its saboteur.

        Raises `Untrusted` when a gate would let a broken model pass.
        """
        if candidate.folder in self._proven:
            return
        golden = self._golden(candidate)
        (candidate.folder / GOLDEN).write_bytes(golden.to_bytes())
        texts = [case.text for case in golden.cases]
        fault = gates.golden_set_fault(golden, score(candidate.folder, texts).scores)
        if fault:
            raise Untrusted(f"recipe {candidate.recipe.name}: the variant does not repeat its own answers: {fault}")
        self._refuse_saboteur(candidate, golden)
        self._proven.add(candidate.folder)

    def _lay_out(self, recipe: Recipe, target: Target) -> Path:
        folder = self.work.scratch / f"variant-{len(self._made)}"
        folder.mkdir()
        output = onnx_passes.OUTPUT if recipe.runtime == "onnxruntime" else litert_passes.OUTPUT
        pipeline = self.work.pipeline(output, target.tokens)
        (folder / MODEL_FILES[recipe.runtime]).hardlink_to(self.work.product(recipe.passes, target))
        (folder / PIPELINE).write_bytes(pipeline.to_bytes())
        (folder / LABELS).write_bytes(Labels(labels=self.work.source.labels).to_bytes())
        (folder / pipeline.tokenizer.file).write_bytes(self.work.tokenizer.data)
        return folder

    def _golden(self, candidate: Candidate) -> Golden:
        rows = self.test.spread(gates.GOLDEN_CASES)
        by_text = dict(zip(self.test.texts, candidate.scored.scores, strict=True))
        return gates.golden_set(rows, [by_text[row.text] for row in rows], candidate.recipe.tolerance)

    def _refuse_saboteur(self, candidate: Candidate, golden: Golden) -> None:
        folder = candidate.folder.with_name(f"{candidate.folder.name}-saboteur")
        folder.mkdir()
        for path in candidate.folder.iterdir():
            if path != candidate.model:
                (folder / path.name).hardlink_to(path)
        scramble_file(candidate.model, folder / candidate.model.name)
        rows = self.test.spread(SABOTEUR_TEXTS)
        scored = score(folder, [*(case.text for case in golden.cases), *(row.text for row in rows)]).scores
        cases = len(golden.cases)
        accuracy = gates.accuracy(scored[cases:], rows, self.work.source.labels)
        if gates.golden_set_fault(golden, scored[:cases]) is None:
            raise Untrusted(
                f"recipe {candidate.recipe.name}: the golden set accepts a scrambled model: use more varied test texts"
            )
        if gates.accuracy_fault(accuracy, self.source.accuracy, self.max_drop) is None:
            raise Untrusted(
                f"recipe {candidate.recipe.name}: the accuracy gate accepts a scrambled model "
                f"({accuracy.value:.4f} against {self.source.accuracy.value:.4f}): "
                f"the source is no better than chance, or max_drop {self.max_drop:g} is too wide"
            )
