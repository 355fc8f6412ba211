"""Frames come back as they were; whatever else comes is `BadFrame`, and never a large allocation."""

from __future__ import annotations

import io
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import frames
from wire.frames import BadFrame, Frame, Tensor

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(sorted(frames.SIZES)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    size = frames.SIZES[dtype] * math.prod(shape)
    return Tensor(draw(st.text(max_size=5)), dtype, shape, draw(st.binary(min_size=size, max_size=size)))


any_frames = st.builds(
    Frame,
    st.text(max_size=8),
    st.lists(tensors(), max_size=3),
    st.dictionaries(st.text(max_size=5).filter(lambda key: key not in ("kind", "tensors")), json_values, max_size=2),
)


def header(value: object) -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack(">I", len(data)) + data


def one(name: str = "x", dtype: object = "int8", shape: object = (1,)) -> dict[str, object]:
    return {"kind": "run", "tensors": [{"name": name, "dtype": dtype, "shape": shape}]}


@given(st.lists(any_frames, max_size=3))
def test_frames_come_back_as_they_were_one_after_the_other(sent: list[Frame]) -> None:
    stream = io.BytesIO(b"".join(map(frames.pack, sent)))
    assert [frames.read(stream.read) for _ in sent] == sent
    assert frames.read(stream.read) is None


@given(any_frames)
def test_a_frame_that_breaks_off_anywhere_is_a_bad_frame(frame: Frame) -> None:
    whole = frames.pack(frame)
    for end in range(1, len(whole)):
        with pytest.raises(BadFrame):
            frames.read(io.BytesIO(whole[:end]).read)


@given(st.binary(min_size=1, max_size=60) | json_values.map(header))
def test_other_bytes_are_a_bad_frame_or_a_frame(data: bytes) -> None:
    try:
        found = frames.read(io.BytesIO(data).read)
    except BadFrame:
        return
    assert isinstance(found, Frame)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0\0", "a header of 0 bytes"),
        (b"\0\0\0\1{", "a header of 1 bytes"),
        (struct.pack(">I", frames.HEADER + 1), f"expected 2 to {frames.HEADER}"),
        (header(b"{]"), "not valid JSON"),
        (header(b"\xff\xff"), "not valid JSON"),
        (header(b"[" * 100_000), "not valid JSON"),
        (header([]), "kind and tensors"),
        (header({"kind": "run"}), "kind and tensors"),
        (header({"tensors": []}), "kind and tensors"),
        (header({"kind": "run", "tensors": {}}), "kind and tensors"),
        (header({"kind": "run", "tensors": [1]}), "tensor 1"),
        (header({"kind": "run", "tensors": [{}]}), "'name'"),
        (header(one(dtype="complex64")), "'complex64'"),
        (header(one(dtype=["int8"])), "unhashable"),
        (header(one(shape=5)), "not iterable"),
        (header(one(shape=[-1])), "expected numbers from 0 on"),
        (header(one(shape=[True])), "expected numbers from 0 on"),
        (header(one(shape=[1.0])), "expected numbers from 0 on"),
        (header(one(shape="12")), "expected numbers from 0 on"),
        (header(one(shape=[2**70])), f"the limit is {frames.BODY}"),
        (header(one(dtype="float64", shape=[frames.BODY // 8, 2])), f"the limit is {frames.BODY}"),
        (header(one(shape=[2])) + b"1", "it ends after 1 of 2 bytes"),
    ],
    ids=range(22),
)
def test_what_is_no_frame_is_said(data: bytes, said: str) -> None:
    with pytest.raises(BadFrame, match=said):
        frames.read(io.BytesIO(data).read)


def test_two_tensors_share_the_limit_and_nothing_is_read_of_a_frame_over_it() -> None:
    half = {"name": "x", "dtype": "int8", "shape": [frames.BODY // 2 + 1]}
    stream = io.BytesIO(header({"kind": "run", "tensors": [half, half]}) + b"1")
    with pytest.raises(BadFrame, match="the limit is"):
        frames.read(stream.read)
    assert stream.read() == b"1"
