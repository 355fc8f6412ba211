"""The offline keys: made, kept and read on the machine of the people who sign, never on the fleet.

Ed25519, one PEM file (PKCS#8) a key, mode 0600, encrypted with a passphrase unless that is declined.
"""

from __future__ import annotations

import getpass
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from cli.errors import BadInput

PASSPHRASE = "SHOAL_KEY_PASSPHRASE"  # noqa: S105  the name of a variable


@dataclass(frozen=True)
class KeyFolder:
    """A folder of key files `<role>-<n>.pem`."""

    folder: Path

    def create(self, role: str, count: int, passphrase: str | None) -> list[CryptoSigner]:
        """Make `count` keys for a role. Raises `BadInput` when a file is there already: keys are never replaced."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        encryption: KeySerializationEncryption = (
            BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
        )
        signers = []
        for path in (self.folder / f"{role}-{n}.pem" for n in range(1, count + 1)):
            key = Ed25519PrivateKey.generate()
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
            _write_new(path, pem)
            signers.append(CryptoSigner(key))
        return signers

    def load(self, role: str, passphrase: str | None) -> list[CryptoSigner]:
        """Every key of a role that is in the folder. Raises `BadInput` for none, a wrong passphrase or another file."""
        paths = sorted(self.folder.glob(f"{role}-*.pem"))
        if not paths:
            raise BadInput(
                f"{self.folder}: no key {role}-1.pem: run 'shoal release init', or name the folder with --trust"
            )
        return [CryptoSigner(_read(path, passphrase)) for path in paths]

    def is_encrypted(self) -> bool:
        """Whether reading these keys needs a passphrase."""
        return any(b"ENCRYPTED" in path.read_bytes() for path in self.folder.glob("*.pem"))


def new_passphrase() -> str:
    """A passphrase for new keys: from `SHOAL_KEY_PASSPHRASE`, else asked for twice."""
    if text := os.environ.get(PASSPHRASE):
        return text
    text = _ask("Passphrase for the new keys: ")
    if not text or text != _ask("Once more: "):
        raise BadInput("the passphrases are empty or differ: nothing was made")
    return text


def known_passphrase(keys: KeyFolder) -> str | None:
    """The passphrase of existing keys; None when they are not encrypted."""
    if not keys.is_encrypted():
        return None
    return os.environ.get(PASSPHRASE) or _ask("Passphrase of the keys: ")


def _ask(prompt: str) -> str:
    if not sys.stdin.isatty():
        raise BadInput(
            f"a passphrase is needed and there is no terminal: set {PASSPHRASE}, or pass --unencrypted at init"
        )
    return getpass.getpass(prompt)


def _write_new(path: Path, data: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as e:
        raise BadInput(f"{path}: exists already; a key is never replaced: choose another folder with --trust") from e
    with os.fdopen(fd, "wb") as f:
        f.write(data)


def _read(path: Path, passphrase: str | None) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), passphrase.encode() if passphrase else None)
    except (ValueError, TypeError) as e:
        raise BadInput(f"{path}: cannot be read: wrong passphrase, or not a key file") from e
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"{path}: not an Ed25519 key")
    return key
