"""What the people who sign do, on folders alone: no network, no fleet.

A trust folder holds `keys/*.pem` and `metadata/{root.<n>,targets,release-<family>}.json`. `found` makes the first
root and targets, `list_bundles` adds releases. Both write whole files or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Targets

from cli.errors import BadInput
from cli.offline_keys import KeyFolder
from wire.bundle import BundleManifest
from wire.chunks import digest
from wire.signing import RoleKeys, release_document, release_role, root_document, targets_document
from wire.trust import Release, releases_of

ROOT_KEYS, ROOT_THRESHOLD = 3, 2
LIFETIME = timedelta(days=365)


@dataclass(frozen=True)
class TrustFolder:
    """The folder of the offline keys and of what they signed."""

    folder: Path

    @property
    def keys(self) -> KeyFolder:
        """The private keys."""
        return KeyFolder(self.folder / "keys")

    def documents(self) -> dict[str, bytes]:
        """Every signed document by its name in `wire.trust`: `root/1`, `targets`, `release-<family>`."""
        paths = sorted((self.folder / "metadata").glob("*.json"))
        return {path.stem.replace("root.", "root/"): path.read_bytes() for path in paths}

    def write(self, documents: Mapping[str, bytes]) -> None:
        """Put signed documents in place, each whole or not at all."""
        metadata = self.folder / "metadata"
        metadata.mkdir(parents=True, exist_ok=True)
        for name, data in documents.items():
            path = metadata / f"{name.replace('/', '.')}.json"
            scratch = path.with_suffix(".new")
            scratch.write_bytes(data)
            scratch.replace(path)


def found(
    trust: TrustFolder,
    family: str,
    online: Mapping[str, Key],
    now: datetime,
    *,
    release_threshold: int,
    passphrase: str | None,
) -> None:
    """Make root, targets and release keys, and sign who may say what. `online` are the fleet's public keys by role.

    Root and targets: 2 of 3. Raises `BadInput` when the folder was used before.
    """
    if trust.documents() or (trust.keys.folder.exists() and any(trust.keys.folder.iterdir())):
        raise BadInput(f"{trust.folder}: holds keys or metadata already: choose another folder with --trust")
    release_role(family)
    root = trust.keys.create("root", ROOT_KEYS, passphrase)
    targets = trust.keys.create("targets", ROOT_KEYS, passphrase)
    release = trust.keys.create(release_role(family), release_threshold, passphrase)
    roles = {
        "root": RoleKeys(tuple(s.public_key for s in root), ROOT_THRESHOLD),
        "targets": RoleKeys(tuple(s.public_key for s in targets), ROOT_THRESHOLD),
        "snapshot": RoleKeys((online["snapshot"],)),
        "timestamp": RoleKeys((online["timestamp"],)),
    }
    expires = (now + LIFETIME).replace(microsecond=0)
    families = {family: RoleKeys(tuple(s.public_key for s in release), release_threshold)}
    trust.write(
        {
            "root/1": root_document(1, roles, expires, root),
            "targets": targets_document(1, RoleKeys((online["fleet"],)), families, expires, targets),
            release_role(family): release_document(1, [], expires, release),
        }
    )


def list_bundles(
    trust: TrustFolder, manifests: Iterable[bytes], now: datetime, passphrase: str | None
) -> list[Release]:
    """Sign new release metadata that lists these manifests beside all earlier ones; gives the new releases.

    Each new release of a family gets the next counter, so that a device can tell older from newer. A manifest that is
    listed already is left as it is. Raises `BadInput` when a target is listed with another digest.
    """
    added: list[Release] = []
    documents: dict[str, bytes] = {}
    parsed = [(BundleManifest.from_bytes(data), data) for data in manifests]
    for family in sorted({manifest.family for manifest, _ in parsed}):
        role = release_role(family)
        version, listed = _listed(trust, role, family)
        counter = max((r.counter for r in listed.values()), default=0) + 1
        for manifest, data in (pair for pair in parsed if pair[0].family == family):
            release = Release(manifest.target, digest(data), len(data), manifest.profile, manifest.runtime, counter)
            _check_unlisted(release, listed.get(release.target))
            if release.target not in listed:
                added.append(release)
                listed[release.target] = release
        expires = (now + LIFETIME).replace(microsecond=0)
        signers = trust.keys.load(role, passphrase)
        documents[role] = release_document(version + 1, list(listed.values()), expires, signers)
    if added:
        trust.write(documents)
    return added


def _listed(trust: TrustFolder, role: str, family: str) -> tuple[int, dict[str, Release]]:
    data = trust.documents().get(role)
    if data is None:
        raise BadInput(f"{trust.folder}: no metadata of family {family!r}: run 'shoal release init --family {family}'")
    signed = Metadata[Targets].from_bytes(data).signed
    return signed.version, {r.target: r for r in releases_of(signed)}


def _check_unlisted(new: Release, listed: Release | None) -> None:
    if listed is not None and listed.digest != new.digest:
        raise BadInput(f"{new.target}: listed already with {listed.digest}: a version never changes, give it a new one")
