"""The fleet's online keys: Ed25519, made on first start, one file each that only this user may read.

They sign freshness (`snapshot`, `timestamp`) and what makes a device act (`fleet`). None of them can sign a release.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key

from fleet.errors import Malformed
from fleet.store.files import private_folder, write


@dataclass(frozen=True)
class OnlineKeys:
    """A signer for each online role."""

    fleet: CryptoSigner
    snapshot: CryptoSigner
    timestamp: CryptoSigner

    @classmethod
    def open(cls, folder: Path) -> OnlineKeys:
        """Load the keys of a folder, or make them there. Raises `Malformed` for a file that holds no Ed25519 key."""
        private_folder(folder)
        return cls(*(_open(folder / f"{role}.pem") for role in ("fleet", "snapshot", "timestamp")))

    def public(self) -> dict[str, dict[str, Any]]:
        """The public keys by role, as root and targets metadata want them, with their ids."""
        roles = {"fleet": self.fleet, "snapshot": self.snapshot, "timestamp": self.timestamp}
        return {role: _public(signer.public_key) for role, signer in roles.items()}


def _open(path: Path) -> CryptoSigner:
    if not path.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write(path, pem)
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except ValueError as e:
        raise Malformed(f"{path}: not a PEM key: put the fleet's own file back from a backup") from e
    if not isinstance(key, Ed25519PrivateKey):
        raise Malformed(f"{path}: not an Ed25519 key: put the fleet's own file back from a backup")
    return CryptoSigner(key)


def _public(key: Key) -> dict[str, Any]:
    return {**key.to_dict(), "keyid": key.keyid}
