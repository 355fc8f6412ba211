"""What a rollout lets pass: read once, when it is made. What cannot be read is refused, never taken for "no limit".

    gates = parse("measured")                                        # the defaults
    gates = parse({"latency": "1.2 times", "accuracy": "off", "devices": 8})
    gates.to_value()                                                 # JSON; parse(gates.to_value()) == gates
    gates.words()                                                    # sentences for people

`measured` asks for evidence; `install` only that devices install the release and keep it, as rollouts did before there
were gates. Every limit carries its unit; "off" takes a gate away. A preset may be changed: {"preset": "install", ...}.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from fleet.errors import Malformed
from wire.errors import Malformed as WireMalformed
from wire.units import seconds

Unit = str
_UNITS: Mapping[Unit, tuple[str, float, float]] = {
    "times": ("a factor such as '1.1 times'", 1.0, 100.0),
    "points": ("percentage points such as '0.5 points'", 0.0, 100.0),
    "%": ("a share such as '5 %'", 0.0, 100.0),
    "C": ("degrees Celsius such as '5 C'", 0.0, 100.0),
    "a day": ("a rate such as '0.5 a day'", 0.0, 1000.0),
}
"""Each with what is expected, and its bounds, both included."""


@dataclass(frozen=True)
class Kind:
    """A gate that there is: the unit of its limit, the limit of `measured`, and what it looks at, in words."""

    unit: Unit
    limit: float
    about: str
    at_least: bool = False
    exclusive: bool = False
    """The lower bound of the unit is none of the limit: bets on it would divide by nothing."""


KINDS: Mapping[str, Kind] = {
    "latency": Kind("times", 1.1, "typical time of an answer (geometric mean) against before"),
    "tail": Kind("times", 1.25, "99 % of answers within this many times the p99 of before"),
    "errors": Kind("points", 1.0, "share of requests that fail, against before"),
    "accuracy": Kind("points", 0.5, "share of answers that feedback calls right, loss against before"),
    "agreement": Kind("%", 90.0, "share of answers in shadow that are the active model's, too", at_least=True),
    "memory": Kind("times", 1.5, "most memory that the agent used, against before"),
    "temperature": Kind("C", 8.0, "highest temperature, rise against before"),
    "restarts": Kind("a day", 0.5, "restarts that nobody asked for, more than before"),
    "first_errors": Kind("%", 5.0, "share of requests that fail, where no model ran before", exclusive=True),
    "first_restarts": Kind("%", 10.0, "devices that restart unasked, where no model ran before", exclusive=True),
    "golden": Kind("%", 5.0, "devices on which the golden set does not hold"),
    "gross": Kind("%", 50.0, "devices on which it is plainly broken, two of them at least"),
    "installs": Kind("%", 5.0, "devices that refuse the release or go back by themselves"),
}


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Limits by the name of their gate, in its unit; a gate that is off is not among them.

    `alpha` is the chance that an equal model is ever aborted by the gates that test, over a whole rollout of up to
    `profiles` profiles. `devices` with `requests` each and evidence not older than `fresh` are asked for before going
    on (four of five, where fewer have the candidate), and `covered` of those that have it. Where feedback came before,
    as many are asked to have `labels` each; that is waited for `patience`, if `labels` times `devices` can come in it.
    `small`: what a profile does when fewer than `devices` have the candidate. `unshadowed`: what it does when no answer
    of it was compared in shadow; a rollout that sets the limit of agreement by name holds then.
    """

    limits: Mapping[str, float] = field(default_factory=lambda: {name: kind.limit for name, kind in KINDS.items()})
    alpha: float = 0.005
    profiles: int = 4
    suspicion: float = 0.02
    """An estimate beyond the limit holds when chance alone makes such evidence less often than this."""
    devices: int = 5
    requests: int = 128
    covered: float = 0.5
    fresh: timedelta = timedelta(hours=2)
    labels: int = 2000
    patience: timedelta = timedelta(hours=24)
    small: str = "proceed"
    unshadowed: str = "proceed"

    @property
    def measuring(self) -> bool:
        """Whether any gate asks for evidence of the running model."""
        return any(name != "installs" for name in self.limits)

    def shared_by(self, profiles: int) -> Gates:
        """The same gates for a rollout over so many profiles: alpha is divided among them."""
        return replace(self, profiles=max(1, profiles))

    def without(self, *names: str) -> Gates:
        """The same with some gates off."""
        return replace(self, limits={k: v for k, v in self.limits.items() if k not in names})

    def to_value(self) -> dict[str, Any]:
        """JSON that `parse` reads, with every key."""
        limits = {name: self.limits.get(name) for name in KINDS}
        return {
            **{n: "off" if v is None else f"{_plain(v)} {KINDS[n].unit}" for n, v in limits.items()},
            **{name: write(getattr(self, name)) for name, (_, write) in _SETTINGS.items()},
        }

    def words(self) -> tuple[str, ...]:
        """What passes, a sentence for each gate."""
        return tuple(
            f"{name}: at {'least' if KINDS[name].at_least else 'most'} {show(name, limit)} ({KINDS[name].about})"
            for name, limit in self.limits.items()
        )


def show(name: str, limit: float) -> str:
    """A limit as people write it."""
    return f"{limit:g} {KINDS[name].unit}"


def parse(value: Mapping[str, Any] | str) -> Gates:
    """The name of a preset, or limits and settings by name. Raises `Malformed` that names the key."""
    if isinstance(value, str):
        value = {"preset": value}
    if not isinstance(value, Mapping):
        raise Malformed(f"gates: expected a preset or a table, got {type(value).__name__}")
    gates = _preset(value.get("preset", "measured"))
    limits, settings = dict(gates.limits), _meant(value)
    for key, given in value.items():
        if key in KINDS:
            limits.pop(key, None)
            if given != "off":
                limits[key] = _limit(key, given)
        elif key in _SETTINGS:
            settings[key] = _SETTINGS[key][0](key, given)
        elif key != "preset":
            raise Malformed(f"gates.{key}: no such gate; there are {', '.join((*KINDS, *_SETTINGS))}")
    ordered = {name: limits[name] for name in KINDS if name in limits}
    return replace(gates, limits=ordered, **settings)


def _meant(value: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that follow from what is said: who names agreement wants to hear of it."""
    return {"unshadowed": "hold"} if value.get("agreement", "off") != "off" else {}


def _preset(name: object) -> Gates:
    presets = {"measured": Gates(), "install": Gates(limits={"installs": 0.0})}
    if not isinstance(name, str) or name not in presets:
        raise Malformed(f"gates.preset: expected one of {', '.join(presets)}, got {name!r}"[:200])
    return presets[name]


def _limit(key: str, given: object) -> float:
    kind = KINDS[key]
    expected, low, high = _UNITS[kind.unit]
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([A-Za-z% ]+?)\s*", given) if isinstance(given, str) else None
    if not match or match[2] != kind.unit:
        raise Malformed(f"gates.{key}: expected {expected}, or 'off', got {given!r}"[:200])
    number = float(match[1])
    if not low <= number <= high or (kind.exclusive and number == low):
        raise Malformed(f"gates.{key}: {given} is not between {low:g} and {high:g}")
    return number


def _share(low: float, high: float) -> Callable[[str, object], float]:
    def read(key: str, given: object) -> float:
        match = re.fullmatch(r"\s*(\d{1,3}(?:\.\d{1,9})?)\s*%\s*", given) if isinstance(given, str) else None
        if not match or not low <= float(match[1]) <= high:
            raise Malformed(f"gates.{key}: expected a share from {low:g} % to {high:g} %, got {given!r}"[:200])
        return float(match[1]) / 100

    return read


def _count(low: int, high: int) -> Callable[[str, object], int]:
    def read(key: str, given: object) -> int:
        if not isinstance(given, int) or isinstance(given, bool) or not low <= given <= high:
            raise Malformed(f"gates.{key}: expected a whole number from {low} to {high}, got {given!r}"[:200])
        return given

    return read


def _duration(key: str, given: object) -> timedelta:
    if not isinstance(given, str):
        raise Malformed(f"gates.{key}: expected a duration such as '2 h', got {given!r}"[:200])
    try:
        found = seconds(given, where=f"gates.{key}")
    except WireMalformed as e:
        raise Malformed(str(e)) from e
    if not 1 <= found <= 90 * 86400:
        raise Malformed(f"gates.{key}: {given} is not between 1 s and 90 d")
    return timedelta(seconds=found)


def _go_or_hold(key: str, given: object) -> str:
    if given not in ("proceed", "hold"):
        raise Malformed(f"gates.{key}: expected proceed or hold, got {given!r}"[:200])
    return str(given)


def _show_share(share: float) -> str:
    return f"{_plain(share * 100)} %"


def _show_duration(duration: timedelta) -> str:
    return f"{_plain(duration.total_seconds())} s"


def _plain(number: float) -> str:
    """Without an exponent and short: `0.5`, `86400`."""
    return f"{number:.9f}".rstrip("0").rstrip(".") if math.isfinite(number) else str(number)


_SETTINGS: Mapping[str, tuple[Callable[[str, object], Any], Callable[[Any], Any]]] = {
    "alpha": (_share(0.0001, 20), _show_share),
    "profiles": (_count(1, 1000), int),
    "suspicion": (_share(0.0001, 50), _show_share),
    "devices": (_count(1, 10_000), int),
    "requests": (_count(1, 1_000_000), int),
    "covered": (_share(0, 100), _show_share),
    "fresh": (_duration, _show_duration),
    "labels": (_count(0, 1_000_000), int),
    "patience": (_duration, _show_duration),
    "small": (_go_or_hold, str),
    "unshadowed": (_go_or_hold, str),
}
