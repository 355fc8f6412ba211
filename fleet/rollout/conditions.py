"""Conditions: in which state a device has to be to be reached. Pure.

A device is judged by what it reported last. One that does not say, or said it too long ago, is not reached: that holds
the rollout, with its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from fleet.errors import Malformed
from wire.errors import WireError
from wire.units import instant, show_seconds

FRESH: Final = timedelta(hours=1)
"""How old what a device said of itself may be."""
_CLOCK_OFF: Final = timedelta(minutes=5)


@dataclass(frozen=True)
class Conditions:
    """`mains`: it has mains power; with `battery_above` percent left in its battery it needs none.

    `load_below` is that of the last minute, for each machine as a whole. `online`: it is connected now.
    """

    mains: bool = False
    battery_above: int | None = None
    load_below: float | None = None
    online: bool = False

    def __post_init__(self) -> None:
        if self.battery_above is not None and not 0 <= self.battery_above < 100:
            raise Malformed(f"battery_above: expected 0 to 99 percent, got {self.battery_above}")
        if self.load_below is not None and not 0 < self.load_below < 10_000:
            raise Malformed(f"load_below: expected a load above 0, got {self.load_below}")

    @property
    def ask_health(self) -> bool:
        """Whether they look at what a device says of its machine."""
        return self.mains or self.battery_above is not None or self.load_below is not None

    def hinders(self, *, online: bool, health: Mapping[str, Any] | None, now: datetime) -> str:
        """Why a device is not to be reached now, in words; empty when it may be. `health` is what it said last."""
        if self.online and not online:
            return "is not online"
        if not self.ask_health:
            return ""
        machine = (health or {}).get("machine") or {}
        age = _age(machine.get("at"), now)
        if age is None:
            return "does not say how its machine is"
        if age > FRESH:
            return f"said how its machine is {show_seconds(age.total_seconds())} ago"
        return self._power(machine) or self._load(machine)

    def _power(self, machine: Mapping[str, Any]) -> str:
        if not self.mains and self.battery_above is None:
            return ""
        power, charge = machine.get("power") or "", machine.get("battery_percent")
        if power == "mains":
            return ""
        if self.battery_above is not None and isinstance(charge, int | float):
            return "" if charge > self.battery_above else f"has {charge:.0f}% left in its battery"
        return "runs on its battery" if power == "battery" else "does not say what powers it"

    def _load(self, machine: Mapping[str, Any]) -> str:
        if self.load_below is None:
            return ""
        load = machine.get("load")
        if not isinstance(load, int | float):
            return "does not say its load"
        return "" if load < self.load_below else f"has a load of {load:.1f}"


def _age(at: object, now: datetime) -> timedelta | None:
    """None for no time, and for one that is not here yet: that clock is wrong, and so may be everything it dates."""
    try:
        age = now - instant(str(at))
    except WireError:
        return None
    return age if age >= -_CLOCK_OFF else None
