"""What a staged document changes, in words: nobody should sign what they have not read.

Key ids, digests and fingerprints stand here whole: of two that begin alike, one may be made to look like the other.
`cli.trust.plain` sees to it that a document holds nothing that is not shown here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from tuf.api.metadata import Targets

from cli.trust.book import Book, parse
from cli.trust.plain import fingerprint
from cli.trust.roles import Roles
from wire.release import Mark, Release, marks_of, releases_of
from wire.signing import RoleKeys


def changes(book: Book, base: Book, names: Collection[str] | None = None) -> list[tuple[str, str]]:
    """Every staged document, or `names` of them, with what it changes, a line for each change.

    `base` are the signed documents that the signer believes: what is not in them is new.
    """
    found = []
    for name in (n for n in book.order() if names is None or n in names):
        new = parse(name, book.staged[name]).signed
        same = "nothing but version and expiry" if base.newest(name.split("/", maxsplit=1)[0]) else "new, and empty"
        lines = list(_document(name, new, base)) or [same]
        title = f"{name.split('/', maxsplit=1)[0]} {new.version} until {new.expires:%Y-%m-%d}"
        found += [(title, line) for line in lines]
    return found


def short(keyid: str) -> str:
    """A key id for a table that nobody decides by."""
    return keyid[:12]


def _document(name: str, new: Any, base: Book) -> Iterator[str]:
    role = name.split("/", maxsplit=1)[0]
    old = base.newest(role)
    if role == "root":
        yield from _roles(Roles.read(old, None), Roles.read(new, None))
    elif role == "targets":
        before, after = Roles.read(None, old), Roles.read(None, new)
        yield from _roles(before, after)
        prints = (map(fingerprint, each.authorities) for each in (before, after))
        yield from _set("certificate authority", *prints)
    else:
        yield from _releases(old, new)


def _roles(old: Roles, new: Roles) -> Iterator[str]:
    for role in sorted({*old.keys, *new.keys}):
        was, now = old.keys.get(role, RoleKeys((), 0)), new.keys.get(role, RoleKeys((), 0))
        yield from _set(f"{role}: key", [k.keyid for k in was.keys], [k.keyid for k in now.keys])
        if was.threshold != now.threshold:
            yield f"{role}: threshold {f'{was.threshold} → ' if was.keys else ''}{now.threshold}"


def _releases(old: Targets | None, new: Targets) -> Iterator[str]:
    before, after = (releases_of(t) if t is not None else [] for t in (old, new))
    yield from _set("release", map(_line, before), map(_line, after))
    was, marks = marks_of(old) if old is not None else {}, marks_of(new)
    listed = {(release.model, release.counter) for release in after}
    for model, mark in sorted(marks.items()):
        known = was.get(model, Mark())
        if mark.floor != known.floor:
            yield f"{model}: floor {known.floor} → {mark.floor}"
        if mark.counter != known.counter and (model, mark.counter) not in listed:
            yield f"{model}: highest counter {known.counter} → {mark.counter}, which no listed release has"
    yield from (f"- {model}: what its counter and floor were" for model in sorted(was.keys() - marks.keys()))


def _line(release: Release) -> str:
    runs = f"{release.length} bytes for {release.profile} in {release.runtime}"
    return f"{release.target} counter {release.counter} floor {release.floor} {release.digest}, {runs}"


def _set(what: str, old: Iterable[str], new: Iterable[str]) -> Iterator[str]:
    before, after = set(old), set(new)
    yield from (f"- {what} {each}" for each in sorted(before - after))
    yield from (f"+ {what} {each}" for each in sorted(after - before))
