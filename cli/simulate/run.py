"""A simulation from its first device to its last figure: the processes that play the devices, and what they are told.

    async with Crew.started(plan, fleet, folder, processes=2) as crew: ...
    result = await simulate(scene, watch=print)

Everything that is started here ends here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agent.life.telemetry import LONGEST_PAUSE
from cli.client import Fleet
from cli.errors import Refused, Unavailable
from cli.rollout_views import ENDED
from cli.simulate.plan import Plan
from cli.simulate.worker import Job, Tally

POLL: Final = 1.0
"""Seconds between two looks at the fleet; longer for a fleet whose answers are."""
UNHEARD: Final = 120.0
"""Seconds for which a fleet that does not answer is asked again."""
DRAIN: Final = LONGEST_PAUSE + 60.0
"""Seconds in which what waits has to be delivered once nothing new is made and nothing is lost any more."""
END_WITHIN: Final = 60.0
CLOSE: Final = 1024 * 1024
"""Longest line of a worker in bytes."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What is rolled out to the simulated devices, in which waves, and what it has to hold.

    Most plans ask devices too little to tell a slow model from a busy hour: by default only installing counts.
    """

    family: str
    name: str
    version: str
    waves: str = "100%"
    gates: str = "install"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is played: a plan, at a fleet, with a rollout or for so many seconds. `folder` goes afterwards."""

    plan: Plan
    fleet: Fleet
    folder: Path
    processes: int
    rollout: Rollout | None = None
    seconds: float = 60.0
    timeout: float = 3600.0
    """Seconds that devices have to enrol, to come up, and to answer the rollout; each."""


@dataclass
class Progress:
    """Where a simulation is; for whoever watches."""

    plan: Plan
    act: str = "enrolling"
    tally: Tally = field(default_factory=Tally)
    rollout: Mapping[str, Any] | None = None
    times: dict[str, float] = field(default_factory=dict)
    """Seconds that each act took."""


Watch = Callable[[Progress], None]


class Crew:
    """The worker processes. `tally` is the sum of what each said last."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self._processes = processes
        self._said = [Tally() for _ in processes]
        self._readers = [asyncio.create_task(self._read(i)) for i in range(len(processes))]

    @classmethod
    @asynccontextmanager
    async def started(cls, scene: Scene) -> AsyncIterator[Crew]:
        """The processes, until the block ends; then they are gone."""
        crew = cls([await _spawn() for _ in range(scene.processes)])
        try:
            for i, process in enumerate(crew._processes):
                await _write(process, _job(scene, i).to_json())
            yield crew
        finally:
            await crew._end()

    async def say(self, word: str) -> None:
        """Tell all workers something."""
        for process in self._processes:
            await _write(process, word)

    def tally(self) -> Tally:
        """The sum. Raises `Unavailable` when a worker ended by itself."""
        for process, reader in zip(self._processes, self._readers, strict=True):
            if reader.done():
                raise Unavailable(f"a process of the simulation (pid {process.pid}) ended: it said why above")
        found = Tally()
        for said in self._said:
            found.add(said)
        return found

    async def _read(self, i: int) -> None:
        stream = self._processes[i].stdout
        assert stream is not None
        while line := await stream.readline():
            self._said[i] = Tally.from_json(line.decode())

    async def _end(self) -> None:
        """All at once: each has many connections to say goodbye on."""
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        try:
            async with asyncio.timeout(END_WITHIN):
                await asyncio.gather(*(process.wait() for process in self._processes))
        except TimeoutError:
            for process in self._processes:
                if process.returncode is None:
                    process.kill()
        await asyncio.gather(*(process.wait() for process in self._processes), *self._readers)


async def _spawn() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "cli.simulate.worker"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=CLOSE,
        process_group=0,  # Ctrl-C is for the parent, which ends them in its turn
    )


async def _write(process: asyncio.subprocess.Process, line: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(line.encode() + b"\n")
        await process.stdin.drain()
    except ConnectionError as e:
        raise Unavailable(f"a process of the simulation (pid {process.pid}) ended: it said why above") from e


def _job(scene: Scene, index: int) -> Job:
    return Job(
        plan=scene.plan.to_value(),
        index=index,
        of=scene.processes,
        url=scene.fleet.url,
        token=scene.fleet.token,
        ca="".join(ssl.DER_cert_to_PEM_cert(der) for der in scene.fleet.tls.get_ca_certs(binary_form=True)),
        folder=str(scene.folder),
    )


# --- the story ------------------------------------------------------------------------------------------------------


async def simulate(scene: Scene, watch: Watch) -> dict[str, Any]:
    """Play a scene to its end; what came of it. Raises `CliError`."""
    play = _Play(scene, watch)
    before = await asyncio.to_thread(play.stored)
    async with Crew.started(scene) as crew:
        play.crew = crew
        await play.act("enrolling", lambda: play.tally.enrolled + play.tally.refused >= scene.plan.size)
        if play.tally.refused:
            raise Refused(f"{play.tally.refused} devices were not enrolled: {_most(play.tally)}")
        await crew.say("go")
        await play.act("coming up", play.is_up)
        if scene.rollout is None:
            await play.wait("running", scene.seconds)
            await crew.say("late")
        else:
            await play.roll_out(scene.rollout)
        await crew.say("quiet")
        await play.act("delivering what waits", play.is_drained, within=DRAIN, must=False)
    play.progress.act = "counting"
    after = await asyncio.to_thread(play.stored)
    return play.result(after - before)


class _Play:
    def __init__(self, scene: Scene, watch: Watch) -> None:
        self.scene, self._watch = scene, watch
        self.progress = Progress(scene.plan)
        self.crew: Crew
        self._due: dict[str, float] = {}
        """When which word is said."""
        self._drained = 0

    @property
    def tally(self) -> Tally:
        return self.progress.tally

    # --- acts

    async def act(self, name: str, done: Callable[[], bool], *, within: float | None = None, must: bool = True) -> None:
        """Watch until something holds. Raises `Unavailable` when it `must` and takes too long."""
        began, within = time.monotonic(), within or self.scene.timeout
        self.progress.act = name
        await self._look()
        while not done():
            if time.monotonic() - began > within:
                if must:
                    raise Unavailable(f"{name}: not done after {within:.0f} s: {self._stand()}")
                break
            await self._look()
        self.progress.times[name] = round(time.monotonic() - began, 1)

    async def wait(self, name: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        await self.act(name, lambda: time.monotonic() >= until)

    async def roll_out(self, wanted: Rollout) -> None:
        """Start it, let those that are late come, and watch it to its end."""
        body = {**dataclasses.asdict(wanted), "group": self.scene.plan.group}
        began = time.monotonic()
        rollout = await asyncio.to_thread(self.scene.fleet.post, "/api/v1/rollouts", body)
        self.progress.rollout = rollout
        self._due = {"late": began + self.scene.plan.late_after, "calm": began + self.scene.plan.calm_after}
        path = f"/api/v1/rollouts/{rollout['rollout']}"
        watching = asyncio.create_task(self._watch_rollout(path))
        try:
            await self.act("rolling out", watching.done)
            await watching
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        if "late" in self._due:
            await self.crew.say("late")

    async def _watch_rollout(self, path: str) -> None:
        heard = time.monotonic()
        while True:
            asked = time.monotonic()
            try:
                rollout = await asyncio.to_thread(self.scene.fleet.get, path)
            except Unavailable:
                # The fleet takes a number of connections from one address, and the devices share theirs with us.
                if asked - heard > UNHEARD:
                    raise
            else:
                heard, self.progress.rollout = time.monotonic(), rollout
                if rollout["state"] in ENDED:
                    return
            await asyncio.sleep(max(POLL, 4 * (time.monotonic() - asked)))

    async def _look(self) -> None:
        await asyncio.sleep(POLL / 2)
        self.progress.tally = self.crew.tally()
        for word in [word for word, at in self._due.items() if time.monotonic() >= at]:
            del self._due[word]
            await self.crew.say(word)
        self._watch(self.progress)

    # --- what holds

    def is_up(self) -> bool:
        """Every device that is not late is on the line, or away by plan."""
        away = self.scene.plan.cuts or self.scene.plan.reboots
        wanted = self.tally.enrolled - self.tally.late
        return self.tally.running > 0 and self.tally.online >= wanted * (0.9 if away else 1.0)

    def is_drained(self) -> bool:
        """Nothing waits, all are there, and a later look found the same."""
        waits = self.tally.telemetry["waiting"] or self.tally.online < self.tally.enrolled
        self._drained = 0 if waits else self._drained + 1
        return self._drained > max(2.0, self.scene.plan.size / self.scene.processes / 500) * 3

    def stored(self) -> int:
        """Records of the simulated devices in the fleet's database."""
        start = f"{self.scene.plan.prefix}-{self.scene.plan.seed}-"
        devices = self.scene.fleet.devices(group=self.scene.plan.group)
        return sum(int(d["stats"]["records"]) for d in devices if d["device"].startswith(start))

    def _stand(self) -> str:
        words = f"{self.tally.enrolled} enrolled, {self.tally.online} online, {dict(self.tally.phases)}"
        return f"{words}; {_most(self.tally)}" if self.tally.reasons else words

    # --- what came of it

    def result(self, stored: int) -> dict[str, Any]:
        """The figures."""
        tally, rollout, times = self.tally, self.progress.rollout, self.progress.times
        telemetry = dict(tally.telemetry)
        return {
            "devices": self.scene.plan.size,
            "profiles": {name: profile.devices for name, profile in self.scene.plan.profiles.items()},
            "seed": self.scene.plan.seed,
            "fleet": self.scene.fleet.url,
            "times_s": times,
            "rollout": None if rollout is None else _rollout(rollout),
            "rollout_s": times.get("rolling out"),
            "telemetry": {**telemetry, "stored": stored},
            "telemetry_lost": telemetry.get("produced", 0) - telemetry.get("merged", 0) - stored,
            "requests": dict(tally.requests),
            "chunks": tally.chunks,
            "chunk_bytes": tally.chunk_bytes,
            "range_bytes": tally.range_bytes,
            "messages_lost": tally.lost,
            "reboots": tally.reboots,
            "reboots_in_update": tally.reboots_in_update,
            "cuts": tally.cuts,
            "phases": dict(tally.phases),
            "reasons": dict(tally.reasons.most_common(10)),
        }


def _rollout(value: Mapping[str, Any]) -> dict[str, Any]:
    states: dict[str, int] = {}
    for device in value["devices"]:
        states[device["state"]] = states.get(device["state"], 0) + 1
    named = ("rollout", "family", "name", "version", "state", "verdict")
    return {**{name: value[name] for name in named}, "devices": states, "reasons": list(value["reasons"])[:5]}


def _most(tally: Tally) -> str:
    return "; ".join(f"{reason} ({n})" for reason, n in tally.reasons.most_common(3))


def remove(fleet: Fleet, plan: Plan) -> int:
    """Retire the devices that runs with this plan's group and prefix left, and no others; how many."""
    devices = fleet.devices(group=plan.group)
    ours = [d for d in devices if d["device"].startswith(f"{plan.prefix}-") and d["hardware"] in (None, "simulated")]
    there = [d["device"] for d in ours if d["status"] not in ("retired", "revoked", "rejected")]
    for device in there:
        fleet.post(f"/api/v1/devices/{device}/retire", {"now": True})
    return len(there)
