"""What passes work with: the source, the module made of it once, and the files made so far."""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import Incompatible
from compiler.runtime import Run, arrays
from compiler.source import Source
from compiler.tokenizer import DeviceFile, DeviceTokenizer
from wire.bundle import Pipeline

if TYPE_CHECKING:
    from compiler.module import Classifier

PROBES = 8
"""Texts on which a graph is compared with the module it was made of."""
CLOSE = 1e-3
"""How far a logit of an fp32 graph may be off."""


@dataclass(frozen=True)
class Target:
    """Newest opset and IR of the runtime, 0 where they do not apply; `tokens` where the graph's shape is fixed."""

    opset: int
    ir: int
    tokens: int | None


@dataclass(frozen=True)
class Step:
    """What a pass gets: the file `given` by the pass before it (none for the first), and the file to be `made`."""

    work: Work
    target: Target
    given: Path | None
    made: Path


Pass = Callable[[Step], None]
"""Raises `Incompatible` when the source cannot be expressed that way."""


@dataclass
class Work:
    """The workbench of one job. `texts` are some of the test set's, for tracing and comparing."""

    source: Source
    tokenizer: DeviceFile
    texts: Sequence[str]
    scratch: Path
    _made: dict[tuple[object, ...], Path] = field(default_factory=dict)

    @cached_property
    def module(self) -> Classifier:
        """The source model in torch; loaded when the first pass asks, once."""
        import torch

        from compiler.module import load

        torch.set_num_threads(1)
        return load(self.source)

    def pipeline(self, output: str, tokens: int | None) -> Pipeline:
        """`pipeline.json` of a graph with the given output; `tokens` is its fixed length, if it has one."""
        return Pipeline(
            task="text-classification",
            tokenizer=self.tokenizer.tokenizer(tokens or self.source.max_length),
            inputs=self.module.inputs,
            output=output,
            activation="softmax",
            labels="labels.json",
            pad_to=tokens,
            batch=1 if tokens else None,
        )

    def check_equal(self, run: Run, pipeline: Pipeline, kind: str) -> None:
        """Raises `Incompatible` when a graph does not answer as the module does.

        A converter that goes wrong seldom says so; quantized graphs are judged by accuracy instead.
        """
        import torch

        tokenizer = DeviceTokenizer(self.tokenizer.data, pipeline.tokenizer)
        for text in self.texts[:PROBES]:
            inputs = arrays(tokenizer.row(text), pipeline)
            with torch.no_grad():
                expected = self.module(*(torch.from_numpy(inputs[name]) for name in pipeline.inputs)).numpy()
            worst = float(abs(run(inputs) - expected).max())
            if not worst < CLOSE:
                raise Incompatible(
                    f"source {self.source.folder}: its {kind} graph is {worst:.4f} off for {text[:60]!r}"
                )

    def product(self, passes: Sequence[Pass], target: Target) -> Path:
        """The file at the end of `passes`; what an earlier recipe made already is taken from there."""
        key = (*passes, target)
        if key not in self._made:
            given = self.product(passes[:-1], target) if len(passes) > 1 else None
            made = self.scratch / f"product-{len(self._made)}"
            passes[-1](Step(self, target, given, made))
            self._made[key] = made
        return self._made[key]
