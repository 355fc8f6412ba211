"""Worlds for the gates: rollouts over made-up devices by a simulated clock, looked at after every report.

    result = roll_out(World(slower={"pi": 1.3}), Gates(), seed=1)
    result.profiles["pi"].ended, result.profiles["pi"].wave        # "aborted", 0

Devices keep real sketches (`wire.sketch`) of latencies that were drawn one by one, and report what they have counted
since `since`, as the fleet's evidence would add it up. What the gates must not be fooled by is in it: devices are of
unequal speed, load and quality and drift by themselves; a busy hour slows candidates and controls alike, and devices
commit late, so that they are seen at other hours than their peers. `NULLS` are worlds with an equal model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np

from fleet.gates.history import History
from fleet.gates.judging import judge
from fleet.gates.thresholds import Gates
from fleet.gates.values import Behaviour, Comparison, Judgement
from wire.sketch import Sketch

START = datetime(2026, 11, 23, 6, tzinfo=UTC)
INTERVAL = timedelta(minutes=30)
"""Between two reports of a device."""
_LOG_GAMMA = math.log(1.04)
_OFFSET = 1024
_KEYS = [str(i - _OFFSET) for i in range(2 * _OFFSET + 1)]
_DAY = 86400.0


@dataclass(frozen=True)
class World:
    """Sizes, how devices scatter (standard deviations of logarithms), and by how much the candidate is worse.

    `slower` are factors, `less_accurate`, `more_errors` and `disagrees` points, `hotter` degrees; all by profile.
    """

    profiles: tuple[str, ...] = ("pi", "x86")
    devices: int = 50
    waves: tuple[int, ...] = (10, 50, 100)
    reports: int = 4
    """Reports that a wave is soaked for; it may be prolonged twice as far before it is called held."""
    requests: int = 150
    labels: int = 600
    """A report each."""
    spread: float = 0.3
    change: float = 0.03
    """By which devices differ after a restart of the model, for good."""
    jitter: float = 0.05
    """By which a device differs from report to report."""
    persistence: float = 0.0
    """How much of that is left in the next report."""
    heavy: bool = False
    """Jitter is Student's with two degrees of freedom, and one device of forty gets ten times slower at some time."""
    busy: float = 0.0
    """Amplitude of the daily swing of latency and of errors."""
    commit: float = 1.0
    """The longest that a device takes to commit, in reports."""
    load: float = 0.2
    """Scatter of the load of devices."""
    errors: float = 0.5
    accuracy: float = 92.0
    first: bool = False
    """No model ran before."""
    slower: Mapping[str, float] = field(default_factory=dict)
    tail: Mapping[str, float] = field(default_factory=dict)
    """The share of requests that take five times as long."""
    more_errors: Mapping[str, float] = field(default_factory=dict)
    less_accurate: Mapping[str, float] = field(default_factory=dict)
    disagrees: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    hotter: Mapping[str, float] = field(default_factory=dict)
    restarts: Mapping[str, float] = field(default_factory=dict)
    """More of them a day."""
    golden: Mapping[str, float] = field(default_factory=dict)
    """The share of devices on which the golden set does not hold."""


_PLAIN = World()
NULLS: Mapping[str, World] = {
    "steady": _PLAIN,
    "heavy tails": replace(_PLAIN, heavy=True, jitter=0.08),
    "busy hours": replace(_PLAIN, busy=0.4, commit=4.0),
    "drifting": replace(_PLAIN, persistence=0.9, jitter=0.08),
    "unequal load": replace(_PLAIN, load=1.0, requests=60),
}


@dataclass
class Profile:
    """How a profile went: `ended` and in which wave (from 0), how many looks, and the last judgement."""

    ended: Literal["", "done", "aborted", "held"] = ""
    wave: int = 0
    looks: int = 0
    judgement: Judgement | None = None
    waited: int = 0
    """Waves that were prolonged."""


@dataclass(frozen=True)
class Result:
    """A rollout that ended."""

    profiles: Mapping[str, Profile]

    @property
    def looks(self) -> int:
        return sum(p.looks for p in self.profiles.values())

    @property
    def aborted(self) -> bool:
        return any(p.ended == "aborted" for p in self.profiles.values())


def roll_out(world: World, gates: Gates, seed: int) -> Result:
    """One rollout: every profile through its waves, independent of the others, as gates are."""
    gates = gates.shared_by(len(world.profiles))
    return Result({
        name: _profile(world, gates, name, np.random.default_rng([seed, i])) for i, name in enumerate(world.profiles)
    })  # fmt: skip


def _profile(world: World, gates: Gates, name: str, rng: np.random.Generator) -> Profile:
    found, history, clock = Profile(), History(), START
    devices = [Device(world, name, i, rng) for i in range(world.devices)]
    exposed = 0
    for wave, share in enumerate(world.waves):
        found.wave = wave
        limit = math.ceil(share * world.devices / 100)
        for i, device in enumerate(devices):
            if i >= exposed:
                device.begin(clock, candidate=i < limit)
        exposed = limit
        for stretch in range(3):
            history, clock = _soak(world, gates, name, devices, history, clock, found)
            if found.ended or (found.judgement and found.judgement.verdict == "PROCEED"):
                break
            found.waited += stretch == 0
        else:
            found.ended = "held"
        if found.ended:
            return found
    found.ended = "done"
    return found


def _soak(
    world: World, gates: Gates, name: str, devices: list[Device], history: History, clock: datetime, found: Profile
) -> tuple[History, datetime]:
    """Some reports of every device, in the order of their times, and a look after each."""
    table = {d.name: d.comparison() for d in devices}
    steps = world.reports + math.ceil(world.commit)
    order = sorted((clock + INTERVAL * (n + d.phase), i) for n in range(steps) for i, d in enumerate(devices))
    for when, i in order:
        if not devices[i].report(when):
            continue
        table[devices[i].name] = devices[i].comparison()
        found.judgement, history = judge(gates, name, list(table.values()), history, when)
        found.looks += 1
        if found.judgement.verdict == "ABORT":
            found.ended = "aborted"
            break
    return history, clock + INTERVAL * steps


class Device:
    """One device: what it is like, what it did before, and what it has counted since."""

    def __init__(self, world: World, profile: str, number: int, rng: np.random.Generator) -> None:
        self.name, self.profile, self._world, self._rng = f"{profile}-{number}", profile, world, rng
        self.phase = rng.random()
        self._speed = rng.normal(3.0, world.spread)
        self._load = math.exp(rng.normal(0.0, world.load))
        self._errors = world.errors / 100 * math.exp(rng.normal(0.0, 0.3))
        self._accuracy = min(0.995, world.accuracy / 100 + rng.normal(0.0, 0.01))
        self._memory = 60e6 * math.exp(rng.normal(0.0, 0.1))
        self._celsius = rng.normal(55.0, 4.0)
        self._jitter = 0.0
        self._broken = world.heavy and rng.random() < 1 / 40
        self._breaks = rng.integers(0, 3 * world.reports) * INTERVAL

    def begin(self, clock: datetime, *, candidate: bool) -> None:
        """A wave begins: count from now on, or from when the candidate is committed."""
        world, rng = self._world, self._rng
        self._arm: Literal["candidate", "control"] = "candidate" if candidate else "control"
        self.since = clock + (INTERVAL * (world.commit * rng.random()) if candidate else timedelta())
        self._change = rng.normal(0.0, world.change) if candidate else 0.0
        self._requests = self._wrong = self._failed = self._labels = self._restarts = self._compared = self._agreed = 0
        self._times = np.zeros(2 * _OFFSET + 1, np.int64)
        self._golden = not (candidate and rng.random() < world.golden.get(self.profile, 0.0))
        self._peak = (0.0, 0.0)
        self.before = None if world.first else self._before(clock)
        self.after: Behaviour | None = None

    def comparison(self) -> Comparison:
        """What the fleet's evidence would say."""
        return Comparison(
            device=self.name, profile=self.profile, arm=self._arm, since=self.since,
            before=self.before, after=self.after, incumbent=not self._world.first,
        )  # fmt: skip

    def report(self, when: datetime) -> bool:
        """Count what was done since the report before; nothing comes of a device that has not committed yet."""
        if when <= self.since:
            return False
        world, rng = self._world, self._rng
        part = min(1.0, (when - self.since) / INTERVAL)
        requests = int(rng.poisson(world.requests * self._load * part))
        self._draw(when, requests)
        labels = int(rng.poisson(world.labels * self._load * part))
        self._labels += labels
        self._wrong += int(rng.binomial(labels, 1 - self._accuracy + self._worse("less_accurate") / 100))
        busy = 1 + world.busy * _swing(when)
        self._failed += int(rng.binomial(requests, min(1.0, self._errors * busy + self._worse("more_errors") / 100)))
        self._requests += requests
        self._restarts += int(rng.poisson((0.02 + self._worse("restarts")) * part * INTERVAL.total_seconds() / _DAY))
        if self._arm == "candidate" and self.profile in world.disagrees:
            self._compared += requests
            self._agreed += requests - int(rng.binomial(requests, self._worse("disagrees") / 100))
        memory = self._memory * (self._worse("memory") or 1.0) * math.exp(rng.normal(0.0, 0.03))
        celsius = self._celsius + 4 * _swing(when) + self._worse("hotter") + rng.normal(0.0, 1.0)
        self._peak = (max(self._peak[0], memory), max(self._peak[1], celsius))
        self.after = self._behaviour(when)
        return True

    def _worse(self, what: str) -> float:
        return getattr(self._world, what).get(self.profile, 0.0) if self._arm == "candidate" else 0.0

    def _draw(self, when: datetime, requests: int) -> None:
        world, rng = self._world, self._rng
        noise = rng.standard_t(2) if world.heavy else rng.normal()
        self._jitter = world.persistence * self._jitter + math.sqrt(1 - world.persistence**2) * world.jitter * noise
        level = self._speed + self._change + self._jitter + math.log1p(world.busy * _swing(when))
        level += math.log(self._worse("slower") or 1.0)
        if self._broken and when - START > self._breaks:
            level += math.log(10)
        logs = rng.normal(level, 0.35, requests)
        share = self._worse("tail")
        if share:
            logs += math.log(5) * (rng.random(requests) < share)
        self._times += _counted(logs)

    def _before(self, clock: datetime) -> Behaviour:
        """The day before `since`: a whole turn of the daily swing."""
        world, rng, n = self._world, self._rng, int(48 * self._world.requests * self._load) + 1
        times = clock - timedelta(days=1)
        swing = np.log1p(world.busy * np.sin(2 * np.pi * rng.random(min(n, 2000))))
        noise = rng.normal(0.0, world.jitter, min(n, 2000))
        labels = int(48 * world.labels * self._load)
        return Behaviour(
            digest="incumbent", begins=times, ends=clock, requests=n, errors=int(rng.binomial(n, self._errors)),
            latency_ms=_sketch(_counted(rng.normal(self._speed, 0.35, min(n, 2000)) + swing + noise)),
            feedback_total=labels, feedback_correct=int(rng.binomial(labels, self._accuracy)), golden=True,
            memory=int(self._memory * 1.05), temperature_c=self._celsius + 6, restarts=int(rng.poisson(0.02)),
        )  # fmt: skip

    def _behaviour(self, when: datetime) -> Behaviour:
        return Behaviour(
            digest=self._arm, begins=self.since, ends=when, requests=self._requests, errors=self._failed,
            latency_ms=_sketch(self._times), feedback_total=self._labels, feedback_correct=self._labels - self._wrong,
            compared=self._compared, agreed=self._agreed, memory=int(self._peak[0]), temperature_c=self._peak[1],
            restarts=self._restarts, golden=self._golden,
        )  # fmt: skip


def _swing(when: datetime) -> float:
    return math.sin(2 * math.pi * (when - START).total_seconds() / _DAY)


def _counted(logs: np.ndarray) -> np.ndarray:
    """Buckets of `wire.sketch`, for logarithms."""
    places = np.clip(np.ceil(logs / _LOG_GAMMA), -_OFFSET, _OFFSET).astype(np.int64) + _OFFSET
    return np.bincount(places, minlength=2 * _OFFSET + 1)


def _sketch(counts: np.ndarray) -> Sketch:
    there = np.flatnonzero(counts)
    return Sketch(buckets={_KEYS[i]: n for i, n in zip(there.tolist(), counts[there].tolist(), strict=True)})
