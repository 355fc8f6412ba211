"""Making signed TUF metadata: pure builders, one per role; the keys and the expiry come in.

    root = root_document(version=1, roles={...}, expires=..., signers=[root_a, root_b])
    targets = targets_document(version=1, fleet=fleet_key, families={"intents": FamilyKeys(...)}, ...)
    release = release_document(version=1, releases=[...], expires=..., signers=[...])
    snapshot = snapshot_document(2, {"targets": targets, "release-intents": release}, expires, snapshot_signer)
    timestamp = timestamp_document(2, snapshot, expires, timestamp_signer)

Role names and paths: `release-<family>` may list `models/<family>/*/*/*` and nothing else; `fleet` may list nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from wire.document import check_name
from wire.dsse import FLEET_ROLE
from wire.release import Mark, Release, marks_value


@dataclass(frozen=True)
class RoleKeys:
    """The public keys of a role and how many of them must sign."""

    keys: tuple[Key, ...]
    threshold: int = 1


def release_role(family: str) -> str:
    """Name of the role that signs a family's releases."""
    check_name(family, "family")
    return check_name(f"release-{family}", f"release role of family {family}")


def root_document(version: int, roles: Mapping[str, RoleKeys], expires: datetime, signers: Iterable[Signer]) -> bytes:
    """Root metadata; `roles` has exactly root, timestamp, snapshot and targets."""
    root = Root(
        version=version,
        expires=expires,
        keys={key.keyid: key for role in roles.values() for key in role.keys},
        roles={name: Role([k.keyid for k in role.keys], role.threshold) for name, role in roles.items()},
        consistent_snapshot=True,
    )
    return sign(root, signers)


def targets_document(
    version: int,
    fleet: RoleKeys,
    families: Mapping[str, RoleKeys],
    expires: datetime,
    signers: Iterable[Signer],
    authorities: Sequence[str] = (),
) -> bytes:
    """Top-level targets: lists no target, only who may sign for each family and who speaks for the fleet.

    `authorities` are the certificate authorities (PEM) that devices believe for broker and fleet; none leaves them
    with those of their enrolment kit.
    """
    roles = {FLEET_ROLE: _delegated(FLEET_ROLE, fleet, paths=[])}
    for family, role in families.items():
        name = release_role(family)
        roles[name] = _delegated(name, role, paths=[f"models/{family}/*/*/*"])
    keys = {key.keyid: key for each in (fleet, *families.values()) for key in each.keys}
    custom = {"custom": {"authorities": list(authorities)}} if authorities else None
    targets = Targets(
        version=version, expires=expires, delegations=Delegations(keys, roles), unrecognized_fields=custom
    )
    return sign(targets, signers)


def release_document(
    version: int,
    releases: Sequence[Release],
    expires: datetime,
    signers: Iterable[Signer],
    marks: Mapping[str, Mark] | None = None,
) -> bytes:
    """The metadata of one release role: every release of the family that may be installed.

    `marks` are how far each model ever got, for whoever signs the next one (`wire.release.Mark`).
    """
    targets = {r.target: _target_file(r) for r in releases}
    custom = {"custom": marks_value(marks)} if marks else None
    return sign(Targets(version=version, expires=expires, targets=targets, unrecognized_fields=custom), signers)


def snapshot_document(version: int, roles: Mapping[str, bytes], expires: datetime, signer: Signer) -> bytes:
    """Names the version and sha256 of targets and every release role, from their documents."""
    meta = {f"{name}.json": _meta_file(data) for name, data in roles.items()}
    return sign(Snapshot(version=version, expires=expires, meta=meta), [signer])


def timestamp_document(version: int, snapshot: bytes, expires: datetime, signer: Signer) -> bytes:
    """Names the current snapshot. Publish it last."""
    return sign(Timestamp(version=version, expires=expires, snapshot_meta=_meta_file(snapshot)), [signer])


def sign(signed: Root | Timestamp | Snapshot | Targets, signers: Iterable[Signer]) -> bytes:
    """The metadata as JSON with a signature of every signer."""
    md: Metadata[Any] = Metadata(signed)
    for signer in signers:
        md.sign(signer, append=True)
    return md.to_bytes(JSONSerializer(compact=True))


def _delegated(name: str, role: RoleKeys, paths: list[str]) -> DelegatedRole:
    return DelegatedRole(name, [k.keyid for k in role.keys], role.threshold, terminating=True, paths=paths)


def _target_file(release: Release) -> TargetFile:
    custom = {"profile": release.profile, "runtime": release.runtime, "counter": release.counter}
    custom |= {"floor": release.floor} if release.floor else {}
    custom |= {"size": release.size} if release.size else {}
    hashes = {"sha256": release.digest.removeprefix("sha256:")}
    return TargetFile(release.length, hashes, release.target, {"custom": custom})


def _meta_file(data: bytes) -> MetaFile:
    version = Metadata[Any].from_bytes(data).signed.version
    return MetaFile(version, length=len(data), hashes={"sha256": hashlib.sha256(data).hexdigest()})
