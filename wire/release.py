"""A release as the release role lists it, and the floor below which a model's releases are dead.

    releases_of(targets)            # what one role lists
    floors(releases)                # {"intents/kitchen": 7}: nothing of that model below counter 7 is installed again
    marks_of(targets)               # {"intents/kitchen": Mark(counter=9, floor=7)}: also of what was withdrawn since

A floor travels in every release of its model, and the highest one seen binds: a device keeps it (`wire.admission`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from tuf.api.metadata import TargetFile, Targets

from wire.bundle import split_target
from wire.document import check_digest
from wire.errors import Malformed

LARGEST: Final = 2**63 - 1
"""Of counters, floors and versions: what SQLite stores, and our documents carry."""


@dataclass(frozen=True)
class Release:
    """What the release role says of a target: the manifest's digest and length in bytes, and the fields of `custom`.

    `size`: bytes of all files of the bundle, chunk lists included; 0 in metadata of an older signer.
    """

    target: str
    digest: str
    length: int
    profile: str
    runtime: str
    counter: int
    floor: int = 0
    size: int = 0

    @property
    def model(self) -> str:
        """Family and name: what counters and floors belong to."""
        return model_of(self.target)


def model_of(target: str) -> str:
    """`intents/kitchen` of `models/intents/kitchen/1.0.0/x86-64`. Raises `Malformed`."""
    family, name, _, _ = split_target(target)
    return f"{family}/{name}"


def releases_of(targets: Targets) -> list[Release]:
    """The releases that one role lists, by target path. Raises `Malformed` when an entry lacks our fields."""
    return [release_of(path, file) for path, file in sorted(targets.targets.items())]


def release_of(target: str, file: TargetFile) -> Release:
    """One entry of a role. Raises `Malformed` when it lacks our fields."""
    custom = file.unrecognized_fields.get("custom")
    sha256 = file.hashes.get("sha256")
    if not isinstance(custom, dict) or sha256 is None:
        raise Malformed(f"{target}: no sha256 or no custom fields in the release metadata")
    profile, runtime = custom.get("profile"), custom.get("runtime")
    counter, floor = custom.get("counter"), custom.get("floor", 0)
    if not (isinstance(profile, str) and isinstance(runtime, str) and is_count(counter) and is_count(floor)):
        raise Malformed(f"{target}: custom fields profile, runtime, counter and floor are missing or of another type")
    size = custom.get("size", 0)
    if not is_count(size):
        raise Malformed(f"{target}: custom field size is no whole number of bytes")
    digest = check_digest(f"sha256:{sha256}", target)
    return Release(target, digest, file.length, profile, runtime, counter, floor, size)


def floors(releases: Iterable[Release]) -> dict[str, int]:
    """The highest floor of each model that these releases name; models without one are left out."""
    found: dict[str, int] = {}
    for release in releases:
        if release.floor > found.get(release.model, 0):
            found[release.model] = release.floor
    return found


@dataclass(frozen=True)
class Mark:
    """How far a model ever got: its highest counter and floor, whether a release that had them is still listed or not.

    A counter that was used once is never used again, and a floor never falls: so the release role's `custom` keeps it.
    """

    counter: int = 0
    floor: int = 0

    def above(self, other: Mark) -> Mark:
        """The higher of both, in each."""
        return Mark(max(self.counter, other.counter), max(self.floor, other.floor))


def marks_of(targets: Targets) -> dict[str, Mark]:
    """The mark of every model that a role lists or ever listed. Raises `Malformed` for fields of another type."""
    custom = targets.unrecognized_fields.get("custom")
    kept = custom.get("models", {}) if isinstance(custom, dict) else {}
    if not isinstance(kept, dict):
        raise Malformed("release metadata: custom field models is not an object")
    marks = {model: _mark(model, value) for model, value in kept.items()}
    for release in releases_of(targets):
        mark = Mark(release.counter, release.floor)
        marks[release.model] = mark.above(marks.get(release.model, Mark()))
    return marks


def marks_value(marks: Mapping[str, Mark]) -> dict[str, Any]:
    """The inverse: the role's `custom`."""
    return {"models": {model: {"counter": m.counter, "floor": m.floor} for model, m in sorted(marks.items())}}


def _mark(model: str, value: object) -> Mark:
    counter, floor = (value.get("counter"), value.get("floor")) if isinstance(value, dict) else (None, None)
    if not (is_count(counter) and is_count(floor)):
        raise Malformed(f"release metadata: custom field models: {model}: counter and floor are no whole numbers")
    return Mark(counter, floor)


def is_count(value: object) -> TypeGuard[int]:
    """Whether a JSON value is a whole number from 0 on that a database holds; `true` is none."""
    return type(value) is int and 0 <= value <= LARGEST
