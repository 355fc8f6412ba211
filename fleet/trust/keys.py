"""The fleet's online keys: Ed25519, made on first start, one file each that only this user may read.

They sign freshness (`snapshot`, `timestamp`) and what makes a device act (`fleet`). None of them can sign a release.
A role's next key waits as `<role>.next.pem` until metadata that was signed offline names it; then it takes the place
of the current one, which is dropped. The attributes change at that moment: read them when you sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key

from fleet.errors import Malformed
from fleet.store.files import private_folder, sync_folder, write

ONLINE_ROLES: Final = ("fleet", "snapshot", "timestamp")


@dataclass
class _Pair:
    """The key of a role and the one that may follow it; `swapped` when the files still stand the other way round."""

    current: CryptoSigner
    next: CryptoSigner | None
    swapped: bool = False


class OnlineKeys:
    """A signer for each online role. Changed on one thread only."""

    def __init__(self, folder: Path, pairs: Mapping[str, _Pair]) -> None:
        self._folder, self._pairs = folder, pairs

    @classmethod
    def open(cls, folder: Path) -> OnlineKeys:
        """Load the keys of a folder, or make them there. Raises `Malformed` for a file that holds no Ed25519 key."""
        private_folder(folder)
        return cls(folder, {role: _open_pair(folder, role) for role in ONLINE_ROLES})

    @property
    def fleet(self) -> CryptoSigner:
        """Signs desired states, commands and acknowledgements."""
        return self._pairs["fleet"].current

    @property
    def snapshot(self) -> CryptoSigner:
        """Signs which versions stand together."""
        return self._pairs["snapshot"].current

    @property
    def timestamp(self) -> CryptoSigner:
        """Signs which snapshot is the newest."""
        return self._pairs["timestamp"].current

    def public(self) -> dict[str, dict[str, Any]]:
        """The public keys by role, as root and targets metadata want them, with their ids."""
        return {role: _public(pair.current.public_key) for role, pair in self._pairs.items()}

    def public_next(self) -> dict[str, dict[str, Any]]:
        """The same of the keys that were made to follow; a role without one is left out."""
        return {role: _public(pair.next.public_key) for role, pair in self._pairs.items() if pair.next}

    def prepare(self, role: str) -> None:
        """Make the next key of a role, unless one waits already. Raises `Malformed` for another role."""
        if role not in self._pairs:
            raise Malformed(f"role {role[:80]!r}: no online role: choose from {', '.join(ONLINE_ROLES)}")
        pair = self._pairs[role]
        if pair.next is None:
            path = _next_path(self._folder, role)
            _make(path)
            pair.next = _load(path)

    def ids(self, role: str) -> frozenset[str]:
        """Ids of the keys that are held for a role."""
        pair = self._pairs[role]
        return frozenset(s.public_key.keyid for s in (pair.current, pair.next) if s is not None)

    def signer(self, role: str, keyid: str) -> CryptoSigner | None:
        """The key of a role with this id; None when it is not held."""
        pair = self._pairs[role]
        return next((s for s in (pair.current, pair.next) if s is not None and s.public_key.keyid == keyid), None)

    def use(self, named: Mapping[str, str]) -> None:
        """Sign with the keys that metadata names, by role; an id that is not held changes nothing.

        It changes memory only and can be undone by the names from before; `settle` makes it last.
        """
        for role, keyid in named.items():
            pair = self._pairs[role]
            if pair.next is not None and pair.next.public_key.keyid == keyid:
                pair.current, pair.next, pair.swapped = pair.next, pair.current, not pair.swapped

    def settle(self) -> None:
        """Drop the keys that others took the place of, in memory and on disk.

        Cut off before it ends, the published metadata still names the key, and the next start does it again.
        """
        for role, pair in self._pairs.items():
            if pair.swapped:
                _next_path(self._folder, role).replace(_path(self._folder, role))
                sync_folder(self._folder)
                pair.next, pair.swapped = None, False


def _path(folder: Path, role: str) -> Path:
    return folder / f"{role}.pem"


def _next_path(folder: Path, role: str) -> Path:
    return folder / f"{role}.next.pem"


def _open_pair(folder: Path, role: str) -> _Pair:
    path, following = _path(folder, role), _next_path(folder, role)
    if not path.exists():
        _make(path)
    return _Pair(_load(path), _load(following) if following.exists() else None)


def _make(path: Path) -> None:
    write(path, Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _load(path: Path) -> CryptoSigner:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as e:
        raise Malformed(f"{path}: not a PEM key: put the fleet's own file back from a backup") from e
    if not isinstance(key, Ed25519PrivateKey):
        raise Malformed(f"{path}: not an Ed25519 key: put the fleet's own file back from a backup")
    return CryptoSigner(key)


def _public(key: Key) -> dict[str, Any]:
    return {**key.to_dict(), "keyid": key.keyid}
