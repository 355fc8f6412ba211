"""Whether signed metadata may be published: a pure decision over a whole set, before anything of it is kept.

A candidate set is what is published now, what is offered, and a new snapshot and timestamp over both. It is offered
to a `TrustedSet` as a device would do it, and every release that it adds must be complete: manifest and blobs stored
here and fitting what was signed. Either all of it is published, or none.

    published = admit(published, offered, keys, lifetimes, now, blobs)
    published = stamp(published, keys, lifetimes, now)            # fresh again, nothing new
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tuf.api.metadata import Metadata, Role
from tuf.api.serialization import DeserializationError

from fleet.errors import Malformed, Untrusted
from fleet.store.blobs import BlobStore
from fleet.trust.keys import OnlineKeys
from wire.bundle import BundleFile, BundleManifest
from wire.chunks import ChunkList
from wire.dsse import FLEET_ROLE
from wire.errors import WireError
from wire.signing import snapshot_document, timestamp_document
from wire.trust import Release, TrustedSet

MAX_PACKET = 1024 * 1024
"""Largest MQTT packet in bytes: of a broker's own setting, and so of every document and chunk list."""
MAX_DOCUMENT = MAX_PACKET - 1024

_OFFERED = re.compile(r"root/[1-9]\d{0,5}|targets|release-[a-z0-9._-]{1,64}")
_ONLINE = ("snapshot", "timestamp")


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
    lifetimes: Lifetimes,
    now: datetime,
    blobs: BlobStore,
) -> Published:
    """The set to publish once `offered` is part of it. Raises `Malformed`, or `Untrusted` with every reason."""
    _check_names(current, offered)
    before = current.trusted()
    known = {(r.target, r.digest) for r in before.releases()} if before else set()
    merged = Published({**current.documents, **offered})
    _check_roles(merged, keys)
    candidate = stamp(merged, keys, lifetimes, now)
    trust = _verified(current, candidate, now)
    added = [r for r in trust.releases() if (r.target, r.digest) not in known]
    faults = [fault for release in added for fault in _faults(release, blobs)]
    if faults:
        raise Untrusted("; ".join(faults))
    return candidate


def stamp(published: Published, keys: OnlineKeys, lifetimes: Lifetimes, now: datetime) -> Published:
    """The same documents under a new snapshot and timestamp."""
    old = published.documents
    roles = {n: data for n, data in old.items() if n == "targets" or n.startswith("release-")}
    snapshot = snapshot_document(_next(old, "snapshot"), roles, now + lifetimes.snapshot, keys.snapshot)
    timestamp = timestamp_document(_next(old, "timestamp"), snapshot, now + lifetimes.timestamp, keys.timestamp)
    return Published({**old, "snapshot": snapshot, "timestamp": timestamp})


def version_and_expiry(data: bytes) -> tuple[int, datetime]:
    """Version and expiry of a document that was admitted."""
    signed = Metadata[Any].from_bytes(data).signed
    return signed.version, signed.expires


def _check_names(current: Published, offered: Mapping[str, bytes]) -> None:
    if not offered:
        raise Malformed("trust documents: none were sent")
    for name, data in offered.items():
        if not _OFFERED.fullmatch(name):
            raise Malformed(f"trust document {name[:80]!r}: expected root/<version>, targets or release-<family>")
        if len(data) > MAX_DOCUMENT:
            raise Malformed(f"trust document {name}: {len(data)} bytes, devices take at most {MAX_DOCUMENT}")
        if name.startswith("root/") and current.documents.get(name, data) != data:
            raise Untrusted(f"trust document {name}: another one of that version is published: sign the next version")


def _check_roles(merged: Published, keys: OnlineKeys) -> None:
    """The offline signers have named this fleet's own online keys, and no others."""
    for name in ("root/1", "targets"):
        if name not in merged.documents:
            raise Untrusted(f"trust documents: {name} is missing: start with `shoal release init`")
    root = _signed(merged.documents, f"root/{merged.roots()[-1]}")
    targets = _signed(merged.documents, "targets")
    delegated = (targets.delegations.roles or {}) if getattr(targets, "delegations", None) else {}
    roles: dict[str, Role | None] = {name: getattr(root, "roles", {}).get(name) for name in _ONLINE}
    roles[FLEET_ROLE] = delegated.get(FLEET_ROLE)
    for name, public in keys.public().items():
        role = roles[name]
        if role is None or list(role.keyids) != [public["keyid"]]:
            signer = "targets" if name == FLEET_ROLE else "root"
            raise Untrusted(f"{signer}: does not name this fleet's {name} key {public['keyid']}, and only that one")


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


def _faults(release: Release, blobs: BlobStore) -> Iterator[str]:
    """Why a newly listed release cannot be shipped, in words."""
    try:
        if not blobs.has(release.digest):
            yield f"{release.target}: its manifest {release.digest} was not uploaded: upload it first"
            return
        data = blobs.read(release.digest)
        manifest = BundleManifest.from_bytes(data)
    except WireError as e:
        yield f"{release.target}: {e}"
        return
    if len(data) != release.length:
        yield f"{release.target}: the manifest has {len(data)} bytes, the release says {release.length}"
    signed = (release.target, release.profile, release.runtime)
    if signed != (manifest.target, manifest.profile, manifest.runtime):
        yield (
            f"{release.target}: the manifest is of {manifest.target} for {manifest.profile}, {manifest.runtime}; "
            f"signed was {release.profile}, {release.runtime}"
        )
    yield from _blob_faults(release, manifest, blobs)


def _blob_faults(release: Release, manifest: BundleManifest, blobs: BlobStore) -> Iterator[str]:
    sizes = {manifest.config.digest: manifest.config.size} | {f.digest: f.size for f in manifest.files}
    for digest, size in sizes.items():
        if not blobs.has(digest):
            yield f"{release.target}: its blob {digest} was not uploaded: upload it first"
        elif blobs.size(digest) != size:
            yield f"{release.target}: its blob {digest} has {blobs.size(digest)} bytes, the manifest says {size}"
    for file in manifest.files:
        if file.chunks is not None:
            yield from _chunk_faults(release, file, file.chunks, blobs)
        elif file.size > MAX_DOCUMENT:
            yield f"{release.target}: {file.path} has {file.size} bytes, at most {MAX_DOCUMENT} travel whole"


def _chunk_faults(release: Release, file: BundleFile, chunks: str, blobs: BlobStore) -> Iterator[str]:
    if not blobs.has(chunks):
        yield f"{release.target}: the chunk list {chunks} of {file.path} was not uploaded: upload it first"
        return
    if blobs.size(chunks) > MAX_DOCUMENT:
        yield f"{release.target}: the chunk list of {file.path} is over {MAX_DOCUMENT} bytes: use larger chunks"
        return
    try:
        listed = ChunkList.from_bytes(blobs.read(chunks))
    except WireError as e:
        yield f"{release.target}: the chunk list of {file.path}: {e}"
        return
    if (listed.blob, listed.size) != (file.digest, file.size):
        yield f"{release.target}: the chunk list of {file.path} is of {listed.blob}, {listed.size} bytes"


def _next(documents: Mapping[str, bytes], name: str) -> int:
    return _signed(documents, name).version + 1 if name in documents else 1
