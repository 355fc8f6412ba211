"""A language model broken on purpose: the rows of its largest matrix in reverse order, all else as it was.

scramble(folder, "gguf")        # in place: give it a copy
"""

# ruff: noqa: PLC0415  onnx and gguf are imported where a file of theirs is opened
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import Incompatible
from compiler.passes.genai import MODEL, WEIGHTS
from compiler.plan.recipes import MODEL_FILES
from wire.bundle import Runtime


@dataclass(frozen=True)
class _Matrix:
    """Where a matrix stands in a file, in bytes."""

    offset: int
    rows: int
    row: int


def scramble(folder: Path, runtime: Runtime) -> None:
    """Raises `Incompatible` for a file without a matrix, or one that reads the same backwards."""
    path = folder / (MODEL_FILES["gguf"] if runtime == "gguf" else WEIGHTS)
    found = list(_of_gguf(path) if runtime == "gguf" else _of_onnx(folder))
    if not found:
        raise Incompatible(f"sabotage: {path.name} holds no matrix")
    largest = max(found, key=lambda m: m.rows * m.row)
    with path.open("r+b") as file:
        file.seek(largest.offset)
        old = file.read(largest.rows * largest.row)
        rows = [old[i : i + largest.row] for i in range(0, len(old), largest.row)]
        new = b"".join(reversed(rows))
        if new == old:
            raise Incompatible(f"sabotage: the largest matrix of {path.name} reads the same backwards")
        file.seek(largest.offset)
        file.write(new)


def _of_gguf(path: Path) -> Iterator[_Matrix]:
    import gguf

    for tensor in gguf.GGUFReader(path).tensors:
        if len(tensor.shape) > 1:
            rows = int(tensor.shape[1])
            yield _Matrix(int(tensor.data_offset), rows, int(tensor.n_bytes) // rows)


def _of_onnx(folder: Path) -> Iterator[_Matrix]:
    import onnx

    for tensor in onnx.load(folder / MODEL, load_external_data=False).graph.initializer:
        told = {entry.key: entry.value for entry in tensor.external_data}
        if told and len(tensor.dims) > 1:
            rows = int(tensor.dims[0])
            yield _Matrix(int(told.get("offset", 0)), rows, int(told["length"]) // rows)
