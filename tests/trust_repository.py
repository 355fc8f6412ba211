"""A whole TUF repository in memory, to be bent in one line by a test.

    repo = Repository()
    trust = TrustedSet.from_root(repo.roots[1])
    repo.release("models/intents/kitchen/1.0.0/x86-64", b"manifest")
    assert not trust.offer(repo.offered(), repo.now)

Every key is made here, at run time. Change `repo.expires`, `repo.keys[...]` or any document in `repo.documents`,
and offer it again.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from wire.chunks import digest
from wire.release import Release
from wire.signing import (
    RoleKeys,
    release_document,
    release_role,
    root_document,
    snapshot_document,
    targets_document,
    timestamp_document,
)


def new_signer() -> CryptoSigner:
    return CryptoSigner(Ed25519PrivateKey.generate())


class Repository:
    def __init__(self, family: str = "intents", release_threshold: int = 1) -> None:
        self.family = family
        self.now = datetime(2026, 11, 22, 8, tzinfo=UTC)
        self.expires = self.now + timedelta(days=30)
        self.keys = {
            "root": [new_signer() for _ in range(3)],
            "targets": [new_signer() for _ in range(3)],
            "release": [new_signer() for _ in range(2)],
            "timestamp": [new_signer()],
            "snapshot": [new_signer()],
            "fleet": [new_signer()],
        }
        self.thresholds = {"root": 2, "targets": 2, "release": release_threshold}
        self.versions = dict.fromkeys(("root", "targets", "release", "snapshot", "timestamp"), 0)
        self.roots: dict[int, bytes] = {}
        self.documents: dict[str, bytes] = {}
        self.releases: dict[str, Release] = {}
        self.sign_root()
        self.sign_targets()
        self.sign_release()

    def role(self, name: str) -> RoleKeys:
        return RoleKeys(tuple(s.public_key for s in self.keys[name]), self.thresholds.get(name, 1))

    def _next(self, role: str) -> int:
        self.versions[role] += 1
        return self.versions[role]

    def sign_root(self, also: list[CryptoSigner] | None = None) -> None:
        """A new root by the current root keys, and by the keys before them after a rotation (`also`)."""
        roles = {name: self.role(name) for name in ("root", "timestamp", "snapshot", "targets")}
        version = self._next("root")
        self.roots[version] = root_document(version, roles, self.expires, [*self.keys["root"], *(also or [])])

    def sign_targets(self) -> None:
        families = {self.family: self.role("release")}
        version = self._next("targets")
        data = targets_document(version, self.role("fleet"), families, self.expires, self.keys["targets"])
        self.documents["targets"] = data

    def sign_release(self) -> None:
        version = self._next("release")
        data = release_document(version, list(self.releases.values()), self.expires, self.keys["release"])
        self.documents[release_role(self.family)] = data
        self.publish()

    def release(self, target: str, manifest: bytes, *, counter: int = 1, runtime: str = "onnxruntime") -> Release:
        """List a manifest under a target path and publish it."""
        profile = target.rsplit("/", 1)[1]
        self.releases[target] = Release(target, digest(manifest), len(manifest), profile, runtime, counter)
        self.sign_release()
        return self.releases[target]

    def publish(self) -> None:
        """A new snapshot and timestamp over the documents as they stand."""
        roles = {k: v for k, v in self.documents.items() if k not in ("snapshot", "timestamp")}
        snapshot = snapshot_document(self._next("snapshot"), roles, self.expires, self.keys["snapshot"][0])
        self.documents["snapshot"] = snapshot
        timestamp = timestamp_document(self._next("timestamp"), snapshot, self.expires, self.keys["timestamp"][0])
        self.documents["timestamp"] = timestamp

    def offered(self) -> dict[str, bytes]:
        """Everything as it would be retained on the broker, all roots included."""
        return {**{f"root/{v}": data for v, data in self.roots.items()}, **self.documents}
