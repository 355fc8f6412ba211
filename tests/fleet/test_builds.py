"""Builds on a real fleet. In the compiler's place stands a small program, except in one test; the rest is real.

The program reads its job as a compiler does, and does what the version of the build names.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from compiler_stand_in import ROWS, SOURCE, program
from fleet_process import ApiError, FleetProcess, until

from fleet.builds.log import LARGEST, BuildLog, read
from wire.chunks import digest


def put(fleet: FleetProcess, data: bytes) -> str:
    fleet.api("PUT", f"/api/v1/blobs/{digest(data)}", data)
    return digest(data)


def add_source(fleet: FleetProcess, files: dict[str, bytes] = SOURCE) -> str:
    named = {path: put(fleet, data) for path, data in files.items()}
    return str(fleet.api("POST", "/api/v1/sources", {"name": "tiny", "files": named})["digest"])


def add_test_set(fleet: FleetProcess) -> None:
    body = {"digest": put(fleet, ROWS), "name": "lights-test", "licence": "CC-BY-4.0", "use": "test"}
    fleet.api("POST", "/api/v1/datasets", body)


def asked(source: str, name: str, **changes: Any) -> dict[str, Any]:
    body = {"family": "intents", "name": name, "version": "1.0.0", "source": source, "test": "lights-test"}
    return {**body, "profiles": ["x86-64"], **changes}


def submit(fleet: FleetProcess, name: str, **changes: Any) -> str:
    return str(fleet.api("POST", "/api/v1/builds", asked(add_source(fleet), name, **changes))["build"])


def show(fleet: FleetProcess, build: str) -> Any:
    return fleet.api("GET", f"/api/v1/builds/{build}")


def ended(fleet: FleetProcess, build: str, within: float = 60.0) -> Any:
    until(lambda: show(fleet, build)["state"] not in ("queued", "running"), within=within, what=f"the end of {build}")
    return show(fleet, build)


def working_in(folder: Path) -> list[int]:
    """Processes whose working directory is in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    folder = tmp_path_factory.mktemp("builds")
    settings = {"build_memory": "200 MiB", "build_disk": "32 MiB", "compiler_python": program(folder)}
    with FleetProcess(folder / "fleet", **settings) as running:
        add_test_set(running)
        yield running


def test_a_build_runs_tells_its_progress_and_gives_what_it_wrote(fleet: FleetProcess) -> None:
    build = submit(fleet, "works")
    value = ended(fleet, build)
    assert (value["state"], value["reason"], value["test"]) == ("succeeded", "", digest(ROWS))
    assert [b["profile"] for b in value["bundles"]] == ["x86-64"]
    assert value["notes"] == ["only few examples"]
    assert value["progress"]["event"] == "done"
    files = {f["path"]: f for f in fleet.api("GET", f"/api/v1/builds/{build}/artifacts")}
    assert set(files) == {"oci-layout", "blobs/model"}
    wrote = fleet.api("GET", f"/api/v1/builds/{build}/artifacts/{files['oci-layout']['digest']}")
    assert wrote["job"]["safe"] is True
    assert (Path(wrote["job"]["test"]["path"]).name, wrote["job"]["test"]["licence"]) == (
        "lights-test.jsonl",
        "CC-BY-4.0",
    )
    assert set(wrote["environment"]) <= {"PATH", "LANG", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "LC_CTYPE"}
    assert not (fleet.data / "builds" / build / "work").exists()
    entries = fleet.api("GET", "/api/v1/audit/newest?limit=100")
    assert "POST /api/v1/builds" in json.dumps(entries)


def test_the_description_of_a_graph_stands_beside_the_tokenizer_that_it_names(fleet: FleetProcess) -> None:
    graph = {"model.onnx": b"\x08\x08\x3a\x05graph", "tokenizer.json": b"{}"}
    body = asked(add_source(fleet, graph), "works", describe='tokenizer = "tokenizer.json"')
    build = str(fleet.api("POST", "/api/v1/builds", body)["build"])
    assert ended(fleet, build)["state"] == "succeeded"
    files = {f["path"]: f for f in fleet.api("GET", f"/api/v1/builds/{build}/artifacts")}
    job = fleet.api("GET", f"/api/v1/builds/{build}/artifacts/{files['oci-layout']['digest']}")["job"]
    assert (Path(job["source"]).name, Path(job["describe"]).parent) == ("model.onnx", Path(job["source"]).parent)


def test_a_log_is_read_in_pieces_to_its_end(fleet: FleetProcess) -> None:
    build = submit(fleet, "works")
    ended(fleet, build)
    first = fleet.api("GET", f"/api/v1/builds/{build}/logs")
    assert (first["ended"], "chatter of a library" in first["text"]) == (True, True)
    rest = fleet.api("GET", f"/api/v1/builds/{build}/logs?offset={first['offset']}")
    assert (rest["text"], rest["ended"]) == ("", True)


@pytest.mark.parametrize(
    ("name", "state", "reason"),
    [
        ("infeasible", "infeasible", "no variant holds"),
        ("refuses", "failed", "source source: NaN weights"),
        ("crashes", "failed", "crashed (signal 6)"),
        ("raises", "failed", "crashed (code 1) before it was done: ValueError: nobody knew this"),
        ("eats", "failed", "out of memory"),
        ("fills", "failed", "out of disk"),
        ("hoards", "failed", "out of disk"),
        ("lies", "failed", "no progress"),
        ("silent", "failed", "crashed (code 0)"),
    ],
)
def test_a_build_that_goes_wrong_has_failed_with_its_reason_and_the_fleet_goes_on(
    fleet: FleetProcess, name: str, state: str, reason: str
) -> None:
    """Accident: a compiler that refuses, crashes, eats the memory, fills the disk or the cache, says nonsense."""
    build = submit(fleet, name)
    value = ended(fleet, build)
    assert (value["state"], reason in value["reason"]) == (state, True), value["reason"]
    assert str(fleet.data) not in value["reason"]
    assert fleet.api("GET", "/api/v1/status")
    assert working_in(fleet.data / "builds") == []
    assert fleet.api("GET", f"/api/v1/builds/{build}/artifacts") == []


def test_one_runs_the_next_waits_and_both_can_be_cancelled(fleet: FleetProcess) -> None:
    running, waiting = submit(fleet, "hangs"), submit(fleet, "works")
    until(lambda: show(fleet, running)["progress"], what="progress of the first")
    assert show(fleet, running)["progress"]["seconds_left"] == 9.0
    assert (show(fleet, waiting)["state"], show(fleet, waiting)["waits_behind"]) == ("queued", 0)
    assert fleet.api("POST", f"/api/v1/builds/{waiting}/cancel")["state"] == "cancelled"
    fleet.api("POST", f"/api/v1/builds/{running}/cancel")
    assert ended(fleet, running)["state"] == "cancelled"
    assert working_in(fleet.data / "builds") == []
    assert fleet.api("POST", f"/api/v1/builds/{running}/cancel")["state"] == "cancelled"
    assert show(fleet, waiting)["started"] is None


def test_the_same_key_is_the_same_build_and_another_request_under_it_is_refused(fleet: FleetProcess) -> None:
    source, key = add_source(fleet), {"Idempotency-Key": "once"}
    first, second = (
        fleet.api("POST", "/api/v1/builds", asked(source, "silent"), headers=key)["build"] for _ in range(2)
    )
    assert first == second
    with pytest.raises(ApiError, match="was used for another build") as refused:
        fleet.api("POST", "/api/v1/builds", asked(source, "works"), headers=key)
    assert refused.value.status == 409


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"source": "sha256:" + 64 * "0"}, 404, "there is none"),
        ({"test": "nobody-knows-it"}, 404, "there is none"),
        ({"calibration": "lights-test"}, 409, "is registered for test"),
        ({"profiles": ["toaster"]}, 404, "profile 'toaster'"),
        ({"family": "../up"}, 400, "build.family"),
        ({"max_drop": 101}, 400, "max_drop"),
    ],
)
def test_a_request_that_cannot_be_built_is_refused_at_once(
    fleet: FleetProcess, changes: dict[str, Any], status: int, message: str
) -> None:
    with pytest.raises(ApiError, match=message) as refused:
        fleet.api("POST", "/api/v1/builds", {**asked(add_source(fleet), "works"), **changes})
    assert refused.value.status == status


def test_a_hang_ends_at_the_deadline_and_a_killed_fleet_leaves_no_compiler_behind(tmp_path: Path) -> None:
    """Accident: the fleet is killed while a compiler and something that it started run."""
    with FleetProcess(tmp_path / "fleet", compiler_python=program(tmp_path)) as fleet:
        add_test_set(fleet)
        build = submit(fleet, "hangs")
        waiting = submit(fleet, "works")
        until(lambda: len(working_in(fleet.data / "builds")) >= 2, what="a compiler with a child")
        fleet.kill()
        fleet.settings["build_time"] = "2 s"
        fleet.start()
        value = show(fleet, build)
        assert (value["state"], "the fleet was stopped" in value["reason"]) == ("failed", True)
        assert ended(fleet, waiting)["state"] == "succeeded"  # what waited still does
        until(lambda: not working_in(fleet.data / "builds"), what="no compiler")
        late = ended(fleet, submit(fleet, "hangs"))
        assert (late["state"], "it took over 2" in late["reason"]) == ("failed", True)
        last = submit(fleet, "hangs")
        until(lambda: show(fleet, last)["progress"], what="progress")
        assert fleet.stop() == 0
        assert working_in(fleet.data / "builds") == []
        fleet.start()
        assert (show(fleet, last)["state"], "was stopped" in show(fleet, last)["reason"]) == ("failed", True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a compiler as another user")
def test_as_another_user_a_compiler_reads_nothing_of_the_fleet() -> None:
    """Attack: a model that takes over the compiler, and looks for keys."""
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # the folders above the data folder have to let that user pass
        python = program(folder, "/usr/bin/python3")
        with FleetProcess(folder / "fleet", compiler_python=python, build_user="nobody") as fleet:
            add_test_set(fleet)
            build = submit(fleet, "peeks")
            value = ended(fleet, build)
            assert value["state"] == "succeeded", value["reason"]
            assert value["notes"] == [f"user {nobody.pw_uid} of []", "only few examples"]
            kept = fleet.data / "builds" / build / "out" / "oci-layout"
            assert kept.stat().st_uid == 0


def test_the_folder_of_builds_is_closed_to_others(fleet: FleetProcess) -> None:
    assert stat.S_IMODE((fleet.data / "builds").stat().st_mode) == 0o700


def test_a_log_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    """Accident: a library that writes without end; and a line that would clear a terminal."""
    with BuildLog(tmp_path / "log") as log:
        log.write("first \x1b[2J")
        for i in range(40_000):
            log.write(f"line {i} {'x' * 40}")
        log.write("the reason")
    size = (tmp_path / "log").stat().st_size
    assert LARGEST < size < LARGEST + 20_000
    text, offset = read(tmp_path / "log", offset=0, limit=2 * LARGEST, ended=True)
    assert text.startswith("first ?[2J\n")
    assert "lines are left out here" in text
    assert text.endswith("the reason\n")
    assert offset == size


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_real_compiler_builds_an_uploaded_source_and_its_lineage_names_the_data(tmp_path: Path) -> None:
    import compiler_process as real  # noqa: PLC0415  torch takes seconds: only this test waits for it

    from compiler.bundle.layout import Layout  # noqa: PLC0415

    folder = real.make_source(real.make_encoder(tmp_path / "encoder"), tmp_path / "source")
    test = real.write_rows(tmp_path / "rows.jsonl", real.rows(9, 400)).read_bytes()
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with FleetProcess(tmp_path / "fleet") as fleet:
        body = {"digest": put(fleet, test), "name": "home-test", "licence": "CC0-1.0", "use": "test"}
        fleet.api("POST", "/api/v1/datasets", body)
        wanted = asked(add_source(fleet, files), "tiny", test="home-test", recipes=list(real.FAST), max_drop=10)
        build = fleet.api("POST", "/api/v1/builds", wanted)["build"]
        value = ended(fleet, build, within=500)
        log = fleet.api("GET", f"/api/v1/builds/{build}/logs")["text"]
        assert value["state"] == "succeeded", value["reason"] + log
        for file in fleet.api("GET", f"/api/v1/builds/{build}/artifacts"):
            path = tmp_path / "layout" / file["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            headers = {"Authorization": f"Bearer {fleet.token}"}
            path.write_bytes(
                fleet.request("GET", f"/api/v1/builds/{build}/artifacts/{file['digest']}", headers=headers)[1]
            )
    layout = Layout(tmp_path / "layout")
    (bundle,) = layout.bundles()
    evidence = layout.evidence(bundle.digest)
    assert evidence is not None
    (dataset,) = evidence.datasets
    assert (dataset.digest, dataset.name, dataset.licence) == (digest(test), "home-test.jsonl", "CC0-1.0")
    lineage = json.loads(layout.read(bundle.manifest.file("lineage").digest))
    assert lineage["datasets"][0]["digest"] == digest(test)
