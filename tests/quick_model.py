"""A model of the form of Silero's voice activity detector at 8 kHz: sound and state in, a probability and state out.

A short-time Fourier transform, four convolutions, an LSTM cell and a gate; the weights are random. One call takes about
80 us on one core of a server, with 3 KB of tensors around it: what stands around the model shows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import TinyBundle, write_bundle

from wire.bundle import Role
from wire.pipeline import Golden, GoldenCase, Pipeline, TensorSpec
from wire.processing import Array, to_tensor

FRAME, STATE = 288, 128
INPUTS = {"audio": FRAME, "h": STATE, "c": STATE}
OUTPUTS = {"probability": 1, "next_h": STATE, "next_c": STATE}
CONVOLUTIONS = ((65, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))
"""Channels in and out, and stride; the kernel is 3 wide."""


def write(layout: Path, version: str, *, name: str = "kitchen") -> TinyBundle:
    """As a bundle of tensors; a version has weights of its own. The golden answer is what the runtime gives."""
    model = graph(version)
    inputs = frame(1)
    case = GoldenCase(
        inputs={key: to_tensor(values) for key, values in inputs.items()},
        outputs={key: to_tensor(values[0]) for key, values in answer(model, inputs).items()},
        labels=(),
    )
    pipeline = Pipeline(
        task="tensors",
        inputs=tuple(TensorSpec(name=key, dtype="float32", shape=(1, n)) for key, n in INPUTS.items()),
        outputs=tuple(TensorSpec(name=key, dtype="float32", shape=(1, n)) for key, n in OUTPUTS.items()),
        activation="none",
    )
    return write_bundle(
        layout,
        [
            ("model", "model.onnx", model),
            ("pipeline", "pipeline.json", pipeline.to_bytes()),
            ("golden", "golden.json", Golden(max_abs=1e-3, cases=(case,)).to_bytes()),
        ],
        version=version,
        name=name,
    )


def write_slow(layout: Path, version: str, *, layers: int = 12) -> TinyBundle:
    """A bundle of tensors whose one call takes some milliseconds: `row` [1, 256] in, `mean` [1, 256] out."""
    held = {
        "w": np.random.default_rng(7).normal(0, 1 / 16, (256, 256)).astype(np.float32),
        "shape": np.array([256, 256], np.int64),
    }
    nodes = [_node("Expand", ["row", "shape"], "x0")]
    for i in range(layers):
        nodes.append(_node("MatMul", [f"x{i}", "w"], f"y{i}"))
        nodes.append(_node("Tanh", [f"y{i}"], f"x{i + 1}"))
    nodes.append(_node("ReduceMean", [f"x{layers}"], "mean", axes=[0], keepdims=1))
    doors = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 256])] for name in ("row", "mean")]
    initial = [numpy_helper.from_array(values, name) for name, values in held.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "slow", *doors, initial),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    model, rows = bytes(made.SerializeToString(deterministic=True)), np.ones((1, 256), np.float32)
    row = rows
    for _ in range(layers):
        row = np.tanh(row @ held["w"])
    case = GoldenCase(inputs={"row": to_tensor(rows)}, outputs={"mean": to_tensor(row[0])}, labels=())
    pipeline = Pipeline(
        task="tensors",
        inputs=(TensorSpec(name="row", dtype="float32", shape=(1, 256)),),
        outputs=(TensorSpec(name="mean", dtype="float32", shape=(1, 256)),),
        activation="none",
    )
    files: list[tuple[Role, str, bytes]] = [
        ("model", "model.onnx", model),
        ("pipeline", "pipeline.json", pipeline.to_bytes()),
        ("golden", "golden.json", Golden(max_abs=1e-3, cases=(case,)).to_bytes()),
    ]
    return write_bundle(layout, files, version=version)


def frame(seed: int) -> dict[str, Array]:
    """One input."""
    chance = np.random.default_rng(seed)
    return {name: chance.normal(0, 0.1, (1, n)).astype(np.float32) for name, n in INPUTS.items()}


def answer(model: bytes, inputs: dict[str, Array]) -> dict[str, Array]:
    """What the runtime answers."""
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(model)
        file.flush()
        session = ort.InferenceSession(file.name, providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), inputs), strict=True))


def graph(version: str) -> bytes:
    """The graph in ONNX."""
    chance = np.random.default_rng(list(version.encode()))
    held: dict[str, Array] = {}

    def weights(name: str, *shape: int) -> str:
        held[name] = chance.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)
        return name

    def constant(name: str, *values: int) -> str:
        held[name] = np.array(values, np.int64)
        return name

    nodes = [
        _node("Unsqueeze", ["audio", constant("channel", 1)], "sound"),
        _node("Pad", ["sound", constant("pads", 0, 0, 0, 0, 0, 32)], "padded", mode="reflect"),
        _node("Conv", ["padded", weights("basis", 130, 1, 128)], "waves", strides=[64]),
        helper.make_node("Split", ["waves", constant("halves", 65, 65)], ["real", "imaginary"], axis=1),
        _node("Mul", ["real", "real"], "real2"),
        _node("Mul", ["imaginary", "imaginary"], "imaginary2"),
        _node("Add", ["real2", "imaginary2"], "power"),
        _node("Sqrt", ["power"], "x0"),
    ]
    for i, (wide, out, stride) in enumerate(CONVOLUTIONS):
        kernel = weights(f"k{i}", out, wide, 3)
        nodes.append(_node("Conv", [f"x{i}", kernel], f"y{i}", pads=[1, 1], strides=[stride]))
        nodes.append(_node("Relu", [f"y{i}"], f"x{i + 1}"))
    cell = [weights("w", 1, 4 * STATE, STATE), weights("r", 1, 4 * STATE, STATE), weights("b", 1, 8 * STATE)]
    nodes += [
        _node("Transpose", [f"x{len(CONVOLUTIONS)}"], "steps", perm=[2, 0, 1]),
        _node("Unsqueeze", ["h", constant("first", 0)], "h0"),
        _node("Unsqueeze", ["c", "first"], "c0"),
        helper.make_node("LSTM", ["steps", *cell, "", "h0", "c0"], ["", "h1", "c1"], hidden_size=STATE),
        _node("Squeeze", ["h1", "first"], "next_h"),
        _node("Squeeze", ["c1", "first"], "next_c"),
        _node("Relu", ["next_h"], "gated"),
        _node("MatMul", ["gated", weights("gate", STATE, 1)], "voice"),
        _node("Sigmoid", ["voice"], "probability"),
    ]
    doors = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in side.items()]
        for side in (INPUTS, OUTPUTS)
    ]
    made = helper.make_model(
        helper.make_graph(nodes, "quick", *doors, [numpy_helper.from_array(a, name) for name, a in held.items()]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return bytes(made.SerializeToString(deterministic=True))


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, [output], **attributes)
