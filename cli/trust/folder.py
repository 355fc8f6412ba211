"""The trust folder: what travels between the machine that reaches the fleet and the machine that signs.

| file | what |
| --- | --- |
| metadata/root.<n>.json, targets.json, release-<family>.json | signed documents, complete |
| staged/*.json | documents that wait for more signatures |
| online.json | the fleet's public online keys and its certificate authorities, from `shoal release fetch` |
| keys.json, keys/ | keys of whoever holds the folder (`cli.trust.keys`) |

Every file is written whole or not at all, and in an order that lets the next command go on after an interrupted one.
Whatever lies here came on somebody's stick: sizes, names and content are checked before anything is made of them, and
what is signed is checked again where it is signed (`cli.trust.desk`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import Key

from cli.errors import BadInput
from cli.trust.book import Book
from cli.trust.keys import read_file
from cli.trust.plain import check_key_id, check_plain, fingerprint
from fleet.store.files import sync_folder, write
from wire.document import parse_json
from wire.errors import WireError
from wire.metadata import ROLE_LIMIT

MAX_DOCUMENTS: Final = 10_000
"""In one folder; each root that ever was stays in it."""
_DOCUMENT: Final = re.compile(r"root/[1-9]\d{0,5}|targets|release-[a-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Online:
    """What a fleet says of itself: public keys by role, those that are to follow, certificate authorities (PEM)."""

    keys: Mapping[str, Key]
    next: Mapping[str, Key]
    authorities: tuple[str, ...]

    @classmethod
    def read(cls, value: Any, where: str) -> Online:
        """From a fleet's answer or from online.json. Raises `BadInput`."""
        try:
            keys, following = (
                {role: _key(key) for role, key in each.items()} for each in (value["online"], value.get("next", {}))
            )
            authorities = tuple(str(pem) for pem in value.get("authorities", ()))
            for key in (*keys.values(), *following.values()):
                check_key_id(key)
            for pem in authorities:
                fingerprint(pem)
            return cls(keys, following, authorities)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise BadInput(f"{where}: not the online keys of a fleet: run 'shoal release fetch'") from e


@dataclass(frozen=True)
class TrustFolder:
    """A folder with signed and staged documents. It may not exist yet."""

    folder: Path

    def book(self) -> Book:
        """Its documents; what an interrupted command left is taken up.

        Raises `BadInput` for one that is none, and for a staged one that this program did not write (`check_plain`).
        """
        book = Book(self._read("metadata"), self._read("staged")).without_stale()
        for name, data in book.staged.items():
            check_plain(name, data)
        return book.settle()

    def save(self, book: Book) -> None:
        """Keep documents. All that is new is staged first, so that a stop in the middle leaves nothing half done."""
        held = self._read("metadata")
        new = {name: data for name, data in book.signed.items() if held.get(name) != data}
        self._write("staged", {**new, **book.staged})
        self._write("metadata", new)
        for name in self._read("staged"):
            if name not in book.staged:
                _path(self.folder / "staged", name).unlink()

    def online(self) -> Online | None:
        """What `fetch` brought from the fleet; None when it was not run. Raises `BadInput`."""
        path = self.folder / "online.json"
        if not path.exists():
            return None
        try:
            value = parse_json(read_file(path, ROLE_LIMIT), what=str(path), limit=ROLE_LIMIT)
        except WireError as e:
            raise BadInput(f"{e}: run 'shoal release fetch'") from e
        return Online.read(value, str(path))

    def fetched(self) -> Online:
        """The same, where there is no going on without it. Raises `BadInput`."""
        online = self.online()
        if online is None:
            raise BadInput(
                f"{self.folder}: no online.json: run 'shoal release fetch' where the fleet can be reached, and carry "
                "the folder here"
            )
        return online

    def save_online(self, value: Mapping[str, Any]) -> None:
        """Keep what a fleet says of itself."""
        kept = {name: value.get(name, {}) for name in ("online", "next", "authorities")}
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(self.folder / "online.json", json.dumps(kept, indent=2).encode() + b"\n", mode=0o644)

    def _read(self, part: str) -> dict[str, bytes]:
        paths = sorted((self.folder / part).glob("*.json"))
        if len(paths) > MAX_DOCUMENTS:
            raise BadInput(f"{self.folder / part}: {len(paths)} documents, expected at most {MAX_DOCUMENTS}")
        return {_name(path): read_file(path, ROLE_LIMIT) for path in paths}

    def _write(self, part: str, documents: Mapping[str, bytes]) -> None:
        if not documents:
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = self.folder / part
        folder.mkdir(exist_ok=True)
        sync_folder(self.folder)
        held = self._read(part)
        for name, data in documents.items():
            if held.get(name) != data:
                write(_path(folder, name), data, mode=0o644)


def _key(value: Mapping[str, Any]) -> Key:
    return Key.from_dict(value["keyid"], {name: field for name, field in value.items() if name != "keyid"})


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name.replace('/', '.')}.json"


def _name(path: Path) -> str:
    name = f"root/{path.stem.removeprefix('root.')}" if path.stem.startswith("root.") else path.stem
    if not _DOCUMENT.fullmatch(name):
        raise BadInput(f"{path}: no document of a trust folder: expected root.<n>, targets or release-<family>")
    return name
