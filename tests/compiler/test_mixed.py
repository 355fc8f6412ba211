"""Mixed precision on a model of which quantization spoils one layer, and that answers as well as ever otherwise."""

# ruff: noqa: PLC0415  torch takes seconds: only the tests that make a model wait for it
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compiler_process import Built, build, make_job, make_source, profile

from compiler.search.mixed import error, spread_rows
from compiler.workshop.children import Failed
from wire.evidence import Attempt
from wire.processing import Result

pytestmark = pytest.mark.timeout(600)
"""A build starts a dozen processes, and the first test waits for the one that all look at."""
FRAGILE = "layer.0"


@pytest.fixture(scope="module")
def fragile(encoder: Path, test_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A build of a model whose first layer int8 cannot hold, for the smallest variant."""
    folder = tmp_path_factory.mktemp("fragile")
    source = make_source(make_fragile(encoder, folder / "encoder"), folder / "model")
    job = replace(make_job(source, test_set, folder), minimise="size", profiles=(profile(),))
    run = build(job)
    assert run.code == 0, (run.last, run.errors[-2000:])
    return Built(job, run)


def make_fragile(encoder: Path, folder: Path) -> Path:
    """The encoder with a column of weights a thousand times as large as the others, and an input as much smaller.

    In float nothing is lost. In int8 the weights of each row share one scale, and the others become 0.
    """
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((encoder / name).read_bytes())
    weights = load_file(encoder / "model.safetensors")
    prefix = "encoder.layer.0."
    for norm in ("weight", "bias"):
        weights[f"{prefix}attention.output.LayerNorm.{norm}"][3] *= 1e-3
    weights[f"{prefix}intermediate.dense.weight"][:, 3] *= 1e4
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def attempts(built: Built) -> list[Attempt]:
    (bundle,) = built.layout.bundles()
    evidence = built.layout.evidence(bundle.digest)
    assert evidence
    return [a for a in evidence.attempts if a.recipe == "onnx-int8-dynamic"]


@pytest.mark.slow
def test_the_layer_that_costs_most_goes_back_to_float_and_the_variant_holds(fragile: Built) -> None:
    plain, *mixed = attempts(fragile)
    assert (plain.outcome, plain.kept_float) == ("fail", ())
    assert (mixed[-1].outcome, mixed[-1].kept_float) == ("chosen", (FRAGILE,))
    (bundle,) = fragile.layout.bundles()
    assert bundle.manifest.precision == "int8"


@pytest.mark.slow
def test_progress_tells_each_step_of_mixed_precision(fragile: Built) -> None:
    told = [line.message for line in fragile.run.lines]
    assert any(m.startswith("how much each of") for m in told)
    assert f"back to float: onnx-int8-dynamic with {FRAGILE} in float" in told
    assert f"onnx-int8-dynamic with {FRAGILE} in float: it holds" in told


@pytest.mark.slow
def test_what_would_not_be_chosen_anyway_is_not_mixed(fragile: Built, tmp_path: Path) -> None:
    """Only the float variant is within the limit of time when int8 is slower by order: nothing to gain, no steps."""
    job = replace(fragile.job, output=str(tmp_path / "out"), max_mb=0.001)
    run = build(job)
    assert (run.code, run.last.error) == (3, "Infeasible")
    assert not [line for line in run.lines if line.message.startswith("how much each of")]


def test_an_error_that_is_no_number_counts_as_the_largest() -> None:
    sound = [Result({"scores": np.asarray([0.25, 0.75], np.float32)})]
    close = [Result({"scores": np.asarray([0.5, 0.5], np.float32)})]
    broken = [Result({"scores": np.asarray([np.nan, 0.5], np.float32)})]
    assert error(sound, sound) == 0.0
    assert error(close, sound) == 0.25
    assert error(broken, sound) == float("inf")
    assert error(Failed("pass", "crashed", "Crashed"), sound) == float("inf")


def test_rows_are_taken_from_everywhere_in_the_file() -> None:
    assert spread_rows(3, 64) == [0, 1, 2]
    assert spread_rows(1000, 4) == [0, 250, 500, 750]
