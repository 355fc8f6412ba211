"""What the gates of one profile have seen so far: kept as text by the rollout, so that each device counts once a size.

    history = History.from_text("")                   # a new one
    judgement, history = judge(gates, profile, comparisons, history, now)
    history.to_text()

A block is a device with the candidate and its peers: devices without it, drawn when it began and used by no other
block meanwhile. A trial is one gate at one size of evidence, over the blocks in the order in which they came in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import ClassVar, Literal, Self

from fleet.gates.measures import NOTHING, Tally
from fleet.gates.sequential import Interval, Wealth, log_evidence, stake
from wire.document import Document

KEPT = 400
"""Newest effects of a trial that are kept for its estimate."""
Mode = Literal["compared", "alone", "first", "unranked", "unknown"]
"""Ranked among peers; held against before, for want of devices without the candidate; no model before; no peer left;
a model before, and nothing known of it yet."""


@dataclass(frozen=True, kw_only=True)
class Block(Document):
    """`since` and those of the peers are POSIX times. `start`: tallies to take off, by device; most have none.

    `taken`: sizes of each gate that are done. `due`: the evidence, by kind, at which there is something to do again.
    `waits`: the peers that keep it waiting, each with a kind of evidence and the amount of it. `gross`: what is plainly
    broken, in words.
    """

    since: float
    mode: Mode
    peers: Mapping[str, float] = field(default_factory=dict)
    start: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    taken: Mapping[str, int] = field(default_factory=dict)
    due: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    waits: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    gross: str = ""

    def started(self, device: str) -> Tally:
        """What to take off the tally of a device of the block."""
        return self.start.get(device, NOTHING)


@dataclass(frozen=True, kw_only=True)
class Trial(Document):
    """One gate at one size of evidence. `wealth`: of its bets; `evidence`: of them together, now and at `best`, as
    logarithms; `effects` of devices in their order; `value` is their estimate, `low` and `high` its interval.
    """

    wealth: tuple[float, ...] = ()
    evidence: float = 0.0
    best: float = 0.0
    devices: int = 0
    effects: tuple[float, ...] = ()
    value: float = 0.0
    low: float | None = None
    high: float | None = None

    def add(self, bets: Wealth, effect: float, estimate: Callable[[Sequence[float]], Interval]) -> Trial:
        """The trial after one more device."""
        wealth, effects = stake(self.wealth, bets), (*self.effects, effect)[-KEPT:]
        evidence, told = log_evidence(wealth), estimate(effects)
        return Trial(
            wealth=wealth,
            evidence=evidence,
            best=max(self.best, evidence),
            devices=self.devices + 1,
            effects=effects,
            value=told.value,
            low=told.low,
            high=told.high,
        )


@dataclass(frozen=True, kw_only=True)
class History(Document):
    """Blocks by device, trials by `gate/size`."""

    LIMIT: ClassVar[int] = 16 * 1024 * 1024

    blocks: Mapping[str, Block] = field(default_factory=dict)
    trials: Mapping[str, Trial] = field(default_factory=dict)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The history as it was kept; "" is a new one. Raises `wire.errors.Malformed`."""
        return cls.from_bytes(text.encode()) if text else cls()

    def to_text(self) -> str:
        """The inverse of `from_text`."""
        return self.to_bytes().decode()

    @cached_property
    def found(self) -> Mapping[str, tuple[tuple[int, Trial], ...]]:
        """The trials that have begun by gate, each with its size, the smallest first."""
        by_gate: dict[str, list[tuple[int, Trial]]] = {}
        for key, trial in self.trials.items():
            gate, _, size = key.partition("/")
            by_gate.setdefault(gate, []).append((int(size), trial))
        return {gate: tuple(sorted(found, key=itemgetter(0))) for gate, found in by_gate.items()}
