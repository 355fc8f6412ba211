"""What a trust folder holds, as values for tables and JSON: roles, releases, what waits for signatures."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from cli.output import WARN_DAYS, table
from cli.trust.book import Book, Missing, parse
from cli.trust.changes import short
from cli.trust.folder import Online
from cli.trust.listing import everything
from cli.trust.plain import fingerprint
from cli.trust.roles import ONLINE_ROLES


def staged_value(book: Book) -> list[dict[str, Any]]:
    """What every staged document still lacks."""
    return [
        {
            "document": lack.document,
            "role": lack.role,
            "threshold": lack.threshold,
            "signed": list(lack.signed),
            "could_sign": list(lack.unsigned),
            "missing": lack.count,
        }
        for lack in book.missing()
    ]


def staged_view(book: Book) -> RenderableType | None:
    """The same for people; None when nothing is staged."""
    if not book.staged:
        return None
    rows = [_staged_row(lack) for lack in book.missing()]
    hint = "Whoever holds one of these keys: 'shoal release sign' with this trust folder adds its signature."
    return Group(table("Waits for signatures", ("Document", "Signed", "Missing", "Keys that can sign"), rows), hint)


def online_view(online: Online) -> RenderableType:
    """What a fleet says of itself, whole, for people to compare where it is signed."""
    rows = [[role, key.keyid] for role, key in sorted(online.keys.items())]
    rows += [[f"{role}, next", key.keyid] for role, key in sorted(online.next.items())]
    rows += [["certificate authority", fingerprint(pem)] for pem in online.authorities]
    return table("Compare these where they are signed", ("What", "Id or SHA-256 fingerprint"), rows)


def role_values(book: Book, mine: Collection[str], fleet: Mapping[str, int] | None, now: datetime) -> list[Any]:
    """Every role with its keys; `mine` are ids of keys held here, `fleet` the versions that the fleet publishes."""
    roles = book.roles()
    return [
        {
            "role": role,
            "keys": list(roles.ids(role)),
            "here": sorted(set(roles.ids(role)) & set(mine)),
            "threshold": roles.of(role).threshold,
            **_document(book, role, now),
            **({"fleet": fleet.get(role)} if fleet is not None and role not in ONLINE_ROLES else {}),
        }
        for role in sorted(roles.keys, key=_rank)
    ]


def role_view(values: list[Any]) -> RenderableType:
    """The same for people, with a warning for every role that has to be signed again soon."""
    rows = [
        [
            v["role"], " ".join(short(k) + ("*" if k in v["here"] else "") for k in v["keys"]),
            f"{v['threshold']} of {len(v['keys'])}", v.get("version"), v.get("expires"), v.get("days"), v.get("fleet"),
        ]
        for v in values
    ]  # fmt: skip
    columns = ("Role", "Keys (* here)", "Threshold", "#Version", "Expires", "#Days", "#Fleet has")
    soon = [v for v in values if v.get("days") is not None and v["days"] < WARN_DAYS]
    warnings = [
        Text(f"{v['role']} expires in {v['days']} days: run 'shoal release renew {v['role']}'", "yellow") for v in soon
    ]
    return Group(table("Roles", columns, rows), *warnings)


def release_values(book: Book) -> list[Any]:
    """Every release that the newest metadata lists, staged or signed."""
    return [
        {"target": r.target, "digest": r.digest, "counter": r.counter, "floor": listing.marks[r.model].floor}
        for listing in everything(book).values()
        for r in sorted(listing.releases.values(), key=lambda r: (r.model, r.counter, r.target))
    ]


def release_view(values: list[Any]) -> RenderableType:
    """The same for people."""
    rows = [[v["target"], v["digest"][:19], v["counter"], v["floor"]] for v in values]
    return table("Releases", ("Release", "Digest", "#Counter", "#Floor"), rows)


def versions(documents: Mapping[str, bytes]) -> dict[str, int]:
    """Version by role, of the newest root and of every other document."""
    found: dict[str, int] = {}
    for name, data in documents.items():
        role = name.split("/", maxsplit=1)[0]
        found[role] = max(found.get(role, 0), int(parse(name, data).signed.version))
    return found


def _staged_row(lack: Missing) -> list[object]:
    missing = f"{lack.count} of {lack.role}" if lack.count else "the document above it"
    signed = f"{len(lack.signed)} of {lack.threshold}"
    return [lack.document, signed, missing, " ".join(short(k) for k in lack.unsigned)]


def _document(book: Book, role: str, now: datetime) -> dict[str, Any]:
    """Version and expiry of what the role has signed; the fleet keeps those of its own roles."""
    newest = Book(book.signed).newest(role) if role not in ONLINE_ROLES else None
    if newest is None:
        return {}
    return {
        "version": newest.version,
        "expires": f"{newest.expires:%Y-%m-%d}",
        "days": max(0, (newest.expires - now).days),
    }


def _rank(role: str) -> tuple[int, str]:
    order = ("root", "targets")
    if role in order:
        return order.index(role), role
    return (3 if role in ONLINE_ROLES else 2), role
