"""The data folder: one fleet at a time, and where the running one is found.

with hold(data):                       # raises `Unavailable` that names folder and pid when it is held
    RunFile(https=8443, broker=8883, pid=1).save(data)
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fleet.errors import Unavailable
from fleet.store.files import private_folder, write

_LOCK = "lock"
_RUN = "run.json"


@dataclass(frozen=True)
class RunFile:
    """Ports and process id of the fleet that runs on a folder, or ran there last."""

    https: int
    broker: int
    pid: int

    def save(self, data: Path) -> None:
        """Write `run.json`."""
        write(data / _RUN, json.dumps(asdict(self)).encode() + b"\n")

    @classmethod
    def load(cls, data: Path) -> RunFile | None:
        """The last one, if it can be read: it only helps to choose the same ports again."""
        try:
            value = json.loads((data / _RUN).read_text())
            last = cls(int(value["https"]), int(value["broker"]), int(value["pid"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return last if all(0 < port < 65536 for port in (last.https, last.broker)) else None


@contextmanager
def hold(data: Path) -> Iterator[None]:
    """Keep every other fleet off a folder, which is made when it is not there. The lock goes with the process."""
    try:
        private_folder(data)
        descriptor = os.open(data / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as e:
        raise Unavailable(f"data folder {data}: cannot be written: {e.strerror}: choose another with --data") from e
    try:
        _lock(descriptor, data)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, data: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        pid = (data / _LOCK).read_text() or "unknown"
        raise Unavailable(
            f"data folder {data}: another fleet runs on it, pid {pid}: stop that one, or choose another with --data"
        ) from e
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
