"""What a rollout keeps to, read once when it is made: nothing in it can turn out unreadable later. Pure.

terms = parse_terms({"target": "tag:kitchen", "waves": "5,10%,100%", "soak": "1 h"}, gates.parse)
parse_terms(terms.to_value(), gates.parse) == terms
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from fleet import queries
from fleet.errors import Malformed
from fleet.queries import Everything, Query
from fleet.rollout.conditions import Conditions
from fleet.rollout.gating import Gates, Parse
from fleet.rollout.waves import Wave, parse_waves
from fleet.rollout.windows import Window, parse_window
from wire.errors import WireError
from wire.units import instant, seconds, show_instant

Approval = Literal["none", "start", "every-wave"]
APPROVALS: Final[tuple[Approval, ...]] = ("none", "start", "every-wave")
MEASURED, INSTALL = "measured", "install"
LONGEST_SOAK: Final = timedelta(days=90)
MOST_PER_HOUR: Final = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Who is meant, in which waves, and what has to hold meanwhile.

    `soak`: how long a wave stands, after all that it reached have answered, before the next. `gates`: what is let pass.
    `per_hour`: devices reached within an hour, at most. After `deadline` none is. `approval`: who may let it go on.
    """

    gates: Gates
    target: Query = field(default_factory=Everything)
    waves: tuple[Wave, ...] = (Wave(25), Wave(100))
    soak: timedelta = timedelta()
    windows: tuple[Window, ...] = ()
    per_hour: int | None = None
    conditions: Conditions = field(default_factory=Conditions)
    deadline: datetime | None = None
    approval: Approval = "none"

    def to_value(self) -> dict[str, Any]:
        """JSON that `parse_terms` reads."""
        conditions = self.conditions
        return {
            "target": queries.show(self.target),
            "waves": [str(wave) for wave in self.waves],
            "soak": f"{self.soak.total_seconds():g} s",
            "gates": self.gates.to_value(),
            "windows": [str(window) for window in self.windows],
            "per_hour": self.per_hour,
            "mains": conditions.mains,
            "battery_above": conditions.battery_above,
            "load_below": conditions.load_below,
            "online": conditions.online,
            "deadline": None if self.deadline is None else show_instant(self.deadline),
            "approval": self.approval,
        }


def parse_terms(value: Mapping[str, Any], gates: Parse) -> Terms:
    """Terms from JSON; what is left out is the default. Raises `Malformed` that names the key."""
    conditions = Conditions(
        mains=bool(value.get("mains")),
        battery_above=value.get("battery_above"),
        load_below=value.get("load_below"),
        online=bool(value.get("online")),
    )
    return Terms(
        gates=gates(value.get("gates") or MEASURED),
        target=queries.parse(value.get("target") or "all"),
        waves=parse_waves(_given(value.get("waves"), ("25%", "100%"))),
        soak=_duration(value.get("soak") or "0 s"),
        windows=tuple(map(parse_window, value.get("windows") or ())),
        per_hour=_per_hour(value.get("per_hour")),
        conditions=conditions,
        deadline=_deadline(value.get("deadline")),
        approval=_approval(value.get("approval") or "none"),
    )


def _given(waves: str | Sequence[str | int] | None, default: Sequence[str | int]) -> str | Sequence[str | int]:
    return default if waves is None else waves


def _duration(text: str) -> timedelta:
    try:
        soak = timedelta(seconds=seconds(text, where="soak"))
    except WireError as e:
        raise Malformed(str(e)) from e
    except OverflowError:
        soak = timedelta.max
    if soak > LONGEST_SOAK:
        raise Malformed(f"soak: {text} is longer than {LONGEST_SOAK.days} d")
    return soak


def _per_hour(count: int | None) -> int | None:
    if count is not None and not 1 <= count <= MOST_PER_HOUR:
        raise Malformed(f"per_hour: expected 1 to {MOST_PER_HOUR} devices, got {count}")
    return count


def _deadline(text: str | None) -> datetime | None:
    try:
        return None if not text else instant(text, where="deadline")
    except WireError as e:
        raise Malformed(str(e)) from e


def _approval(text: str) -> Approval:
    for known in APPROVALS:
        if text == known:
            return known
    raise Malformed(f"approval: expected one of {', '.join(APPROVALS)}, got {text[:40]!r}")
