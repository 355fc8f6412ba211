"""`shoal backup`, `shoal restore`: losing one folder must not orphan a fleet."""

from __future__ import annotations

import getpass
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.client import default_data
from cli.errors import BadInput
from cli.options import Data
from cli.output import Json, errors, show
from wire.units import show_size

PASSPHRASE = "SHOAL_BACKUP_PASSPHRASE"  # noqa: S105  the name of a variable
_SHORTEST = 12


def backup(
    file: Annotated[Path, typer.Argument(help="File to write.")], data: Data = None, as_json: Json = False
) -> None:
    """Save authorities, online keys, database and blobs, encrypted, in one file. The fleet may run meanwhile."""
    from fleet.store.backup import save  # noqa: PLC0415

    passphrase = _new_passphrase()
    with errors.status("saving"):
        size = save(data or default_data(), file, passphrase)
    view = (
        f"[bold]{file}[/]: {show_size(size)}, opens with its passphrase only: keep both, and not in one place.\n"
        f"On a new machine: shoal restore {file.name} --data FOLDER. The offline keys are not in it."
    )
    show({"file": str(file), "bytes": size}, as_json, view)


def restore(
    file: Annotated[Path, typer.Argument(help="File that 'shoal backup' wrote.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Bring a fleet back from a backup, into a new data folder. What happened since the backup is not known to it."""
    from fleet.store.backup import restore as bring_back  # noqa: PLC0415

    folder = data or default_data()
    passphrase = os.environ.get(PASSPHRASE) or _ask("Passphrase of the backup: ")
    with errors.status("restoring"):
        restored = bring_back(file, folder, passphrase)
    view = (
        f"[bold]{folder}[/]: {restored.blobs} blobs, database, authorities and keys are back as of {restored.saved}, "
        f"in epoch {restored.epoch}.\n"
        f"Stop the old fleet for good before this one starts: shoal up --data {folder}\n"
        "Released anything since the backup? shoal release publish brings it back.\n"
        "What was revoked since then, devices, batches, tokens or people, is good again: revoke it again, at once.\n"
        "Devices that were enrolled since then, and those with a kit that was not used, need a new kit."
    )
    show({"data": str(folder), **asdict(restored)}, as_json, view)


def _new_passphrase() -> str:
    if text := os.environ.get(PASSPHRASE):
        return _long_enough(text)
    text = _long_enough(_ask("Passphrase for the backup: "))
    if text != _ask("Once more: "):
        raise BadInput("the passphrases differ: nothing was saved")
    return text


def _long_enough(text: str) -> str:
    if len(text) < _SHORTEST:
        raise BadInput(f"the passphrase is shorter than {_SHORTEST} characters: nothing was saved")
    return text


def _ask(prompt: str) -> str:
    if not sys.stdin.isatty():
        raise BadInput(f"a passphrase is needed and there is no terminal: set {PASSPHRASE}")
    return getpass.getpass(prompt)
