"""Whether signed metadata may be published: a pure decision over a whole set, before anything of it is kept.

A candidate set is what is published now, what is offered, and a new snapshot and timestamp over both. It is offered
to a `TrustedSet` as a device would do it, and every release that it adds must be complete: manifest and blobs stored
here and fitting what was signed. Either all of it is published, or none.

    published = admit(published, offered, keys, authority.pem, lifetimes, now, blobs)
    keys.use(online_ids(published))                               # it may name the next key of an online role
    published = stamp(published, keys, lifetimes, now)            # fresh again, nothing new
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography import x509
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Role
from tuf.api.serialization import DeserializationError

from fleet.errors import Malformed, Untrusted
from fleet.store.blobs import BlobStore
from fleet.trust.keys import ONLINE_ROLES, OnlineKeys
from fleet.trust.shippable import MAX_DOCUMENT, ambiguous, incomplete
from wire.dsse import FLEET_ROLE
from wire.release import Mark, marks_of
from wire.signing import snapshot_document, timestamp_document
from wire.trust import MAX_DELEGATIONS, MAX_ROOTS, TrustedSet

MAX_OFFERED: Final = MAX_ROOTS + MAX_DELEGATIONS
"""How many documents one request may bring: every root that a device may have missed, and every role."""
MAX_AUTHORITIES: Final = 8

_OFFERED = re.compile(r"root/[1-9]\d{0,5}|targets|release-[a-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Lifetimes:
    """How long the online documents are fresh."""

    snapshot: timedelta
    timestamp: timedelta


@dataclass(frozen=True)
class Published:
    """The documents that devices see, `root/<version>` and roles by name. Empty before the first release set-up."""

    documents: Mapping[str, bytes] = field(default_factory=dict)

    def trusted(self) -> TrustedSet | None:
        """The verified set that these documents make; None when there is no root yet. Raises `WireError`."""
        if "root/1" not in self.documents:
            return None
        newest = max(self.roots())
        return TrustedSet.from_documents({**self.documents, "root": self.documents[f"root/{newest}"]})

    def roots(self) -> tuple[int, ...]:
        """Versions of the root metadata, rising."""
        return tuple(sorted(int(n.removeprefix("root/")) for n in self.documents if n.startswith("root/")))


def admit(
    current: Published,
    offered: Mapping[str, bytes],
    keys: OnlineKeys,
    authority: str,
    lifetimes: Lifetimes,
    now: datetime,
    blobs: BlobStore,
) -> Published:
    """The set to publish once `offered` is part of it. Raises `Malformed`, or `Untrusted` with every reason.

    `authority` is the certificate authority (PEM) that broker and fleet prove themselves with now.
    """
    _check_names(current, offered)
    before = current.trusted()
    merged = Published({**current.documents, **offered})
    _check_roles(merged, keys)
    candidate = stamp(merged, keys, lifetimes, now)
    trust = _verified(current, candidate, now)
    _check_authorities(before, trust, authority)
    known = {(r.target, r.digest) for r in before.releases()} if before else set()
    added = [r for r in trust.releases() if (r.target, r.digest) not in known]
    faults = [fault for release in added for fault in incomplete(release, blobs)]
    faults += [*_floor_faults(before, trust), *ambiguous(trust.releases(), blobs)]
    if faults:
        raise Untrusted("; ".join(faults))
    return candidate


def stamp(published: Published, keys: OnlineKeys, lifetimes: Lifetimes, now: datetime) -> Published:
    """The same documents under a new snapshot and timestamp, signed by the keys that the root names."""
    old, named = published.documents, online_ids(published)
    roles = {n: data for n, data in old.items() if n == "targets" or n.startswith("release-")}
    snapshot_signer = _signer(keys, "snapshot", named)
    snapshot = snapshot_document(_next(old, "snapshot", now), roles, now + lifetimes.snapshot, snapshot_signer)
    timestamp_signer = _signer(keys, "timestamp", named)
    version = _next(old, "timestamp", now)
    timestamp = timestamp_document(version, snapshot, now + lifetimes.timestamp, timestamp_signer)
    return Published({**old, "snapshot": snapshot, "timestamp": timestamp})


def online_ids(published: Published) -> dict[str, str]:
    """The id of the one key that root or targets name for each online role; a role with none or several is left out.

    Raises `Malformed`.
    """
    if not published.roots():
        return {}
    root = _signed(published.documents, f"root/{published.roots()[-1]}")
    targets = _signed(published.documents, "targets") if "targets" in published.documents else None
    delegations = getattr(targets, "delegations", None)
    delegated = (delegations.roles or {}) if delegations else {}
    roles: dict[str, Role | None] = {name: getattr(root, "roles", {}).get(name) for name in ("snapshot", "timestamp")}
    roles[FLEET_ROLE] = delegated.get(FLEET_ROLE)
    return {name: role.keyids[0] for name, role in roles.items() if role is not None and len(role.keyids) == 1}


def version_and_expiry(data: bytes) -> tuple[int, datetime]:
    """Version and expiry of a document that was admitted."""
    signed = Metadata[Any].from_bytes(data).signed
    return signed.version, signed.expires


def _check_names(current: Published, offered: Mapping[str, bytes]) -> None:
    if not 0 < len(offered) <= MAX_OFFERED:
        raise Malformed(f"trust documents: {len(offered)} were sent, expected 1 to {MAX_OFFERED}")
    for name, data in offered.items():
        if not _OFFERED.fullmatch(name):
            raise Malformed(f"trust document {name[:80]!r}: expected root/<version>, targets or release-<family>")
        if len(data) > MAX_DOCUMENT:
            raise Malformed(f"trust document {name}: {len(data)} bytes, devices take at most {MAX_DOCUMENT}")
        _check_not_another(current, offered, name)


def _check_not_another(current: Published, offered: Mapping[str, bytes], name: str) -> None:
    """Two documents of one version: two people signed apart from each other, or history is rewritten."""
    published = current.documents.get(name, offered[name])
    if published != offered[name] and _signed(offered, name).version == _signed(current.documents, name).version:
        raise Untrusted(f"trust document {name}: another one of that version is published: sign the next version")


def _check_roles(merged: Published, keys: OnlineKeys) -> None:
    """The offline signers have named this fleet's own online keys, those of now or the next ones, and no others."""
    for name in ("root/1", "targets"):
        if name not in merged.documents:
            raise Untrusted(f"trust documents: {name} is missing: start with `shoal release init`")
    named = online_ids(merged)
    for role in ONLINE_ROLES:
        if named.get(role) not in keys.ids(role):
            signer = "targets" if role == FLEET_ROLE else "root"
            ids = " or ".join(sorted(keys.ids(role)))
            raise Untrusted(f"{signer}: does not name this fleet's {role} key {ids}, and only that one")


def _check_authorities(before: TrustedSet | None, trust: TrustedSet, authority: str) -> None:
    """Devices believe the authorities that targets names: without the one in use they would be locked out."""
    named = trust.authorities()
    if not named:
        if before is not None and before.authorities():
            raise Untrusted("targets: names no certificate authority any more: sign it again with those of before")
        return
    if len(named) > MAX_AUTHORITIES:
        raise Untrusted(f"targets: names {len(named)} certificate authorities, at most {MAX_AUTHORITIES}")
    try:
        certificates = [x509.load_pem_x509_certificate(pem.encode()) for pem in named]
    except ValueError as e:
        raise Malformed(f"targets: names a certificate authority that is no PEM certificate: {e}") from e
    if x509.load_pem_x509_certificate(authority.encode()) not in certificates:
        raise Untrusted(
            "targets: does not name the certificate authority that this fleet uses now, so devices would not find it: "
            "run `shoal release fetch`, then `shoal release rotate authorities`"
        )


def _floor_faults(before: TrustedSet | None, trust: TrustedSet) -> Iterator[str]:
    """Releases below the floor of their model, and floors that fall, in words."""
    was, marks = _marks(before), _marks(trust)
    for model, mark in sorted(was.items()):
        if marks.get(model, Mark()).floor < mark.floor:
            yield f"{model}: its floor falls from {mark.floor} to {marks.get(model, Mark()).floor}: a floor never falls"
    for release in trust.releases():
        if release.counter < (floor := marks[release.model].floor):
            yield (
                f"{release.target}: its counter {release.counter} is below the floor {floor} of {release.model}: "
                "no device would install it"
            )


def _marks(trust: TrustedSet | None) -> dict[str, Mark]:
    """How far each model got, by the role that may list it."""
    found: dict[str, Mark] = {}
    for role in trust.documents if trust else ():
        if role.startswith("release-"):
            assert trust is not None
            family = role.removeprefix("release-")
            found |= {m: mark for m, mark in marks_of(trust.targets(role)).items() if m.split("/")[0] == family}
    return found


def _signed(documents: Mapping[str, bytes], name: str) -> Any:
    try:
        return Metadata[Any].from_bytes(documents[name]).signed
    except (DeserializationError, RecursionError) as e:
        raise Malformed(f"trust document {name}: not TUF metadata: {e}") from e


def _verified(current: Published, candidate: Published, now: datetime) -> TrustedSet:
    """The candidate set, taken as a device that holds the current one takes it."""
    trust = current.trusted() or TrustedSet.from_root(candidate.documents["root/1"])
    refused = trust.offer(candidate.documents, now)
    if refused:
        raise Untrusted("; ".join(str(r.error) for r in refused))
    held = {f"root/{v}" for v in range(1, trust.root_version + 1)} | set(trust.documents)
    stray = sorted(set(candidate.documents) - held)
    if stray:
        raise Untrusted(f"{', '.join(stray)}: no document delegates to it, or an earlier version is missing")
    return trust


def _signer(keys: OnlineKeys, role: str, named: Mapping[str, str]) -> CryptoSigner:
    signer = keys.signer(role, named.get(role, ""))
    if signer is None:
        raise Untrusted(
            f"root: names no {role} key that this fleet holds: put the keys folder back from a backup, or run "
            f"`shoal release fetch`, `shoal release rotate {role}` and `shoal release publish`"
        )
    return signer


def _next(documents: Mapping[str, bytes], name: str, now: datetime) -> int:
    """The next version: at least the clock's whole seconds.

    So a fleet that comes back from an older backup signs above all that devices have seen, and is not refused.
    """
    held = _signed(documents, name).version if name in documents else 0
    return max(held + 1, int(now.timestamp()))
