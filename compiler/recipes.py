"""The recipes: each a list of passes, with the runtime and precision they end in.

The first pass of a recipe makes an fp32 graph of the source, each further one a file of the file before. The
workbench keeps every product, so recipes that begin alike share their beginning.

A new recipe is one entry here; a profile names it in its TOML.
"""

from __future__ import annotations

from dataclasses import dataclass

from compiler import litert_passes, onnx_passes
from compiler.errors import Incompatible
from compiler.work import Pass, Target
from wire.bundle import Precision, Runtime
from wire.profile import Profile


@dataclass(frozen=True)
class Recipe:
    """`tolerance` is how far a score may be off on another processor of the profile, from 0 to 1.

    Measured between x86-64 and ARM: fp32 differs by 1e-7, dynamic int8 by up to 0.008 in the scores; the
    tolerances leave room for other kernels and stay far below what a broken model shows.
    """

    name: str
    runtime: Runtime
    precision: Precision
    passes: tuple[Pass, ...]
    tolerance: float


_ALL = (
    Recipe("onnx-fp32", "onnxruntime", "fp32", (onnx_passes.export,), 0.005),
    Recipe(
        "onnx-int8-dynamic",
        "onnxruntime",
        "int8",
        (onnx_passes.export, onnx_passes.prepare, onnx_passes.dynamic_int8),
        0.05,
    ),
    Recipe(
        "onnx-int4-weights",
        "onnxruntime",
        "int4",
        (onnx_passes.export, onnx_passes.prepare, onnx_passes.int4_weights),
        0.02,
    ),
    Recipe("litert-fp32", "litert", "fp32", (litert_passes.convert,), 0.005),
    Recipe("litert-int8-dynamic", "litert", "int8", (litert_passes.convert, litert_passes.dynamic_int8), 0.05),
)
RECIPES = {recipe.name: recipe for recipe in _ALL}


def recipes_of(profile: Profile) -> tuple[Recipe, ...]:
    """The recipes that a profile names. Raises `Incompatible` for an unknown one, or one whose runtime it lacks."""
    runtimes = {r.name for r in profile.runtimes}
    for name in profile.recipes:
        if name not in RECIPES:
            raise Incompatible(f"profile {profile.name}: recipe {name!r} is unknown; there are {', '.join(RECIPES)}")
        if RECIPES[name].runtime not in runtimes:
            raise Incompatible(
                f"profile {profile.name}: recipe {name} needs runtime {RECIPES[name].runtime}, "
                f"it has {', '.join(sorted(runtimes))}"
            )
    return tuple(RECIPES[name] for name in profile.recipes)


def target_of(recipe: Recipe, profile: Profile, tokens: int) -> Target:
    """What the graph must fit. Profiles that ask for the same share the product."""
    runtime = next(r for r in profile.runtimes if r.name == recipe.runtime)
    if recipe.runtime == "litert":
        return Target(opset=0, ir=0, tokens=tokens)
    return Target(opset=runtime.opset, ir=runtime.ir, tokens=None)
