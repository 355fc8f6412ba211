"""Making deltas: weights that moved a little, files that grew, and what nothing can be made of."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.bundle.align import align
from compiler.delta import CHUNKS, DELTA, make_delta
from compiler.errors import Malformed
from compiler.progress import Reporter
from wire.build import Progress
from wire.chunks import WHOLE, ChunkList, digest
from wire.delta import Part, split
from wire.residual import Bytes, restore

SIZE = 3_000_000


def weights(seed: int, size: int = SIZE) -> Bytes:
    return np.random.default_rng(seed).normal(0, 30, size).clip(-127, 127).astype(np.int8).view(np.uint8)


def moved(data: Bytes, seed: int, share: float = 0.08) -> Bytes:
    rng = np.random.default_rng(seed)
    return data + (rng.random(len(data)) < share).astype(np.uint8) * rng.choice([1, 255], len(data)).astype(np.uint8)


def floats(by: float = 0.0) -> bytes:
    """Thirty tensors, each behind its name as a file has it; every weight moved by about `by`."""
    first, second = np.random.default_rng(1), np.random.default_rng(2)
    tensors = (first.normal(0, 0.05, 25_000) + second.normal(0, 1, 25_000) * by for _ in range(30))
    return b"".join(
        f"encoder.layer.{i}.attention.output.dense.weight".encode() + tensor.astype(np.float32).tobytes()
        for i, tensor in enumerate(tensors)
    )


def delta(folder: Path, base: bytes, target: bytes) -> bytes:
    (folder / "base").write_bytes(base)
    (folder / "target").write_bytes(target)
    make_delta(folder / "base", folder / "target", folder / "out", Reporter(io.BytesIO()))
    data = (folder / "out" / DELTA).read_bytes()
    header, start = split(data)
    assert (header.base, header.target) == (digest(base), digest(target))
    made = b"".join(block for block in restore(header, [data[start:]], lambda at, size: base[at : at + size]))
    assert made == target
    return data


def test_weights_that_moved_a_little_take_a_twelfth_of_the_file(tmp_path: Path) -> None:
    base = weights(1)
    assert len(delta(tmp_path, base.tobytes(), moved(base, 2).tobytes())) < 0.085 * SIZE


def test_retrained_tail_costs_no_more_than_the_tail(tmp_path: Path) -> None:
    base = weights(1)
    target = np.concatenate([base[:-100_000], weights(5, 100_000)])
    assert len(delta(tmp_path, base.tobytes(), target.tobytes())) < 110_000


def test_weights_that_shift_because_a_header_grew_are_found_again(tmp_path: Path) -> None:
    base = weights(1)
    target = moved(base, 2)
    grown = target[:1000].tobytes() + b"a longer header" + target[1000:].tobytes() + b"and a tail"
    data = delta(tmp_path, base.tobytes(), grown)
    assert len(data) < 0.085 * SIZE
    assert split(data)[0].parts == (
        Part(size=1000, start=0),
        Part(size=SIZE - 1000 + 15, start=985),
        Part(size=10),
    )


def test_floats_are_sorted_by_the_bytes_of_a_number_and_found_although_most_bytes_changed(tmp_path: Path) -> None:
    base, target = floats(), floats(by=1e-6)
    assert np.mean(np.frombuffer(base, np.uint8) != np.frombuffer(target, np.uint8)) > 0.3
    data = delta(tmp_path, base, b"a new header" + target)
    assert split(data)[0].width == 4
    assert len(data) < 0.5 * len(target)


def test_tensors_that_changed_places_are_found(tmp_path: Path) -> None:
    base = weights(1)
    swapped = np.concatenate([base[2_000_000:], base[:2_000_000]])
    assert len(delta(tmp_path, base.tobytes(), swapped.tobytes())) < 0.01 * SIZE


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=1, max_size=300), st.binary(min_size=1, max_size=300), st.data())
def test_any_two_files_align_within_both(old: bytes, new: bytes, data: st.DataObject) -> None:
    new = data.draw(st.sampled_from([new, old + new, new + old, old[10:] or new]))
    parts = align(np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8))
    assert sum(part.size for part in parts) == len(new)
    assert all(part.start is None or part.start + part.size <= len(old) for part in parts)


def test_two_files_without_anything_in_common_still_make_a_delta(tmp_path: Path) -> None:
    data = delta(tmp_path, weights(1).tobytes(), os.urandom(400_000))
    assert len(data) < 401_000
    assert ChunkList.from_bytes((tmp_path / "out" / CHUNKS).read_bytes()).blob == digest(data)


def test_many_anchors_of_many_shifts_stay_within_the_parts_of_a_header(tmp_path: Path) -> None:
    base = weights(1)
    pieces = [base[i : i + 2000] for i in range(0, SIZE, 2000)]
    np.random.default_rng(3).shuffle(pieces)
    delta(tmp_path, base.tobytes(), np.concatenate(pieces).tobytes())


def test_a_small_delta_travels_whole_and_needs_no_chunk_list(tmp_path: Path) -> None:
    base = weights(1)
    assert len(delta(tmp_path, base.tobytes(), base.tobytes() + b"x")) < WHOLE
    assert not (tmp_path / "out" / CHUNKS).exists()


def test_an_empty_file_is_refused_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "base").touch()
    (tmp_path / "target").write_bytes(b"x")
    with pytest.raises(Malformed, match="base is empty"):
        make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "out", Reporter(io.BytesIO()))


def test_the_command_writes_a_delta_and_says_how_large_it_is(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(weights(1, 500_000).tobytes())
    (tmp_path / "target").write_bytes(moved(weights(1, 500_000), 2).tobytes())
    words = ["--base", tmp_path / "base", "--target", tmp_path / "target", "--output", tmp_path / "out"]
    command = [sys.executable, "-P", "-m", "compiler", "delta", *map(str, words)]
    ended = subprocess.run(command, check=True, capture_output=True, timeout=60)
    last = Progress.from_bytes(ended.stdout.splitlines()[-1])
    assert (last.event, str((tmp_path / "out" / DELTA).stat().st_size) in last.message) == ("done", True)
