"""One process of a simulation: some of the devices on one asyncio loop. `python -m cli.simulate.worker`.

In: one line of JSON, a `Job`; then one word a line: `go` (come up), `late` (those that come late too), `calm` (no
reboots, cuts and losses any more), `quiet` (no requests either: send what waits), `stop`. The end of the input is
`stop`: a worker never outlives who started it.
Out: a line of JSON, a `Tally`, every second or so.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from agent.errors import AgentError
from agent.errors import Unavailable as AgentUnavailable
from cli.client import Fleet, context
from cli.errors import CliError, Unavailable
from cli.simulate.device import SimulatedDevice
from cli.simulate.plan import Plan
from wire.errors import WireError

log = logging.getLogger("cli.simulate.worker")

STEP: Final = 1.0
"""Seconds between two looks at every device: what it is asked, what befalls it."""
LOOK_EVERY: Final = 5
"""Steps between two looks at a connection's keepalive."""
TURN: Final = 20
"""Devices after which the lines have their turn."""
THREADS: Final = 6
FILES_EACH: Final = 4
"""Open files of one device at most: its socket, and those of a download."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker does: the devices `index`, `index + of`, ... of a plan, at a fleet."""

    plan: Mapping[str, Any]
    index: int
    of: int
    url: str
    token: str
    ca: str
    folder: str

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))


@dataclass(kw_only=True)
class Tally:
    """What a worker's devices did so far. `telemetry` is the sum of what the agents say of their records."""

    enrolled: int = 0
    refused: int = 0
    running: int = 0
    online: int = 0
    late: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    telemetry: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    chunk_bytes: int = 0
    range_bytes: int = 0
    lost: int = 0
    reboots: int = 0
    reboots_in_update: int = 0
    cuts: int = 0
    security: int = 0
    busy: float = 0.0
    """Share of its time that the worker's loop had work: near 1, the machine and not the fleet sets the pace."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why devices were not enrolled, and why updates failed."""

    def add(self, other: Tally) -> None:
        """Sum of two; `busy` is that of the busier one."""
        for entry in dataclasses.fields(Tally):
            mine, its = getattr(self, entry.name), getattr(other, entry.name)
            setattr(self, entry.name, max(mine, its) if entry.name == "busy" else mine + its)

    @classmethod
    def from_json(cls, text: str) -> Tally:
        """The inverse of `to_json`."""
        value: dict[str, Any] = json.loads(text)
        counted: dict[str, Any] = {name: Counter(v) if isinstance(v, dict) else v for name, v in value.items()}
        return cls(**counted)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(vars(self))


class Worker:
    """The devices of a job."""

    def __init__(self, job: Job) -> None:
        self._plan = Plan.from_value(job.plan, "job")
        self._fleet = Fleet(job.url, job.token, context(job.ca))
        folder = Path(job.folder)
        self._shared = folder / "shared"
        self._shared.mkdir(exist_ok=True)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="simulate")
        mine = self._plan.devices()[job.index :: job.of]
        self.devices = [SimulatedDevice(its, self._plan, folder / its.device, self._pool) for its in mine]
        self._calm = self._quiet = self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Queue[BaseException] = asyncio.Queue()
        self._reasons: Counter[str] = Counter()
        self._refused = 0
        self._shared_once: set[tuple[str, str]] = set()
        self._busy = 0.0

    # --- the story --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Enrol, then do what is said until the end."""
        self._task(self._enrol_all())
        parts = (self._listen(), self._live(), self._tell(), self._fail())
        work = [asyncio.create_task(part) for part in parts]
        try:
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopped = True
            for task in (*work, *self._tasks):
                task.cancel()
            ended = await asyncio.gather(*work, return_exceptions=True)
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*(device.stop() for device in self.devices))
            self._pool.shutdown()
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _fail(self) -> None:
        """Raise what one of the tasks raised: a simulation that lost a device by its own fault says nothing."""
        raise await self._failed.get()

    async def _listen(self) -> None:
        words = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
        while (word := (await words.readline()).decode().strip()) not in ("stop", ""):
            self._heed(word)

    def _heed(self, word: str) -> None:
        match word:
            case "go" | "late":
                for device in self.devices:
                    if device.its.late == (word == "late"):
                        self._task(self._join(device))
            case "calm":
                self._becalm()
            case "quiet":
                self._quiet = True
                self._becalm()
                for device in self._up():
                    device.core.close_window()
            case _:
                log.error("no such word: %s", word)

    def _becalm(self) -> None:
        """What is sent from now on arrives; else what waits for a lucky day could wait longer than anybody watches."""
        self._calm = True
        for device in self.devices:
            device.weather.loss = 0.0

    def _task(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._note_failure)

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed.put_nowait(error)

    # --- joining ----------------------------------------------------------------------------------------------------

    async def _enrol_all(self) -> None:
        lanes = iter(self.devices)

        async def lane() -> None:
            for device in lanes:
                await self._enrol(device)

        await asyncio.gather(*(lane() for _ in range(THREADS)))

    async def _enrol(self, device: SimulatedDevice) -> None:
        """Again and again while the fleet says that it will do later."""
        pause = 0.5
        while not await self._try_to_enrol(device):
            await asyncio.sleep(pause)
            pause = min(2 * pause, 10.0)

    async def _try_to_enrol(self, device: SimulatedDevice) -> bool:
        """Whether that is settled."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._pool, device.enrol, self._fleet, self._plan.group)
        except (Unavailable, AgentUnavailable) as e:
            self._reasons[f"put off: {e}"[:120]] += 1
            return False
        except (CliError, AgentError, WireError) as e:
            self._refused += 1
            self._reasons[f"not enrolled: {e}"[:200]] += 1
        return True

    async def _join(self, device: SimulatedDevice) -> None:
        await asyncio.sleep(device.its.joins)
        if device.enrolled and not self._stopped:
            await device.start()

    # --- life -------------------------------------------------------------------------------------------------------

    def _up(self) -> list[SimulatedDevice]:
        return [device for device in self.devices if device.running]

    async def _live(self) -> None:
        """One step after the other; a loop that falls behind makes longer steps, not more of them."""
        last, worked, step = time.monotonic(), time.process_time(), 0
        while True:
            await asyncio.sleep(STEP)
            now, work = time.monotonic(), time.process_time()
            self._busy, passed = (work - worked) / (now - last), now - last
            last, worked, step = now, work, step + 1
            for i, device in enumerate(self._up()):
                if device.running:  # still: others had their turn meanwhile
                    await self._step(device, passed, now)
                    if (step + i) % LOOK_EVERY == 0:
                        device.link.look()
                if i % TURN == 0:
                    await asyncio.sleep(0)

    async def _step(self, device: SimulatedDevice, passed: float, now: float) -> None:
        if device.wiped:
            self._task(device.stop())
            return
        if self._quiet:
            return
        await device.ask(device.requests(self._plan.requests, passed))
        if device.window_ends(now - passed, now):
            device.core.close_window()
        if self._calm:
            return
        if device.happens(self._plan.reboots, passed):
            self._task(device.reboot(device.upto(self._plan.reboot_for)))
        elif device.happens(self._plan.cuts, passed):
            device.cut(device.upto(self._plan.cut_for))

    # --- what is told -----------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(max(1.0, len(self.devices) / 500))
            sys.stdout.write(self._tally().to_json() + "\n")
            sys.stdout.flush()

    def _tally(self) -> Tally:
        tally = Tally(refused=self._refused, busy=round(self._busy, 3), reasons=Counter(self._reasons))
        for device in self.devices:
            self._count(device, tally)
        return tally

    def _count(self, device: SimulatedDevice, tally: Tally) -> None:
        tally.enrolled += device.enrolled
        tally.running += device.running
        tally.late += device.enrolled and device.its.late and not device.began
        tally.reboots, tally.cuts = tally.reboots + device.reboots, tally.cuts + device.cuts
        tally.reboots_in_update += device.reboots_in_update
        tally.chunks, tally.lost = tally.chunks + device.weather.chunks, tally.lost + device.weather.lost
        tally.chunk_bytes += device.weather.chunk_bytes
        tally.range_bytes += device.weather.range_bytes
        tally.telemetry.update(device.telemetry())
        if device.running:
            self._count_running(device, tally)

    def _count_running(self, device: SimulatedDevice, tally: Tally) -> None:
        tally.online += device.link.up
        tally.requests.update(device.core.service.requests)
        for update in device.core.installer.updates():
            tally.phases[update.phase] += 1
            if update.phase in ("failed", "refused"):
                tally.reasons[f"{update.phase}: {update.reason}"[:200]] += 1
            if update.phase == "committed" and (device.its.device, update.digest) not in self._shared_once:
                self._shared_once.add((device.its.device, update.digest))
                device.share_files(self._shared)


def _take_files(devices: int) -> None:
    """As many open files as the system allows. Raises `Unavailable` when that is too few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if devices * FILES_EACH + 100 > most:
        raise Unavailable(
            f"{devices} devices in one process need {devices * FILES_EACH + 100} open files, and {most} are allowed: "
            "raise the hard limit (ulimit -Hn), or use more processes with --processes"
        )


def main() -> int:
    """The exit code: 0, or 1 with the reason on standard error."""
    logging.basicConfig(
        level=os.environ.get("SHOAL_SIMULATE_LOG", "ERROR"), format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        job = Job.from_json(sys.stdin.readline())
        _take_files(-(-Plan.from_value(job.plan, "job").size // job.of))
        asyncio.run(_run(job))
    except (CliError, AgentError, WireError) as e:
        sys.stderr.write(f"shoal simulate: {e}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


async def _run(job: Job) -> None:
    await Worker(job).run()


if __name__ == "__main__":
    sys.exit(main())
