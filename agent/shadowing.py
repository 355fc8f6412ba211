"""A model in shadow as values: what a newer desired state makes of it, when it may run, and what it may take. Pure.

`agent.install.shadows` brings it here, `agent.serving.shadow` runs it. The budget is kept by a token bucket of CPU
seconds. While requests come in, a shadow takes next to nothing, whatever its budget: a core's second thread or the
memory bus that it shares with the model that answers would show in the slowest answers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from wire.document import Document
from wire.shadow import ShadowModel, ShadowPhase, ShadowReport

MAX_STARTS: Final = 4
"""Ends of the agent that nobody asked for while a shadow ran: its load may be what takes the machine down."""
LONGEST_REASON: Final = 500
LOADED: Final = 0.005
"""Share of one core that a shadow takes while the model beside it has requests: below the hundredth that p99 shows."""
SAVED: Final = 10.0
"""Seconds of its budget that an idle shadow saves."""
COOLED: Final = 3.0
"""Degrees Celsius below its limit at which a shadow that paused for heat goes on."""
RESERVE: Final = 64 * 1024 * 1024
"""Bytes of memory that stay available on the machine beside a shadow."""
_GOLDEN: Final = 2654435769
"""2^32 over the golden ratio: multiples of it are spread evenly, also over every second or tenth request."""


@dataclass(frozen=True, kw_only=True)
class Shadow(Document):
    """What is on disk of one: what was wanted, and how far it came. `starts` counts bad ends of the agent beside it.

    `memory`: bytes that its process took at most; before it ran, what its self-test measured.
    """

    wanted: ShadowModel
    phase: ShadowPhase = "waiting"
    reason: str = ""
    starts: int = 0
    memory: int = 0

    @property
    def over(self) -> bool:
        """Whether it ended for good: its files may go."""
        return self.phase in ("failed", "refused")

    @property
    def here(self) -> bool:
        """Whether its files are here, and its golden set held."""
        return self.phase in ("running", "paused")

    def report(self) -> ShadowReport:
        """It in the words of the wire."""
        wanted = self.wanted
        return ShadowReport(
            target=wanted.target,
            digest=wanted.digest,
            rollout=wanted.rollout,
            phase=self.phase,
            reason=self.reason,
            memory=self.memory,
        )


def desire(shadow: Shadow | None, wanted: ShadowModel | None, beside: str) -> Shadow | None:
    """What a newer desired state makes of it; `beside` is the digest of the model that it names.

    A model that is to answer is no shadow any more. One that ended is tried again when anything was changed.
    """
    if wanted is None or wanted.digest == beside:
        return None
    if shadow is None or wanted == shadow.wanted:
        return shadow or Shadow(wanted=wanted)
    if shadow.wanted.digest == wanted.digest and shadow.here:
        return dataclasses.replace(shadow, wanted=wanted)
    return Shadow(wanted=wanted)


def noted(shadow: Shadow, phase: ShadowPhase, reason: str = "", memory: int = 0) -> Shadow:
    """One step."""
    memory = max(shadow.memory, memory)
    return dataclasses.replace(shadow, phase=phase, reason=reason[:LONGEST_REASON], memory=memory)


def found_at_start(shadow: Shadow, *, killed: bool) -> Shadow:
    """It as a start of the agent finds it. `killed`: nobody asked for the end before."""
    if shadow.phase != "running":
        return shadow
    starts = shadow.starts + killed
    if starts >= MAX_STARTS:
        shadow = noted(shadow, "failed", f"the agent ended {starts} times while it ran")
    else:
        shadow = noted(shadow, "paused", "the agent starts")
    return dataclasses.replace(shadow, starts=starts)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The machine now: degrees Celsius, whether its clock is held down (None: it does not say), bytes available."""

    temperature_c: float | None
    throttled: bool | None
    available: int


def hindrance(wanted: ShadowModel, now: Conditions, *, running: bool, needs: int) -> str:
    """Why a shadow has to pause, in words; "" when it may run. `needs`: bytes that its process takes once it runs."""
    limit = wanted.max_c if running else wanted.max_c - COOLED
    if now.temperature_c is not None and now.temperature_c > limit:
        return f"{now.temperature_c:.0f} degrees Celsius, its limit is {wanted.max_c:.0f}"
    if now.throttled:
        return "the processor's clock is held down"
    needed = RESERVE + (0 if running else needs)
    if now.available < needed:
        return f"{now.available >> 20} MiB of memory available, {needed >> 20} MiB needed"
    return ""


class Sampler:
    """Takes `share` percent of the requests, evenly, and the same ones of every part of them."""

    def __init__(self, share: int) -> None:
        self._below = share * (1 << 32) // 100
        self._at = 0

    def takes(self) -> bool:
        """Whether the next one is in."""
        self._at = (self._at + _GOLDEN) & 0xFFFFFFFF
        return self._at < self._below


@dataclass(frozen=True)
class Budget:
    """A token bucket of CPU seconds: `rate` cores; `left` may fall below nothing, what a run takes is known after it.

    `at` in seconds; `ended` and `cost` are of the last run.
    """

    rate: float
    left: float
    at: float
    ended: float = float("-inf")
    cost: float = 0.0

    @classmethod
    def of(cls, percent: int, now: float) -> Budget:
        """Half full at the start."""
        return cls(percent / 100, percent / 100 * SAVED / 2, now)

    def filled(self, now: float) -> Budget:
        """The same later."""
        left = min(self.rate * SAVED, self.left + self.rate * max(0.0, now - self.at))
        return dataclasses.replace(self, left=left, at=now)

    def allows(self, now: float, *, loaded: bool) -> bool:
        """Whether a run may begin. `loaded`: requests come in."""
        if loaded and now - self.ended < max(1.0, self.cost / LOADED):
            return False
        return self.filled(now).left > 0

    def spent(self, seconds: float, now: float) -> Budget:
        """A run ended that took so much CPU time."""
        full = self.filled(now)
        return dataclasses.replace(full, left=full.left - seconds, ended=now, cost=seconds)
