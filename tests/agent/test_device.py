"""What the agent is made of: its state file, its self-test process, the machine it stands on, and what it imports."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import make_layout, pipeline

from agent.errors import Incompatible, Unavailable
from agent.life import hardware
from agent.life.health import HealthMeter, temperature
from agent.serving import runtimes, selftest
from agent.serving.bundles import Bundle, Model, prepare
from agent.store.blobs import Blobs
from agent.store.state import SECURITY_KEPT, StateFile
from agent.update import ModelState
from wire.messages import SecurityEvent
from wire.processing import example_of, golden_fault

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_damaged_state_file_is_an_error_that_says_what_to_do(tmp_path) -> None:
    path = tmp_path / "agent.db"
    path.write_bytes(b"this is no database " * 100)
    with pytest.raises(Unavailable, match=r"agent\.db: the agent's state is damaged .*enrol this device again"):
        StateFile.open(path)


def test_a_state_file_of_a_newer_agent_is_left_alone(tmp_path) -> None:
    state = StateFile.open(tmp_path / "agent.db")
    state._db.execute("PRAGMA user_version=99")
    state._write_spare()  # as that agent does
    state.close()
    with pytest.raises(Unavailable, match="newer agent"):
        StateFile.open(tmp_path / "agent.db")


def test_a_desired_state_is_accepted_whole_or_not_at_all(tmp_path) -> None:
    """Accident: the disk fails between two rows of one change."""
    state = StateFile.open(tmp_path / "agent.db")
    state.accept_desired((1, 1), {"kitchen": ModelState()})
    state._db.execute("CREATE TRIGGER full BEFORE INSERT ON models BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    with pytest.raises(Unavailable, match="disk full"):
        state.accept_desired((1, 2), {"lock": ModelState()})
    assert (state.last_desired(), list(state.models())) == ((1, 1), ["kitchen"])
    state.close()


def test_only_the_newest_security_events_are_kept(tmp_path) -> None:
    state = StateFile.open(tmp_path / "agent.db")
    for i in range(SECURITY_KEPT + 5):
        state.note_security(SecurityEvent(at="2026-11-22T08:00:00.000Z", subject=f"s{i}", reason="r"))
    events = state.security()
    assert (len(events), events[0].subject) == (SECURITY_KEPT, "s5")
    state.close()


def test_a_runtime_that_dies_of_an_illegal_instruction_kills_only_the_self_test(tmp_path, monkeypatch) -> None:
    """Accident: the runtime was built for another processor."""
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nkill -ILL $$\n")
    fake.chmod(0o755)
    monkeypatch.setattr(selftest.sys, "executable", str(fake))
    with pytest.raises(Incompatible, match="died of SIGILL on this hardware"):
        asyncio.run(selftest.self_test(tmp_path, "sha256:" + "0" * 64, 10, {}))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("#!/bin/sh\n", "ended without a result"),
        ("#!/bin/sh\necho bye\n", "ended without a result: 'bye"),
        ("#!/bin/sh\necho 7\n", "ended without a result"),
        ("#!/bin/sh\nkill -40 $$\n", "died of signal 40"),
        ("#!/nobody/there\n", "does not start: No such file"),
    ],
)
def test_a_self_test_that_says_nothing_or_does_not_start_is_a_fault_in_words(
    tmp_path, monkeypatch, program: str, words: str
) -> None:
    """Accident: a runtime that closes standard output, a signal without a name, a system without room for a process."""
    fake = tmp_path / "python"
    fake.write_text(program)
    fake.chmod(0o755)
    monkeypatch.setattr(selftest.sys, "executable", str(fake))
    with pytest.raises(Incompatible, match=words):
        asyncio.run(selftest.self_test(tmp_path, "sha256:" + "0" * 64, 10, {}))


def test_a_self_test_that_hangs_is_ended(tmp_path, monkeypatch) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexec sleep 1000\n")
    fake.chmod(0o755)
    monkeypatch.setattr(selftest.sys, "executable", str(fake))
    with pytest.raises(Incompatible, match="no result within"):
        asyncio.run(selftest.self_test(tmp_path, "sha256:" + "0" * 64, 0.2, {}))


def test_a_self_test_of_a_bundle_that_is_not_there_says_so(tmp_path) -> None:
    with pytest.raises(Incompatible, match=r"self-test: .*not readable"):
        asyncio.run(selftest.self_test(tmp_path / "blobs", "sha256:" + "0" * 64, 60, {}))


def test_the_golden_set_holds_in_this_runtime_and_gives_times(tmp_path) -> None:
    bundle = make_layout(tmp_path, rows=64)
    outcome = asyncio.run(selftest.self_test(tmp_path / "blobs" / "sha256", bundle.digest, 60, {}))
    assert outcome.fault is None
    assert outcome.p99_ms >= outcome.p50_ms > 0


def test_a_file_that_is_no_model_is_refused_by_each_runtime_in_words(tmp_path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"not a model at all")
    assert runtimes.installed({}) >= {"onnxruntime", "litert"}
    for runtime in ("onnxruntime", "litert", "tensorrt"):
        with pytest.raises(Incompatible, match=runtime):
            runtimes.load_graph(runtime, path, pipeline(), {})


def test_inputs_that_a_graph_does_not_take_are_refused_in_words(tmp_path) -> None:
    made = make_layout(tmp_path, rows=64)
    prepare()
    bundle = Bundle.open(Blobs(tmp_path / "blobs" / "sha256", 0), made.digest)
    graph = runtimes.load_graph("onnxruntime", bundle.model, bundle.pipeline, {})
    with pytest.raises(Incompatible, match="does not run it"):
        graph.run({})
    case = bundle.golden.cases[0]
    result = Model.load(bundle, {}).answer(example_of(case))
    assert golden_fault(case, result, bundle.golden.max_abs) is None


def test_the_board_is_read_from_the_device_tree(tmp_path) -> None:
    tree = tmp_path / "proc" / "device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(b"Raspberry Pi 4 Model B Rev 1.4\0")
    (tmp_path / "proc" / "cpuinfo").write_text("processor : 0\nmodel name : Some CPU\n")
    found = hardware.detect(tmp_path)
    assert (found.board, found.cpu) == ("Raspberry Pi 4 Model B Rev 1.4", "Some CPU")
    assert hardware.detect(tmp_path / "nothing").board == ""


def test_health_has_figures_and_the_warmest_zone(tmp_path) -> None:
    for i, text in enumerate(("41500", "bad", "60250")):
        zone = tmp_path / f"thermal_zone{i}"
        zone.mkdir()
        (zone / "temp").write_text(text)
    assert temperature(tmp_path) == 60.25
    assert temperature(tmp_path / "none") is None
    sample = HealthMeter(tmp_path).sample()
    assert 0 < sample.agent_memory < sample.memory_total
    assert 0 <= sample.disk_free <= sample.disk_total


def test_cpu_is_that_of_the_whole_machine_however_many_cores_it_has(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("psutil.cpu_percent", lambda _interval: 50.0)
    assert HealthMeter(tmp_path).sample().cpu_percent == 50.0


def test_an_agent_without_a_model_imports_nothing_heavy_and_nothing_of_the_fleet() -> None:
    heavy = (
        "torch onnx onnxruntime numpy ai_edge_litert kitoken pydantic fastapi starlette rich typer fleet compiler cli"
    )
    code = f"import sys, agent.main; print([m for m in {heavy.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"
