"""The runtimes as the compiler runs them; tflite-runtime in an environment of its own, as on a device."""

# ruff: noqa: PLC0415  torch and onnx take seconds: only the tests that ask them wait for them
from __future__ import annotations

import os
import signal
import subprocess
import sys
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from litert_sources import Sources, made, make_sources, pictures

from compiler.errors import Incompatible, Unavailable
from compiler.passes import litert_file
from compiler.runtimes import Worker, fell_back, open_graph, version
from compiler.sources.read import read
from compiler.variant import pipeline_of
from wire.bundle import Runtime
from wire.pipeline import Pipeline, TensorSpec

HAS_CONVERTER = find_spec("litert_torch") is not None
TFLITE_RUNTIME = ("tflite-runtime==2.14.0", "numpy==1.26.4")
WAKE_WORDS = ("pyopen-wakeword==1.1.0", "pymicro-wakeword==2.5.0")
DEPRECATED = "ignore:`torch.jit:DeprecationWarning"  # the format is what a source may come in
DTYPES = ("float32", "int8", "uint8", "int32", "int64", "bool")


def plain(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Pipeline:
    return Pipeline(task="tensors", inputs=inputs, outputs=outputs, activation="none")


def spec(name: str, *shape: int, dtype: Any = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def flatbuffer(path: Path, dtype: str, *, size: int = 6) -> Path:
    """A file without signatures, of an operator that hands its numbers on: `x` `[1, size]` to `y` `[size]`."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    kind = getattr(schema.TensorType, dtype.upper())
    tensors = []
    for name, shape, of, buffer in (
        ("x", [1, size], kind, 0),
        ("shape", [1], schema.TensorType.INT32, 1),
        ("y", [size], kind, 0),
    ):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name.encode(), shape, of, buffer
        tensors.append(tensor)
    tensors[0].shapeSignature, tensors[2].shapeSignature = [1, -1], [-1]
    operator, graph, model, code = schema.OperatorT(), schema.SubGraphT(), schema.ModelT(), schema.OperatorCodeT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1], [2]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RESHAPE
    graph.tensors, graph.inputs, graph.outputs, graph.operators = tensors, [0], [2], [operator]
    empty, wanted = schema.BufferT(), schema.BufferT()
    wanted.data = np.frombuffer(np.array([-1], "<i4").tobytes(), np.uint8)
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [empty, wanted]
    path.write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))
    return path


def onnx_products(path: Path, *, left_alone: str | None = None) -> Path:
    """Two matrix products, `x` `[1, 16]` to `y` `[1, 4]`, in int8 but for the one that is left alone."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    random = np.random.default_rng(0)
    values = [
        onnx.numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("a", (16, 8)), ("b", (8, 4)))
    ]
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        onnx.helper.make_node("MatMul", ["h", "b"], ["y"], name="second"),
    ]
    doors = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 16]), ("y", [1, 4]))
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", doors[:1], doors[1:], values),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    whole = path.with_suffix(".whole")
    onnx.save(model, whole)
    quantize_dynamic(whole, path, nodes_to_exclude=[left_alone] if left_alone else [])
    return path


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return make_sources(tmp_path_factory.mktemp("runtimes") / "sources")


@pytest.fixture(scope="session")
def traced(sources: Sources) -> Path:
    """Two inputs, two outputs, as TorchScript."""
    return made(sources.job("torch.trace", "pair", sources.folder / "pair.pt"))


@pytest.fixture(scope="session")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with tflite-runtime and the numpy that it needs."""
    folder = tmp_path_factory.mktemp("tflite-runtime")
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    pip(python, "install", *TFLITE_RUNTIME)
    return python


def pip(python: str, *arguments: str) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if done.returncode:
        pytest.skip(f"pip {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_litert_takes_and_gives_every_type_of_numbers(tmp_path: Path, dtype: str) -> None:
    graph = open_graph("litert", flatbuffer(tmp_path / "m.tflite", dtype), plain((spec("x", 1),), (spec("y", 1),)))
    values = np.arange(6).reshape(1, 6).astype(dtype)
    given = graph({"x": values})["y"]
    assert given.dtype == np.dtype(dtype)
    assert np.array_equal(given, values[0])


def test_litert_follows_a_size_that_changes_from_call_to_call(tmp_path: Path) -> None:
    graph = open_graph("litert", flatbuffer(tmp_path / "m.tflite", "float32"), plain((spec("x", 1),), (spec("y", 1),)))
    for size in (6, 3, 9, 3):
        values = np.random.default_rng(size).standard_normal((1, size)).astype(np.float32)
        assert np.array_equal(graph({"x": values})["y"], values[0])


def test_an_answer_is_not_overwritten_by_the_next(tmp_path: Path) -> None:
    graph = open_graph("litert", flatbuffer(tmp_path / "m.tflite", "float32"), plain((spec("x", 1),), (spec("y", 1),)))
    first = graph({"x": np.zeros((1, 6), np.float32)})["y"]
    graph({"x": np.ones((1, 6), np.float32)})
    assert not first.any()


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert", "tensorrt", "torchscript"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "m").write_bytes(b"TFL3 and other words" * 40)
    with pytest.raises(Incompatible, match="variant m: "):
        open_graph(runtime, tmp_path / "m", plain((spec("x", 1),), (spec("y", 1),)))


def test_a_feed_of_another_shape_is_refused_not_fatal(tmp_path: Path) -> None:
    around = plain((spec("x", 1, 16),), (spec("y", 1, 4),))
    graph = open_graph("onnxruntime", onnx_products(tmp_path / "m.onnx"), around)
    with pytest.raises(Incompatible, match="does not run it"):
        graph({"x": np.zeros((1, 3), np.float32)})
    assert graph({"x": np.zeros((1, 16), np.float32)})["y"].shape == (1, 4)


@pytest.mark.filterwarnings(DEPRECATED)
@pytest.mark.slow
@pytest.mark.timeout(480)
def test_torchscript_runs_in_a_worker(sources: Sources, traced: Path) -> None:
    import torch

    around = plain((spec("left", 1, 4), spec("right", 1, 3)), (spec("output_0", 1, 3), spec("output_1", 1, 4)))
    graph = open_graph("torchscript", traced, around)
    feed = {"left": np.full((1, 4), 0.5, np.float32), "right": np.ones((1, 3), np.float32)}
    module: Any = torch.jit.load(str(traced))
    expected = module(*map(torch.from_numpy, feed.values()))
    answer = graph(feed)
    assert np.allclose(answer["output_0"], expected[0].detach().numpy(), atol=1e-6)
    assert np.allclose(answer["output_1"], expected[1].detach().numpy(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_a_worker_that_dies_is_a_refusal_with_its_signal(traced: Path) -> None:
    worker = Worker("torchscript", traced, None)
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    with pytest.raises(Incompatible, match="its worker died of SIGKILL"):
        worker({"left": np.zeros((1, 4), np.float32), "right": np.zeros((1, 3), np.float32)})


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_a_worker_ends_when_nobody_holds_it(traced: Path) -> None:
    worker = Worker("torchscript", traced, None)
    process = worker._process
    del worker
    assert process.returncode == -signal.SIGKILL


def test_a_runtime_of_an_environment_of_its_own_asks_for_its_python(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="name the Python"):
        open_graph("tflite-runtime", tmp_path, plain((spec("x", 1),), (spec("y", 1),)))
    with pytest.raises(Unavailable, match="does not start"):
        version("tflite-runtime", str(tmp_path / "python"))
    with pytest.raises(Unavailable, match="no package tflite-runtime"):
        version("tflite-runtime", sys.executable)


def test_versions_name_the_runtime_that_really_runs() -> None:
    import onnxruntime as ort

    assert version("onnxruntime") == f"onnxruntime {ort.__version__}"
    assert version("tensorrt") == f"onnxruntime {ort.__version__}"
    assert version("litert").startswith("ai-edge-litert ")
    assert version("torchscript").startswith("torch ")


def test_products_left_in_float_are_counted_and_those_in_int8_are_not(tmp_path: Path) -> None:
    around = plain((spec("x", 1, 16),), (spec("y", 1, 4),))
    assert fell_back("onnxruntime", onnx_products(tmp_path / "a.onnx"), around, "int8") == {}
    mixed = onnx_products(tmp_path / "b.onnx", left_alone="second")
    assert fell_back("onnxruntime", mixed, around, "int8") == {"MatMul": 1}
    assert fell_back("onnxruntime", mixed, around, "fp32") == {}


def test_what_xnnpack_does_not_take_is_counted(tmp_path: Path) -> None:
    around = plain((spec("x", 1, 6),), (spec("y", 6),))
    assert fell_back("litert", flatbuffer(tmp_path / "a.tflite", "int32"), around, "fp32") == {"RESHAPE": 1}


@pytest.fixture(scope="session")
def files(sources: Sources) -> dict[str, Path]:
    whole = made(sources.job("litert.convert", "net", sources.folder / "net.tflite"))
    found = {"fp32": whole}
    for name in ("int8-weights", "int8-dynamic", "int8-static"):
        calibration = str(sources.folder / "pictures.npz") if name == "int8-static" else None
        out = sources.folder / f"{name}.tflite"
        found[name] = made(sources.job(f"litert.{name}", "net", out, given=str(whole), calibration=calibration))
    return found


def answers(sources: Sources, runtime: Runtime, path: Path, worker: str | None) -> np.ndarray[Any, Any]:
    source = read("python:networks:net", sources.folder / "net.toml")
    graph = open_graph(runtime, path, pipeline_of(source, runtime).pipeline, worker)
    batch = pictures(32, seed=1).transpose(0, 3, 1, 2).astype(np.float32) / 255
    found = np.stack([graph({"pixels": x[None]})["output_0"][0] for x in batch])
    return np.asarray(found - found.mean(axis=0))


def likeness(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@pytest.mark.slow
@pytest.mark.timeout(480)
@pytest.mark.skipif(not HAS_CONVERTER, reason="litert-torch has no wheel for this machine")
def test_tflite_runtime_is_silently_wrong_on_dynamic_int8_per_channel_and_right_on_the_rest(
    sources: Sources, files: dict[str, Path], old_python: str
) -> None:
    """The file that LiteRT runs rightly runs there too, without an error: only the answers show it."""
    assert version("tflite-runtime", old_python) == "tflite-runtime 2.14.0"
    expected = answers(sources, "litert", files["fp32"], None)
    for name in ("fp32", "int8-weights", "int8-static"):
        here, there = (
            answers(sources, runtime, files[name], worker)
            for runtime, worker in (("litert", None), ("tflite-runtime", old_python))
        )
        assert likeness(here, there) > 0.99, name
    assert likeness(expected, answers(sources, "litert", files["int8-dynamic"], None)) > 0.99
    assert likeness(expected, answers(sources, "tflite-runtime", files["int8-dynamic"], old_python)) < 0.5


@pytest.mark.slow
@pytest.mark.timeout(480)
@pytest.mark.skipif(not HAS_CONVERTER, reason="litert-torch has no wheel for this machine")
def test_what_does_not_run_in_int8_is_named(sources: Sources, files: dict[str, Path]) -> None:
    source = read("python:networks:net", sources.folder / "net.toml")
    around = pipeline_of(source, "litert").pipeline
    assert "FULLY_CONNECTED" in fell_back("litert", files["int8-weights"], around, "int8")
    assert "FULLY_CONNECTED" not in fell_back("litert", files["int8-dynamic"], around, "int8")
    assert "CONV_2D" not in fell_back("litert", files["int8-static"], around, "int8")
    assert fell_back("tflite-runtime", files["int8-static"], around, "int8") == {}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wake-words")
    pip(sys.executable, "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), *WAKE_WORDS)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / wheel.stem)
    found = sorted(folder.rglob("*.tflite"))
    assert found
    return found


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_published_wake_words_go_in_and_agree_with_themselves(models: list[Path], tmp_path: Path) -> None:
    """In one order and in the other: streaming models remember nothing from one request to the next."""
    for path in (p for p in models if p.stem != "melspectrogram"):
        job = Sources(tmp_path).job("litert.convert", str(path), tmp_path / path.name)
        assert made(job).read_bytes() == path.read_bytes()
        source = read(str(path), None)
        graph = open_graph("litert", job.output, pipeline_of(source, "litert").pipeline)
        feeds = [feed_for(source.inputs, seed) for seed in range(8)]
        first = [graph(feed) for feed in feeds]
        second = [graph(feed) for feed in reversed(feeds)][::-1]
        for one, other in zip(first, second, strict=True):
            assert all(np.array_equal(one[name], other[name]) for name in one), path


def feed_for(inputs: tuple[TensorSpec, ...], seed: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return {
        one.name: random.standard_normal(one.shape).astype(np.float32)
        if one.dtype == "float32"
        else random.integers(-128, 128, one.shape).astype(one.dtype)
        for one in inputs
    }


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_streaming_ones_are_among_the_wake_words(models: list[Path]) -> None:
    assert any(litert_file.stateful(litert_file.read(path)) for path in models)
