"""What a staged document changes, in words: nobody should sign what they have not read."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterable, Iterator
from typing import Any

from tuf.api.metadata import Targets

from cli.trust.book import Book, parse
from cli.trust.roles import ROOT_ROLES, Roles, same
from wire.release import Release, marks_of, releases_of
from wire.signing import RoleKeys


def changes(book: Book) -> list[tuple[str, str]]:
    """Every staged document with what it changes, a line for each change."""
    found = []
    for name in sorted(book.staged):
        lines = list(_document(book, name)) or ["nothing but version and expiry"]
        found += [(f"{name.split('/', maxsplit=1)[0]} {_version(book, name)}", line) for line in lines]
    return found


def short(keyid: str) -> str:
    """A key id as people compare it."""
    return keyid[:12]


def _document(book: Book, name: str) -> Iterator[str]:
    new = parse(name, book.staged[name]).signed
    if not name.startswith("release-"):
        yield from _roles(book, root=name != "targets")
        return
    old = Book(book.signed).newest(name)
    yield from _releases(old, new)


def _roles(book: Book, *, root: bool) -> Iterator[str]:
    signed = Book(book.signed)
    old = signed.roles() if signed.is_founded() else Roles({})
    new = book.roles()
    for role in sorted({*old.keys, *new.keys}):
        if (role in ROOT_ROLES) == root:
            yield from _keys(role, old.keys.get(role, RoleKeys((), 0)), new.keys.get(role, RoleKeys((), 0)))
    if not root:
        yield from _set("certificate authority", _prints(old.authorities), _prints(new.authorities))


def _keys(role: str, old: RoleKeys, new: RoleKeys) -> Iterator[str]:
    if same(old, new):
        return
    yield from _set(f"{role}: key", [short(k.keyid) for k in old.keys], [short(k.keyid) for k in new.keys])
    if old.threshold != new.threshold:
        yield f"{role}: threshold {old.threshold} → {new.threshold}"


def _releases(old: Targets | None, new: Targets) -> Iterator[str]:
    before, after = ([_line(r) for r in releases_of(t)] if t is not None else [] for t in (old, new))
    yield from _set("release", before, after)
    was, marks = marks_of(old) if old is not None else {}, marks_of(new)
    for model, mark in sorted(marks.items()):
        floor = was[model].floor if model in was else 0
        if mark.floor != floor:
            yield f"{model}: floor {floor} → {mark.floor}"


def _line(release: Release) -> str:
    return f"{release.target} counter {release.counter} {release.digest[:19]}"


def _set(what: str, old: Iterable[str], new: Iterable[str]) -> Iterator[str]:
    before, after = set(old), set(new)
    yield from (f"- {what} {each}" for each in sorted(before - after))
    yield from (f"+ {what} {each}" for each in sorted(after - before))


def _prints(authorities: Iterable[str]) -> list[str]:
    return [hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()[:16] for pem in authorities]


def _version(book: Book, name: str) -> Any:
    return parse(name, book.staged[name]).signed.version
