"""One simulated device: the agent's core on a real line, its state in memory, its files in a folder that goes.

device = SimulatedDevice(its, plan, folder, pool)
device.enrol(fleet)           # with a kit of its own, by the real enrolment; blocking
await device.start()
await device.reboot(3.0)      # the line is gone without a word, and what was on the disk is there again
await device.stop()
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sqlite3
from collections.abc import Coroutine
from concurrent.futures import Executor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from agent.agent import version
from agent.core import About, Core
from agent.enrolment.enrol import Patience, enrol
from agent.errors import AgentError
from agent.identity.credentials import Credentials
from agent.identity.tls import Https
from agent.install import ranges
from agent.life.telemetry import WindowMeter
from agent.parts import Parts
from agent.serving.service import Bounds, Service
from agent.settings import load
from agent.store.blobs import FOLDER as BLOBS
from agent.store.database import Opened
from agent.store.state import STATE_FILE, StateFile
from agent.trust.clock import Clock
from cli.client import Fleet
from cli.simulate.inference import EXAMPLE, Behaviour, DrawnMeter, SimulatedInstaller
from cli.simulate.line import CountedRanges, Line, Weather
from cli.simulate.plan import DevicePlan, Plan, chance_of
from wire.errors import WireError
from wire.messages import Health
from wire.profile import Profile
from wire.trust import TrustedSet
from wire.units import size

log = logging.getLogger("cli.simulate.device")

HARDWARE: Final = "simulated"
"""What every simulated device says that it is, together with `emulated`."""
KIT: Final = "kit.json"
ENDED: Final = ("committed", "failed", "refused")
"""Phases of an update that is over."""


class SimulatedDevice:
    """A device of a plan. `pool` are the threads that may block for it."""

    def __init__(self, its: DevicePlan, plan: Plan, folder: Path, pool: Executor) -> None:
        self.its, self.folder = its, folder
        self._pool = pool
        self._chance = chance_of(f"{plan.seed}/{its.device}")
        self.weather = Weather(self._chance, delay=its.delay, loss=plan.loss)
        self.behaviour = Behaviour(self._chance, its.latency, its.spread, plan.selftest, its.failing)
        self._settings = load(folder, {}, {"min_free": "0 B", **plan.agent})
        self._disk: sqlite3.Connection | None = None
        self._state: StateFile
        self._credentials: Credentials
        self.link: Line
        self.core: Core
        self.enrolled = self.running = self.wiped = False
        self.reboots = self.reboots_in_update = self.cuts = 0

        self.began = False
        self._offset = self._chance.random() * self._settings.window

    def window_ends(self, before: float, now: float) -> bool:
        """Whether a telemetry window ended between two moments, in seconds: devices have theirs at different times."""
        window = self._settings.window
        return (now + self._offset) // window != (before + self._offset) // window

    def telemetry(self) -> dict[str, int]:
        """What became of its records, by the agent's own ledger."""
        return self._state.telemetry() if self.began and self._disk is not None else {}

    # --- joining ----------------------------------------------------------------------------------------------------

    def enrol(self, fleet: Fleet, group: str) -> None:
        """Ask for a kit and join with it. Blocking. Raises `CliError`, `AgentError` or `WireError`."""
        kit = self.folder / KIT
        if not kit.exists():
            self.folder.mkdir(mode=0o700, exist_ok=True)
            asked = {"device": self.its.device, "profile": self.its.profile, "group": group}
            text = json.dumps(fleet.post("/api/v1/devices", asked))
            with os.fdopen(os.open(kit, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
        enrol(kit, self.folder, patience=Patience(0))
        kit.unlink()
        self._credentials = Credentials.open(self.folder)
        self._disk = _into_memory(self.folder / STATE_FILE)
        self.enrolled = True

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Boot: models answer, then the line is made. On what the disk holds."""
        assert self._disk is not None
        self._state = StateFile(Opened(self._disk), self.folder / STATE_FILE)
        clock = Clock(self._state, wall=self._wall)
        self.link = Line(
            self._credentials,
            now=clock.signed,
            on_up=self._line_up,
            on_down=self._line_down,
            on_message=self._message,
            pool=self._pool,
            weather=self.weather,
        )
        self.core = Core(
            about=_about(self._credentials.profile, self.its.device),
            settings=self._settings,
            state=self._state,
            clock=clock,
            link=self.link,
            signer=self._credentials.signer,
            sealing_key=self._credentials.sealing_key(),
            wipe=self._wipe,
            on_trust=self._believe,
            on_time=self.link.check_again,
            parts=self._parts(),
            ranges=self._ranges(clock),
        )
        await self.core.start()
        self.link.start()
        self.running = self.began = True

    async def reboot(self, seconds: float) -> None:
        """The line breaks, the agent ends, and starts again on the same disk."""
        self.reboots += 1
        self.reboots_in_update += any(u.phase not in ENDED for u in self.core.installer.updates())
        await self._halt(self.link.drop())
        await asyncio.sleep(seconds)
        if not self.wiped:
            await self.start()

    def cut(self, seconds: float) -> None:
        """No line for so long."""
        self.cuts += 1
        self.link.cut(seconds)

    async def stop(self) -> None:
        """End for good, with a goodbye."""
        if self.running:
            await self._halt(self.link.stop())
        if self._disk is not None:
            self._disk.close()
            self._disk = None

    async def ask(self, count: int) -> None:
        """So many inference requests, to its models in turn."""
        names = self.core.service.names()
        for i in range(count if names else 0):
            with suppress(AgentError):  # counted by the service
                await self.core.service.infer(names[i % len(names)], (EXAMPLE,))

    def share_files(self, pool: Path) -> None:
        """Let equal files of devices be one: each is verified before it has its name, and never written to again."""
        for path in (self.folder / BLOBS).iterdir():
            shared = pool / path.name
            if "." in path.name or (shared.exists() and shared.samefile(path)):
                continue
            if not shared.exists():
                with suppress(FileExistsError):
                    shared.hardlink_to(path)
                continue
            twin = path.with_name(f"{path.name}.twin")
            twin.hardlink_to(shared)
            twin.replace(path)

    def requests(self, rate: float, seconds: float) -> int:
        """How many requests came within so many seconds at a rate."""
        return _poisson(self._chance, rate * seconds)

    def happens(self, per_hour: float, seconds: float) -> bool:
        """Whether something of that rate happened within so many seconds."""
        return self._chance.random() < per_hour * seconds / 3600

    def upto(self, seconds: float) -> float:
        """A time from a tenth of it up to all of it."""
        return self._chance.uniform(0.1, 1.0) * seconds

    async def _halt(self, line_ends: Coroutine[None, None, None]) -> None:
        self.running = False
        await line_ends
        self.core.line_is_down()
        await self.core.stop()

    # --- the line, which is made before the core --------------------------------------------------------------------

    def _line_up(self) -> None:
        self.core.line_is_up()

    def _line_down(self) -> None:
        self.core.line_is_down()

    def _message(self, topic: str, payload: bytes) -> None:
        self.core.take(topic, payload)

    # --- what stands in for a machine -------------------------------------------------------------------------------

    def _wipe(self) -> None:
        """The fleet had this device forget itself: the worker stops it."""
        self.wiped = True

    def _wall(self) -> datetime:
        now = datetime.now(UTC)
        return now - timedelta(days=(now.year - 1970) * 365) if self.its.wrong_clock else now

    def _believe(self, trusted: TrustedSet) -> None:
        try:
            gone = self._credentials.believe(trusted.authorities())
        except (WireError, AgentError) as e:
            log.warning("%s: the authorities believed stay as they were: %s", self.its.device, e)
        else:
            if gone:
                self.link.hang_up("an authority is not believed any more")

    def _parts(self) -> Parts:
        def served(meter: WindowMeter, bounds: Bounds) -> Service:
            return Service(DrawnMeter(meter), bounds)

        return Parts(installer=partial(SimulatedInstaller, self.behaviour), service=served, health=self._health)

    def _ranges(self, clock: Clock) -> CountedRanges:
        https = Https(self._credentials.joined.fleet, self._credentials.tls, clock.now, ranges.TIMEOUT)
        return CountedRanges(https, self.weather)

    def _health(self) -> Health:
        memory, disk = size(self._credentials.profile.hardware.memory), size(self._credentials.profile.limits.disk)
        return Health(
            cpu_percent=round(self._chance.uniform(3, 30), 1),
            memory_used=memory // 3,
            memory_total=memory,
            agent_memory=80 * 1024 * 1024,
            disk_free=disk // 2,
            disk_total=disk,
            temperature_c=round(self._chance.gauss(48, 4), 1),
        )


def _about(profile: Profile, device: str) -> About:
    return About(
        device=device,
        profile=profile.name,
        hardware=HARDWARE,
        emulated=True,
        agent=version(),
        runtimes=frozenset(runtime.name for runtime in profile.runtimes),
        limits=profile.limits,
    )


def _into_memory(path: Path) -> sqlite3.Connection:
    """The state as enrolment left it, where thousands of devices cost no flushing: it outlives reboots, no more."""
    StateFile.open(path).close()  # of the newest schema
    memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    with closing(sqlite3.connect(path)) as file:
        file.backup(memory)
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)
    return memory


def _poisson(chance: random.Random, mean: float) -> int:
    """Arrivals of a Poisson process, one exponential pause after the other."""
    count, passed = 0, chance.expovariate(1.0)
    while passed < mean:
        count, passed = count + 1, passed + chance.expovariate(1.0)
    return count
