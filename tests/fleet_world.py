"""A whole fleet and its devices in one process, under one clock that a test moves: for what only shows in all of it.

    with whole_fleet(tmp_path, now, window) as world:
        world.release("1.0.0", "raspberry-pi-4")
        world.join({"pi-1": ("raspberry-pi-4", Kind(ms=35, hourly=120))}, seed=1)
        rollout = world.start("1.0.0", "r-000000000001", gates="install")
        world.pass_time(hours=2, step=timedelta(minutes=13))
        world.view(rollout)["state"], world.devices["pi-1"].active

Everything of the fleet is what `fleet.assembly` makes and `fleet.up` calls: inbox, telemetry, evidence, gates,
rollouts, housekeeping, the signed desired states, over the database with its migrations. What is false: the broker,
which is `Line`, and the clock, which moves in steps.
"""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fleet_devices import Kind, SimulatedDevice, Surroundings, Worse
from fleet_process import Publisher, tiny_bundle
from sqlmodel import select

from agent.store.state import StateFile
from fleet import assembly
from fleet.access import Caller
from fleet.api import releases
from fleet.mqtt.link import Message
from fleet.rollout import reading, views
from fleet.rollout.requests import RolloutRequest
from fleet.serial import TOGETHER
from fleet.services import Services
from fleet.settings import load
from fleet.store.folder import hold
from fleet.store.tables import Device, DeviceStats, SecurityRow
from fleet.trust.enrolment import new_row
from fleet.up import tick
from wire import topics
from wire.dsse import open_by_role
from wire.messages import Presence
from wire.orders import Desired
from wire.trust import TrustedSet

OPERATOR = Caller("token:ops", frozenset({"operator"}))


class Line:
    """The fleet's connection to a broker (`fleet.mqtt.link.Link`) that is only a memory of what was published."""

    is_up, up_for = True, timedelta(days=1)

    def __init__(self, *_pair: object, session: str) -> None:
        self.session = session
        self.published: list[tuple[str, bytes]] = []

    def publish(self, topic: str, payload: bytes, **_how: object) -> None:
        """Keep it until it is delivered."""
        self.published.append((topic, payload))


@dataclass
class World:
    """A fleet, its devices by name, and the time."""

    services: Services
    publisher: Publisher
    empty_disk: sqlite3.Connection
    clock: list[datetime]
    window: timedelta
    devices: dict[str, SimulatedDevice] = field(default_factory=dict)
    worse: dict[tuple[str, str], Worse] = field(default_factory=dict)
    """By version and profile."""
    said: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        documents = self.services.repository.documents()
        self.trusted = TrustedSet.from_root(documents["root/1"].encode())
        self.around = Surroundings(
            now=lambda: self.now,
            say=lambda topic, payload, _retain: self.said.append(Message(topic, payload, retained=False)),
            trusted=self.trusted,
            worse=lambda version, profile: self.worse.get((version, profile), Worse()),
            empty_disk=self.empty_disk,
        )
        self._believe()

    @property
    def now(self) -> datetime:
        """The time of everybody."""
        return self.clock[0]

    # --- what people do -----------------------------------------------------------------------------------------------

    def release(self, version: str, *profiles: str) -> None:
        """Sign and publish a version for some profiles."""
        for profile in profiles:
            manifest, blobs = tiny_bundle(version, profile=profile, size=1200)
            self.publisher.upload([manifest.to_bytes(), *blobs])
            self.publisher.list(manifest)
        self.publisher.post(self.publisher.release_documents())
        self._believe()

    def start(self, version: str, plan: str, **terms: Any) -> str:
        """Start a rollout of a version. `plan`: its id, which is what the order of devices is made of."""
        request = RolloutRequest(family="intents", name="kitchen", version=version, terms=terms, plan=plan)
        with self.services.database.transaction() as session:
            row, changed = self.services.rollouts.start(session, request, OPERATOR)
        self.services.outbox.desired(changed)
        return str(row.id)

    def view(self, rollout: str) -> dict[str, Any]:
        """A rollout as the API shows it."""
        with self.services.database.transaction() as session:
            return views.view(session, reading.find(session, rollout))

    def desired(self, device: str) -> Desired:
        """What the fleet signed last for a device, verified."""
        with self.services.database.transaction() as session:
            envelope = session.get_one(Device, device).desired_envelope
        return open_by_role(envelope.encode(), Desired, self.trusted.targets())

    def reported(self, device: str) -> bytes:
        """What the fleet heard last of how a device runs."""
        with self.services.database.transaction() as session:
            return session.get_one(Device, device).reported.encode()

    def stored(self) -> dict[str, int]:
        """How many records of each device the fleet counted, those that came twice apart."""
        with self.services.database.transaction() as session:
            rows = session.exec(select(DeviceStats)).all()
        assert not any(row.duplicates for row in rows)
        return {row.device: row.records for row in rows}

    def refusals(self) -> list[str]:
        """What the fleet did not believe."""
        with self.services.database.transaction() as session:
            return [f"{row.device}: {row.reason}" for row in session.exec(select(SecurityRow))]

    # --- devices ------------------------------------------------------------------------------------------------------

    def join(self, names: Mapping[str, tuple[str, Kind]], seed: int) -> None:
        """Devices with certificates, as enrolment leaves them, by the fleet's own code."""
        services = self.services
        with services.database.transaction() as session:
            for number, (name, (profile, kind)) in enumerate(names.items()):
                device = SimulatedDevice(
                    name, profile, kind, self.around, self.window, np.random.default_rng([seed, number])
                )
                row = new_row(session, name, self.now)
                row.profile = profile
                services.enrolment.admit(session, row, device.key.public_key())
                self.devices[name] = device
                born = Presence(session=name, online=True).to_bytes()
                self.said.append(Message(topics.State(name).topic, born, retained=False))
        services.outbox.desired(names)

    def send_every(self, window: timedelta, *profiles: str) -> None:
        """Devices, of all profiles or of some, close their windows of telemetry at another pace from now on."""
        for device in self.devices.values():
            if device.profile in profiles or not profiles:
                device.send_every(window)

    # --- time ---------------------------------------------------------------------------------------------------------

    def pass_time(self, hours: float, step: timedelta) -> None:
        """Let time pass in steps: devices live, what they say is taken, the fleet does its housekeeping."""
        asyncio.run(self._pass(round(timedelta(hours=hours) / step), step))

    async def _pass(self, steps: int, step: timedelta) -> None:
        for _ in range(steps):
            self.clock[0] += step
            for device in self.devices.values():
                device.live()
            self._carry()
            tick(self.services)
            self._carry()

    def _carry(self) -> None:
        """Carry messages both ways until nobody has anything to say; the inbox takes what comes in lots, as always."""
        line = cast(Line, self.services.link)
        while self.said or line.published:
            said, self.said = self.said, []
            for start in range(0, len(said), TOGETHER):
                self.services.inbox.take(said[start : start + TOGETHER])
            published, line.published = line.published, []
            for topic, payload in published:
                name = getattr(topics.parse(topic), "device", "")
                if name in self.devices:
                    self.devices[name].take(topic, payload)

    def _believe(self) -> None:
        documents = {name: text.encode() for name, text in self.services.repository.documents().items()}
        assert not self.trusted.offer(documents, self.now)


@contextmanager
def whole_fleet(folder: Path, now: datetime, window: timedelta) -> Iterator[World]:
    """A new fleet in a folder, whose clock stands at `now`, with trust and without devices."""
    clock = [now]
    with pytest.MonkeyPatch.context() as patch, hold(folder / "fleet"):
        patch.setattr(assembly, "_clock", lambda: clock[0])
        patch.setattr(assembly, "Link", Line)
        settings = load(folder / "fleet", environ={}, overrides={})
        StateFile.open(folder / "agent.db").close()
        with (
            assembly.opened(settings, 8443) as services,
            closing(sqlite3.connect(folder / "agent.db")) as empty_disk,
        ):
            publisher = Publisher(cast(Any, _Api(services)), "intents", expires=now + timedelta(days=30))
            publisher.publish_roles()
            gc.collect()
            gc.freeze()  # as a fleet does once it is ready
            try:
                yield World(services, publisher, empty_disk, clock, window)
            finally:
                gc.unfreeze()


@dataclass(frozen=True)
class _Api:
    """The routes that releasing takes, without HTTP around them."""

    services: Services

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """As `FleetProcess.api`."""
        match method, path.removeprefix("/api/v1/").partition("/"):
            case "GET", ("trust", "", ""):
                return releases._trust(self.services)
            case "POST", ("trust", "", ""):
                documents = {name: text.encode() for name, text in body["documents"].items()}
                return releases._admit(self.services, documents)
            case "PUT", ("blobs", _, digest):
                with self.services.blobs.receive(digest, limit=1 << 20) as receiver:
                    receiver.write(body)
        return None
