"""The runtimes that run a graph, behind one call. Each is imported when its first model is loaded, and not before.

run = load_graph("onnxruntime", path, output="logits")
run({"input_ids": ..., "attention_mask": ...})     # float32 [batch, classes]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.errors import Incompatible

if TYPE_CHECKING:
    from agent.serving.pipeline import Floats, Ints

Run = Callable[["Mapping[str, Ints]"], "Floats"]
MODULES: Final = {"onnxruntime": "onnxruntime", "litert": "ai_edge_litert"}


def installed() -> frozenset[str]:
    """Names of the runtimes whose package is here. Only the self-test proves that one works."""
    return frozenset(name for name, module in MODULES.items() if find_spec(module) is not None)


def load_graph(runtime: str, path: Path, output: str) -> Run:
    """Load a model file; `output` is the tensor to read. Raises `Incompatible` when the runtime refuses it."""
    if runtime == "onnxruntime":
        return _load_onnxruntime(path, output)
    if runtime == "litert":
        return _load_litert(path, output)
    raise Incompatible(f"runtime {runtime!r}: not one of {', '.join(MODULES)}: update this agent")


def _load_onnxruntime(path: Path, output: str) -> Run:
    import onnxruntime as ort  # type: ignore[import-untyped]  # noqa: PLC0415  tens of MB that an idle device does not pay

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Spinning threads took 2.8 times the CPU at 50 requests/s.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    failures: tuple[type[Exception], ...] = (RuntimeError, ValueError, *_onnxruntime_errors())
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except failures as e:
        raise Incompatible(f"{path.name}: onnxruntime {ort.__version__} does not load it: {e}") from e

    def run(inputs: Mapping[str, Ints]) -> Floats:
        try:
            (logits,) = session.run([output], dict(inputs))
        except failures as e:
            raise Incompatible(f"{path.name}: onnxruntime {ort.__version__} does not run it: {e}") from e
        return logits  # type: ignore[no-any-return]

    return run


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Its own exceptions share no base class of their own (onnxruntime 1.31: straight below `Exception`)."""
    from onnxruntime.capi import (  # type: ignore[import-untyped]  # noqa: PLC0415
        onnxruntime_pybind11_state as state,
    )

    found = (getattr(state, name) for name in dir(state))
    return tuple(e for e in found if isinstance(e, type) and issubclass(e, Exception))


def _load_litert(path: Path, output: str) -> Run:
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]  # noqa: PLC0415  as above

    try:
        interpreter = Interpreter(model_path=str(path), num_threads=1)
        signature = interpreter.get_signature_runner()
    except (RuntimeError, ValueError) as e:
        raise Incompatible(f"{path.name}: litert does not load it: {e}") from e
    kinds = {name: detail["dtype"] for name, detail in signature.get_input_details().items()}

    def run(inputs: Mapping[str, Ints]) -> Floats:
        try:
            outputs = signature(**{name: values.astype(kinds[name]) for name, values in inputs.items()})
            return outputs[output]  # type: ignore[no-any-return]
        except (RuntimeError, ValueError, KeyError) as e:
            raise Incompatible(f"{path.name}: litert does not run it: {e}") from e

    return run
