"""The MQTT topics of contract 1, each with one builder and one parser, inverse to each other.

    Desired("kitchen-1").topic          -> "shoal/1/d/kitchen-1/desired"
    parse("shoal/1/d/kitchen-1/desired") -> Desired("kitchen-1")
    every(Want)                          -> "shoal/1/d/+/want", to subscribe

| topic               | writer         | QoS, retained |
| trust/root/{version}, trust/role/{role} | fleet | 1, yes |
| d/{device}/desired  | fleet          | 1, yes        |
| d/{device}/reported | device         | 1, yes        |
| d/{device}/state    | device, its will | 1, yes      |
| d/{device}/telemetry, d/{device}/want | device | 1, no |
| d/{device}/ack, d/{device}/cmd | fleet | 1, no       |
| d/{device}/reply    | device         | 1, no         |
| blob/{digest}/{index} | fleet        | 0, no         |
| fleet/state         | fleet, its will | 1, yes       |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from wire.document import check_device, check_digest, check_name
from wire.errors import Malformed

PREFIX = "shoal/1"
FLEET_CLIENT = "_fleet"
"""Certificate name and client id of the fleet on the broker. The underscore keeps it apart from every device id."""


class Topic:
    """A topic as a value. `topic` is its string; `parse` is the inverse."""

    PATTERN: str = ""

    @property
    def topic(self) -> str:
        """The topic string."""
        values = {f.name: _segment(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return f"{PREFIX}/{self.PATTERN.format(**values)}"


@dataclass(frozen=True)
class _OfDevice(Topic):
    device: str

    def __post_init__(self) -> None:
        check_device(self.device, "topic device")


class Desired(_OfDevice):
    """The signed desired state."""

    PATTERN = "d/{device}/desired"


class Reported(_OfDevice):
    """The signed reported state."""

    PATTERN = "d/{device}/reported"


class State(_OfDevice):
    """Birth and death, with a session id."""

    PATTERN = "d/{device}/state"


class Telemetry(_OfDevice):
    """Signed batches of records."""

    PATTERN = "d/{device}/telemetry"


class Ack(_OfDevice):
    """Signed acknowledgements of batches."""

    PATTERN = "d/{device}/ack"


class Command(_OfDevice):
    """Signed commands."""

    PATTERN = "d/{device}/cmd"


class Reply(_OfDevice):
    """Signed answers to commands."""

    PATTERN = "d/{device}/reply"


class Want(_OfDevice):
    """Chunks that the device lacks."""

    PATTERN = "d/{device}/want"


@dataclass(frozen=True)
class TrustRoot(Topic):
    """One version of the root metadata; all stay retained, so that a device can catch up."""

    version: int
    PATTERN = "trust/root/{version}"

    def __post_init__(self) -> None:
        if self.version < 1:
            raise Malformed(f"topic root version: expected 1 or more, got {self.version}")


@dataclass(frozen=True)
class TrustRole(Topic):
    """The newest metadata of timestamp, snapshot, targets or a release role."""

    role: str
    PATTERN = "trust/role/{role}"

    def __post_init__(self) -> None:
        check_name(self.role, "topic role")


@dataclass(frozen=True)
class Chunk(Topic):
    """One chunk of a blob: its digest (`sha256:...`, without the prefix in the topic) and index from 0."""

    digest: str
    index: int
    PATTERN = "blob/{digest}/{index}"

    def __post_init__(self) -> None:
        check_digest(self.digest, "topic digest")
        if self.index < 0:
            raise Malformed(f"topic chunk index: expected 0 or more, got {self.index}")


@dataclass(frozen=True)
class FleetState(Topic):
    """Whether the fleet is there; devices hold bulk data while it is not."""

    PATTERN = "fleet/state"


_ALL: tuple[type[Topic], ...] = (
    *(Desired, Reported, State, Telemetry, Ack, Command, Reply, Want),
    *(TrustRoot, TrustRole, Chunk, FleetState),
)
_PATTERNS = tuple((cls, cls.PATTERN.split("/")) for cls in _ALL)


def parse(topic: str) -> Topic:
    """The value of a topic string. Raises `Malformed` for anything that no builder makes."""
    parts = topic.removeprefix(f"{PREFIX}/").split("/")
    for cls, pattern in _PATTERNS:
        values = _match(pattern, parts)
        if values is not None and topic.startswith(f"{PREFIX}/"):
            value = cls(**{name: _value(name, text, topic) for name, text in values.items()})
            if value.topic == topic:
                return value
    raise Malformed(f"topic {topic[:120]!r}: not a topic of contract {PREFIX}")


def every(cls: type[Topic], **fixed: Any) -> str:
    """Subscription filter for all topics of a kind; `fixed` pins fields: `every(Chunk, digest=...)`."""
    names = [part[1:-1] for part in cls.PATTERN.split("/") if part.startswith("{")]
    return f"{PREFIX}/{cls.PATTERN.format(**{n: _segment(fixed[n]) if n in fixed else '+' for n in names})}"


def access_rules(denied: Iterable[str] = ()) -> str:
    """The broker's access list: one static file of patterns, so the broker keeps no state per device.

    `denied` are the ids of revoked devices: a live connection of theirs loses every right when this is loaded.
    """
    write = (Reported, State, Telemetry, Reply, Want)
    read = (Desired, Ack, Command)
    lines = [f"user {FLEET_CLIENT}", f"topic readwrite {PREFIX}/#", ""]
    lines += [f"pattern write {PREFIX}/{cls.PATTERN.format(device='%u')}" for cls in write]
    lines += [f"pattern read {PREFIX}/{cls.PATTERN.format(device='%u')}" for cls in read]
    lines += [f"pattern read {PREFIX}/{area}" for area in ("trust/#", "blob/#", "fleet/state")]
    for device in sorted(denied):
        lines += ["", f"user {check_device(device, 'denied device')}", "topic deny #"]
    return "\n".join(lines) + "\n"


def _segment(value: object) -> str:
    return str(value).removeprefix("sha256:")


def _match(pattern: list[str], parts: list[str]) -> dict[str, str] | None:
    if len(pattern) != len(parts) or pattern[0] != parts[0]:  # the first word is never a field
        return None
    pairs = list(zip(pattern, parts, strict=True))
    if any(p != part for p, part in pairs if not p.startswith("{")):
        return None
    return {p[1:-1]: part for p, part in pairs if p.startswith("{")}


def _value(name: str, text: str, topic: str) -> object:
    if name in ("version", "index"):
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise Malformed(f"topic {topic[:120]!r}: {name} is not a number")
        return int(text)
    return f"sha256:{text}" if name == "digest" else text
