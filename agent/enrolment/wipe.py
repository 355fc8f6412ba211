"""Forgetting everything: identity, keys, trust, models, telemetry. What the owner of the machine wrote stays.

    begin_wipe(state)     # from here on it is certain, whatever happens
    finish_wipe(state)    # at the end of the agent, and at every start: does nothing when no wipe was begun

The keys go first: what a crash leaves behind cannot speak for this device. Nothing is overwritten, because flash
storage writes elsewhere; a device that must not be read by its finder needs an encrypted disk.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from agent.files import sync_folder, write_private, writing
from agent.identity.identity import FOLDER
from agent.identity.slots import BEGUN, NEW, NEXT, OLD, RENEWAL_KEY
from agent.life.restarts import FILE as LAST_WORDS
from agent.serving.doors import TOKEN_FILE
from agent.store.blobs import FOLDER as BLOBS
from agent.store.database import ASIDE
from agent.store.database import NEW as NEW_DATABASE
from agent.store.spare import path_of
from agent.store.state import STATE_FILE

MARKER: Final = "wiping"
SPARE: Final = path_of(Path(STATE_FILE)).name
OURS: Final = (
    *(FOLDER, NEXT, OLD, NEW, BEGUN, f"{BEGUN}.new", RENEWAL_KEY, f"{RENEWAL_KEY}.new"),
    *(f"{STATE_FILE}-wal", STATE_FILE, f"{STATE_FILE}-shm", f"{STATE_FILE}-journal"),
    *(SPARE, f"{SPARE}.new"),
    *(f"{STATE_FILE}{suffix}{ASIDE}" for suffix in ("-wal", "-shm", "")),
    *(f"{STATE_FILE}{NEW_DATABASE}{suffix}" for suffix in ("", "-wal", "-shm")),
    *(BLOBS, LAST_WORDS, TOKEN_FILE, f"{TOKEN_FILE}.new"),
)
"""What goes, in this order. Named one by one: a state folder may be anybody's, and hold what is not ours."""


def begin_wipe(state: Path) -> None:
    """Decide it. Raises `Unavailable`."""
    with writing(state):
        write_private(state / MARKER, b"")
        sync_folder(state)


def finish_wipe(state: Path) -> bool:
    """Do it, or go on with it, if it was decided. Whether it was. Raises `Unavailable`, and may be called again."""
    if not (state / MARKER).exists():
        return False
    with writing(state):
        for name in OURS:
            _remove(state / name)
            sync_folder(state)
        (state / MARKER).unlink()
        sync_folder(state)
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
