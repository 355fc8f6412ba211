"""A runtime in a process of its own: `PYTHON -I worker_program.py --frames FILE --runtime NAME --model FILE`.

For runtimes that cannot share an interpreter with the agent: tflite-runtime with its old numpy, TorchScript with torch,
and language models (`language_program.py`, with `--settings JSON`), whose memory comes back when they go.
Needs Python 3.9, numpy and the runtime; of ours it loads only the file `wire/frames.py`, which describes the protocol.
It ends when its standard input does, and when the thread that started it does.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import mmap
import os
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]
Run = Callable[[Arrays], Arrays]
_PR_SET_PDEATHSIG = 1
_LONGEST_MESSAGE = 2000
_VAR_HANDLE = 142
"""The operator that opens a resource variable (`BuiltinOperator` of TFLite's schema)."""


def main() -> int:
    """Load, say so, answer until the end."""
    options = _options()
    _be_a_child()
    frames = _load("frames", options.frames)
    if options.runtime in LANGUAGE:
        program = _load("language_program", str(Path(__file__).with_name("language_program.py")))
        return int(program.serve(frames, options.runtime, options.model, options.settings))
    door = _Door(frames, options.runtime)
    try:
        version, run = RUNTIMES[options.runtime](options.model, options.threads)
    except ImportError as e:
        door.refuse(f"is not in the environment of {sys.executable}: install it there ({e})")
        return 1
    except Exception as e:  # noqa: BLE001  runtimes raise anything; whatever it is, the model does not load here
        door.refuse(f"does not load it: {e}")
        return 1
    door.say("ready", version=version)
    while True:
        feeds = door.hear()
        if feeds is None:
            return 0
        try:
            tensors = [door.tensor(name, values) for name, values in run(feeds).items()]
        except Exception as e:  # noqa: BLE001  as above; the next request may fare better
            door.refuse(f"does not run it: {e}")
        else:
            door.say("result", tensors)


class _Door:
    """Frames in and out. They own the real standard output: what a runtime prints goes to standard error."""

    def __init__(self, frames: Any, runtime: str) -> None:
        self._frames = frames
        self._runtime = runtime
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def hear(self) -> Arrays | None:
        """What to run the model on; None at the end."""
        frame = self._frames.read(sys.stdin.buffer.read)
        return None if frame is None else {tensor.name: _array(tensor) for tensor in frame.tensors}

    def tensor(self, name: str, values: Any) -> Any:
        """An array for a frame. Raises `ValueError` for numbers of a type that none carries."""
        if str(values.dtype) not in self._frames.SIZES:
            raise ValueError(f"output {name} has numbers of type {values.dtype}, which no pipeline names")
        data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        return self._frames.Tensor(name, str(values.dtype), tuple(values.shape), data)

    def say(self, kind: str, tensors: Sequence[Any] = (), **fields: str) -> None:
        """Send a frame."""
        self._out.write(self._frames.pack(self._frames.Frame(kind, list(tensors), fields)))
        self._out.flush()

    def refuse(self, words: str) -> None:
        """Say why the runtime does not do it."""
        self.say("error", message=f"{self._runtime} {words}"[:_LONGEST_MESSAGE])


def tflite(model: str, threads: int) -> tuple[str, Run]:
    """The version of tflite-runtime, and a file in it."""
    from importlib.metadata import version  # noqa: PLC0415

    from tflite_runtime.interpreter import Interpreter  # type: ignore[import-not-found]  # noqa: PLC0415

    return version("tflite-runtime"), Flatbuffer(model, lambda: Interpreter(model_path=model, num_threads=threads)).run


def torchscript(model: str, threads: int) -> tuple[str, Run]:
    """The version of torch, and a file in it: inputs by the names of its `forward`, outputs output_0, output_1, ..."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(threads)
    module: Any = torch.jit.load(model, map_location="cpu")  # type: ignore[no-untyped-call]
    module.eval()

    def run(feeds: Arrays) -> Arrays:
        with torch.inference_mode():
            out = module(**{name: torch.from_numpy(values) for name, values in feeds.items()})
        parts = out if isinstance(out, (tuple, list)) else [out]
        return {f"output_{i}": part.numpy() for i, part in enumerate(parts)}

    return torch.__version__, run


RUNTIMES: dict[str, Callable[[str, int], tuple[str, Run]]] = {"tflite-runtime": tflite, "torchscript": torchscript}
LANGUAGE = ("onnxruntime-genai", "gguf")


class Flatbuffer:
    """A TFLite file as a function, in tflite-runtime or LiteRT: `interpreter` opens the file in a new one.

    Inputs and outputs have the names of its signature, or those of its tensors without one. A file with more than one
    signature has one for each token count of `input_ids`: `tokens_<n>` (`wire.pipeline.Pipeline`). A graph that
    remembers, a streaming one, starts anew with each call: a request is answered by itself alone.
    """

    def __init__(self, model: str, interpreter: Callable[[], Any]) -> None:
        self._make = interpreter
        self._open()
        # After the runtime has checked the file.
        with Path(model).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._streaming = _has_resources(data)

    def _open(self) -> None:
        self._interpreter = self._make()
        self._interpreter.allocate_tensors()
        self._signatures = list(self._interpreter.get_signature_list())
        self._runners: dict[str, Any] = {}
        if len(self._signatures) < 2:
            self._find_tensors()

    def _find_tensors(self) -> None:
        if self._signatures:
            runner = self._interpreter.get_signature_runner(self._signatures[0])
            inputs, outputs = runner.get_input_details(), runner.get_output_details()
        else:
            inputs = {detail["name"]: detail for detail in self._interpreter.get_input_details()}
            outputs = {detail["name"]: detail for detail in self._interpreter.get_output_details()}
        self._shapes = {name: tuple(detail["shape"]) for name, detail in inputs.items()}
        self._inputs = {name: detail["index"] for name, detail in inputs.items()}
        self._outputs = {name: detail["index"] for name, detail in outputs.items()}

    def run(self, feeds: Arrays) -> Arrays:
        """Outputs by name. Raises what the runtime raises, and `ValueError` for a token count or a name it lacks."""
        if self._streaming:
            self._open()  # nothing else resets a resource variable
        if len(self._signatures) > 1:
            return dict(self._runner(feeds)(**feeds))
        # Not by the signature's runner: it allocates anew for every call.
        self._resize(feeds)
        self._interpreter.reset_all_variables()
        for name, index in self._inputs.items():
            self._interpreter.set_tensor(index, feeds[name])
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}

    def _runner(self, feeds: Arrays) -> Any:
        wanted = f"tokens_{feeds['input_ids'].shape[1]}" if "input_ids" in feeds else ""
        if wanted not in self._signatures:
            raise ValueError(f"no signature {wanted!r}: the file has {', '.join(self._signatures)}")
        if wanted not in self._runners:
            self._runners[wanted] = self._interpreter.get_signature_runner(wanted)
        return self._runners[wanted]

    def _resize(self, feeds: Arrays) -> None:
        missing = [name for name in self._inputs if name not in feeds]
        if missing:
            raise ValueError(f"the file has the inputs {', '.join(self._inputs)}, not given: {', '.join(missing)}")
        other = [name for name, shape in self._shapes.items() if feeds[name].shape != shape]
        for name in other:
            self._interpreter.resize_tensor_input(self._inputs[name], feeds[name].shape, strict=True)
            self._shapes[name] = feeds[name].shape
        if other:
            self._interpreter.allocate_tensors()


def _has_resources(data: mmap.mmap) -> bool:
    """Whether a TFLite file has resource variables, by its table of operators.

    TFLite's schema: field 1 of the root table `Model` lists tables `OperatorCode`, whose field 3 is the operator.
    """
    listed = _field(data, _number(data, 0), 1)
    if listed is None:
        return False
    start = listed + _number(data, listed)
    places = [start + 4 * (i + 1) for i in range(_number(data, start))]
    operators = [_field(data, place + _number(data, place), 3) for place in places]
    return any(at is not None and _number(data, at) == _VAR_HANDLE for at in operators)


def _field(data: mmap.mmap, table: int, index: int) -> int | None:
    """Where a field of a FlatBuffers table stands, None where it is left out."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    length = struct.unpack_from("<H", data, vtable)[0]
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * index)[0] if 4 + 2 * index < length else 0
    return table + int(offset) if offset else None


def _number(data: mmap.mmap, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def _array(tensor: Any) -> Any:
    kind = np.dtype(tensor.dtype)
    return np.frombuffer(tensor.data, kind.newbyteorder("<")).reshape(tensor.shape).astype(kind)


def _load(name: str, path: str) -> Any:
    """The module in a file, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _be_a_child() -> None:
    """Whoever started this process decides when it ends; out of memory, the kernel ends it first."""
    warnings.simplefilter("ignore")  # the last words on standard error are for what ends it
    # systemd's SIGTERM goes to the whole control group, and requests may still wait for an answer.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:  # Linux only; elsewhere the end of standard input does it
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", required=True)
    parser.add_argument("--runtime", required=True, choices=sorted((*RUNTIMES, *LANGUAGE)))
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--settings", default="{}", help="of a language model, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
