"""Reads a source of any kind; the reference says which.

    folder with config.json           Hugging Face
    *.onnx, *.tflite                  graphs
    *.gguf                            a language model of llama.cpp
    *.pt, *.pth, *.ts, *.torchscript  TorchScript
    python:package.module:function    a function without arguments that returns a torch module
    models:/name@alias, models:/name/1   a registered model of MLflow, which is one of the others

Nothing heavy is imported, no code of a source runs and nothing is unpickled here.

    source = read("model.onnx", describe=None)
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from compiler.errors import Incompatible, Malformed
from compiler.sources import code, folder, language, onnx_graph, registry, tflite_graph
from compiler.sources.describe import Described, find
from compiler.sources.source import Source
from wire.build import SAFE_SOURCES

FUNCTION, REGISTERED = "python:", "models:/"
_TORCHSCRIPT = (".pt", ".pth", ".ts", ".torchscript")


def read(reference: str, describe: Path | None, *, safe: bool = False, scratch: Path | None = None) -> Source:
    """Check and describe a source. `describe` is its description, if there is one.

    `safe` refuses sources that run code. A registered model is downloaded into `scratch`, or into a folder that goes
    with this process; other processes read the source again by `Source.reference`. Raises `Malformed` for a broken
    source, `Incompatible` for one that cannot be compiled, `Unavailable` when a registry does not answer.
    """
    if reference.startswith(REGISTERED):
        _refuse_code(reference, "a registered model", safe=safe)
        found = registry.download(reference, scratch or _passing_folder())
        return replace(read(str(found.source), describe, safe=safe), registered=found.reference)
    if reference.startswith(FUNCTION):
        _refuse_code(reference, "a Python function", safe=safe)
        return code.read_function(reference.removeprefix(FUNCTION), find(describe, None))
    path = Path(reference)
    if path.suffix in _TORCHSCRIPT:
        _refuse_code(reference, "TorchScript", safe=safe)
    if path.suffix == ".gguf":
        _refuse_code(reference, "a GGUF file, which llama.cpp would read", safe=safe)
    reader = _reader(path)
    if safe and path.is_dir():
        folder.check_links(path)
    return reader(path, find(describe, None if path.is_dir() else path))


def _reader(path: Path) -> Callable[[Path, Described], Source]:
    if path.is_dir():
        return folder.read
    match path.suffix:
        case ".onnx":
            return onnx_graph.read
        case ".tflite":
            return tflite_graph.read
        case ".gguf":
            return language.read_gguf
        case suffix if suffix in _TORCHSCRIPT:
            return code.read_torchscript
        case _ if not path.exists():
            raise Malformed(
                f"source {path}: no such folder or file; give a Hugging Face folder, an .onnx, .tflite, .gguf or "
                f"TorchScript .pt file, {FUNCTION}package.module:function or {REGISTERED}name@alias"
            )
        case _:
            raise Incompatible(
                f"source {path}: not a kind of model that is read here; give a Hugging Face folder, or a file that "
                "ends in .onnx, .tflite, .gguf or .pt (TorchScript)"
            )


def _refuse_code(reference: str, what: str, *, safe: bool) -> None:
    if safe:
        raise Incompatible(
            f"source {reference[:200]}: {what} is not accepted here; accepted are {', '.join(SAFE_SOURCES)}"
        )


def _passing_folder() -> Path:
    made = tempfile.mkdtemp(prefix="shoal-source-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)
