"""Simulated devices for `fleet_world`: the agent's own telemetry under a clock that a test moves.

What is real: requests are counted by the agent's `WindowMeter`, its `Recorder` makes records of them, they wait in its
queue with its ledger, its `Outbox` signs and sends them, and sends again what was not answered; `Acks` believes no
answer but the fleet's. Desired states are verified by the keys that the trust documents name. What is drawn: how many
requests come, how long each takes, which answers are right, and how long an installation takes; no blob is fetched.

Devices of a profile differ in speed and load for good, and from window to window; the day has busy hours, in which more
is asked and every answer takes longer; a restart of the model moves a device a little, for better or worse.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner

from agent.life.telemetry import Outbox, Recorder, WindowMeter
from agent.line.voice import Voice
from agent.store.database import Opened
from agent.store.state import StateFile
from agent.trust.acks import Acks
from agent.trust.clock import Clock
from wire import topics
from wire.admission import check_order
from wire.bundle import split_target
from wire.dsse import open_by_role
from wire.messages import Health, Phase, Reported, SlotReport, UpdateReport
from wire.orders import Desired, DesiredModel
from wire.trust import TrustedSet
from wire.units import show_instant

SILENCE = 3600.0
"""Real seconds until a batch is sent again: time here passes in steps, and each brings the answers."""
QUEUE = 1 << 20
SUNDAY = 6
LABEL, OTHER = "light", "music"


@dataclass(frozen=True)
class Kind:
    """What the devices of a profile are like. `ms`: the median of an answer; `hourly`: requests; `labelled`: feedback
    comes on each.

    `spread`: how devices differ in speed and load, as the deviation of a logarithm.
    """

    ms: float
    hourly: float
    labelled: bool = False
    right: float = 0.92
    spread: float = 0.25


@dataclass(frozen=True)
class Worse:
    """By how much a version is worse than the others: a factor of time, and points of accuracy."""

    slower: float = 1.0
    less_accurate: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What is around devices. `say` takes what they publish; `worse` tells of a version on a profile."""

    now: Callable[[], datetime]
    say: Callable[[str, bytes, bool], None]
    trusted: TrustedSet
    worse: Callable[[str, str], Worse]
    empty_disk: sqlite3.Connection


class _Line:
    """A device's line, which is always up."""

    up = True

    def __init__(self, say: Callable[[str, bytes, bool], None]) -> None:
        self._say = say

    def publish(self, topic: topics.Topic, payload: bytes, *, retain: bool = False) -> None:
        """Say it."""
        self._say(topic.topic, payload, retain)


class SimulatedDevice:
    """One device, from its first desired state on."""

    def __init__(
        self, name: str, profile: str, kind: Kind, around: Surroundings, window: timedelta, rng: np.random.Generator
    ) -> None:
        self.name, self.profile, self.window = name, profile, window
        self._kind, self._around, self._rng = kind, around, rng
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._state = state = _state(around.empty_disk)
        signer = CryptoSigner(self.key)
        clock = Clock(state, wall=around.now)
        self._boot = f"boot-{name}"
        self._meter = WindowMeter()
        self._recorder = Recorder(state, self._meter, boot=self._boot, limit=QUEUE, now=around.now, health=self._health)
        self._voice = Voice(name, state, cast(Any, _Line(around.say)), lambda: signer)
        self._acks = Acks(device=name, boot=self._boot, trusted=around.trusted, clock=clock, on_ask=lambda _at: None)
        self._outbox = Outbox(state, self._voice, self._acks, timeout=SILENCE)
        self._outbox.open = True
        self._speed = rng.normal(0.0, kind.spread)
        self._load = math.exp(rng.normal(0.0, kind.spread))
        self._memory, self._celsius = 60e6 * math.exp(rng.normal(0.0, 0.1)), rng.normal(52.0, 3.0)
        self._change = self._jitter = 0.0
        self._lived = around.now()
        self._closes = around.now() + window * rng.random()
        self._last, self._reports = (0, 0), 0
        self._installing: tuple[DesiredModel, datetime] | None = None
        self.desired: Desired | None = None
        self.active: DesiredModel | None = None
        """What it runs."""

    # --- what it is told ----------------------------------------------------------------------------------------------

    def take(self, topic: str, payload: bytes) -> None:
        """What the fleet published. Raises `WireError` for what an agent would not believe."""
        match topics.parse(topic):
            case topics.Ack():
                if (ack := self._acks.take(payload)) is not None:
                    self._outbox.answered(ack)
            case topics.Desired():
                self._wish(open_by_role(payload, Desired, self._around.trusted.targets()))

    def _wish(self, desired: Desired) -> None:
        if desired.number == self._last:
            return  # published again
        check_order(desired, device=self.name, last=self._last, now=self._around.now())
        self.desired, self._last = desired, desired.number
        model = next(iter(desired.models), None)
        if model is not None and model != self.active:
            takes = timedelta(minutes=float(self._rng.uniform(2, 25)))
            self._installing = model, self._around.now() + takes
            self._report(model, "fetching")

    # --- what it does -------------------------------------------------------------------------------------------------

    def live(self) -> None:
        """Answer what was asked since the last time, change the model when that is due, and send what a window held."""
        now = self._around.now()
        if self.active is not None:
            self._answer(self.active, now)
        self._lived = now
        if self._installing is not None and now >= self._installing[1]:
            self.active, self._installing = self._installing[0], None
            self._change = self._rng.normal(0.0, 0.02)
            self._report(self.active, "committed")
        if now >= self._closes:
            while self._closes <= now:
                self._closes += self.window
            self._jitter = self._rng.normal(0.0, 0.04)
            self._recorder.close_window()
            self._outbox.kick()

    def produced(self) -> int:
        """How many records it has made, by its own ledger; each was delivered."""
        ledger = self._state.ledger()
        assert all(one.delivered == one.produced for one in ledger)
        return sum(one.produced for one in ledger)

    def send_every(self, window: timedelta) -> None:
        """Another length of window from now on."""
        self.window, self._closes = window, self._around.now() + window * self._rng.random()

    def _answer(self, model: DesiredModel, now: datetime) -> None:
        kind, rng, meter = self._kind, self._rng, self._meter
        name, digest = model.model, model.digest
        worse = self._around.worse(split_target(model.target)[2], self.profile)
        swing, hours = busy(now), (now - self._lived).total_seconds() / 3600
        asked = int(rng.poisson(kind.hourly * self._load * (1 + 0.5 * swing) * rest(now) * hours))
        level = math.log(kind.ms * worse.slower * (1 + 0.12 * swing)) + self._speed + self._change + self._jitter
        right = kind.right - worse.less_accurate / 100
        for ms, luck in zip(np.exp(rng.normal(level, 0.35, asked)).tolist(), rng.random(asked).tolist(), strict=True):
            meter.answered(name, digest, ms, ())
            if kind.labelled:
                meter.remember("last", name, digest, LABEL)
                meter.feedback("last", LABEL if luck < right else OTHER)
        for _ in range(int(rng.poisson(0.004 * asked))):
            meter.failed(name, digest)

    # --- what it says -------------------------------------------------------------------------------------------------

    def _report(self, model: DesiredModel, phase: Phase) -> None:
        assert self.desired is not None
        self._reports += 1
        active = self.active
        slots = (
            (SlotReport(model=active.model, slot="active", target=active.target, digest=active.digest),)
            if active is not None
            else ()
        )
        update = UpdateReport(target=model.target, digest=model.digest, rollout=model.rollout, phase=phase)
        reported = Reported(
            device=self.name,
            boot=self._boot,
            starts=self._voice.starts(),
            seq=self._reports,
            nonce=self._acks.ask(),
            time=show_instant(self._around.now()),
            sealing_key="",
            agent="0",
            profile=self.profile,
            hardware="simulated",
            emulated=True,
            desired_epoch=self.desired.epoch,
            desired_seq=self.desired.seq,
            slots=slots,
            updates=(update,),
        )
        self._voice.say(topics.Reported(self.name), reported, retain=True)

    def _health(self) -> Health:
        swing = busy(self._around.now())
        return Health(
            cpu_percent=20 + 10 * swing,
            memory_used=1 << 28,
            memory_total=1 << 30,
            agent_memory=int(self._memory * math.exp(self._rng.normal(0.0, 0.03))),
            disk_free=1 << 30,
            disk_total=1 << 32,
            temperature_c=round(self._celsius + 4 * swing + self._rng.normal(0.0, 0.7), 1),
            restarts={"clean": 1, "crash": 0, "watchdog": 0, "power": 0},
            window_s=self.window.total_seconds(),
        )


def busy(when: datetime) -> float:
    """How busy an hour is, from -1 at 3:00 to 1 at 15:00."""
    return -math.cos(2 * math.pi * (when.hour + when.minute / 60 - 3) / 24)


def rest(when: datetime) -> float:
    """The share of requests that a day has of those of a workday: a fifth on Sundays."""
    return 1 / 5 if when.weekday() == SUNDAY else 1.0


def _state(empty: sqlite3.Connection) -> StateFile:
    memory = sqlite3.connect(":memory:", isolation_level=None)
    empty.backup(memory)
    return StateFile(Opened(memory), Path("in memory"))
