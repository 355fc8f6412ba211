"""Deltas: any target comes back from any base, and what is damaged or hostile is refused in bounded memory."""

from __future__ import annotations

import dataclasses
import tracemalloc
import zlib
from contextlib import AbstractContextManager
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire.chunks import digest
from wire.delta import BLOCK, MAX_PARTS, DeltaHeader, Part, join, split
from wire.errors import Incompatible, Malformed
from wire.residual import pack, restore

ZEROS = "sha256:" + 64 * "0"


def header(base: bytes, target: bytes, parts: tuple[Part, ...], *, width: int = 1, block: int = BLOCK) -> DeltaHeader:
    with blocks_of(block):
        return DeltaHeader(
            base=digest(base),
            base_size=len(base),
            target=digest(target),
            target_size=len(target),
            parts=parts,
            width=width,
            block=block,
        )


def blocks_of(size: int) -> AbstractContextManager[object]:
    """Small blocks have the same edges as those of a megabyte."""
    return mock.patch("wire.delta.BLOCK", size)


def under(base: bytes, parts: tuple[Part, ...]) -> bytes:
    return b"".join(bytes(p.size) if p.start is None else base[p.start : p.start + p.size] for p in parts)


def stream(target: bytes, below: bytes, *, width: int, block: int) -> bytes:
    new, old = np.frombuffer(target, np.uint8), np.frombuffer(below, np.uint8)
    packed = (pack(new[i : i + block], old[i : i + block], width) for i in range(0, len(target), block))
    return zlib.compress(b"".join(packed))


def made(head: DeltaHeader, data: bytes, base: bytes, piece: int = 5) -> bytes:
    pieces = (data[i : i + piece] for i in range(0, len(data), piece))
    return b"".join(block for block in restore(head, pieces, lambda at, size: base[at : at + size]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[bytes, bytes, tuple[Part, ...], int, int]:
    base = draw(st.binary(min_size=1, max_size=200))
    target = bytearray(draw(st.binary(min_size=1, max_size=50)))
    target += draw(st.sampled_from([b"", base, base[3:], base[:-5] + b"x"]))
    parts, left = [], len(target)
    while left:
        size = draw(st.integers(1, left)) if len(parts) < 5 else left
        starts = st.none() if size > len(base) else st.none() | st.integers(0, len(base) - size)
        parts.append(Part(size=size, start=draw(starts)))
        left -= size
    width, block = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 64))
    return base, bytes(target), tuple(parts), width, block


@given(cases(), st.integers(1, 100))
def test_any_target_comes_back_from_any_base_over_any_parts(case, piece: int) -> None:
    base, target, parts, width, block = case
    head = header(base, target, parts, width=width, block=block)
    data = join(head) + stream(target, under(base, parts), width=width, block=block)
    with blocks_of(block):
        read, start = split(data)
    assert read == head
    assert made(read, data[start:], base, piece) == target


@given(cases(), st.data())
def test_a_stream_with_a_changed_bit_is_refused_or_makes_another_blob(case, data: st.DataObject) -> None:
    base, target, parts, width, block = case
    head = header(base, target, parts, width=width, block=block)
    sound = stream(target, under(base, parts), width=width, block=block)
    bit = data.draw(st.integers(0, 8 * len(sound) - 1))
    damaged = bytearray(sound)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        result = made(head, bytes(damaged), base)
    except Malformed:
        return
    # A bit that zlib does not look at (a spare one at the end of a block) changes nothing.
    assert result == target


@given(cases(), st.data())
def test_a_stream_that_was_cut_or_goes_on_is_refused(case, data: st.DataObject) -> None:
    base, target, parts, width, block = case
    head = header(base, target, parts, width=width, block=block)
    sound = stream(target, under(base, parts), width=width, block=block)
    for wrong in (sound[: data.draw(st.integers(0, len(sound) - 1))], sound + b"\0"):
        with pytest.raises(Malformed, match="stream"):
            made(head, wrong, base)


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_noise_is_no_delta(noise: bytes) -> None:
    with pytest.raises((Malformed, Incompatible)):
        split(noise)
    head = header(b"base", b"target", (Part(size=6),))
    with pytest.raises(Malformed):
        made(head, noise, b"base")


def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    """A gigabyte of zeros behind a header for one block: what is unpacked is bounded by what is asked for."""
    head = header(bytes(BLOCK), bytes(BLOCK), (Part(size=BLOCK, start=0),), block=BLOCK)
    deflate = zlib.compressobj(9)
    million = bytes(1_000_000)
    bomb = b"".join(deflate.compress(million) for _ in range(1000)) + deflate.flush()
    assert len(bomb) < 2_000_000
    tracemalloc.start()
    with pytest.raises(Malformed, match="goes on"):
        for _ in restore(head, [bomb], lambda _at, size: bytes(size)):
            pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * BLOCK


def test_a_short_base_is_named() -> None:
    head = header(b"abcdef", b"abcdef", (Part(size=6, start=0),))
    with pytest.raises(Malformed, match=digest(b"abcdef")):
        made(head, stream(b"abcdef", b"abcdef", width=1, block=7), b"abc")


def test_a_plane_of_an_unknown_kind_is_refused() -> None:
    head = header(b"a", b"b", (Part(size=1, start=0),))
    with pytest.raises(Malformed, match="kind 7"):
        made(head, zlib.compress(b"\7\1"), b"a")


GOOD = header(b"abcdef", b"abcdef", (Part(size=6, start=0),))


@pytest.mark.parametrize(
    "wrong",
    [
        {"parts": ()},
        {"parts": (Part(size=5, start=0),)},
        {"parts": (Part(size=6, start=1),)},
        {"parts": tuple(Part(size=1) for _ in range(MAX_PARTS + 1)), "target_size": MAX_PARTS + 1},
        {"width": 3},
        {"block": 0},
        {"block": 1},
        {"block": BLOCK - 1},
        {"block": BLOCK + 1},
        {"base": "md5:1"},
        {"base_size": -1},
    ],
)
def test_a_header_that_does_not_add_up_is_refused(wrong) -> None:
    with pytest.raises(Malformed):
        dataclasses.replace(GOOD, **wrong)


@pytest.mark.parametrize(("size", "start"), [(0, 0), (-1, None), (1, -1)])
def test_a_part_of_nothing_or_from_nowhere_is_refused(size: int, start: int | None) -> None:
    with pytest.raises(Malformed):
        Part(size=size, start=start)


def test_a_method_that_is_not_known_is_refused() -> None:
    data = join(GOOD).replace(b"residual-zlib", b"residual-new!")
    with pytest.raises(Malformed, match="method"):
        split(data)


def test_a_header_over_its_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(Malformed, match="limit"):
        split((DeltaHeader.LIMIT + 1).to_bytes(4, "big") + bytes(100))
