"""Whether somebody keeps this device in the past: a pure value, told what was asked and answered, and when.

    freshness.asked(at); freshness.answered(at, named=(1, 7), held=(1, 5))
    freshness.frozen(at)      # Frozen(since, why) once one of these lasts longer than the grace time:
                              #   the line is up and nothing is answered
                              #   the fleet's answers name a newer desired state than the one that came
                              #   the timestamp metadata is expired while the line is up

Times are seconds of one monotonic clock. Silence counts while the line is up only, and over reconnects: a device that
was off is not frozen, and a line that somebody cuts again and again does not hide it.
"""

from __future__ import annotations

from dataclasses import dataclass

Number = tuple[int, int]
"""Epoch and seq of a desired state."""


@dataclass(frozen=True)
class Frozen:
    """Since when, in seconds of the monotonic clock, and why in words."""

    since: float
    why: str


class Freshness:
    """What is known of how fresh this device is. `grace` in seconds."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._up: float | None = None
        self._asked: float | None = None
        self._silent_before = 0.0
        self._named: Number = (0, 0)
        self._behind: float | None = None
        self.heard: float | None = None
        """When the fleet answered last."""

    def line_is_up(self, at: float) -> None:
        """From here on silence means something."""
        self._up = at

    def line_is_down(self, at: float) -> None:
        """Silence means nothing any more."""
        self._silent_before, self._up = self._silence(at), None

    def asked(self, at: float) -> None:
        """Something was said that the fleet answers."""
        self._asked = at if self._asked is None else self._asked

    def answered(self, at: float, *, named: Number, held: Number) -> None:
        """The fleet answered, and named its newest desired state."""
        self.heard, self._asked, self._silent_before = at, None, 0.0
        self._named = named
        self._behind = (at if self._behind is None else self._behind) if named > held else None

    def holds(self, held: Number) -> None:
        """A desired state came and was accepted."""
        if held >= self._named:
            self._behind = None

    def behind(self, at: float) -> float:
        """For how many seconds the newest desired state has not come; 0 when it is here."""
        return 0.0 if self._behind is None else at - self._behind

    def frozen(self, at: float, *, expired_for: float = 0.0) -> Frozen | None:
        """None while all is fresh. `expired_for`: seconds since the timestamp metadata expired."""
        if self._asked is not None and self._silence(at) > self._grace:
            return Frozen(
                self._asked, "the fleet does not answer: it is down, or its answers are kept from this device"
            )
        if self._behind is not None and at - self._behind > self._grace:
            number = ".".join(map(str, self._named))
            return Frozen(self._behind, f"desired state {number} does not come: it is kept from this device")
        if expired_for > 0 and self._up is not None and at - self._up > self._grace:
            why = "the timestamp metadata expired: the fleet publishes none, or it is kept from this device"
            return Frozen(at - expired_for, why)
        return None

    def _silence(self, at: float) -> float:
        if self._up is None or self._asked is None:
            return self._silent_before
        return self._silent_before + at - max(self._up, self._asked)
