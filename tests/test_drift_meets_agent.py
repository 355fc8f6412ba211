"""Three devices with a real model, and a fleet: what they are asked changes, and the fleet says so.

Model, meter, recorder and queue of the device are the real ones, and so are telemetry, database and judging of the
fleet. Only the broker between them is left out, and both sides look at one clock, that is put on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from telemetry_soak import MIB
from tiny_bundle import TinyBundle, make_layout

from agent.life.telemetry import Recorder, WindowMeter
from agent.serving.bundles import Bundle, prepare
from agent.serving.service import Served, Service
from agent.store.blobs import Blobs
from agent.store.state import StateFile
from cli.drift import alarms_view
from cli.output import console
from fleet import telemetry
from fleet.drift.drift import GRACE, Drift
from fleet.drift.views import open_alarms
from fleet.serial import Serial
from fleet.store.database import Database
from fleet.store.tables import Device, DeviceStats
from wire.messages import Health, TelemetryBatch, TelemetryRecord

USUAL = ("turn the light on", "turn the light off please", "play some music in the kitchen", "lamp on please")
FRENCH = ("allume la lumière dans la cuisine et dans le salon s'il te plaît je ne vois pas ce que je fais",)
HEALTH = Health(cpu_percent=5, memory_used=1, memory_total=2, agent_memory=1, disk_free=1, disk_total=2)
DEVICES = ("kitchen-1", "kitchen-2", "kitchen-3")


class Clock:
    """One for all."""

    now = datetime(2026, 11, 1, tzinfo=UTC)


class Agent:
    """One device: its model answers, what it counts waits on its disk."""

    def __init__(self, name: str, folder: Path, served: Served, stack: ExitStack) -> None:
        self.name = name
        self.meter = WindowMeter()
        self.service = Service(self.meter)
        self.service.place("kitchen", served)
        self.state = stack.enter_context(closing(StateFile.open(folder / f"{name}.db")))
        self.recorder = Recorder(
            *(self.state, self.meter), boot="b", limit=8 * MIB, now=lambda: Clock.now, health=lambda: HEALTH
        )
        self.sent = 0

    def ask(self, texts: tuple[str, ...], times: int) -> None:
        """Each text so many times, as an app does."""

        async def asking() -> None:
            for text in texts * times:
                await self.service.infer("kitchen", (text,))

        asyncio.run(asking())
        self.recorder.close_window()

    def batches(self) -> Iterator[TelemetryBatch]:
        """What waits, as the outbox sends it."""
        while waiting := self.state.next_batch():
            self.sent += 1
            records = tuple(TelemetryRecord.from_bytes(one.record) for one in waiting)
            yield TelemetryBatch(device=self.name, boot="b", starts=1, sent=self.sent, nonce="n", records=records)
            self.state.acknowledged("b", [one.seq for one in waiting])


class Home:
    """Agents and their fleet."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        Clock.now = datetime(2026, 11, 1, tzinfo=UTC)
        prepare()
        self.bundle: TinyBundle = make_layout(folder / "layout", profile="x86-64", version="1.0.0", rows=64)
        opened = Bundle.open(Blobs(folder / "layout" / "blobs" / "sha256", min_free=0), self.bundle.digest)
        served = Served.load(opened, {})
        stack.callback(served.retire)
        self.agents = [Agent(name, folder, served, stack) for name in DEVICES]
        (folder / "fleet").mkdir()
        self.database = stack.enter_context(closing(Database.in_folder(folder / "fleet")))
        self.drift = Drift(self.database, stack.enter_context(closing(Serial())), lambda: Clock.now)
        with self.database.transaction() as session:
            for name in DEVICES:
                session.add(Device(id=name, profile="x86-64", created="", token_hash="", token_expires=""))
                session.add(DeviceStats(device=name))

    def day(self, texts: tuple[str, ...]) -> None:
        """A day in which they are asked something three times, and tell it; then the fleet looks at it."""
        tomorrow = Clock.now + timedelta(days=1)
        for hour in (7, 13, 22):
            Clock.now = tomorrow - timedelta(hours=24 - hour)
            for agent in self.agents:
                agent.ask(texts, 16 // len(texts))
            Clock.now += timedelta(hours=1)
            for agent in self.agents:
                agent.recorder.close_window()
                self.store(agent)
        Clock.now = tomorrow
        self.drift.catch_up(Clock.now + GRACE)

    def store(self, agent: Agent) -> None:
        """What the inbox does with a batch that is signed by its device."""
        for batch in agent.batches():
            with self.database.transaction() as session:
                telemetry.store(session, session.get_one(Device, agent.name), batch, Clock.now, epoch=1)

    def alarms(self) -> list[dict[str, Any]]:
        with self.database.transaction() as session:
            return open_alarms(session)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with ExitStack() as stack:
        yield Home(tmp_path, stack)


def test_devices_that_are_spoken_to_in_another_language_are_told_of_within_three_days(home: Home) -> None:
    for _ in range(12):
        home.day(USUAL)
    assert home.alarms() == []
    days = 0
    while not home.alarms() and days < 3:
        home.day(FRENCH + USUAL[:1])
        days += 1
    found = {alarm["subject"]: alarm for alarm in home.alarms()}
    assert {"languages", "lengths"} <= set(found), found
    assert "language `fr` from 0 % to 50 %" in found["languages"]["what"]
    assert "on x86-64, 3 devices" in found["languages"]["what"]
    assert (found["languages"]["digest"], found["languages"]["model"]) == (home.bundle.digest, "kitchen")
    with console.capture() as captured:
        console.print(alarms_view(home.alarms()))
    shown = " ".join(captured.get().split())
    assert "its own four weeks" in shown
    assert "2026-11-13" in shown
