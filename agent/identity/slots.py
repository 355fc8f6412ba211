"""Two slots for a renewed certificate, each a whole identity folder: nothing is given up before the new one works.

    store_next(state, current, key, certificate)   # identity.next appears in one rename
    promote(state)                                 # identity -> identity.old, identity.next -> identity
    drop_next(state)                               # the broker refused it
    recover(state)                                 # at every start: what a crash left half done

A crash between any two steps leaves an identity that works. The sealing key stays the same over a renewal.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.files import sync_folder, write_private, writing
from agent.identity.identity import FOLDER, Identity
from agent.identity.keys import key_pem

log = logging.getLogger("agent.identity.slots")

NEXT: Final = f"{FOLDER}.next"
OLD: Final = f"{FOLDER}.old"
NEW: Final = f"{FOLDER}.next.new"
BEGUN: Final = "enrolling"
"""An enrolment under way; with a certificate in it, one that only has to be given its name."""
RENEWAL_KEY: Final = "renewal.pem"
"""The key of a renewal under way: asked again with the same one, a fleet whose answer was lost gives the same."""


def store_next(state: Path, current: Identity, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    """The second slot, complete. Raises `Unavailable`."""
    new = state / NEW
    current.sealing_key()
    with writing(state):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        write_private(new / "key.pem", key_pem(key))
        write_private(new / "cert.pem", certificate.public_bytes(Encoding.PEM))
        for name in ("sealing.pem", "ca.pem", "device.json"):
            write_private(new / name, (current.folder / name).read_bytes())
        sync_folder(new)
        _remove(state / NEXT)
        new.rename(state / NEXT)
        sync_folder(state)
        (state / RENEWAL_KEY).unlink(missing_ok=True)


def promote(state: Path) -> None:
    """The second slot becomes the first. Raises `Unavailable`."""
    with writing(state):
        _remove(state / OLD)
        (state / FOLDER).rename(state / OLD)
        (state / NEXT).rename(state / FOLDER)
        sync_folder(state)
        _remove(state / OLD)


def drop_next(state: Path) -> None:
    """Forget the second slot. Raises `Unavailable`."""
    with writing(state):
        _remove(state / NEXT)


def finish_enrolment(state: Path) -> bool:
    """Give an enrolment its name that has its certificate. Whether there was one. Raises `Unavailable`."""
    with writing(state):
        if (state / FOLDER).exists() or not (state / BEGUN / "cert.pem").exists():
            return False
        (state / BEGUN).rename(state / FOLDER)
        sync_folder(state)
        return True


def recover(state: Path) -> None:
    """Finish or undo what a crash interrupted. Raises `Unavailable` when no identity can be had without the disk."""
    finish_enrolment(state)
    with writing(state):
        # Without a first slot the crash came between the two renames of `promote`: the broker had accepted the second.
        for spare in (NEXT, OLD):
            if not (state / FOLDER).exists() and (state / spare / "device.json").exists():
                (state / spare).rename(state / FOLDER)
                sync_folder(state)
    try:
        _tidy(state)
    except OSError as e:
        log.warning("%s: leftovers stay for now: %s", state, e)  # a disk that is read-only: the first slot is whole


def _tidy(state: Path) -> None:
    for leftover in (OLD, NEW):
        _remove(state / leftover)
    if (state / NEXT).exists():
        if not (state / NEXT / "device.json").exists():
            _remove(state / NEXT)  # its removal was interrupted
        (state / RENEWAL_KEY).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """What marks a folder as an identity goes first, so that one half removed is never taken for one."""
    if folder.exists():
        (folder / "device.json").unlink(missing_ok=True)
        shutil.rmtree(folder)
        sync_folder(folder.parent)
