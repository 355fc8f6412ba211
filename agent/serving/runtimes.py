"""The runtimes that run a graph, behind one call. Each is imported when its first model is loaded, and not before.

graph = load_graph("onnxruntime", path, pipeline, workers={})
graph.run({"input_ids": ..., "attention_mask": ...})     # {"logits": float32 [1, classes]}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.errors import Incompatible
from agent.settings import WORKERS
from wire.pipeline import Pipeline

if TYPE_CHECKING:
    from wire.processing import Arrays, Graph

MODULES: Final = {"onnxruntime": "onnxruntime", "litert": "ai_edge_litert"}
LANGUAGE_MODULES: Final = {"onnxruntime-genai": "onnxruntime_genai", "gguf": "xllamacpp"}
"""Of the language runtimes, each in a worker process: of this Python where it has them."""
PACKAGES: Final = {"onnxruntime": "onnxruntime", "litert": "ai-edge-litert"}


@dataclass(frozen=True)
class LoadedGraph:
    """A model file in its runtime, `onnxruntime 1.31.1`. `run` raises `Incompatible`; `close` ends a worker process."""

    run: Graph
    runtime: str = ""
    close: Callable[[], None] = lambda: None


def installed(workers: Mapping[str, str]) -> frozenset[str]:
    """Names of the runtimes that are here, by package or by a worker's Python. Only the self-test proves one works."""
    here = {name for name, module in MODULES.items() if find_spec(module) is not None}
    here |= {name for name, module in LANGUAGE_MODULES.items() if find_spec(module) is not None}
    return frozenset(here | {name for name, python in workers.items() if Path(python).exists()})


def import_runtime(runtime: str) -> None:
    """Import the library of a runtime that shares the interpreter, and numpy, before what a model takes is measured.

    One that is not here is reported when a model is loaded.
    """
    with suppress(ImportError):
        import_module("wire.processing")
        import_module(MODULES.get(runtime, "numpy"))


def load_graph(runtime: str, path: Path, pipeline: Pipeline, workers: Mapping[str, str]) -> LoadedGraph:
    """Load a model file. Raises `Incompatible` when the runtime is not here or refuses it."""
    if runtime == "onnxruntime":
        return LoadedGraph(_load_onnxruntime(path, [t.name for t in pipeline.outputs]), _packaged(runtime))
    if runtime == "litert":
        return LoadedGraph(_load_litert(path), _packaged(runtime))
    if runtime in LANGUAGE_MODULES:
        raise Incompatible(f"runtime {runtime}: it generates text, and the bundle is for {pipeline.task}")
    if runtime in WORKERS:
        return _load_worker(runtime, path, workers)
    if runtime == "tensorrt":
        raise Incompatible("runtime tensorrt: its engine is built on the device by a worker that this agent lacks")
    raise Incompatible(f"runtime {runtime!r}: not one of {', '.join((*MODULES, *WORKERS))}: update this agent")


def _load_worker(runtime: str, path: Path, workers: Mapping[str, str]) -> LoadedGraph:
    from agent.serving.worker import Worker  # noqa: PLC0415  numpy comes with a model, not with the agent

    if runtime not in workers:
        raise Incompatible(
            f"runtime {runtime}: it runs in an environment of its own, and the setting 'workers' names none: make one "
            f'(python3 -m venv), install {runtime} there, and set workers = "{runtime}=/that/bin/python"'
        )
    worker = Worker(workers[runtime], runtime, path)
    return LoadedGraph(worker.run, f"{runtime} {worker.version}", worker.close)


def _packaged(runtime: str) -> str:
    return f"{PACKAGES[runtime]} {version(PACKAGES[runtime])}"


def _load_onnxruntime(path: Path, outputs: list[str]) -> Graph:
    import onnxruntime as ort  # type: ignore[import-untyped]  # noqa: PLC0415  tens of MB that an idle device does not pay

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Spinning threads took 2.8 times the CPU at 50 requests/s.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # its errors quote values of the input, and are raised besides
    failures: tuple[type[Exception], ...] = (RuntimeError, ValueError, *_onnxruntime_errors())
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except failures as e:
        raise Incompatible(f"{path.name}: onnxruntime {ort.__version__} does not load it: {e}") from e

    def run(feeds: Arrays) -> Arrays:
        try:
            given = session.run(outputs, feeds if type(feeds) is dict else dict(feeds))
            return dict(zip(outputs, given, strict=True))
        except failures as e:
            raise Incompatible(f"{path.name}: onnxruntime {ort.__version__} does not run it: {e}") from e

    return run


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Its own exceptions share no base class of their own (onnxruntime 1.31: straight below `Exception`)."""
    from onnxruntime.capi import (  # type: ignore[import-untyped]  # noqa: PLC0415
        onnxruntime_pybind11_state as state,
    )

    found = (getattr(state, name) for name in dir(state))
    return tuple(e for e in found if isinstance(e, type) and issubclass(e, Exception))


def _load_litert(path: Path) -> Graph:
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]  # noqa: PLC0415  as above

    from agent.serving.worker_program import Flatbuffer  # noqa: PLC0415  one reading of a file, in here and in a worker

    failures = (RuntimeError, ValueError, KeyError)
    try:
        graph = Flatbuffer(str(path), lambda: Interpreter(model_path=str(path), num_threads=1))
    except failures as e:
        raise Incompatible(f"{path.name}: litert does not load it: {e}") from e

    def run(feeds: Arrays) -> Arrays:
        try:
            return graph.run(feeds)
        except failures as e:
            raise Incompatible(f"{path.name}: litert does not run it: {e}") from e

    return run
