"""The trust folder: what travels between the machine that reaches the fleet and the machine that signs.

| file | what |
| --- | --- |
| metadata/root.<n>.json, targets.json, release-<family>.json | signed documents, complete |
| staged/*.json | documents that wait for more signatures |
| online.json | the fleet's public online keys and its certificate authorities, from `shoal release fetch` |
| keys.json, keys/ | keys of whoever holds the folder (`cli.trust.keys`) |

Every file is written whole or not at all, and in an order that lets the next command go on after an interrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key

from cli.errors import BadInput
from cli.trust.book import Book
from fleet.store.files import sync_folder, write


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
            return cls(keys, following, tuple(str(pem) for pem in value.get("authorities", ())))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise BadInput(f"{where}: not the online keys of a fleet: run 'shoal release fetch'") from e


@dataclass(frozen=True)
class TrustFolder:
    """A folder with signed and staged documents. It may not exist yet."""

    folder: Path

    def book(self) -> Book:
        """Its documents; what an interrupted command left is taken up. Raises `BadInput` for one that is none."""
        return Book(self._read("metadata"), self._read("staged")).without_stale().settle()

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
            value = json.loads(path.read_text())
        except ValueError as e:
            raise BadInput(f"{path}: not JSON: run 'shoal release fetch'") from e
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
        return {_name(path): path.read_bytes() for path in paths}

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
    return f"root/{path.stem.removeprefix('root.')}" if path.stem.startswith("root.") else path.stem
