"""The profiles that this installation knows: one TOML file each, shipped as package data."""

from __future__ import annotations

from importlib.resources import files

from fleet.errors import NotFound
from wire.profile import Profile

_PACKAGE = "firmware_profiles"


def names() -> tuple[str, ...]:
    """Names of all profiles, sorted."""
    found = (entry.name for entry in files(_PACKAGE).iterdir() if entry.name.endswith(".toml"))
    return tuple(sorted(name.removesuffix(".toml") for name in found))


def load(name: str) -> Profile:
    """One profile. Raises `NotFound` that lists those there are."""
    known = names()
    if name not in known:
        raise NotFound(f"profile {name[:64]!r}: there is none of that name; known are {', '.join(known)}")
    return Profile.from_toml(files(_PACKAGE).joinpath(f"{name}.toml").read_bytes())


def all_profiles() -> tuple[Profile, ...]:
    """Every profile, by name."""
    return tuple(load(name) for name in names())
