"""The frames between an agent, or a compiler, and a runtime's worker process: a header in JSON, then raw tensors.

A frame is 4 bytes, the header's length big-endian; the header, a JSON object with `kind`, `tensors` (name, dtype,
shape) and what else the kind needs; and the tensors' numbers in that order, little-endian, last dimension fastest.

    to the worker     run      feeds by name
    from the worker   ready    once, after loading: version of the runtime
                      result   outputs by name
                      error    message: why the runtime does not load the model, or does not run it

For a language model:

    to the worker     generate  `messages` [{role, content}] or `prompt`, max_tokens, temperature, top_p, seed, stop
                      stop      break off the answer under way; between two answers it means nothing
    from the worker   part      of an answer: `text`, `tokens`, their `logprobs` and `margins` (as in a golden case);
                                tokens and text may come apart, as with the bytes of one letter
                      end       of an answer: `finish` (stop, length, stopped), `prompt` and `answer` in tokens
                      error     as above; with `limit` and `prompt`, in tokens, where a prompt is too long

A worker may run on another Python, from 3.9 on: this file needs the standard library alone and imports nothing of ours.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

HEADER = 1024 * 1024
"""Largest header in bytes."""
BODY = 1024 * 1024 * 1024
"""Most bytes of the tensors of one frame."""
SIZES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "float16": 2,
    "int32": 4,
    "float32": 4,
    "int64": 8,
    "float64": 8,
}


class BadFrame(Exception):
    """What came is no frame: the other side speaks something else, or broke off."""


@dataclass(frozen=True)
class Tensor:
    """The raw numbers of an array."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Frame:
    """`fields` are the header's members beside kind and tensors."""

    kind: str
    tensors: list[Tensor] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)


def pack(frame: Frame) -> bytes:
    """A frame as bytes. The inverse of `read`."""
    listed = [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in frame.tensors]
    header = json.dumps({**frame.fields, "kind": frame.kind, "tensors": listed}).encode()
    return b"".join([struct.pack(">I", len(header)), header, *(t.data for t in frame.tensors)])


def read(take: Callable[[int], bytes]) -> Frame | None:
    """The next frame; None at the end. `take(n)` gives `n` bytes, fewer only at the end. Raises `BadFrame`."""
    start = take(4)
    if not start:
        return None
    header = _header(_whole(take, _length(start)))
    listed = [_tensor(entry) for entry in header.pop("tensors")]
    total = sum(size for _, _, _, size in listed)
    if total > BODY:
        raise BadFrame(f"frame: {total} bytes of tensors, the limit is {BODY}")
    tensors = [Tensor(name, dtype, shape, _whole(take, size)) for name, dtype, shape, size in listed]
    return Frame(str(header.pop("kind")), tensors, header)


def _length(start: bytes) -> int:
    length = struct.unpack(">I", start)[0] if len(start) == 4 else 0
    if not 2 <= length <= HEADER:
        raise BadFrame(f"frame: a header of {length} bytes, expected 2 to {HEADER}")
    return int(length)


def _header(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise BadFrame(f"frame: its header is not valid JSON: {e}") from e
    if not isinstance(header, dict) or "kind" not in header or not isinstance(header.get("tensors"), list):
        raise BadFrame("frame: expected a header with kind and tensors")
    return header


def _tensor(entry: Any) -> tuple[str, str, tuple[int, ...], int]:
    """Name, type, shape and bytes of one tensor."""
    try:
        name, dtype, shape = str(entry["name"]), entry["dtype"], tuple(entry["shape"])
        size = SIZES[dtype]
    except (KeyError, TypeError) as e:
        raise BadFrame(f"frame: tensor {str(entry)[:100]}: {e}") from e
    if not all(type(n) is int and n >= 0 for n in shape):
        raise BadFrame(f"frame: tensor {name[:80]}: shape {shape}, expected numbers from 0 on"[:200])
    return name, dtype, shape, size * math.prod(shape)


def _whole(take: Callable[[int], bytes], size: int) -> bytes:
    data = take(size)
    if len(data) != size:
        raise BadFrame(f"frame: it ends after {len(data)} of {size} bytes")
    return data
