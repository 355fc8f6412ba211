"""Timing: variants take turns in one process; what disturbs the times is said."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from workshop_tools import CHILD, make_examples, make_onnx, make_variant, shop

from compiler.sources.read import read
from compiler.variant import Variant
from compiler.workshop.cache import Cache
from compiler.workshop.children import COMMAND, Failed
from compiler.workshop.timing import Timed, _doubts, _groups, time_variants
from compiler.workshop.workshop import Workshop, memory_of


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    return make_examples(tmp_path / "test.npz")


@pytest.fixture
def bench(tmp_path: Path) -> Workshop:
    model = make_onnx(tmp_path / "m.onnx")
    around = {"reference": str(model), "source": read(str(model), None), "command": COMMAND}
    return shop(Cache(tmp_path / "cache"), tmp_path, **around)


@pytest.fixture
def variants(tmp_path: Path, bench: Workshop) -> list[Variant]:
    """One small, and one with ten thousand times the work."""
    large = make_onnx(tmp_path / "large.onnx", wide=1600)
    return [
        make_variant(tmp_path / "small", tmp_path / "m.onnx", bench.source),
        make_variant(tmp_path / "large", large, bench.source),
    ]


def timed(found: Timed | Failed) -> Timed:
    assert isinstance(found, Timed), found
    return found


def test_each_variant_gets_as_many_times_as_asked_for_and_more_work_takes_longer(
    bench: Workshop, variants: list[Variant], examples: Path
) -> None:
    small, large = (timed(t) for t in time_variants(bench, variants, examples, samples=60))
    assert (len(small.ms), len(large.ms)) == (60, 60)
    assert 0 < small.p50 < large.p50


def test_the_time_that_all_may_take_is_kept_and_a_few_are_taken_in_any_case(
    bench: Workshop, variants: list[Variant], examples: Path
) -> None:
    begun = time.monotonic()
    found = [timed(t) for t in time_variants(bench, variants, examples, samples=10**6, seconds=0.5)]
    assert time.monotonic() - begun < 30
    assert all(20 <= len(t.ms) < 10**6 for t in found)


def test_a_variant_that_crashes_fails_and_the_others_are_timed_without_it(
    bench: Workshop, variants: list[Variant], examples: Path
) -> None:
    """The accident: the process that times dies of an illegal instruction at the first variant."""
    (variants[0].folder / "crash").touch()
    bench.command = CHILD
    crashed, good = time_variants(bench, variants, examples, samples=20)
    assert isinstance(crashed, Failed)
    assert (crashed.name, crashed.kind) == ("timing small", "Crashed")
    assert "SIGILL" in crashed.reason
    assert len(timed(good).ms) == 20


def test_a_variant_that_the_runtime_refuses_fails_and_the_others_are_timed_without_it(
    bench: Workshop, variants: list[Variant], examples: Path
) -> None:
    variants[1].model.unlink()
    variants[1].model.write_bytes(b"no graph at all")
    good, refused = time_variants(bench, variants, examples, samples=20)
    assert isinstance(refused, Failed)
    assert (refused.kind, len(timed(good).ms)) == ("Incompatible", 20)


def test_examples_that_cannot_be_read_fail_every_variant(
    bench: Workshop, variants: list[Variant], tmp_path: Path
) -> None:
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    found = time_variants(bench, variants, tmp_path / "bad.npz")
    assert all(isinstance(f, Failed) and f.kind == "Malformed" for f in found)


def test_variants_that_do_not_fit_into_the_memory_together_are_timed_in_groups(
    bench: Workshop, variants: list[Variant], examples: Path
) -> None:
    notes: list[str] = []
    bench.note, bench.memory = notes.append, memory_of(variants[1].model)
    assert _groups(variants, bench.memory) == [[0], [1]]
    assert [len(timed(t).ms) for t in time_variants(bench, variants, examples, samples=20)] == [20, 20]
    assert any("timed in 2 groups" in note for note in notes)


def test_other_work_and_a_slower_clock_put_times_in_doubt() -> None:
    quiet = {"others": 0.1, "load": [0.2, 0.9], "ms": [[1.0] * 90, [2.0] * 90]}
    assert list(_doubts(quiet)) == []
    (busy,) = _doubts({**quiet, "others": 1.2})
    assert busy.startswith("timed while other work ran: it took 1.2 processors")
    (hot,) = _doubts({**quiet, "ms": [[1.0] * 60 + [1.3] * 30, [2.0] * 60 + [2.6] * 30]})
    assert "slowed down by 30 %" in hot


@pytest.mark.parametrize("who", ["itself", "a child that ended"])
def test_processor_time_of_this_session_is_not_taken_for_that_of_others(who: str) -> None:
    """In a session of its own: in that of the tests others begin and end."""
    code = """
import os, subprocess, sys, time
from compiler.workshop.machine import Moment

busy = "import os\\nwhile sum(os.times()[:2]) < {}: pass"
before, begun = Moment.now(), time.monotonic()
if sys.argv[1] == "itself":
    exec(busy.format(sum(os.times()[:2]) + 0.3))
else:
    subprocess.run([sys.executable, "-c", busy.format(0.3)], check=True)
after, seconds = Moment.now(), time.monotonic() - begun
assert after.own - before.own > 0.25, (before, after)
assert before.others(after, seconds) * seconds < os.cpu_count() * seconds - 0.2, (before, after)
"""
    subprocess.run([sys.executable, "-c", code, who], check=True, start_new_session=True, timeout=60)


def test_memory_that_is_taken_is_seen() -> None:
    """In a process of its own: one that ran other tests may give memory back meanwhile."""
    code = """
import os
from compiler.workshop.machine import resident

before = resident()
taken = bytearray(os.urandom(1 << 20)) * 64
assert resident() - before > 60 << 20, (before, resident())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
