"""The conformance client against a small repository over HTTP; the public suite too, where there is a clone of it."""

from __future__ import annotations

import http.server
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from trust_repository import Repository

from wire.chunks import digest

HERE = Path(__file__).parent
CLIENT = HERE / "client"
TARGET = "models/intents/kitchen/1.0.0/x86-64"


class Served(Repository):
    """The repository as files in a folder, laid out as TUF's consistent snapshots are."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        for name in ("metadata", "targets/models/intents/kitchen/1.0.0"):
            (folder / name).mkdir(parents=True)

    def put(self) -> None:
        for version, data in self.roots.items():
            self._write(f"metadata/{version}.root.json", data)
        versions = {**self.versions, "release-intents": self.versions["release"]}
        for name, data in self.documents.items():
            prefix = "" if name == "timestamp" else f"{versions[name]}."
            self._write(f"metadata/{prefix}{name}.json", data)

    def put_target(self, data: bytes, *, instead: bytes | None = None) -> None:
        self.release(TARGET, data)
        folder, _, name = TARGET.rpartition("/")
        self._write(f"targets/{folder}/{digest(data).removeprefix('sha256:')}.{name}", instead or data)
        self.put()

    def _write(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    repo = Served(tmp_path / "www")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **named) -> None:
            super().__init__(*args, directory=str(repo.folder), **named)

        def log_message(self, *args) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        repo.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield repo
        server.shutdown()
        thread.join(10)


class Run:
    """The client as the suite starts it: a process per command, on one metadata folder."""

    def __init__(self, folder: Path, repo: Served) -> None:
        self.metadata, self.targets = folder / "metadata", folder / "targets"
        self.metadata.mkdir()
        self.targets.mkdir()
        self.url = repo.url
        root = folder / "trusted.json"
        root.write_bytes(repo.roots[1])
        assert self("init", str(root)) == 0

    def __call__(self, *command: str) -> int:
        options = ["--metadata-dir", str(self.metadata), "--metadata-url", f"{self.url}/metadata"]
        options += ["--target-name", TARGET, "--target-base-url", f"{self.url}/targets"]
        options += ["--target-dir", str(self.targets)]
        return subprocess.run([str(CLIENT), *options, *command], check=False, timeout=60, cwd="/").returncode

    def files(self) -> set[str]:
        return {path.name for path in self.metadata.iterdir()}


def test_a_repository_is_refreshed_and_a_target_downloaded_once(tmp_path: Path, served: Served) -> None:
    served.put_target(b"manifest")
    client = Run(tmp_path, served)
    assert client("refresh") == 0
    assert client.files() == {"root.json", "timestamp.json", "snapshot.json", "targets.json"}
    assert client("download") == 0
    (file,) = client.targets.iterdir()
    assert file.read_bytes() == b"manifest"
    assert "release-intents.json" in client.files()


def test_a_swapped_target_is_refused_and_not_stored(tmp_path: Path, served: Served) -> None:
    """Attack: blob swap."""
    served.put_target(b"manifest", instead=b"MANIFEST")
    client = Run(tmp_path, served)
    assert client("download") == 1
    assert list(client.targets.iterdir()) == []


def test_an_older_timestamp_is_refused_by_the_next_process(tmp_path: Path, served: Served) -> None:
    """Attack: metadata rollback."""
    served.put_target(b"manifest")
    old = served.documents["timestamp"]
    client = Run(tmp_path, served)
    served.publish()
    served.put()
    assert client("refresh") == 0
    (served.folder / "metadata/timestamp.json").write_bytes(old)
    assert client("refresh") == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_case_of_the_public_suite_passes() -> None:
    suite = os.environ.get("SHOAL_TUF_CONFORMANCE")
    if suite is None:
        pytest.skip("SHOAL_TUF_CONFORMANCE names no clone of theupdateframework/tuf-conformance")
    command = ["env/bin/python", "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider"]
    command += ["tuf_conformance", f"--entrypoint={CLIENT}"]
    done = subprocess.run(command, cwd=suite, check=False, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "failed" not in done.stdout
