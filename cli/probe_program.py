"""One inference of one runtime, in a process of its own: whoever starts it sees whether it lives and is right.

    python -I probe_program.py onnxruntime        # writes the version, exit code 0

It is also run by the Python of another environment, so it needs numpy and the runtime alone. The graphs multiply 16
numbers with a matrix of int8: the ONNX one by a float and by an int8 product, the flatbuffer by the latter.
"""

# ruff: noqa: PLC0415  only the runtime that is asked for is imported
from __future__ import annotations

import base64
import sys
import zlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

_ONNX = (
    "eNrlkT1OAzEQhffZm8SMSGRNhIhEZ7ocgY5AA0oK2nQOcVaW2A3ZOFp2Kw7AIbgeN+AfvKJD3IBimm/efBrpqR4nJ0+Sjgl3jA1jy2jMwXld2Nxf"
    "X+1sEXzjpr5wtqQjwoZQERqGN/2ZDbPdzUURXOZKOiR4xsqkZ3YbxnskwnqERwgaEFbUenMjY55GUcGi+iPJ8QmKG0Zmuj/29jonZIzayNPlkju3"
    "5Xrhxg9CaaW1nKC6vBfPX913+ZL0PtJXqM/O238D82Fb34D2FViRUIijFxHWv+EkpUT3vwFwc6ib"
)
_FLATBUFFER = (
    "eNrlUruOwjAQnCQ+cEQElqBIQcEnnERDgcRVV11JQUHBRyCR6+5jKPhEHgdm1t48xC+w0Wa967F3MpsSwPr7Zw4MMYFDAcuKYQZmwGcCVCmQcc2A"
    "KfMCYj0iDd+CprF+Tm8fD5tczb2PS/bf829WOHnvE9WtaNQ0QS+pbehb+i7KRYTYMETBDlT3WId1ujbhiWdkBlncD7nXnqnm0P0jfaGz2RNjEecm"
    "mN8O3imHkp3Gylc4zOhf7Z35MpyPk6+/ySq/ui86vIC/lcSD9nKNLvEPQ+eOmlf1wqvV0mHU6Zu3GuRPMu2OZw=="
)
TOLERANCE = 0.25
"""Numbers of eight bits are off by up to 0.06 here; a wrong kernel is off by many."""
GIVEN = (np.arange(16, dtype=np.float32) / 8 - 1)[None]
WEIGHTS = ((np.arange(256) * 7) % 17 - 8).reshape(16, 16).astype(np.float32)


def _onnxruntime() -> Any:
    import onnxruntime as ort  # type: ignore[import-untyped]

    session = ort.InferenceSession(_unpacked(_ONNX), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": GIVEN})[0] / 2


def _litert() -> Any:
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

    return _interpreted(Interpreter)


def _tflite() -> Any:
    from tflite_runtime.interpreter import Interpreter  # type: ignore[import-not-found]

    return _interpreted(Interpreter)


def _torchscript() -> Any:
    import torch

    torch.set_num_threads(1)
    weights = torch.from_numpy(WEIGHTS)
    jit: Any = torch.jit
    return jit.trace(lambda x: x @ weights, torch.from_numpy(GIVEN))(torch.from_numpy(GIVEN)).numpy()


def _interpreted(interpreter: Callable[..., Any]) -> Any:
    opened = interpreter(model_content=_unpacked(_FLATBUFFER), num_threads=1)
    opened.allocate_tensors()
    opened.set_tensor(opened.get_input_details()[0]["index"], GIVEN)
    opened.invoke()
    return opened.get_tensor(opened.get_output_details()[0]["index"])


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


RUNTIMES: dict[str, tuple[str, Callable[[], Any]]] = {
    "onnxruntime": ("onnxruntime", _onnxruntime),
    "litert": ("ai-edge-litert", _litert),
    "tflite-runtime": ("tflite-runtime", _tflite),
    "torchscript": ("torch", _torchscript),
}


def main(runtime: str) -> int:
    """0 when the runtime computed what it must, 1 with the reason on standard error."""
    package, run = RUNTIMES[runtime]
    try:
        made = run()
    except ModuleNotFoundError as e:
        sys.stderr.write(f"no package {e.name} in this Python\n")
        return 1
    off = float(np.abs(made - GIVEN @ WEIGHTS).max())
    if not off <= TOLERANCE:  # written so that NaN fails too
        sys.stderr.write(f"it runs and computes wrong numbers: off by {off:.3g}\n")
        return 1
    sys.stdout.write(f"{package} {version(package)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
