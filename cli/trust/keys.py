"""The offline keys: made, kept and read on the machine of the people who sign, never on the fleet.

A key is named by a URI in `keys.json`, `file:keys/root-1.pem` relative to that file's folder or `file:///an/other`;
other schemes (a token, a TPM) are refused by name. A key file is Ed25519, PEM (PKCS#8), mode 0600, encrypted with a
passphrase unless that is declined; beside it lies the public key, `root-1.pub`, to hand to others.

    keys = KeyFolder(Path("shoal-trust"))
    public = keys.make("root", 3, passphrase)
    signers = keys.signers(wanted_ids)          # those of them that this folder can reach
"""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from cli.errors import BadInput
from fleet.store.files import private_folder, write
from wire.document import parse_json
from wire.errors import WireError

PASSPHRASE: Final = "SHOAL_KEY_PASSPHRASE"  # noqa: S105  the name of a variable
SHORTEST: Final = 12
"""Characters of a passphrase: PKCS#8 as `cryptography` writes it slows a guess down by 2,048 rounds only."""
LIST_FILE: Final = "keys.json"
_KEY_LIMIT, _LIST_LIMIT = 16 * 1024, 1024 * 1024


@dataclass(frozen=True)
class KeyEntry:
    """A key of this folder: its role and URI; the id is None for a file that is not in the list."""

    role: str
    uri: str
    keyid: str | None = None


def known_passphrase() -> str:
    """The passphrase of existing keys: from `SHOAL_KEY_PASSPHRASE`, else asked for. Raises `BadInput`."""
    return os.environ.get(PASSPHRASE) or _ask("Passphrase of the keys: ")


def new_passphrase() -> str:
    """A passphrase for new keys: from `SHOAL_KEY_PASSPHRASE`, else asked for twice.

    Raises `BadInput` for one that is shorter than `SHORTEST`.
    """
    given = os.environ.get(PASSPHRASE)
    text = given or _ask("Passphrase for the new keys: ")
    if len(text) < SHORTEST:
        raise BadInput(f"the passphrase has {len(text)} characters, fewer than {SHORTEST}: nothing was made")
    if not given and text != _ask("Once more: "):
        raise BadInput("the passphrases differ: nothing was made")
    return text


@dataclass(frozen=True)
class KeyFolder:
    """The keys that `keys.json` of a folder lists, and key files that lie in it or in its `keys`.

    The list also keeps which fleet's root these keys signed for: they sign for no other (`belongs_to`).
    `passphrase` gives the one of its encrypted keys; it is asked at most once, and only when one has to be read.
    """

    folder: Path
    passphrase: Callable[[], str] = field(default_factory=lambda: cache(known_passphrase))

    def entries(self) -> list[KeyEntry]:
        """Every key that this folder names or holds, whether its file is here or with somebody else."""
        listed = self._listed()
        known = {self._path(entry.uri) for entry in listed}
        found = sorted([*self.folder.glob("*.pem"), *(self.folder / "keys").glob("*.pem")])
        return [*listed, *(KeyEntry(_role_of(path), self._uri(path)) for path in found if path not in known)]

    def make(self, role: str, count: int, passphrase: str | None) -> list[Key]:
        """Make new keys for a role and list them; gives their public keys. `passphrase` None leaves them open."""
        private_folder(self.folder)
        folder = private_folder(self.folder / "keys")
        entries = self._listed()
        made: list[Key] = []
        for path in self._free(folder, role, count):
            key = Ed25519PrivateKey.generate()
            _write_key(path, key, passphrase)
            public = CryptoSigner(key).public_key
            entries.append(KeyEntry(role, self._uri(path), public.keyid))
            made.append(public)
        self._save(entries, self.belongs_to())
        return made

    def signers(self, wanted: Collection[str]) -> list[CryptoSigner]:
        """The keys with these ids that are here. Raises `BadInput` for a wrong passphrase or another file."""
        return [s for s in self._open(wanted) if s.public_key.keyid in wanted]

    def here(self) -> list[KeyEntry]:
        """The keys whose file is in reach."""
        return [entry for entry in self.entries() if self._path(entry.uri).exists()]

    def left_over(self, role: str, passphrase: str | None) -> list[Key]:
        """The public keys that were made for a role and are here.

        Raises `BadInput` for one that does not open with this passphrase: whoever can write into the folder could
        leave a key of their own in it, to be named as one of ours.
        """
        found = [entry for entry in self.here() if entry.role == role]
        for entry in found if passphrase is not None else ():
            if b"ENCRYPTED" not in read_file(path := self._path(entry.uri), _KEY_LIMIT):
                raise BadInput(f"{path}: a key without a passphrase, which is not the one you gave: move it away")
        opened = KeyFolder(self.folder, lambda: passphrase or self.passphrase())
        return [CryptoSigner(opened._read(entry)).public_key for entry in found]

    def belongs_to(self) -> str | None:
        """The root for which these keys have signed (`Book.root_digest`); None before the first time."""
        root = self._list().get("root")
        return root if isinstance(root, str) else None

    def keep_root(self, root: str) -> None:
        """Remember it."""
        if self.belongs_to() != root:
            self._save(self._listed(), root)

    def _open(self, wanted: Collection[str]) -> Iterator[CryptoSigner]:
        seen: set[str] = set()
        for entry in self.here() if wanted else ():
            if entry.keyid is None or entry.keyid in wanted:
                signer = CryptoSigner(self._read(entry))
                if signer.public_key.keyid not in seen:
                    seen.add(signer.public_key.keyid)
                    yield signer

    def _read(self, entry: KeyEntry) -> Ed25519PrivateKey:
        path = self._path(entry.uri)
        pem = read_file(path, _KEY_LIMIT)
        text = self.passphrase() if b"ENCRYPTED" in pem else None
        try:
            key = load_pem_private_key(pem, text.encode() if text else None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as e:
            raise BadInput(f"{path}: cannot be read: wrong passphrase, or not a key file") from e
        if not isinstance(key, Ed25519PrivateKey):
            raise BadInput(f"{path}: not an Ed25519 key")
        return key

    def _path(self, uri: str) -> Path:
        parts = urlsplit(uri)
        if parts.scheme != "file" or parts.netloc:
            raise BadInput(
                f"key {uri}: only key files can be read so far: write it as file:keys/NAME.pem or file:///FOLDER/NAME.pem"
            )
        return self.folder / unquote(parts.path)

    def _uri(self, path: Path) -> str:
        return f"file:{path.relative_to(self.folder).as_posix()}"

    def _free(self, folder: Path, role: str, count: int) -> list[Path]:
        """Names of files that no key has, listed or not: a key is never replaced."""
        taken = {self._path(entry.uri).name for entry in self.entries()} | {p.name for p in folder.iterdir()}
        names = [f"{role}-{n}.pem" for n in range(1, len(taken) + count + 1)]
        return [folder / name for name in names if name not in taken][:count]

    def _list(self) -> dict[str, Any]:
        path = self.folder / LIST_FILE
        if not path.exists():
            return {"keys": []}
        value = parse_json(read_file(path, _LIST_LIMIT), what=str(path), limit=_LIST_LIMIT)
        if not isinstance(value, dict):
            raise BadInput(f"{path}: not a list of keys")
        return value

    def _listed(self) -> list[KeyEntry]:
        try:
            return [_entry(value) for value in self._list()["keys"]]
        except (WireError, KeyError, TypeError) as e:
            raise BadInput(
                f"{self.folder / LIST_FILE}: not a list of keys: expected keyid, role and uri of each"
            ) from e

    def _save(self, entries: list[KeyEntry], root: str | None) -> None:
        value: dict[str, Any] = {"keys": [{"keyid": e.keyid, "role": e.role, "uri": e.uri} for e in entries]}
        value |= {"root": root} if root is not None else {}
        write(self.folder / LIST_FILE, json.dumps(value, indent=2).encode() + b"\n")


def read_file(path: Path, limit: int) -> bytes:
    """A whole file that somebody else may have put there. Raises `BadInput` for none, or over `limit` bytes."""
    if not path.is_file():
        raise BadInput(f"{path}: not a file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise BadInput(f"{path}: over {limit} bytes")
    return data


def read_public(path: Path) -> Key:
    """Somebody else's public key: a PEM file. Raises `BadInput`."""
    try:
        key = load_pem_public_key(read_file(path, _KEY_LIMIT))
    except (ValueError, UnsupportedAlgorithm) as e:
        raise BadInput(f"{path}: not a public key: expected PEM, as 'openssl pkey -pubout' writes it") from e
    if not isinstance(key, Ed25519PublicKey):
        raise BadInput(f"{path}: not an Ed25519 key")
    return SSlibKey.from_crypto(key)


def _write_key(path: Path, key: Ed25519PrivateKey, passphrase: str | None) -> None:
    encryption: KeySerializationEncryption = (
        BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    )
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write(path.with_suffix(".pub"), public, mode=0o644)
    write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))


def _entry(value: Any) -> KeyEntry:
    role, uri, keyid = value["role"], value["uri"], value["keyid"]
    if not (isinstance(role, str) and isinstance(uri, str) and isinstance(keyid, str)):
        raise TypeError("not texts")
    return KeyEntry(role, uri, keyid)


def _role_of(path: Path) -> str:
    """`root` of `root-1.pem`."""
    return path.stem.rpartition("-")[0] or path.stem


def _ask(prompt: str) -> str:
    if not sys.stdin.isatty():
        raise BadInput(
            f"a passphrase is needed and there is no terminal: set {PASSPHRASE}, or pass --unencrypted for new keys"
        )
    return getpass.getpass(prompt)
