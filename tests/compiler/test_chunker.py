"""The cutter's laws, on generated data."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.bundle.chunker import chunk_list, cuts
from wire.chunks import AVERAGE, SMALLEST, WHOLE, digest


def noise(n: int, seed: bytes = b"noise") -> bytes:
    return hashlib.shake_128(seed).digest(n)


blobs = st.builds(
    lambda pieces: b"".join(noise(n, b"%d" % n) if random else b"\0" * n for n, random in pieces),
    st.lists(st.tuples(st.integers(1, 700_000), st.booleans()), min_size=1, max_size=5),
)


@settings(max_examples=40, deadline=None)
@given(blobs)
def test_chunks_put_together_are_the_blob(data: bytes) -> None:
    listed = chunk_list(data)
    parts = [data[o : o + c.size] for o, c in zip(listed.offsets, listed.chunks, strict=True)]
    assert b"".join(parts) == data
    assert [digest(part) for part in parts] == [c.digest for c in listed.chunks]


@settings(max_examples=40, deadline=None)
@given(blobs)
def test_every_chunk_but_the_last_keeps_the_bounds(data: bytes) -> None:
    sizes = [c.size for c in chunk_list(data).chunks]
    assert all(SMALLEST <= size <= WHOLE for size in sizes[:-1])
    assert 0 < sizes[-1] <= WHOLE


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 4_000_000), st.integers(1, 5000))
def test_an_insertion_changes_only_the_chunks_around_it(at: int, length: int) -> None:
    data = noise(4_000_000)
    before = {c.digest for c in chunk_list(data).chunks}
    after = [c.digest for c in chunk_list(data[:at] + b"x" * length + data[at:]).chunks]
    assert sum(d not in before for d in after) <= 8


def test_chunks_of_random_data_come_to_the_average() -> None:
    sizes = [c.size for c in chunk_list(noise(16_000_000)).chunks]
    assert 0.8 * AVERAGE < sum(sizes) / len(sizes) < 1.2 * AVERAGE


def test_cuts_do_not_depend_on_where_the_hashing_is_split() -> None:
    data = noise(9_000_000)
    last = 0
    for end in cuts(data):
        # The next cut depends only on what follows the last one.
        assert next(iter(cuts(data[last : last + 2 * WHOLE]))) == end - last
        last = end
