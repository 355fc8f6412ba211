"""What tests of the workshop share: a workshop, a small ONNX source, examples, variants."""

# ruff: noqa: PLC0415  onnx takes a second: only the tests that make a model wait for it
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from compiler.sources.source import Source
from compiler.variant import Variant, lay_out, pipeline_of
from compiler.workshop.cache import Cache
from compiler.workshop.workshop import Workshop
from wire.lineage import PassRecord
from wire.pipeline import TensorSpec

CHILD = (sys.executable, "-P", str(Path(__file__).with_name("workshop_child.py")))
A_SOURCE = Source(
    kind="onnx",
    place="x.onnx",
    digest="sha256:" + "0" * 64,
    size=1000,
    architecture="x",
    task="tensors",
    labels=(),
    activation="none",
    inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 8)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, 4)),),
)


def copying(*texts: str, name: str = "copy") -> list[PassRecord]:
    """A pass of the test program for each text."""
    return [PassRecord(name=name, parameters={"text": text}) for text in texts]


def shop(cache: Cache, scratch: Path, **changes: Any) -> Workshop:
    """A workshop on the test program's passes, for a source that they never read."""
    around = {"reference": "x.onnx", "source": A_SOURCE, "memory": 3 << 30, "processes": 2, "note": print}
    return Workshop(**{"cache": cache, "scratch": scratch, "command": CHILD, **around, **changes})


def make_onnx(path: Path, wide: int = 16, seed: int = 0) -> Path:
    """Two products with a relu between them: float32 `[n, 8]` to `[n, 4]`, `wide` numbers in the middle."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in (("w1", (8, wide)), ("w2", (wide, wide)), ("w3", (wide, 4)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="between"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="second"),
        helper.make_node("MatMul", ["c", "w3"], ["y"], name="third"),
    ]
    doors = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])] for name, size in (("x", 8), ("y", 4))
    ]
    graph = helper.make_graph(nodes, "g", doors[0], doors[1], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def make_examples(path: Path, rows: int = 24) -> Path:
    """Arrays for `make_onnx`."""
    np.savez(path, x=np.random.default_rng(1).normal(size=(rows, 8)).astype(np.float32))
    return path


def make_variant(folder: Path, model: Path, source: Source) -> Variant:
    """A variant for ONNX Runtime."""
    lay_out(folder, model, "onnxruntime", pipeline_of(source, "onnxruntime"))
    return Variant(folder, "onnxruntime")
