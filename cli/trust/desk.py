"""One command at a trust folder: its documents, the keys at hand, and what is left to do in the end.

desk = Desk.open(trust, keys)
book = desk.finish(changed)          # signed with the keys at hand, and kept
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Group, RenderableType

from cli.errors import BadInput
from cli.output import errors, show, table
from cli.trust.book import Book
from cli.trust.changes import changes
from cli.trust.folder import TrustFolder
from cli.trust.keys import KeyFolder, new_passphrase
from cli.trust.state import staged_value, staged_view


@dataclass(frozen=True)
class Desk:
    """A trust folder and the folder of the keys that this person holds."""

    trust: TrustFolder
    keys: KeyFolder

    @classmethod
    def open(cls, trust: Path, keys: Path | None = None) -> Desk:
        """`keys` None: the keys lie in the trust folder."""
        return cls(TrustFolder(trust), KeyFolder(keys or trust))

    def finish(self, book: Book, only: Iterable[str] | None = None) -> Book:
        """Sign what is staged, or `only` some of it, with the keys at hand, and keep it."""
        signed = book.sign(self.keys.signers(book.wanted()), only)
        self.trust.save(signed)
        return signed


def passphrase_for_new(unencrypted: bool) -> str | None:
    """What new keys are encrypted with; None for nothing. Raises `BadInput`."""
    return None if unencrypted else new_passphrase()


def confirm(question: str, yes: bool) -> None:
    """Ask on standard error. Raises `BadInput` for anything but a yes."""
    try:
        agreed = yes or typer.confirm(question, err=True)
    except typer.Abort as e:
        raise BadInput("nobody answered, so nothing was changed: --yes answers for scripts") from e
    if not agreed:
        raise BadInput("nothing was changed")


def show_changes(book: Book) -> None:
    """What every staged document changes, on standard error: read before it is signed."""
    errors.print(table("To be signed", ("Document", "Change"), changes(book)))


def report(value: dict[str, Any], view: RenderableType, book: Book, as_json: bool) -> None:
    """The outcome of a command, and what waits for the signatures of others."""
    left = staged_view(book)
    show({**value, "staged": staged_value(book)}, as_json, Group(view, left) if left else view)
