"""The workshop: passes in child processes, each made once, whatever becomes of a child or of the workshop itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from workshop_tools import A_SOURCE, copying, make_examples, make_onnx, shop

from compiler.sources.read import read
from compiler.workshop.cache import Cache
from compiler.workshop.children import COMMAND, Answer, Children, Failed, Task
from compiler.workshop.workshop import Product
from wire.lineage import PassRecord

PARENT = Path(__file__).parents[1] / "workshop_parent.py"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def scratch(cache: Cache) -> Iterator[Path]:
    with cache.scratch() as folder:
        yield folder


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the test program's passes did."""
    path = tmp_path / "log"
    path.touch()
    monkeypatch.setenv("PASS_LOG", str(path))
    return path


def began(log: Path) -> list[str]:
    return [line.partition(" begins")[0] for line in log.read_text().splitlines() if " begins" in line]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def failed(found: Product | Failed) -> Failed:
    assert isinstance(found, Failed)
    return found


def product(found: Product | Failed) -> Product:
    assert isinstance(found, Product), found
    return found


def test_recipes_that_begin_alike_share_their_beginning_and_a_second_build_makes_nothing(
    cache: Cache, scratch: Path, log: Path
) -> None:
    wanted = [copying("a", "b"), copying("a", "c"), copying("a")]
    first = [product(p) for p in shop(cache, scratch).make(wanted)]
    assert [p.path.read_text() for p in first] == ["a.b.", "a.c.", "a."]
    assert [(p.cached, p.size) for p in first] == [(False, 4), (False, 4), (False, 2)]
    assert all(p.peak > 1 << 20 for p in first)
    assert sorted(began(log)) == ["copy a", "copy b", "copy c"]
    again = [product(p) for p in shop(cache, scratch).make(wanted)]
    assert [(p.digest, p.cached) for p in again] == [(p.digest, True) for p in first]
    assert len(began(log)) == 3


def test_a_file_is_made_again_for_another_parameter_source_or_calibration_and_for_nothing_else(
    cache: Cache, scratch: Path, log: Path, tmp_path: Path
) -> None:
    shop(cache, scratch).make([copying("a")])
    other = replace(A_SOURCE, digest="sha256:" + "1" * 64)
    shop(cache, scratch, source=other).make([copying("a")])
    shop(cache, scratch).make([copying("b")])
    assert began(log) == ["copy a", "copy a", "copy b"]
    examples = make_examples(tmp_path / "calibration.npz")
    shop(cache, scratch, calibration=examples).make([copying("b")])
    assert len(began(log)) == 3, "a pass that observes no activations does not depend on calibration examples"


def test_a_pass_that_observes_activations_is_another_with_other_examples(
    cache: Cache, scratch: Path, tmp_path: Path
) -> None:
    files = [make_examples(tmp_path / f"{n}.npz", rows=n) for n in (8, 9)]
    static = [PassRecord(name="onnx.prepare"), PassRecord(name="onnx.int8-static")]
    first, other = (shop(cache, scratch, calibration=f)._chain(static) for f in files)
    assert first[0].key == other[0].key
    assert first[1].key != other[1].key


def test_a_damaged_file_is_made_again(cache: Cache, scratch: Path, log: Path) -> None:
    """The accident: a byte of a file in the cache turned over."""
    (made,) = shop(cache, scratch).make([copying("a")])
    product(made).path.write_bytes(b"b.")
    (again,) = shop(Cache(cache.folder), scratch).make([copying("a")])
    assert (product(again).cached, product(again).path.read_bytes()) == (False, b"a.")
    assert began(log) == ["copy a", "copy a"]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("segfault", "Crashed", "crashed (SIGSEGV)"),
        ("killed", "OutOfMemory", "as the system does when it is out of memory"),
        ("devour", "OutOfMemory", "out of memory at"),
        ("hang", "TooSlow", "not done after 3.0 s"),
        ("refuse", "Incompatible", "it has an operator Foo that nothing takes"),
        ("break", "ValueError", "a shape of 3 where 4 was expected"),
        ("leave", "Crashed", "ended with code 7 and no answer: no space left in the arena"),
        ("nothing", "Malformed", "wrote no file"),
    ],
)
def test_a_pass_that_goes_wrong_fails_with_a_reason_in_words_and_the_others_go_on(
    cache: Cache, scratch: Path, name: str, kind: str, words: str
) -> None:
    """The accident is the pass `name` of the test program."""
    notes: list[str] = []
    wrong = PassRecord(name=name)
    bench = shop(cache, scratch, note=notes.append, deadline=3.0)
    found = bench.make([[wrong], [*copying("a"), wrong, *copying("b")], copying("a", "c")])
    assert [(failed(f).name, failed(f).kind) for f in found[:2]] == [(name, kind)] * 2
    assert words in failed(found[0]).reason
    assert product(found[2]).path.read_text() == "a.c."
    assert any(f"{name} failed: " in note for note in notes)


def test_a_child_gets_nothing_that_opens_a_registry_of_models(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: the code of a model, which runs in a child, looks for the registry's password."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    told = "import json, os; print(json.dumps({'ok': 1, 'names': sorted(os.environ)}))"
    with Children((sys.executable, "-c", told), scratch, processes=1, memory=1, note=print) as children:
        children.start(Task("look", (), b"", memory=1, deadline=30.0))
        _, answer = children.wait()
    assert isinstance(answer, Answer)
    assert "PASS_LOG" in answer.facts["names"]
    assert [name for name in answer.facts["names"] if name.startswith("MLFLOW_")] == []


def test_only_what_cannot_be_is_remembered_as_failed(cache: Cache, scratch: Path, log: Path) -> None:
    wanted = [[PassRecord(name="refuse")], [PassRecord(name="segfault")]]
    first = shop(cache, scratch).make(wanted)
    second = shop(cache, scratch).make(wanted)
    assert [failed(f).reason for f in second] == [failed(f).reason for f in first]
    assert sorted(began(log)) == ["refuse", "segfault", "segfault"]


def test_passes_run_side_by_side_while_their_memory_fits(cache: Cache, scratch: Path) -> None:
    found = shop(cache, scratch, deadline=20.0).make([copying(t, name="meet") for t in "ab"])
    assert all(product(p).path.read_text() for p in found)


def test_passes_run_one_after_the_other_when_their_memory_does_not_fit_together(
    cache: Cache, scratch: Path, log: Path
) -> None:
    found = shop(cache, scratch, memory=1).make([copying(t) for t in "abc"])
    assert all(product(p) for p in found)
    states = [line.split()[2] for line in log.read_text().splitlines()]
    assert states == ["begins", "ends"] * 3


def test_what_was_measured_of_a_pass_counts_more_than_what_was_expected_of_it(cache: Cache, scratch: Path) -> None:
    """Each `copy` is expected to take 200 MB; it takes a tenth of that, so two fit where one was allowed."""
    bench = shop(cache, scratch, memory=250 * 10**6, deadline=20.0)
    bench.make([copying("a")])
    bench._peaks["meet"] = bench._peaks["copy"]
    assert all(product(p) for p in bench.make([copying(t, name="meet") for t in "bc"]))


def alive(log: Path, name: str) -> Path:
    """Where the system lists the process of the pass `name`."""
    line = next(line for line in log.read_text().splitlines() if line.startswith(f"{name} begins"))
    return Path("/proc", line.split()[-1])


def start_parent(cache: Cache) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", str(PARENT), str(cache.folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PARENT.parent)},
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_build_leaves_no_process_and_the_next_one_makes_only_the_rest(
    cache: Cache, log: Path, number: int
) -> None:
    """The accident: the workshop's process is killed, or interrupted, in its third pass."""
    with start_parent(cache) as parent:
        wait_until(lambda: "gate three" in began(log), "the third pass never began")
        process = alive(log, "gate three")
        assert process.exists()
        parent.send_signal(number)
        assert parent.wait(30) != 0
    wait_until(lambda: not process.exists() or "Z" in (process / "stat").read_text(), "the pass outlived its workshop")
    log.with_name("open").touch()
    with start_parent(cache) as parent:
        assert parent.stdout
        said = parent.stdout.read().decode()
        assert parent.wait(30) == 0
    assert "Product(" in said
    assert began(log) == ["copy one", "copy two", "gate three", "gate three"]
    assert [p.name for p in (cache.folder / "scratch").iterdir()] == [".lock"]


def test_real_passes_make_real_files_and_the_note_tells_time_and_memory(
    cache: Cache, scratch: Path, tmp_path: Path
) -> None:
    model = make_onnx(tmp_path / "m.onnx")
    export, prepare, dynamic = (
        PassRecord(name=name, parameters={"opset": 17, "ir": 8})
        for name in ("onnx.export", "onnx.prepare", "onnx.int8-dynamic")
    )
    notes: list[str] = []
    around = {"reference": str(model), "source": read(str(model), None), "command": COMMAND, "note": notes.append}
    wanted = [[export], [export, prepare, dynamic], [PassRecord(name="onnx.unheard")]]
    whole, small, unknown = shop(cache, scratch, **around).make(wanted)
    assert product(small).digest != product(whole).digest
    assert failed(unknown).kind == "Malformed"
    assert "pass onnx.unheard: there is none of this name" in failed(unknown).reason
    assert any(note.startswith("onnx.export took ") and note.endswith(" at its peak") for note in notes)
    assert list(scratch.glob("child-*")) == []
