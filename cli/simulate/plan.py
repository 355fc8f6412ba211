"""What is simulated: a plan as a person writes it, and what it makes of each device. Pure, by its seed.

    plan = Plan.from_toml(Path("plan.toml").read_text(), "plan.toml")
    for device in plan.devices(): ...        # DevicePlan, in the order in which they join

Shares are from 0 to 1, rates per device and hour, durations carry their unit.
"""

from __future__ import annotations

import dataclasses
import random
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cli.errors import BadInput
from wire.document import check_device, check_name
from wire.errors import WireError
from wire.units import seconds

MOST: Final = 50_000
"""Devices of one plan."""

Read = Callable[[object, str], Any]


def _duration(value: object, where: str) -> float:
    if not isinstance(value, str):
        raise BadInput(f"{where}: expected a duration with its unit, such as '10 s', got {value!r}")
    return seconds(value, where=where)


def _share(value: object, where: str) -> float:
    return _number(value, where, most=1.0)


def _rate(value: object, where: str) -> float:
    return _number(value, where, most=3600.0)


def _number(value: object, where: str, *, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise BadInput(f"{where}: expected a number from 0 to {most:g}, got {value!r}")
    return float(value)


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
        raise BadInput(f"{where}: expected a whole number from 0 to {MOST}, got {value!r}")
    return value


def _name(value: object, where: str) -> str:
    return check_name(str(value), where)


def _texts(value: object, where: str) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise BadInput(f"{where}: expected a table")
    return {str(name): str(text) for name, text in value.items()}


def _setting(read: Read, default: object) -> Any:
    return field(default=read(default, "default"), metadata={"read": read})


@dataclass(frozen=True, kw_only=True)
class ProfilePlan:
    """Devices of one hardware class: how many, how fast their models answer, how far away they are."""

    devices: int = _setting(_count, 0)
    latency: float = _setting(_duration, "10 ms")
    """Median of an answer; the rest is log-normal around it,"""
    spread: float = field(default=0.25, metadata={"read": lambda v, where: _number(v, where, most=3.0)})
    """with this deviation of its logarithm."""
    delay: float = _setting(_duration, "0 ms")
    """How much later than on this machine a message arrives."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every setting, with its default. Times in seconds."""

    profiles: Mapping[str, ProfilePlan]
    seed: int = field(default=1, metadata={"read": lambda v, where: int(_number(v, where, most=2**32))})
    prefix: str = _setting(_name, "sim")
    """How the ids of the devices begin,"""
    group: str = _setting(_name, "simulated")
    """and the group that they are in, alone."""
    join: float = _setting(_duration, "10 s")
    """Time over which the devices come up, evenly."""
    late: float = _setting(_share, 0)
    """Share of the devices that is enrolled and comes up late:"""
    late_after: float = _setting(_duration, "10 s")
    """so long after the rollout began."""
    requests: float = _setting(_rate, 0.2)
    """Inference requests per second and device."""
    loss: float = _setting(_share, 0)
    """Share of chunks and acknowledgements that arrive and are lost before anybody looks at them."""
    cuts: float = _setting(_rate, 0)
    """How often an hour a device loses its line,"""
    cut_for: float = _setting(_duration, "30 s")
    """and for how long at most."""
    reboots: float = _setting(_rate, 0)
    """How often an hour a device starts again,"""
    reboot_for: float = _setting(_duration, "20 s")
    """and how long that takes at most."""
    calm_after: float = _setting(_duration, "1 d")
    """So long after the rollout began nothing is lost, nothing is cut and nothing starts again any more."""
    slow: float = _setting(_share, 0)
    """Share of devices whose models take longer than those of their class,"""
    slow_by: float = field(default=10.0, metadata={"read": lambda v, where: _number(v, where, most=1000.0)})
    """by this factor."""
    failing: float = _setting(_share, 0)
    """Share of devices on which the self-test of a new model fails."""
    wrong_clock: float = _setting(_share, 0)
    """Share of devices whose clock stands at 1970 when they start."""
    selftest: float = _setting(_duration, "500 ms")
    """How long a self-test takes."""
    agent: Mapping[str, str] = field(default_factory=dict, metadata={"read": _texts})
    """Settings of the agents, as in `agent.toml`."""

    @classmethod
    def from_toml(cls, text: str, where: str) -> Plan:
        """Raises `BadInput` that names the place."""
        try:
            return cls.from_value(tomllib.loads(text), where)
        except tomllib.TOMLDecodeError as e:
            raise BadInput(f"{where}: not TOML: {e}") from e

    @classmethod
    def from_value(cls, value: Mapping[str, Any], where: str) -> Plan:
        """A plan from a table. Raises `BadInput`."""
        tables = value.get("profiles", {})
        if not isinstance(tables, Mapping):
            raise BadInput(f"{where}: profiles: expected a table [profiles.NAME] for each hardware class")
        profiles = {
            _checked(_name, name, where): _read(ProfilePlan, t, f"{where}: {name}") for name, t in tables.items()
        }
        rest = {name: v for name, v in value.items() if name != "profiles"}
        plan: Plan = _read(cls, rest, where, profiles=profiles)
        if not 0 < plan.size <= MOST:
            raise BadInput(f"{where}: {plan.size} devices, expected 1 to {MOST}: say how many each profile has")
        return plan

    @property
    def size(self) -> int:
        """How many devices."""
        return sum(profile.devices for profile in self.profiles.values())

    def to_value(self) -> dict[str, Any]:
        """The inverse of `from_value`."""
        return {
            **_written(self, but="profiles"),
            "profiles": {name: _written(profile) for name, profile in self.profiles.items()},
        }

    def devices(self) -> tuple[DevicePlan, ...]:
        """Every device, in the order in which they come up; classes are mixed."""
        chance = chance_of(f"{self.seed}/order")
        profiles = [name for name, profile in sorted(self.profiles.items()) for _ in range(profile.devices)]
        chance.shuffle(profiles)
        return tuple(self._device(i, name) for i, name in enumerate(profiles))

    def _device(self, i: int, profile: str) -> DevicePlan:
        device = check_device(f"{self.prefix}-{self.seed}-{i:05d}", "device")
        chance = chance_of(f"{self.seed}/{i}")
        late, slow, failing, wrong_clock = (
            chance.random() < share for share in (self.late, self.slow, self.failing, self.wrong_clock)
        )
        its = self.profiles[profile]
        return DevicePlan(
            device=device,
            profile=profile,
            joins=self.join * i / max(self.size, 1),
            latency=its.latency * (self.slow_by if slow else 1.0),
            spread=its.spread,
            delay=its.delay,
            late=late,
            failing=failing,
            wrong_clock=wrong_clock,
        )


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """One device. Times in seconds; `joins` counts from the beginning, or for a `late` one from the signal to come."""

    device: str
    profile: str
    joins: float
    latency: float
    spread: float
    delay: float
    late: bool
    failing: bool
    wrong_clock: bool


def _written(value: Plan | ProfilePlan, *, but: str = "") -> dict[str, Any]:
    found = {}
    for f in dataclasses.fields(value):
        if f.name != but:
            mine = getattr(value, f.name)
            found[f.name] = f"{mine} s" if f.metadata.get("read") is _duration else mine
    return found


def chance_of(name: str) -> random.Random:
    """What decides by chance, the same for the same name."""
    return random.Random(name)  # noqa: S311  nothing here is secret


def _read(kind: type[Any], value: object, where: str, **more: object) -> Any:
    readers: dict[str, Read] = {f.name: f.metadata["read"] for f in dataclasses.fields(kind) if "read" in f.metadata}
    if not isinstance(value, Mapping):
        raise BadInput(f"{where}: expected a table")
    for name in value:
        if name not in readers:
            raise BadInput(f"{where}: no setting {name!r}, there are: {', '.join(sorted(readers))}")
    return kind(**{name: _checked(readers[name], v, f"{where}: {name}") for name, v in value.items()}, **more)


def _checked(read: Read, value: object, where: str) -> Any:
    try:
        return read(value, where)
    except WireError as e:
        raise BadInput(str(e)) from e
