"""A PostgreSQL of one's own: made with initdb in a new folder, on a Unix socket, ended by its process.

with postgres() as url: Database(url)

PostgreSQL refuses to run as root: then it runs as the user `postgres` that its package makes, or as `nobody`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

WITHIN = 60.0


def program(name: str) -> str | None:
    """The newest of PostgreSQL's programs of that name; Debian keeps them off the search path."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    return shutil.which(name, path=os.pathsep.join((*map(str, places), os.environ.get("PATH", ""))))


@contextmanager
def postgres() -> Iterator[str]:
    """The address of an empty database."""
    initdb, server, ready = (program(name) for name in ("initdb", "postgres", "pg_isready"))
    assert initdb, "PostgreSQL is missing: scripts/setup brings it"
    assert server
    assert ready
    user = _user()
    folder = Path(tempfile.mkdtemp(prefix="shoal-pg-", dir="/tmp"))  # a socket's path must be short
    try:
        if user:
            shutil.chown(folder, user)
        data = folder / "data"
        words = [initdb, "--pgdata", str(data), "--auth", "trust", "--username", "fleet", "--encoding", "UTF8"]
        subprocess.run([*words, "--no-locale", "--no-sync"], check=True, capture_output=True, user=user, cwd=folder)
        command = [server, "-D", str(data), "-k", str(folder), "-c", "listen_addresses="]
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(command, stdout=log, stderr=log, user=user, cwd=folder) as process,
        ):
            try:
                _wait(process, [ready, "-h", str(folder), "-U", "fleet", "-d", "postgres"], folder / "log")
                yield f"postgresql://fleet@/postgres?host={quote(str(folder), safe='')}"
            finally:
                process.terminate()
                # Whoever is connected may stay: a fast end is SIGINT.
                process.send_signal(2)
                process.wait(WITHIN)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> str | None:
    if os.getuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _wait(process: subprocess.Popen[bytes], ready: list[str], log: Path) -> None:
    deadline = time.monotonic() + WITHIN
    while subprocess.run(ready, check=False, capture_output=True).returncode != 0:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"PostgreSQL was not ready within {WITHIN:.0f} s"
        time.sleep(0.05)
