"""Runtimes in processes of their own, and TFLite files, here and there; TorchScript is in this environment."""

# ruff: noqa: PLC0415  torch takes seconds: only the tests that ask it wait for it
from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import venv
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny_flatbuffers import for_lengths, recurrent, running_sum
from tiny_tasks import TASKS, TinyTask, spec

from agent.errors import Incompatible, Unavailable
from agent.serving import worker
from agent.serving.bundles import Bundle
from agent.serving.runtimes import LoadedGraph, installed, load_graph
from agent.serving.selftest import self_test
from agent.serving.service import Served
from agent.serving.worker import Worker
from agent.store.blobs import Blobs
from wire.pipeline import Pipeline

TORCH = {"torchscript": sys.executable}
TFLITE_RUNTIME = ("tflite-runtime==2.14.0", "numpy==1.26.4")
X = np.float32([[1, 2]])


def around(runtime: str) -> Pipeline:
    """What stands around the TorchScript of `doubling`."""
    first = "output_0" if runtime == "torchscript" else "y"
    return Pipeline(task="tensors", inputs=(spec("x", 1, -1),), outputs=(spec(first, 1, -1),), activation="none")


@pytest.fixture(scope="session")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TorchScript: `x` to `2 x`; it says so a thousand times, and refuses numbers below 0."""
    import torch

    torch.set_num_threads(1)

    class Doubling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert bool((x >= 0).all()), "below 0"
            for _ in range(1000):
                print("I double, and I say so, and what I say is longer than any pipe holds at once")
            return x * 2

    path = tmp_path_factory.mktemp("torchscript") / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the format is what a source may come in
        torch.jit.script(Doubling()).save(str(path))
    return path


@pytest.fixture
def started(doubling: Path) -> Iterator[Worker]:
    made = Worker(sys.executable, "torchscript", doubling)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """No process and no open pipe stays behind."""
    before = pipes()
    yield
    assert psutil.Process().children() == []
    assert pipes() <= before


def pipes() -> int:
    """Open pipes of this process."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            found += str(descriptor.readlink()).startswith("pipe:")
    return found


def pid(one: Worker) -> int:
    assert one._process is not None
    return one._process._popen.pid


def suspended(one: Worker) -> psutil.Process:
    """Its process, stopped: a signal takes its time."""
    process = psutil.Process(pid(one))
    process.suspend()
    deadline = time.monotonic() + 10
    while process.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
    return process


def program(path: Path, text: str) -> str:
    """A program that is started in the place of a Python."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


# --- TorchScript --------------------------------------------------------------------------------------------------


def test_a_worker_answers_says_its_version_and_is_not_disturbed_by_what_the_runtime_prints(started: Worker) -> None:
    import torch

    assert started.version == torch.__version__
    for size in (2, 3, 200_000):  # 800 kB: more than any pipe holds
        values = np.random.default_rng(size).random((1, size)).astype(np.float32)
        assert np.array_equal(started.run({"x": values})["output_0"], values * 2)


def test_a_run_that_the_runtime_refuses_is_an_error_and_the_next_one_is_answered(started: Worker) -> None:
    first = pid(started)
    with pytest.raises(Incompatible, match=r"(?s)torchscript does not run it: .*below 0"):
        started.run({"x": -X})
    with pytest.raises(Incompatible, match="missing value for argument 'x'"):
        started.run({"y": X})
    assert np.array_equal(started.run({"x": X})["output_0"], 2 * X)
    assert pid(started) == first


def test_a_worker_that_is_killed_in_the_middle_fails_one_request_and_answers_the_next(
    started: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accident: out of memory."""
    first = suspended(started)
    write = worker._Process.write

    def write_and_kill(process: worker._Process, data: bytes, deadline: float) -> None:
        write(process, data, deadline)  # the request is with it, and it has not answered
        first.kill()

    with monkeypatch.context() as patch:
        patch.setattr(worker._Process, "write", write_and_kill)
        with pytest.raises(Unavailable, match="worker torchscript: it died of SIGKILL"):
            started.run({"x": X})
    assert np.array_equal(answer_when_it_may(started)["output_0"], 2 * X)
    assert pid(started) != first.pid


def test_a_worker_that_died_between_two_requests_is_started_again(started: Worker) -> None:
    first = psutil.Process(pid(started))
    first.kill()
    with pytest.raises(Unavailable, match="it died of SIGKILL"):
        started.run({"x": X})
    assert np.array_equal(answer_when_it_may(started)["output_0"], 2 * X)


def answer_when_it_may(one: Worker) -> dict[str, np.ndarray]:
    """Asked again until the pause between two starts is over."""
    deadline = time.monotonic() + worker.PAUSE + 10
    while time.monotonic() < deadline:
        with suppress(Unavailable):
            return one.run({"x": X})
    raise AssertionError


def test_two_starts_in_a_row_are_apart(started: Worker) -> None:
    started._started = time.monotonic()  # as if it had only just been started
    os.kill(pid(started), signal.SIGKILL)
    with pytest.raises(Unavailable, match="it died of SIGKILL"):
        started.run({"x": X})
    with pytest.raises(Unavailable, match=r"it ended a moment ago: ask again in [01]\.\d s"):
        started.run({"x": X})


@pytest.mark.parametrize("size", [2, 1_000_000])
def test_a_worker_that_hangs_is_ended_at_the_deadline(
    started: Worker, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """While it should answer, and while it should read: 4 MB do not fit in a pipe."""
    hung = suspended(started)
    monkeypatch.setattr(worker, "RUN_TIME", 0.3)
    with pytest.raises(Unavailable, match="no answer within 0 s: it was ended"):
        started.run({"x": np.ones((1, size), np.float32)})
    assert not hung.is_running()


def test_a_worker_ends_with_the_process_that_started_it(doubling: Path) -> None:
    """Also while its runtime hangs: a stopped process does not see that its input ended."""
    code = (
        "import os, signal, sys; from pathlib import Path; from agent.serving.worker import Worker\n"
        f"w = Worker({sys.executable!r}, 'torchscript', Path({str(doubling)!r})); p = w._process._popen.pid\n"
        "os.kill(p, signal.SIGSTOP); print(p, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(worker.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(done.stdout)) and psutil.Process(int(done.stdout)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_terminal_signal_for_the_whole_group_leaves_the_worker_to_the_agent(started: Worker) -> None:
    """systemd sends SIGTERM to every process of a unit."""
    os.kill(pid(started), signal.SIGTERM)
    assert np.array_equal(started.run({"x": X})["output_0"], 2 * X)


# --- what is no worker --------------------------------------------------------------------------------------------


def test_a_file_that_is_no_model_is_refused_and_no_process_stays(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"no model" * 10)
    with pytest.raises(Incompatible, match="torchscript does not load it"):
        Worker(sys.executable, "torchscript", tmp_path / "m")


def test_an_environment_without_the_runtime_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match=f"tflite-runtime is not in the environment of {sys.executable}: install it"):
        Worker(sys.executable, "tflite-runtime", running_sum(tmp_path / "m.tflite"))


def test_a_runtime_without_an_environment_is_refused_with_what_to_do(tmp_path: Path) -> None:
    assert installed({}).isdisjoint({"tflite-runtime", "torchscript"})
    with pytest.raises(Incompatible, match=r'install tflite-runtime there, and set workers = "tflite-runtime=/'):
        load_graph("tflite-runtime", tmp_path, around("tflite-runtime"), {})


def test_a_python_that_is_not_there_is_named_with_the_setting(tmp_path: Path) -> None:
    gone = str(tmp_path / "bin" / "python")
    assert "torchscript" not in installed({"torchscript": gone})
    with pytest.raises(Unavailable, match=f"{gone}: No such file or directory: see the setting 'workers'"):
        Worker(gone, "torchscript", tmp_path)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo no memory left >&2; kill -9 $$", "it died of SIGKILL: no memory left"),
        ("echo cannot >&2; exit 3", "it closed its output: cannot"),
        ("exec yes", "a header of [0-9]+ bytes"),
        ("exec 3>&1; exec yes >&2", "no answer within 1 s"),
        ("exec sleep 1000", "no answer within 1 s"),
        (
            """exec 2>&-; printf '\\0\\0\\0\\040{"kind": "other", "tensors": []}'; exec sleep 1000""",
            "it answered 'other'",
        ),
    ],
)
def test_whatever_a_program_does_instead_of_loading_it_is_ended_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    """It dies, floods its output or its errors, hangs, or speaks another language."""
    monkeypatch.setattr(worker, "LOAD_TIME", 1.0)
    monkeypatch.setattr(worker, "GRACE", 0.3)
    with pytest.raises(Unavailable, match=f"worker torchscript: .*{said}"):
        Worker(program(tmp_path / "python", script), "torchscript", tmp_path / "m")


# --- a bundle -----------------------------------------------------------------------------------------------------


def bundle_of(doubling: Path) -> TinyTask:
    return TinyTask(
        pipeline=around("torchscript"),
        model=doubling.read_bytes(),
        cases=[({"x": X}, {"output_0": 2 * X[0]}, ())],
        runtime="torchscript",
        file="model.pt",
    )


def test_a_bundle_for_torchscript_is_tested_and_served_by_a_worker(tmp_path: Path, doubling: Path) -> None:
    bundle = bundle_of(doubling).write(tmp_path)
    store = Blobs(bundle.layout / "blobs" / "sha256", min_free=0)
    asyncio.run(self_test(store.folder, bundle.digest, 120, TORCH))
    with pytest.raises(Incompatible, match="self-test: runtime torchscript: it runs in an environment of its own"):
        asyncio.run(self_test(store.folder, bundle.digest, 120, {}))
    served = Served.load(Bundle.open(store, bundle.digest), TORCH)
    (result,) = asyncio.run(served.answer(({"x": 3 * X},)))
    assert np.array_equal(result.outputs["output_0"], 6 * X[0])
    served.retire()
    served._worker.shutdown(wait=True)


def test_a_model_that_fails_its_first_answer_leaves_no_process(tmp_path: Path, doubling: Path) -> None:
    task = bundle_of(doubling)
    bundle = replace(task, cases=[({"x": -X}, {"output_0": -2 * X[0]}, ())]).write(tmp_path)
    store = Blobs(bundle.layout / "blobs" / "sha256", min_free=0)
    with pytest.raises(Incompatible, match="below 0"):
        Served.load(Bundle.open(store, bundle.digest), TORCH)


# --- TFLite files -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with tflite-runtime and the numpy that it needs."""
    folder = tmp_path_factory.mktemp("tflite-runtime")
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", *TFLITE_RUNTIME]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    if done.returncode:
        pytest.skip(f"tflite-runtime is not to be had: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture(params=["litert", pytest.param("tflite-runtime", marks=[pytest.mark.slow, pytest.mark.timeout(480)])])
def load(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], LoadedGraph]]:
    """Open a file in the runtime of a test's name."""
    runtime = request.param
    workers = {runtime: request.getfixturevalue("old_python")} if runtime == "tflite-runtime" else {}
    opened: list[LoadedGraph] = []

    def one(path: Path) -> LoadedGraph:
        opened.append(load_graph(runtime, path, around(runtime), workers))
        return opened[-1]

    yield one
    for graph in opened:
        graph.close()


@pytest.mark.parametrize("make", [running_sum, recurrent])
def test_a_graph_that_remembers_starts_anew_with_each_request(tmp_path: Path, load, make) -> None:
    """Resource variables, and variable tensors: without it the second answer would be twice the first."""
    graph = load(make(tmp_path / "m.tflite"))
    values = X if make is running_sum else X[None]
    first, second = (graph.run({"x": values})["y"] for _ in range(2))
    assert np.array_equal(first, values)
    assert np.array_equal(second, values)


def test_the_signature_is_that_of_the_token_count(tmp_path: Path, load) -> None:
    graph = load(for_lengths(tmp_path / "m.tflite", 2, 4))
    for n in (2, 4, 2):
        ids = np.arange(n, dtype=np.int32)[None]
        assert np.array_equal(graph.run({"input_ids": ids})["y"], ids)
    with pytest.raises(Incompatible, match="no signature 'tokens_3': the file has tokens_2, tokens_4"):
        graph.run({"input_ids": np.zeros((1, 3), np.int32)})


def test_a_single_signature_is_run_under_its_own_names(tmp_path: Path, load) -> None:
    graph = load(for_lengths(tmp_path / "m.tflite", 4))
    assert graph.runtime.startswith(("ai-edge-litert ", "tflite-runtime 2.14.0"))
    first = graph.run({"input_ids": np.int32([[1, 2, 3, 4]])})["y"]
    graph.run({"input_ids": np.zeros((1, 4), np.int32)})
    assert first.tolist() == [[1, 2, 3, 4]]  # and not overwritten by the next


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "the file has the inputs x, not given: x"),
        ({"x": np.zeros((1, 3), np.float32)}, "does not run it"),
        ({"x": np.zeros((1, 2), np.int64)}, "does not run it"),
    ],
)
def test_a_feed_of_another_form_is_refused_and_the_next_one_answered(tmp_path: Path, load, feeds, said) -> None:
    graph = load(running_sum(tmp_path / "m.tflite"))
    with pytest.raises(Incompatible, match=said):
        graph.run(feeds)
    assert np.array_equal(graph.run({"x": X})["y"], X)


def test_a_file_that_is_no_flatbuffer_is_refused(tmp_path: Path, load) -> None:
    (tmp_path / "m.tflite").write_bytes(b"TFL3 and other words" * 40)
    with pytest.raises(Incompatible, match="does not load it"):
        load(tmp_path / "m.tflite")


def test_a_model_of_onnx_is_not_taken_for_another(tmp_path: Path, load) -> None:
    (tmp_path / "m.tflite").write_bytes(TASKS["tensors"].model)
    with pytest.raises(Incompatible, match="does not load it"):
        load(tmp_path / "m.tflite")
