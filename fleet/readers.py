"""Readers of settings: what a person wrote, checked and as a value; an error names the place and what to write.

at_once: int = setting(count(1, 1000), "64")        # a field whose default is written as a person writes it
build(Upstream, table, "gateway.toml: upstreams.a", name="a")
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any, Final, TypeVar

from fleet.errors import Malformed
from wire.errors import Malformed as WireMalformed
from wire.units import seconds as wire_seconds
from wire.units import size as wire_size

Read = Callable[[object, str], Any]
T = TypeVar("T")
LEVELS: Final = ("debug", "info", "warning", "error")


def text(value: object, where: str) -> str:
    """A text. Raises `Malformed`, as all of these do."""
    if not isinstance(value, str):
        raise Malformed(f"{where}: expected a text, got {value!r}")
    return value


def texts(value: object, where: str) -> tuple[str, ...]:
    """A list of texts, none of them empty."""
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) and one.strip() for one in value):
        raise Malformed(f"{where}: expected a list of texts, got {value!r}")
    return tuple(value)


def names(value: object, where: str) -> tuple[str, ...]:
    """Host names or addresses: a list, or a text with commas."""
    found = value.split(",") if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not found or not all(isinstance(n, str) and n.strip() for n in found):
        raise Malformed(f"{where}: expected one or more host names or addresses, got {value!r}")
    return tuple(n.strip() for n in found)


def port(value: object, where: str) -> int:
    """A port; 0 chooses a free one."""
    digits = str(value)
    if isinstance(value, bool) or not (digits.isascii() and digits.isdigit() and int(digits) <= 65535):
        raise Malformed(f"{where}: expected a port from 1 to 65535, or 0 to choose a free one, got {value!r}")
    return int(digits)


def choice(*words: str) -> Read:
    """One of some words."""

    def read(value: object, where: str) -> str:
        if value not in words:
            raise Malformed(f"{where}: expected one of {', '.join(words)}, got {value!r}")
        return str(value)

    return read


def database_url(value: object, where: str) -> str:
    """An address of PostgreSQL without a password; empty for none."""
    address = text(value, where)
    if not address:
        return ""
    if not address.startswith("postgresql://"):
        raise Malformed(f"{where}: expected an address that starts with postgresql://")
    if "@" in address and ":" in address.removeprefix("postgresql://").rpartition("@")[0]:
        raise Malformed(f"{where}: holds a password: put it into the file that database_password_file names")
    return address


def flag(value: object, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise Malformed(f"{where}: expected true or false, got {value!r}")
    return value


def url(value: object, where: str) -> str:
    """An address of HTTP without a slash at its end; empty for none. It may hold a secret: no error shows it."""
    if not isinstance(value, str) or (value and not value.startswith(("http://", "https://"))):
        raise Malformed(f"{where}: expected an address that starts with http:// or https://")
    return value.rstrip("/")


def file(value: object, where: str) -> Path | None:
    """A file that is there; empty for none."""
    path = Path(text(value, where)) if value else None
    if path is not None and not path.is_file():
        raise Malformed(f"{where}: there is no file {path}")
    return path


def hidden_file(value: object, where: str) -> Path | None:
    """A file with a secret in it; empty for none. No error shows what was written: it may be the secret itself."""
    if not value:
        return None
    if not isinstance(value, str) or not Path(value).is_file():
        raise Malformed(f"{where}: expected the path of a file that is there, and not the secret itself")
    return Path(value)


def duration(low: str, high: str) -> Read:
    """Seconds, of a text with a unit."""

    def read(value: object, where: str) -> float:
        found = wire_seconds(text(value, where), where=where)
        if not wire_seconds(low) <= found <= wire_seconds(high):
            raise Malformed(f"{where}: expected {low} to {high}, got {value!r}")
        return found

    return read


def number(low: float, high: float) -> Read:
    """A number between two bounds."""

    def read(value: object, where: str) -> float:
        try:
            found = float(str(value))
        except ValueError:
            found = math.nan
        if not low <= found <= high:
            raise Malformed(f"{where}: expected a number from {low:g} to {high:g}, got {value!r}")
        return found

    return read


def count(low: int, high: int) -> Read:
    """A whole number between two bounds."""

    def read(value: object, where: str) -> int:
        digits = str(value)
        if isinstance(value, bool) or not (digits.isascii() and digits.isdigit() and low <= int(digits) <= high):
            raise Malformed(f"{where}: expected a whole number from {low} to {high}, got {value!r}")
        return int(digits)

    return read


def size(low: str, high: str) -> Read:
    """Bytes, of a text with a unit."""

    def read(value: object, where: str) -> int:
        found = wire_size(text(value, where), where=where)
        if not wire_size(low) <= found <= wire_size(high):
            raise Malformed(f"{where}: expected {low} to {high}, got {value!r}")
        return found

    return read


def setting(read: Read, default: object) -> Any:
    """A field whose default is written as a person writes it, and read by the same reader."""
    return field(default_factory=lambda: read(default, "default"), metadata={"read": read})


def needed(read: Read) -> Any:
    """A field that has to be given."""
    return field(metadata={"read": read})


def optional(read: Read) -> Any:
    """A field that is None when it is not given."""
    return field(default=None, metadata={"read": read})


def build(kind: type[T], table: object, where: str, **given: object) -> T:
    """A dataclass of such fields, from a table of TOML or JSON; `given` are its fields that no person writes.

    Raises `Malformed` that names the place and the key.
    """
    if not isinstance(table, dict):
        raise Malformed(f"{where}: expected a table, got {table!r:.60}")
    fields = {f.name: f for f in dataclasses.fields(kind) if "read" in f.metadata}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise Malformed(f"{where}: {key}: there is no such setting: use one of {', '.join(sorted(fields))}")
    bare = [f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING for f in fields.values()]
    missing = [name for name, is_bare in zip(fields, bare, strict=True) if is_bare and name not in table]
    if missing:
        raise Malformed(f"{where}: {', '.join(missing)}: has to be set")
    try:
        values = {key: fields[key].metadata["read"](value, f"{where}: {key}") for key, value in table.items()}
    except WireMalformed as e:
        raise Malformed(str(e)) from e
    return kind(**values, **given)
