"""Reads an `.npz` file of arrays that somebody else made, within limits that are checked before memory is taken.

    arrays = read_arrays(file, Path("test.npz"), most_rows=1000)        # by name, first axis: rows

An `.npz` file is a zip archive of `.npy` files. What an archive says of itself may be a lie, so its sizes are counted
before an array is made of them. Nothing is unpickled: arrays hold numbers or texts.
"""

# ruff: noqa: PLC0415  numpy is imported where arrays are read: a file of texts does not need it
from __future__ import annotations

import copy
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

from compiler.errors import Malformed

if TYPE_CHECKING:
    import numpy as np

    from wire.processing import Array

LARGEST_FILE = UNPACKED = 512 * 1024 * 1024
"""Most bytes of a file, and of all its arrays together when they are unpacked."""
ROW = 2 * 1024 * 1024
"""Most bytes of one row: a few rows travel to each device in the golden set."""
_DIRECTORY = 64 * 1024
_BLOCK = 1024 * 1024
_END = struct.Struct("<4s4H2LH")
_END_MARK, _END_64_MARK = b"PK\5\6", b"PK\6\7"


def read_arrays(file: IO[bytes], path: Path, *, most_rows: int) -> dict[str, Array]:
    """Raises `Malformed` for what is no such file, is damaged, or is larger than a limit; `path` is for messages."""
    try:
        _check_directory(file, path)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_members(members, path)
            return {info.filename.removesuffix(".npy"): _array(archive, info, path, most_rows) for info in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, struct.error) as e:
        raise Malformed(f"examples {path}: damaged, or not an .npz file: {e}") from e


def _check_directory(file: IO[bytes], path: Path) -> None:
    """The archive's list of members is read into memory as a whole: see first that it is short."""
    end = file.seek(0, 2)
    file.seek(max(0, end - _END.size - 20))
    last = file.read()
    mark, *_, size, _, _ = _END.unpack(last[-_END.size :])
    if mark != _END_MARK:
        raise Malformed(f"examples {path}: damaged, or not an .npz file as numpy.savez writes it")
    if size > _DIRECTORY or last.startswith(_END_64_MARK):
        raise Malformed(f"examples {path}: it lists too many arrays: expected x and y, or the graph's inputs")


def _check_members(members: list[zipfile.ZipInfo], path: Path) -> None:
    if len({info.filename for info in members}) != len(members):
        raise Malformed(f"examples {path}: an array stands in it twice")
    for info in members:
        kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if not info.filename.endswith(".npy") or info.compress_type not in kinds or info.flag_bits & 1:
            raise Malformed(f"examples {path}: {info.filename[:80]!r} is not an array as numpy.savez writes it")
    total = sum(info.file_size for info in members)
    if total > UNPACKED:
        raise Malformed(
            f"examples {path}: a zip bomb, or too large: it unpacks to {total} bytes, the limit is {UNPACKED}"
        )


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, most_rows: int) -> Array:
    import numpy as np

    _check_real_size(archive, info, path)
    where = f"examples {path}: array {info.filename.removesuffix('.npy')[:80]!r}"
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in headers:
            raise Malformed(f"{where}: .npy version {version}, expected 1.0 or 2.0")
        shape, _, dtype = headers[version](member)
        _check_header(shape, dtype, info.file_size - member.tell(), where, most_rows)
    with archive.open(info) as member:
        values: Array = np.lib.format.read_array(member, allow_pickle=False)
    return values.astype(dtype.newbyteorder("="), copy=False)


def _check_header(shape: tuple[int, ...], dtype: np.dtype, size: int, where: str, most_rows: int) -> None:
    """What the array says of itself against the `size` bytes that are there, and against the limits."""
    if dtype.hasobject:
        raise Malformed(f"{where} holds Python objects, which only code could unpack: save numbers or texts")
    if dtype.kind not in "biufU":
        raise Malformed(f"{where} is of type {dtype}, expected numbers or texts")
    if not shape or shape[0] == 0:
        raise Malformed(f"{where} has no rows")
    if math.prod(shape) * dtype.itemsize != size:
        raise Malformed(f"{where} says it is {dtype} {list(shape)}, and {size} bytes are there: damaged")
    if shape[0] > most_rows:
        raise Malformed(f"{where} has {shape[0]} rows, the limit is {most_rows}: a test set needs thousands")
    row = math.prod(shape[1:]) * dtype.itemsize
    if row > ROW:
        raise Malformed(f"{where} has {row} bytes a row, the limit is {ROW}: give them at the graph's own size")


def _check_real_size(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    """Unpack block by block, and stop where it grows over what the archive declares."""
    unbound = copy.copy(info)  # a reader stops at the declared size: this one may go on, to see whether there is more
    unbound.file_size = UNPACKED + _BLOCK
    real = 0
    with archive.open(unbound) as member:
        while block := member.read(_BLOCK):
            real += len(block)
            if real > info.file_size:
                raise Malformed(
                    f"examples {path}: a zip bomb: {info.filename[:80]!r} says {info.file_size} bytes and holds more"
                )
    if real < info.file_size:
        raise Malformed(f"examples {path}: damaged: {info.filename[:80]!r} ends after {real} bytes")
