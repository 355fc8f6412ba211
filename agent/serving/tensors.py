"""Tensors of the Open Inference Protocol: JSON data, and the raw bytes of its binary tensor extension. Pure.

Raw data is little-endian and row-major; an element of BYTES is its length as 4 little-endian bytes, and then itself
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md).
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from agent.errors import Malformed
from agent.serving.interface import DATATYPES, TensorInfo

if TYPE_CHECKING:
    import numpy as np

    from wire.processing import Array

    Place = tuple[str, int, np.dtype[Any], tuple[int, ...]]
    """Name of an array, where it begins in raw bytes, its type and shape."""

TensorValue = Mapping[str, Any]
"""A tensor of a request as JSON has it."""
_DTYPES: Final = {datatype: dtype for dtype, datatype in DATATYPES.items()}
_NUMBERS: Final = frozenset({bool, int, float})
_CODES: Final = {"float32": "f", "float64": "d"}
"""Of `struct`, in this machine's own form: its numbers are made from any number, and from nothing else."""
_LENGTH: Final = struct.Struct("<I")
_LITTLE: Final = sys.byteorder == "little"
_ORDER: Final = "" if _LITTLE else "<"
"""Of raw data; `struct` is quicker without."""


def read_array(tensor: TensorValue, info: TensorInfo, raw: memoryview | None, where: str) -> Array:
    """A tensor of numbers, of JSON data (flat or nested) or of raw bytes. Raises `Malformed`."""
    shape = tensor.get("shape")
    if tensor.get("datatype") != info.datatype:
        raise Malformed(
            f"{where}: tensor {info.name} has datatype {tensor.get('datatype')!r:.40}, expected {info.datatype}"
        )
    if not isinstance(shape, list) or not _fits(shape, info.shape):
        raise Malformed(f"{where}: shape {str(shape)[:80]}, expected {list(info.shape)}, -1 for any size")
    if raw is not None:
        return _of_bytes(raw, shape, info, where)
    return _of_data(tensor.get("data"), shape, info.datatype, where)


def _of_bytes(raw: memoryview, shape: list[int], info: TensorInfo, where: str) -> Array:
    import numpy as np  # noqa: PLC0415  it came with the model, not with the agent

    kind = np.dtype(_DTYPES[info.datatype])
    if len(raw) != math.prod(shape) * kind.itemsize:
        raise Malformed(f"{where}: {len(raw)} bytes of binary data do not fill {info.datatype} {shape}")
    return arrays_at(raw, ((info.name, 0, kind, tuple(shape)),))[info.name]


def arrays_at(data: bytes | memoryview, places: Iterable[Place]) -> dict[str, Array]:
    """Arrays of this machine's byte order, by name, in raw bytes that must suffice for them."""
    import numpy as np  # noqa: PLC0415  as above

    found: dict[str, Array] = {}
    for name, at, dtype, shape in places:
        if dtype.kind == "b":
            found[name] = np.ndarray(shape, np.uint8, data, at) != 0
            continue
        values: Array = np.ndarray(shape, dtype if _LITTLE else dtype.newbyteorder("<"), data, at)
        # A runtime may read whole registers, which not every processor does at any address.
        found[name] = values if _LITTLE and values.flags.aligned else values.astype(dtype)
    return found


def _of_data(data: object, shape: list[int], datatype: str, where: str) -> Array:
    import numpy as np  # noqa: PLC0415  as above

    dtype = _DTYPES[datatype]
    if (packed := _packed(data, shape, dtype)) is not None:
        return packed
    # Before numpy looks: it gives every text of a list as much room as the longest needs, 317 GB for 1 MB of JSON.
    if not _are_numbers(data, len(shape)):
        raise Malformed(f"{where}.data: expected numbers of datatype {datatype}, flat or nested as the shape says")
    try:
        given = np.asarray(data)
        if given.dtype.kind not in ("b" if dtype == "bool" else "iu" if "int" in dtype else "iuf"):
            raise Malformed(f"{where}.data: expected numbers of datatype {datatype}")
        if not _in_range(given, dtype):
            raise Malformed(f"{where}.data: a number is out of the range of {datatype}")
        return given.astype(dtype).reshape(shape)
    except (ValueError, TypeError, OverflowError) as e:
        raise Malformed(f"{where}.data: does not fit the shape {shape}: expected {datatype}, flat or nested") from e


def _packed(data: object, shape: list[int], dtype: str) -> Array | None:
    """A flat list of floating-point numbers in a fifth of the time, without a look at each; None if it fails."""
    import numpy as np  # noqa: PLC0415  as above

    code, n = _CODES.get(dtype), math.prod(shape)
    if code is None or type(data) is not list or len(data) != n or type(data[0]) is bool:
        return None
    try:
        values: Array = np.frombuffer(struct.pack(f"{n}{code}", *data), dtype)
    except (struct.error, OverflowError):
        return None
    return values.reshape(shape) if np.logical_and.reduce(np.isfinite(values)) else None  # one was out of range


def pack_floats(lists: Sequence[Any], size: int) -> bytes | None:
    """Flat lists of numbers as FP32, `size` bytes in all, one after the other; None if it fails, as above."""
    import numpy as np  # noqa: PLC0415  as above

    try:
        packed = struct.pack(f"{_ORDER}{size // 4}f", *chain.from_iterable(lists))
    except (struct.error, OverflowError, TypeError):
        return None
    plain = all(type(data) is list and type(data[0]) is not bool for data in lists)
    return packed if plain and np.logical_and.reduce(np.isfinite(np.frombuffer(packed, "<f4"))) else None


def _are_numbers(data: object, rank: int) -> bool:
    """Whether all leaves are numbers or truth values, in no more than `rank` lists within each other."""
    level: list[Any] = data if type(data) is list else [data]
    for _ in range(rank):
        kinds = set(map(type, level))
        if kinds <= _NUMBERS:
            return True
        if kinds != {list}:
            return False
        level = list(chain.from_iterable(level))
    return False


def _in_range(values: Array, dtype: str) -> bool:
    import numpy as np  # noqa: PLC0415  as above

    if dtype == "bool" or not values.size:
        return True
    low, high = _bounds(dtype)
    return bool(low <= np.minimum.reduce(values, None) and np.maximum.reduce(values, None) <= high)


@cache
def _bounds(dtype: str) -> tuple[Any, Any]:
    import numpy as np  # noqa: PLC0415  as above

    bounds = np.iinfo(dtype) if "int" in dtype else np.finfo(dtype)
    return bounds.min, bounds.max


def _fits(shape: list[Any], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(
        type(n) is int and n > 0 and want in (-1, n) for n, want in zip(shape, wanted, strict=True)
    )


def read_texts(tensor: TensorValue, raw: memoryview | None, where: str) -> list[str]:
    """The elements of a tensor of datatype BYTES `[n]`. Raises `Malformed` when they are no texts, or not n."""
    texts = tensor.get("data") if raw is None else _texts_of_bytes(raw, where)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Malformed(f"{where}.data: expected a flat list of texts")
    shape = tensor.get("shape")
    if shape != [len(texts)] or type(shape[0]) is not int:
        raise Malformed(f"{where}.shape: expected [{len(texts)}], the number of texts in data")
    return texts


def _texts_of_bytes(raw: memoryview, where: str) -> list[str]:
    found, at = [], 0
    try:
        while at < len(raw):
            (length,) = _LENGTH.unpack_from(raw, at)
            at += _LENGTH.size + length
            if at > len(raw):
                raise Malformed(f"{where}: binary data ends within an element of BYTES")
            found.append(str(raw[at - length : at], "utf-8"))
    except struct.error as e:
        raise Malformed(f"{where}: binary data ends within the length of an element of BYTES") from e
    except UnicodeDecodeError as e:
        raise Malformed(f"{where}: element {len(found)} of binary data is not UTF-8") from e
    return found


@cache
def _datatypes() -> Mapping[Any, str]:
    """By numpy's types; their names are slow to make."""
    import numpy as np  # noqa: PLC0415  as above

    return {np.dtype(dtype): datatype for dtype, datatype in DATATYPES.items()}


def write_array(name: str, values: Array, *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """A tensor of an answer, and its raw bytes; none when its data is JSON."""
    import numpy as np  # noqa: PLC0415  as above

    tensor: dict[str, Any] = {
        "name": name,
        "datatype": _datatypes()[values.dtype],
        "shape": values.shape,
    }
    if not binary:
        tensor["data"] = np.ascontiguousarray(values).reshape(-1)  # orjson writes it as it is
        return tensor, b""
    raw = raw_bytes(values)
    tensor["parameters"] = {"binary_data_size": len(raw)}
    return tensor, raw


def raw_bytes(values: Array) -> bytes:
    """The raw bytes of an array."""
    return (values if _LITTLE else values.astype(values.dtype.newbyteorder("<"))).tobytes()


def write_texts(name: str, texts: Sequence[str], *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """The same of datatype BYTES."""
    tensor: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [len(texts)]}
    if not binary:
        tensor["data"] = list(texts)
        return tensor, b""
    raw = b"".join(_LENGTH.pack(len(data)) + data for data in (text.encode() for text in texts))
    tensor["parameters"] = {"binary_data_size": len(raw)}
    return tensor, raw
