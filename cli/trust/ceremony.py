"""Who may sign: made, added to, replaced and signed again. Each act gives a `Book` whose new documents are staged.

book = found(keys, "intents", online, now, release_threshold=2, passphrase=...)
book = with_roles(book, rotated(book.roles(), "timestamp", old, new), now)
book = book.sign(keys.signers(book.wanted()))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Targets

from cli.errors import BadInput
from cli.trust.book import Book, check, parse
from cli.trust.folder import Online
from cli.trust.keys import KeyFolder
from cli.trust.roles import ONLINE_ROLES, RELEASE, Roles
from wire.release import marks_of, releases_of
from wire.signing import RoleKeys, release_document, release_role

ROOT_KEYS, ROOT_THRESHOLD = 3, 2
LIFETIME: Final = timedelta(days=365)


def found(
    keys: KeyFolder, family: str, online: Online, now: datetime, *, release_threshold: int, passphrase: str | None
) -> Book:
    """Make root, targets and release keys, and stage who may say what. Root and targets: 2 of 3.

    Keys that an interrupted run made already are taken instead of new ones.
    """
    release_role(family)
    roles = {
        "root": RoleKeys(_made(keys, "root", ROOT_KEYS, passphrase), ROOT_THRESHOLD),
        "targets": RoleKeys(_made(keys, "targets", ROOT_KEYS, passphrase), ROOT_THRESHOLD),
        **{role: RoleKeys((_online_key(online, role),)) for role in ONLINE_ROLES},
    }
    who = Roles(roles, online.authorities)
    expires = expiry(now)
    empty = Book(staged={"root/1": who.root(1, expires), "targets": who.targets(1, expires)})
    return with_family(empty, keys, family, now, threshold=release_threshold, passphrase=passphrase)


def with_family(
    book: Book, keys: KeyFolder, family: str, now: datetime, *, threshold: int, passphrase: str | None
) -> Book:
    """Make the release keys of a family and stage targets that name them. Raises `BadInput` for one that is there."""
    role, roles = release_role(family), book.roles()
    if role in roles.keys:
        raise BadInput(f"family {family} is there already: go on with 'shoal release sign' and 'shoal release publish'")
    made = RoleKeys(_made(keys, role, threshold, passphrase), threshold)
    return with_roles(book, roles.with_keys(role, made), now)


def with_roles(book: Book, after: Roles, now: datetime) -> Book:
    """Stage what has to be signed so that these roles hold: root, targets, and what their keys carry no more."""
    before, expires = book.roles(), expiry(now)
    if not after.same_root(before):
        book = book.stage({f"root/{book.root_version() + 1}": after.root(book.root_version() + 1, expires)})
    if not after.same_targets(before) or not _is_carried(book, "targets"):
        book = book.stage({"targets": after.targets(book.version("targets") + 1, expires)})
    for family in sorted(after.families()):
        role = release_role(family)
        if not _is_carried(book, role):
            book = book.stage({role: release_again(book, role, now)})
    return book


def renewed(book: Book, role: str, now: datetime) -> Book:
    """Stage the same content of root, targets or a release role with a new version and expiry."""
    roles = book.roles()
    if role == "root":
        version = book.root_version() + 1
        return book.stage({f"root/{version}": roles.root(version, expiry(now))})
    if role == "targets":
        return book.stage({role: roles.targets(book.version(role) + 1, expiry(now))})
    if role not in roles.keys or not role.startswith(RELEASE):
        raise BadInput(f"role {role!r}: the fleet signs it again by itself, or there is none")
    return book.stage({role: release_again(book, role, now)})


def added(roles: Roles, role: str, key: Key, threshold: int | None) -> Roles:
    """With one more key, and another threshold if one is given. Raises `BadInput` for an online role."""
    check_offline(roles, role)
    held = roles.of(role)
    return roles.with_keys(role, RoleKeys((*held.keys, key), threshold or held.threshold))


def check_offline(roles: Roles, role: str) -> None:
    """Raises `BadInput` for a role that is not there, or whose only key the fleet holds."""
    roles.of(role)
    if role in ONLINE_ROLES:
        raise BadInput(f"role {role}: the fleet holds its only key: replace it with 'shoal release rotate {role}'")


def rotated(roles: Roles, role: str, old: str, new: Key) -> Roles:
    """With a key in the place of another one. `old` is a whole key id, as `key_of` gives it."""
    held = roles.of(role)
    return roles.with_keys(role, RoleKeys(tuple(new if k.keyid == old else k for k in held.keys), held.threshold))


def key_of(roles: Roles, role: str, start: str | None) -> str:
    """The key of a role whose id begins so; its only one when nothing is said. Raises `BadInput`."""
    ids = roles.ids(role)
    found = [keyid for keyid in ids if keyid.startswith(start or "")]
    if len(found) != 1:
        raise BadInput(
            f"role {role}: {len(found)} of its keys fit: choose one with --old: {', '.join(k[:12] for k in ids)}"
        )
    return found[0]


def next_online_key(roles: Roles, online: Online, role: str) -> Key:
    """The key that the fleet made to follow the one that is named. Raises `BadInput` when it has made none."""
    for each in (online.next, online.keys):
        if role in each and each[role].keyid not in roles.ids(role):
            return each[role]
    raise BadInput(
        f"role {role}: online.json names no key that is to follow: run 'shoal release fetch --prepare {role}' "
        "where the fleet can be reached"
    )


def with_authorities(roles: Roles, online: Online) -> Roles:
    """With the certificate authorities of the fleet. Raises `BadInput` when nothing would change."""
    if not online.authorities:
        raise BadInput("online.json names no certificate authority: run 'shoal release fetch' again")
    if online.authorities == roles.authorities:
        raise BadInput(
            "targets names the certificate authorities of online.json already: nothing to sign; "
            "after a change on the fleet run 'shoal release fetch' first"
        )
    return replace(roles, authorities=online.authorities)


def release_again(book: Book, role: str, now: datetime) -> bytes:
    """What a release role lists, with the next version and without a signature; empty for a new family."""
    newest: Targets | None = book.newest(role)
    listed = releases_of(newest) if newest is not None else []
    marks = marks_of(newest) if newest is not None else {}
    return release_document(book.version(role) + 1, listed, expiry(now), [], marks)


def expiry(now: datetime) -> datetime:
    """When a document expires that is signed now."""
    return (now + LIFETIME).replace(microsecond=0)


def _is_carried(book: Book, role: str) -> bool:
    """Whether the newest document of a role stands under the newest one above it.

    A staged one does, or will once it is signed; a signed one must have its signatures still.
    """
    if role in book.staged or role not in book.signed:
        return role in book.staged
    verifier = book.newest("root" if role == "targets" else "targets")
    md: Metadata[Targets] = parse(role, book.signed[role])
    return bool(check(verifier, role, md))


def _made(keys: KeyFolder, role: str, count: int, passphrase: str | None) -> tuple[Key, ...]:
    left = keys.left_over(role, passphrase)[:count]
    return (*left, *keys.make(role, count - len(left), passphrase))


def _online_key(online: Online, role: str) -> Key:
    keys: Mapping[str, Key] = online.keys
    if role not in keys:
        raise BadInput(f"online.json: no {role} key: run 'shoal release fetch' again")
    return keys[role]
