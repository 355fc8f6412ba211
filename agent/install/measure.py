"""Measuring jobs: a release is fetched, timed in a process of its own, and given back. It never answers a request.

    waiting    for metadata, keys, or the end of an update: updates go first, and one that comes ends the run
    fetching   as an update fetches, after the same verification
    running    room in memory is there; the golden set holds; then it is timed (`agent.serving.timing`)
    done | failed | refused

A job ends once: its outcome is on disk, and is reported as long as the desired state names the job.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import psutil

from agent import measuring
from agent.errors import AgentError, Keyless, Unavailable, Untrusted
from agent.install.download import Download
from agent.install.fetch import Fetcher
from agent.install.releases import Missing, Releases
from agent.life import power
from agent.measuring import MAX_STARTS, Task
from agent.serving.bundles import Bundle
from agent.serving.timing import time_bundle
from agent.settings import AgentSettings
from agent.store.blobs import Blobs
from agent.store.state import StateFile
from agent.update import LONGEST_REASON
from wire.errors import Untrusted as UntrustedByWire
from wire.errors import WireError
from wire.messages import MachineState, MeasurePhase, MeasureReport, Timing
from wire.orders import MeasureJob
from wire.units import show_instant, show_size

log = logging.getLogger("agent.install.measure")

RUNTIME_ROOM: Final = 128 * 1024 * 1024
"""Bytes of memory that a runtime takes without a model, rounded up."""
COPIES: Final = 2
"""A runtime may hold the file and its own arrangement of the weights at once."""


class Measurer:
    """The measuring jobs of a device, one at a time, and never beside an update.

    `alone` is held while files are fetched and used; `busy` says whether an update is under way; `sweep` removes files
    that nobody needs.
    """

    def __init__(
        self,
        settings: AgentSettings,
        state: StateFile,
        store: Blobs,
        fetcher: Fetcher,
        releases: Releases,
        now: Callable[[], datetime],
        *,
        alone: asyncio.Lock,
        busy: Callable[[], bool],
        sweep: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._state = state
        self._store = store
        self._fetcher = fetcher
        self._releases = releases
        self._now = now
        self._alone = alone
        self._busy = busy
        self._sweep = sweep
        self._on_change = on_change
        self._tasks: Mapping[str, Task] = {}
        self._news = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._current: asyncio.Task[None] | None = None

    # --- what the installer asks of it --------------------------------------------------------------------------

    def wanted(self, jobs: Iterable[MeasureJob]) -> dict[str, Task]:
        """What a newer desired state makes of the jobs: to be written, then to be taken."""
        return measuring.desire(self._tasks, jobs)

    def take(self, tasks: Mapping[str, Task]) -> None:
        """Go on with these jobs, which are on disk. One that is not among them any more ends."""
        gone = [id_ for id_, task in self._tasks.items() if task.open and not (id_ in tasks and tasks[id_].open)]
        self._tasks = dict(tasks)
        if gone:
            self.interrupt()
        if self._loop is None and any(task.open for task in tasks.values()):
            self._loop = asyncio.create_task(self._run(), name="measuring")
        self._news.set()

    def look_again(self) -> None:
        """An update ended, or new metadata or keys are here."""
        self._news.set()

    def interrupt(self) -> None:
        """An update begins: it goes first. What runs now begins anew afterwards."""
        if self._current is not None:
            self._current.cancel()

    async def stop(self) -> None:
        """Leave every job where it is."""
        for task in (self._loop, self._current):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def reports(self) -> tuple[MeasureReport, ...]:
        """How the jobs go that the desired state names."""
        return tuple(task.report() for task in self._tasks.values() if task.listed)

    def digests(self) -> set[str]:
        """Manifests whose files must stay."""
        at_work = (task for task in self._tasks.values() if task.open and task.phase in ("fetching", "running"))
        return {task.job.digest for task in at_work}

    # --- one job after the other ----------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._news.clear()
            for id_ in [id_ for id_, task in self._tasks.items() if task.open]:
                if self._busy():
                    self._note(id_, "waiting", "an update is under way")
                elif id_ in self._tasks:
                    self._current = asyncio.create_task(self._measure(self._tasks[id_]), name=f"measuring {id_}")
                    await asyncio.wait([self._current])
                    self._current = None
            await self._news.wait()

    async def _measure(self, task: Task) -> None:
        """From waiting to its end, or back to waiting; whatever happens, its files are given back."""
        id_ = task.job.id
        try:
            timing = await self._attempt(task)
        except asyncio.CancelledError:
            self._note(id_, "waiting", "an update went first", starts=task.starts)
            raise
        except (Untrusted, UntrustedByWire) as e:
            self._note(id_, "refused", str(e))
        except Keyless as e:
            self._note(id_, "waiting", str(e))
        except (AgentError, WireError) as e:
            self._note(id_, "failed", str(e))
        except Exception as e:
            # A bug met by one job must not end the jobs after it.
            log.exception("%s: %s", id_, task.job.target)
            self._note(id_, "failed", f"{type(e).__name__}: {e}")
        else:
            if isinstance(timing, Missing):
                self._note(id_, "waiting", timing.reason)
                return
            self._note(id_, "done", timing=timing)
        finally:
            self._sweep()

    async def _attempt(self, task: Task) -> Timing | Missing:
        job = task.job
        if task.starts >= MAX_STARTS:
            raise Unavailable(f"the agent ended {task.starts} times while it did this job")
        release = await self._releases.find(job.target, job.digest)
        if isinstance(release, Missing):
            return release
        async with self._alone:
            self._note(job.id, "fetching", starts=task.starts + 1)
            await Download(self._store, self._fetcher, self._on_change).run(release)
            self._releases.check(release, job.digest)  # the floor may have risen during a long download
            self._note(job.id, "running")
            return await self._time(job)

    async def _time(self, job: MeasureJob) -> Timing:
        bundle = await asyncio.to_thread(Bundle.open, self._store, job.digest)
        check_memory(sum(file.size for file in bundle.manifest.loaded))
        before = await self._look()
        workers = self._settings.workers
        limit = self._settings.measure_timeout
        figures = await time_bundle(self._store.folder, job.digest, workers, job.rounds, limit)
        states = {"before": before.to_value(), "after": (await self._look()).to_value()}
        return Timing.from_value({**figures, **states})

    async def _look(self) -> MachineState:
        return await asyncio.to_thread(power.look, show_instant(self._now()))

    def _note(self, id_: str, phase: MeasurePhase, reason: str = "", **changes: Any) -> None:
        """One step, in memory and on disk. One that the disk does not take is done again after the next start."""
        if id_ not in self._tasks or not self._tasks[id_].open:
            return
        task = replace(self._tasks[id_], phase=phase, reason=reason[:LONGEST_REASON], **changes)
        if task == self._tasks[id_]:
            return
        self._tasks = {**self._tasks, id_: task}
        log.info("measuring %s: %s is %s%s", id_, task.job.target, phase, f": {reason}" if reason else "")
        try:
            self._state.save_task(task)
        except Unavailable as e:
            log.error("measuring %s: %s", id_, e)  # noqa: TRY400  a full disk, not a bug
        self._on_change()


def check_memory(model: int) -> None:
    """Raises `Unavailable` when a model file of this size would leave the models that answer too little memory."""
    available, needed = psutil.virtual_memory().available, COPIES * model + RUNTIME_ROOM
    if available < needed:
        raise Unavailable(f"{show_size(available)} of memory available, measuring needs {show_size(needed)}")
