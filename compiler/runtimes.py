"""Runs a model file in the runtime that serves it, as the device does: one example at a time, on one thread.

    graph = open_graph("litert", path, pipeline, worker=None)
    graph({"input_ids": ids, "attention_mask": mask})        # outputs by name

A runtime may print, hang or crash: callers are processes of their own. An engine of TensorRT is built on the device;
here ONNX Runtime stands in for it. tflite-runtime and TorchScript run in the worker that serves them on a device.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import signal
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version as package_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from compiler import placement
from compiler.errors import Incompatible, Unavailable
from compiler.passes import litert_file, onnx_file
from wire import frames
from wire.bundle import Precision, Runtime
from wire.pipeline import Pipeline
from wire.processing import Array, Arrays, Graph

WORKERS: tuple[Runtime, ...] = ("tflite-runtime", "torchscript")
"""Runtimes that run in a process of their own."""
_PACKAGES: Mapping[Runtime, str] = {"onnxruntime": "onnxruntime", "litert": "ai-edge-litert", "tensorrt": "onnxruntime"}


def open_graph(runtime: Runtime, model: Path, pipeline: Pipeline, worker: str | None = None) -> Graph:
    """Load a model. `worker` is the Python of a runtime that needs an environment of its own, None for this one.

    Raises `Incompatible` when the runtime refuses the model, now or when it runs, `Unavailable` without a worker.
    """
    match runtime:
        case "litert":
            return litert(model)
        case "onnxruntime" | "tensorrt":
            return onnxruntime(model, pipeline)
        case "tflite-runtime" | "torchscript":
            return Worker(runtime, model, worker)
        case "onnxruntime-genai" | "gguf":
            raise Incompatible(f"runtime {runtime}: it runs no graph, it generates: see compiler.language")


def version(runtime: Runtime, worker: str | None = None) -> str:
    """The runtime that `open_graph` uses, such as "onnxruntime 1.31.1". Raises `Unavailable` without a worker."""
    if runtime in WORKERS:
        return _ask_version(runtime, worker)
    return f"{_PACKAGES[runtime]} {package_version(_PACKAGES[runtime])}"


def fell_back(
    runtime: Runtime,
    model: Path,
    pipeline: Pipeline,  # noqa: ARG001  asked for as `open_graph` is
    precision: Precision,
) -> dict[str, int]:
    """How many operators of which kind do not run in the recipe's precision, or not on the runtime's accelerator.

    LiteRT: those that XNNPACK does not take, and products in float32. ONNX Runtime: products in float32 in the graph
    that it really runs. For TensorRT and tflite-runtime what their files say; nothing is known of TorchScript.
    """
    match runtime:
        case "litert":
            left = placement.outside_xnnpack(model) | placement.float_in_flatbuffer(model, precision)
        case "tflite-runtime":
            left = placement.float_in_flatbuffer(model, precision)
        case "onnxruntime":
            left = placement.float_in_session(model, precision)
        case "tensorrt":
            left = placement.float_in_onnx(model, precision)
        case "torchscript":
            left = frozenset()
    return dict(sorted(Counter(operator for operator, _ in left).items()))


def onnxruntime(model: Path, pipeline: Pipeline) -> Graph:
    """An ONNX file as a function. Raises `Incompatible`."""
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    with onnx_file.refusals(f"variant {model.name}: ONNX Runtime refuses it"):
        session: Any = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in pipeline.outputs]

    def run(feed: Arrays) -> Arrays:
        with onnx_file.refusals(f"variant {model.name}: ONNX Runtime does not run it"):
            return dict(zip(names, session.run(names, dict(feed)), strict=True))

    return run


def litert(model: Path) -> Graph:
    """A flatbuffer as a function; among several signatures the one for the token count of `input_ids`.

    A graph that remembers (a streaming one) starts anew with each call: a request is answered by itself alone.
    Raises `Incompatible`.
    """
    with onnx_file.refusals(f"variant {model.name}: LiteRT refuses it"):
        graph = _Flatbuffer(model)

    def run(feed: Arrays) -> Arrays:
        with onnx_file.refusals(f"variant {model.name}: LiteRT does not run it"):
            return graph.run(feed)

    return run


class _Flatbuffer:
    """An interpreter of LiteRT, and how to reach its tensors by name."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._stateful = litert_file.stateful(litert_file.read(model))
        self._open()

    def _open(self) -> None:
        from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

        self._interpreter: Any = Interpreter(model_path=str(self._model), num_threads=1)
        self._interpreter.allocate_tensors()
        self._signatures = list(self._interpreter.get_signature_list())
        self._runners: dict[str, Any] = {}
        if len(self._signatures) < 2:
            self._inputs, self._outputs = self._doors()

    def _doors(self) -> tuple[dict[str, int], dict[str, int]]:
        """Where the only graph's tensors are, by the names of its signature, or their own without one."""
        if self._signatures:
            runner = self._interpreter.get_signature_runner(self._signatures[0])
            inputs, outputs = runner.get_input_details(), runner.get_output_details()
        else:
            inputs = {detail["name"]: detail for detail in self._interpreter.get_input_details()}
            outputs = {detail["name"]: detail for detail in self._interpreter.get_output_details()}
        self._shapes = {name: tuple(detail["shape"]) for name, detail in inputs.items()}
        return {n: d["index"] for n, d in inputs.items()}, {n: d["index"] for n, d in outputs.items()}

    def run(self, feed: Arrays) -> Arrays:
        if self._stateful:
            self._open()
        if len(self._signatures) > 1:
            return dict(self._runner(feed)(**feed))
        # Not by the signature's runner: it allocates anew for every call.
        self._resize(feed)
        self._interpreter.reset_all_variables()  # a recurrent layer must not remember the call before
        for name, index in self._inputs.items():
            self._interpreter.set_tensor(index, feed[name])
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}

    def _resize(self, feed: Arrays) -> None:
        other = [name for name, shape in self._shapes.items() if feed[name].shape != shape]
        for name in other:
            self._interpreter.resize_tensor_input(self._inputs[name], feed[name].shape, strict=True)
            self._shapes[name] = feed[name].shape
        if other:
            self._interpreter.allocate_tensors()

    def _runner(self, feed: Arrays) -> Any:
        wanted = litert_file.signature(feed["input_ids"].shape[1])
        if wanted not in self._runners:
            self._runners[wanted] = self._interpreter.get_signature_runner(wanted)
        return self._runners[wanted]


class Worker:
    """A model in the worker process that serves it on a device: `agent/serving/worker_program.py`."""

    def __init__(self, runtime: Runtime, model: Path, python: str | None) -> None:
        self._what = f"variant {model.name}: {runtime}"
        agent = find_spec("agent")
        program = Path((agent.submodule_search_locations or [""])[0] if agent else "", "serving", "worker_program.py")
        arguments = ["--frames", str(frames.__file__), "--runtime", runtime, "--model", str(model)]
        command = [_python(runtime, python), "-I", str(program), *arguments]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as e:
            raise Unavailable(f"{command[0]}: the Python of {runtime} does not start: {e.strerror}") from e
        self.close = weakref.finalize(self, _end, self._process)
        self._answer()

    def __call__(self, feed: Arrays) -> Arrays:
        """Raises `Incompatible` when the runtime refuses the feed, or its process dies."""
        sent = frames.Frame("run", [_packed(name, values) for name, values in feed.items()])
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frames.pack(sent))
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Incompatible(f"{self._what}: {self._death()}") from None
        return {t.name: _unpacked(t) for t in self._answer().tensors}

    def _answer(self) -> frames.Frame:
        assert self._process.stdout is not None
        try:
            frame = frames.read(self._process.stdout.read)
        except frames.BadFrame as e:
            raise Incompatible(f"{self._what}: its worker speaks another language: {e}") from e
        if frame is None:
            raise Incompatible(f"{self._what}: {self._death()}")
        if frame.kind == "error":
            raise Incompatible(f"{self._what}: {frame.fields.get('message')}")
        return frame

    def _death(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"its worker died of {signal.Signals(-code).name}"
        return f"its worker ended with exit code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _python(runtime: Runtime, given: str | None) -> str:
    """torch is part of the compiler; tflite-runtime, with its numpy of another age, never is."""
    if given:
        return given
    if runtime == "torchscript":
        return sys.executable
    raise Unavailable(f"runtime {runtime}: name the Python of an environment that has it (workers)")


def _ask_version(runtime: Runtime, worker: str | None) -> str:
    package = "torch" if runtime == "torchscript" else runtime
    python = _python(runtime, worker)
    program = f"from importlib.metadata import version; print(version({package!r}))"
    try:
        done = subprocess.run([python, "-I", "-c", program], capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Unavailable(f"{python}: the Python of {runtime} does not start: {e}") from e
    if done.returncode:
        raise Unavailable(f"{python}: it has no package {package}: install it there, or name another Python (workers)")
    return f"{package} {done.stdout.decode().strip()}"


def _packed(name: str, values: Array) -> frames.Tensor:
    plain = np.ascontiguousarray(values)
    data = plain.astype(plain.dtype.newbyteorder("<"), copy=False).tobytes()
    return frames.Tensor(name, str(plain.dtype), tuple(plain.shape), data)


def _unpacked(tensor: frames.Tensor) -> Array:
    kind = np.dtype(tensor.dtype)
    return np.frombuffer(tensor.data, kind.newbyteorder("<")).reshape(tensor.shape).astype(kind)
