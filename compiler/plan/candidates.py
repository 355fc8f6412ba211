"""Which recipes a profile asks for, each with the parameters that decide its bytes. Pure.

Profiles that ask for the same share the candidate: an older opset than a runtime reads serves it as well, so most ask
for the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from compiler.errors import Incompatible
from compiler.passes.onnx_export import IR, OPSET
from compiler.plan import rules
from compiler.plan.recipes import RECIPES, Recipe
from compiler.sources.source import TORCH_KINDS, Source
from wire.chunks import digest
from wire.document import dump_json
from wire.evidence import Attempt
from wire.lineage import PassRecord
from wire.profile import Profile

NEWEST_OPSET, NEWEST_IR = 26, 13
"""The newest that ONNX Runtime reads here: an ONNX source is its own reference, as it came."""
STOOD_IN_FOR = ("tensorrt",)
"""Runtimes that are on no build machine: ONNX Runtime answers for them."""
TOKEN_COUNTS = (16, 32, 64, 128, 256, 512)
"""Lengths of graphs without dynamic shapes."""


@dataclass(frozen=True)
class Candidate:
    """A recipe with all its parameters. `lengths` are those of a graph without dynamic shapes."""

    recipe: Recipe
    passes: tuple[PassRecord, ...]
    lengths: tuple[int, ...] = ()

    @cached_property
    def key(self) -> str:
        """The same for candidates that are the same file on the same runtime."""
        return digest(dump_json([self.recipe.runtime, *(p.to_value() for p in self.passes)]))

    @cached_property
    def unmixed(self) -> str:
        """The key that the candidate would have if no layers were kept in float."""
        return self._with(-1, {"keep_float": []}).key

    @property
    def kept_float(self) -> tuple[str, ...]:
        """The groups of layers that are not quantized."""
        return tuple(self.passes[-1].parameters.get("keep_float", ()))

    @property
    def name(self) -> str:
        """For people: the recipe, and what stays float."""
        return f"{self.recipe.name} with {', '.join(self.kept_float)} in float" if self.kept_float else self.recipe.name

    @property
    def beginning(self) -> tuple[PassRecord, ...]:
        """The passes before the last one: what makes the float graph that it quantizes."""
        return self.passes[:-1]

    def keeping(self, groups: Sequence[str]) -> Candidate:
        """The same with these groups of layers in float."""
        return self._with(-1, {"keep_float": list(groups)})

    def pooled(self, pooling: str) -> Candidate:
        """The same of a source that pools otherwise: a saboteur."""
        return self._with(0, {"pooling": pooling})

    def _with(self, at: int, more: Mapping[str, Any]) -> Candidate:
        passes = list(self.passes)
        passes[at] = PassRecord(name=passes[at].name, parameters={**passes[at].parameters, **more})
        return replace(self, passes=tuple(passes))


@dataclass(frozen=True)
class Plan:
    """What is to be tried for a profile, and what its rules refuse. `here`: this machine is of the profile."""

    profile: Profile
    candidates: tuple[Candidate, ...]
    refused: tuple[Attempt, ...]
    here: bool = False

    def emulated(self, candidate: Candidate) -> bool:
        """Whether its times here are not the profile's: on another machine, or in a runtime that stands in for it."""
        return not self.here or candidate.recipe.runtime in STOOD_IN_FOR


def plan(
    profile: Profile,
    source: Source,
    lengths: tuple[int, ...],
    *,
    recipes: Sequence[str],
    calibrated: bool,
    workers: Collection[str],
    here: bool = False,
) -> Plan:
    """Ask the rules for every recipe, or those named in `recipes`.

    Raises `Incompatible` for an unknown recipe, or when the rules refuse all of them.
    """
    candidates: list[Candidate] = []
    refused: list[Attempt] = []
    for recipe in _asked(recipes):
        refusal = rules.refusal(recipe, profile, source, calibrated=calibrated, workers=workers)
        if refusal is None:
            own = rules.parameters_for(recipe, profile)
            opset, ir = _newest(recipe, profile, source)
            candidates.append(candidate(recipe, source, lengths, own, opset=opset, ir=ir))
        else:
            refused.append(_refused(recipe, refusal))
    if not candidates:
        why = "; ".join(f"{a.recipe}: {a.reason}" for a in refused)
        raise Incompatible(
            f"profile {profile.name}: its rules refuse every recipe: {why}; leave this profile out, or give what they "
            "ask for"
        )
    return Plan(profile, tuple(candidates), tuple(refused), here)


def candidate(
    recipe: Recipe,
    source: Source,
    lengths: tuple[int, ...],
    own: Sequence[Mapping[str, Any]] = (),
    *,
    opset: int,
    ir: int,
) -> Candidate:
    """A recipe as a runtime with that opset and IR takes it; `own` are parameters of each pass beside those."""
    fixed = lengths if recipe.passes[0].startswith("litert.") and source.text else ()
    parameters: dict[str, Any] = {"lengths": list(fixed)} if fixed else {}
    if recipe.passes[0].startswith("onnx."):
        parameters = {"opset": opset, "ir": ir}
    more: Sequence[Mapping[str, Any]] = own or [{}] * len(recipe.passes)
    passes = [PassRecord(name=n, parameters={**o, **parameters}) for n, o in zip(recipe.passes, more, strict=True)]
    if recipe.keep < 1:
        passes[0] = PassRecord(name=passes[0].name, parameters={**passes[0].parameters, "keep": recipe.keep})
    return Candidate(recipe, tuple(passes), fixed)


def references(source: Source, lengths: tuple[int, ...], workers: Collection[str]) -> list[Candidate]:
    """The graphs that can stand for the source, the best first: fp32, and compared with it by the pass that made them.

    A graph that was a file from the start stands for itself.
    """
    opset, ir = (NEWEST_OPSET, NEWEST_IR) if source.kind == "onnx" else (OPSET, IR)
    names = ["onnx-fp32"] if source.kind == "onnx" else ["litert-fp32"]
    if source.kind in TORCH_KINDS:
        names = ["onnx-fp32", "litert-fp32", *(["torchscript-fp32"] if "torchscript" in workers else [])]
    return [candidate(RECIPES[name], source, lengths, opset=opset, ir=ir) for name in names]


def token_counts(limit: int, longest: int) -> tuple[int, ...]:
    """Lengths of a graph without dynamic shapes: up to one with room for texts twice as long as the longest one seen.

    A text is padded to the first that holds it, and padding costs as much as text: a graph has a few lengths, and they
    share its weights. `limit` is the most tokens that the source takes, `longest` those of the longest text.
    """
    last = min(next((n for n in TOKEN_COUNTS if n >= 2 * longest), TOKEN_COUNTS[-1]), limit)
    return (*(n for n in TOKEN_COUNTS if n < last), last)


def _asked(names: Sequence[str]) -> list[Recipe]:
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        raise Incompatible(f"build: recipe {unknown[0]!r} is unknown; there are {', '.join(RECIPES)}")
    return [recipe for recipe in RECIPES.values() if not names or recipe.name in names]


def _newest(recipe: Recipe, profile: Profile, source: Source) -> tuple[int, int]:
    """Opset and IR to ask for: an ONNX source keeps its own as far as the runtime reads it."""
    runtime = profile.runtime(recipe.runtime)
    assert runtime is not None  # the rules refuse a recipe whose runtime the profile lacks
    if source.kind == "onnx":
        return runtime.opset, runtime.ir
    return min(runtime.opset, OPSET), min(runtime.ir, IR)


def _refused(recipe: Recipe, refusal: rules.Refusal) -> Attempt:
    return Attempt(
        recipe=recipe.name,
        outcome="refused",
        reason=refusal.reason,
        runtime=recipe.runtime,
        precision=recipe.precision,
        rule=refusal.rule,
    )
