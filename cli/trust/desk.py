"""One command at a trust folder: its documents, the keys at hand, and what is left to do in the end.

desk = Desk.open(trust, keys)
book = desk.finish(changed, yes=False)      # signed with the keys at hand, and kept

Nothing is signed unseen. What this command made, on top of documents that a device would believe, is what was asked
for; anything else that came with the folder is shown first, and a yes is asked for. Keys sign for one root: a folder
with another was replaced on the way. The first time that keys sign they know none yet, so everything is shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType

from cli.asking import confirm
from cli.errors import BadInput
from cli.output import errors, show, table
from cli.trust.book import Book
from cli.trust.ceremony import expiry
from cli.trust.changes import changes
from cli.trust.folder import TrustFolder
from cli.trust.keys import KeyFolder, new_passphrase
from cli.trust.plain import check_lifetime
from cli.trust.state import staged_value, staged_view

CLOCKS: Final = timedelta(days=1)
"""How far the clocks of two machines that sign may be apart."""


@dataclass(frozen=True)
class Desk:
    """A trust folder and the folder of the keys that this person holds."""

    trust: TrustFolder
    keys: KeyFolder

    @classmethod
    def open(cls, trust: Path, keys: Path | None = None) -> Desk:
        """`keys` None: the keys lie in the trust folder. Raises `BadInput` for keys that signed for another root."""
        desk = cls(TrustFolder(trust), KeyFolder(keys or trust))
        desk._check_root(desk.trust.book())
        return desk

    def finish(self, book: Book, only: Iterable[str] | None = None, *, yes: bool, ask: bool = False) -> Book:
        """Sign what is staged, or `only` some of it, with the keys at hand, and keep it.

        Asks before it signs what it did not make itself, and always where `ask` says so; `yes` is the answer. Raises
        `BadInput` when that is no, or for a document that is valid for too long.
        """
        self._check_root(book)
        names = set(book.staged) if only is None else set(only) & set(book.staged)
        for name in names:
            check_lifetime(name, book.staged[name], expiry(datetime.now(UTC)) + CLOCKS)
        before = self.trust.book()
        base = before.believed() if self._knows(before) else Book()
        if names and (ask or any(name in before.staged or _role(name) in _roles(before, base) for name in names)):
            if self.keys.belongs_to() is None:
                errors.print(f"These keys have signed for no fleet yet. The root/1 of this one is {book.root_digest()}")
            errors.print(table("To be signed", ("Document", "Change"), changes(book, base, names)))
            confirm("Add your signatures to this?", yes=yes)
        signers = self.keys.signers(book.wanted())
        signed = book.sign(signers, names)
        self.trust.save(signed)
        if signers and (root := signed.root_digest()) is not None:
            self._keep_root(root)
        return signed

    def _keep_root(self, root: str) -> None:
        try:
            self.keys.keep_root(root)
        except OSError as e:
            errors.print(f"{self.keys.folder}: cannot be written ({e.strerror}): it will show all the next time, too")

    def _knows(self, book: Book) -> bool:
        return self.keys.belongs_to() == book.root_digest()

    def _check_root(self, book: Book) -> None:
        root, known = book.root_digest(), self.keys.belongs_to()
        if known is not None and known != root and (book.signed or book.staged):
            raise BadInput(
                f"{self.trust.folder}: its root/1 is {root or 'missing'}, but the keys in {self.keys.folder} have "
                f"signed for {known}: another fleet's folder needs its own keys; else this one was changed on the way"
            )


def _role(name: str) -> str:
    return name.partition("/")[0]


def _roles(before: Book, base: Book) -> set[str]:
    """Roles with a signed document in the folder that is not believed: what is made now may have grown from it."""
    return {_role(name) for name in before.signed if name not in base.signed}


def passphrase_for_new(unencrypted: bool) -> str | None:
    """What new keys are encrypted with; None for nothing. Raises `BadInput`."""
    return None if unencrypted else new_passphrase()


def report(value: dict[str, Any], view: RenderableType, book: Book, as_json: bool) -> None:
    """The outcome of a command, and what waits for the signatures of others."""
    left = staged_view(book)
    show({**value, "staged": staged_value(book)}, as_json, Group(view, left) if left else view)
