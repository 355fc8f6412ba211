"""One document of The Update Framework by itself: its size, form, signatures, name and age.

What they say of each other, and in which order they are believed, is `wire.trust`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from wire.errors import Malformed, OutOfStep, Untrusted
from wire.release import LARGEST

ROOT_LIMIT: Final = 512_000
TIMESTAMP_LIMIT: Final = 16_384
ROLE_LIMIT: Final = 5_000_000
"""Bytes of targets, a release role or a snapshot."""

T = TypeVar("T", Root, Timestamp, Snapshot, Targets)


def parse(data: bytes, name: str, kind: type[T], limit: int) -> Metadata[T]:
    """A document of at most `limit` bytes that is of this kind; nothing of it is believed yet. Raises `Malformed`."""
    if len(data) > limit:
        raise Malformed(f"{name}: {len(data)} bytes, the limit is {limit}")
    try:
        md = Metadata[T].from_bytes(data)
    except (DeserializationError, RecursionError) as e:
        raise Malformed(f"{name}: not TUF metadata: {e}") from e
    if not isinstance(md.signed, kind):
        raise Malformed(f"{name}: holds {md.signed.type} metadata")
    if md.signed.version > LARGEST:
        raise Malformed(f"{name}: its version has more than 63 bits: no database holds it")
    return md


def check_signed(verify: Callable[..., None], role: str, md: Metadata[Any]) -> None:
    """Enough keys of the role signed it; `verify` is that of its delegator. Raises `Untrusted`."""
    try:
        verify(role, md.signed_bytes, md.signatures)
    except (RepositoryError, ValueError) as e:
        raise Untrusted(f"{role}: {e}") from e


def check_distinct_keys(keys: Mapping[str, Any], where: str) -> None:
    """A threshold counts keys: one key under two ids would count twice (GHSA-pwqf-9h7j-7mv8).

    Two spellings of it as well: hexadecimal digits are read in both cases and with blanks between them.
    """
    values = ["".join(str(key.keyval.get("public")).lower().split()) for key in keys.values()]
    if len(set(values)) != len(values):
        raise Untrusted(f"{where}: one public key stands under two key ids")


def is_signed(verify: Callable[..., None], role: str, md: Metadata[Any]) -> bool:
    """Whether `check_signed` holds."""
    try:
        check_signed(verify, role, md)
    except Untrusted:
        return False
    return True


def check_named(named: MetaFile, name: str, version: int, data: bytes) -> None:
    """The document is the one that its delegator lists: same version, and the same bytes where it says so."""
    if version != named.version:
        raise OutOfStep(f"{name}: version {version}, its delegator names {named.version}")
    try:
        named.verify_length_and_hashes(data)
    except RepositoryError as e:
        raise Untrusted(f"{name}: {e}") from e


def check_version(name: str, version: int, *, at_least: int) -> None:
    """Raises `Untrusted` for a version that is lower than what was seen."""
    if version < at_least:
        raise Untrusted(f"{name}: version {version} is old, expected at least {at_least}")


def check_fresh(expires: datetime, name: str, now: datetime) -> None:
    """Raises `Untrusted` from `expires` on; both times carry a zone."""
    if now >= expires:
        raise Untrusted(f"{name}: expired {expires:%Y-%m-%d %H:%M} UTC: publish newer metadata")
