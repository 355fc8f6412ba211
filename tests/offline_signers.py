"""The people who sign and the fleet that they sign for, without a network: folders, and keys made at run time.

desk = found(tmp_path / "trust", OnlineSide())   # root, targets and release keys, all at hand
desk.list(manifest("1.0.0"))                     # signed
trusted = desk.fleet.device_view(desk.book)      # what a device makes of the signed documents
OnlineSide().fetch_into(folder)                  # what `shoal release fetch` would write
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from trust_repository import new_signer

from cli.trust import ceremony, listing
from cli.trust.book import Book
from cli.trust.folder import Online, TrustFolder
from cli.trust.keys import KeyFolder
from fleet.trust.issuer import Issuer
from wire.bundle import MODEL_ARTIFACT, BundleConfig, BundleFile, BundleManifest
from wire.chunks import digest
from wire.signing import snapshot_document, timestamp_document
from wire.trust import TrustedSet

HOME = "models/intents/home"
NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)
DIGEST = digest(b"x")


def manifest(version: str, profile: str = "x86-64", name: str = "home", family: str = "intents") -> bytes:
    file = BundleFile(role="model", path="model.onnx", digest=DIGEST, size=1)
    return BundleManifest(
        family=family, name=name, version=version, profile=profile, runtime="onnxruntime", precision="int8",
        config=BundleConfig(digest=DIGEST, size=1), files=(file,), annotations={},
    ).to_bytes()  # fmt: skip


def layout_of(folder: Path, *manifests: bytes) -> Path:
    """An OCI image layout with these manifests; what signs reads nothing else of it."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for data in manifests:
        (blobs / digest(data).removeprefix("sha256:")).write_bytes(data)
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    kind = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": MODEL_ARTIFACT}
    listed = [{**kind, "digest": digest(data), "size": len(data)} for data in manifests]
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": listed}))
    return folder


class OnlineSide:
    """The fleet's online keys, and what it would sign with them."""

    def __init__(self) -> None:
        self.signers = {role: new_signer() for role in ("fleet", "snapshot", "timestamp")}
        self.next: dict[str, CryptoSigner] = {}
        self.authorities = [Issuer.new(NOW).pem]
        self.version = 0

    def value(self) -> dict[str, object]:
        """What `GET /api/v1/trust` says of the fleet itself."""
        return {"online": public(self.signers), "next": public(self.next), "authorities": self.authorities}

    def online(self) -> Online:
        return Online.read(self.value(), "the fleet")

    def fetch_into(self, folder: Path) -> None:
        TrustFolder(folder).save_online(self.value())

    def prepare(self, role: str) -> None:
        self.next[role] = new_signer()

    def switch(self, role: str) -> None:
        self.signers[role] = self.next.pop(role)

    def offered(self, book: Book, now: datetime = NOW) -> dict[str, bytes]:
        """The signed documents under fresh metadata."""
        self.version += 1
        roles = {name: data for name, data in book.signed.items() if not name.startswith("root/")}
        snapshot = snapshot_document(self.version, roles, now + timedelta(days=1), self.signers["snapshot"])
        timestamp = timestamp_document(self.version, snapshot, now + timedelta(days=1), self.signers["timestamp"])
        return {**book.signed, "snapshot": snapshot, "timestamp": timestamp}

    def device_view(self, book: Book, device: TrustedSet | None = None) -> TrustedSet:
        """A device that takes all of it: one that holds an older state, or a new one."""
        trust = device or TrustedSet.from_root(book.signed["root/1"])
        assert trust.offer(self.offered(book), NOW) == ()
        return trust


def public(signers: Mapping[str, CryptoSigner]) -> dict[str, dict[str, object]]:
    return {role: {**s.public_key.to_dict(), "keyid": s.public_key.keyid} for role, s in signers.items()}


@dataclass
class Desk:
    """A founded trust folder whose keys are all at hand."""

    fleet: OnlineSide
    keys: KeyFolder
    book: Book

    def sign(self, book: Book) -> Book:
        self.book = book.sign(self.keys.signers(book.wanted()))
        return self.book

    def list(self, *manifests: bytes) -> dict[str, int]:
        book, added, _ = listing.list_bundles(self.book, manifests, NOW)
        self.sign(book)
        return {r.target.removeprefix(f"{HOME}/"): r.counter for r in added}

    def rotate(self, role: str, old: str | None = None) -> str:
        roles = self.book.roles()
        gone = ceremony.key_of(roles, role, old)
        (new,) = self.keys.make(role, 1, None)
        self.sign(ceremony.with_roles(self.book, ceremony.rotated(roles, role, gone, new), NOW))
        return gone

    def rotate_online(self, role: str) -> None:
        self.fleet.prepare(role)
        roles = self.book.roles()
        new = ceremony.next_online_key(roles, self.fleet.online(), role)
        after = ceremony.rotated(roles, role, roles.ids(role)[0], new)
        self.sign(ceremony.with_roles(self.book, after, NOW))
        self.fleet.switch(role)


def found(folder: Path, fleet: OnlineSide, *, threshold: int = 2, passphrase: str | None = None) -> Desk:
    keys = KeyFolder(folder, lambda: passphrase or "")
    book = ceremony.found(keys, "intents", fleet.online(), NOW, release_threshold=threshold, passphrase=passphrase)
    desk = Desk(fleet, keys, book)
    desk.sign(book)
    return desk
