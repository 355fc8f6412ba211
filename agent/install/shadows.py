"""Models in shadow: brought here as an update is, and run beside the active model without ever answering.

    waiting    for metadata, keys, memory, or the end of an update: updates go first, and one that comes ends the run
    fetching   as an update fetches, after the same verification, if there is room that no other model needs
    self-test  the golden set holds, in a process of its own
    running    `agent.serving.shadow`; paused while the machine is hot, short of memory, or updates
    failed | refused

What stands here when the desired state names it as the model to run is switched to as any candidate, and not fetched
again. A model in shadow never takes room from another: one that comes takes it from the shadow.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import psutil

from agent import shadowing
from agent.errors import AgentError, Incompatible, Unavailable, Untrusted
from agent.install.download import Download
from agent.install.fetch import Fetcher
from agent.install.releases import Missing, Releases
from agent.install.room import SHADOW_ROOM, Rooms
from agent.life.beside import Said, ShadowMeter
from agent.serving.bundles import Bundle
from agent.serving.selftest import Outcome
from agent.serving.service import Service
from agent.serving.shadow import Runner
from agent.settings import AgentSettings
from agent.shadowing import Conditions, Shadow, hindrance
from agent.store.blobs import Blobs
from agent.update import ModelState
from wire.chunks import WHOLE, single
from wire.errors import Untrusted as UntrustedByWire
from wire.errors import WireError
from wire.shadow import ShadowPhase, ShadowReport

log = logging.getLogger("agent.install.shadows")

LOOK: Final = 5.0
"""Seconds between two looks at the machine."""
AGAIN: Final = 60.0
"""Seconds until what the disk or a process did not do is tried again."""
STEADY: Final = 600.0
"""Seconds of running after which an end of the agent is not the shadow's any more."""
MAX_DEATHS: Final = 3
"""Ends of its process in a row after which it has failed."""

Heat = Callable[[], tuple[float | None, bool | None]]
"""Degrees Celsius, and whether the processor's clock is held down; None where the machine does not say."""
Say = Callable[[Sequence[Said]], None]


@dataclass(frozen=True, kw_only=True)
class Around:
    """What the shadows need of the installer. `models` are those of now, `save` writes one step of a model.

    `alone` is held while files are fetched and used; `busy` says whether an update is under way.
    """

    models: Callable[[], Mapping[str, ModelState]]
    save: Callable[[str, ModelState], None]
    alone: asyncio.Lock
    busy: Callable[[], bool]
    self_test: Callable[[str], Awaitable[Outcome]]
    start: Callable[[Shadow, Say], Awaitable[Runner]]
    sweep: Callable[[], None]


@dataclass
class _Run:
    runner: Runner
    since: float
    steady: bool = False


@dataclass
class _Past:
    """What came before the process of now, of one digest."""

    counts: Counter[str] = field(default_factory=Counter)
    deaths: int = 0


class Shadows:
    """Every shadow of this device; they are brought one after the other, never beside an update."""

    def __init__(
        self,
        settings: AgentSettings,
        store: Blobs,
        fetcher: Fetcher,
        releases: Releases,
        rooms: Rooms,
        service: Service,
        *,
        around: Around,
        meter: ShadowMeter,
        heat: Heat,
        on_change: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._fetcher = fetcher
        self._releases = releases
        self._rooms = rooms
        self._service = service
        self._around = around
        self._meter = meter
        self._heat = heat
        self._on_change = on_change
        self._running: dict[str, _Run] = {}
        self._past: dict[tuple[str, str], _Past] = {}
        self._news = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._current: asyncio.Task[None] | None = None
        self._bringing = ("", "")
        self._not_before: dict[str, float] = {}
        self._closing: set[asyncio.Task[None]] = set()

    # --- what the installer asks of it --------------------------------------------------------------------------

    def restore(self, *, killed: bool) -> None:
        """At start: what the last end says of each. Those that were here run again, without any network."""
        for name, shadow in self._all().items():
            found = shadowing.found_at_start(shadow, killed=killed)
            if found != shadow:
                self._put(name, found)
        self.look_again()

    def look_again(self) -> None:
        """A desired state was accepted, an update ended, or new metadata or keys are here."""
        for name, run in list(self._running.items()):
            shadow = self._shadow(name)
            if shadow is None or shadow.wanted.digest != run.runner.digest:
                self._let_go(name)
            else:
                run.runner.allow(shadow.wanted)
        name, digest = self._bringing
        shadow = self._shadow(name)
        if self._current is not None and (shadow is None or shadow.wanted.digest != digest):
            self._current.cancel()
        self._not_before.clear()
        if self._loop is None and self._all():
            self._loop = asyncio.create_task(self._run(), name="shadows")
        self._news.set()

    def interrupt(self) -> None:
        """An update begins: it has the machine for itself. What is under way goes on afterwards."""
        if self._current is not None:
            self._current.cancel()
        for name in list(self._running):
            self._let_go(name)
        self._news.set()

    async def stop(self) -> None:
        """Leave every shadow where it is."""
        for task in (self._loop, self._current):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for name in list(self._running):
            self._let_go(name)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def give_way(self, model: str) -> bool:
        """The update of a model lacks their room on the disk. Whether there was any to give."""
        models = self._around.models()
        update = models[model].update
        but = update.digest if update is not None else ""
        names = [name for name, shadow in self._all().items() if not shadow.over and shadow.wanted.digest != but]
        for name in names:
            self._let_go(name)
            self._note(name, "refused", "an update took its room on the disk")
        return bool(names)

    def reports(self) -> tuple[ShadowReport, ...]:
        """How they go."""
        return tuple(self._report(name, shadow) for name, shadow in sorted(self._all().items()))

    def view(self) -> list[dict[str, Any]]:
        """The same with what was counted since the agent started, for people on this device."""
        return [
            {
                **self._report(name, shadow).to_value(),
                "requests": dict(sorted(self._counts(name, shadow.wanted.digest).items())),
            }
            for name, shadow in sorted(self._all().items())
        ]

    # --- one after the other --------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._news.clear()
            for name in self._all():
                self._look(name)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK if self._all() else None):
                    await self._news.wait()

    def _look(self, name: str) -> None:
        """One shadow's step, if there is one to take now."""
        shadow = self._shadow(name)
        if shadow is None or shadow.over:
            return
        if self._around.busy():
            self._pause(name, "an update is under way")
            return
        run = self._running.get(name)
        if run is not None and run.runner.ended.done():
            self._died(name, run.runner)
            return
        coming = self._current is not None and self._bringing[0] == name
        reason = self._hindrance(shadow, running=coming or run is not None)
        if reason:
            self._pause(name, reason)
        elif run is not None:
            self._keep(name, shadow, run)
        elif self._current is None and asyncio.get_running_loop().time() >= self._not_before.get(name, 0.0):
            self._bringing = name, shadow.wanted.digest
            self._current = asyncio.create_task(self._bring(name), name=f"shadow of {name}")
            self._current.add_done_callback(self._brought)

    def _brought(self, _done: asyncio.Task[None]) -> None:
        self._current = None
        self._news.set()

    async def _bring(self, name: str) -> None:
        """From where it is to running, or to what it waits for; its files are given back when it ended."""
        try:
            reason = await self._attempt(name)
        except (Untrusted, UntrustedByWire) as e:
            self._note(name, "refused", str(e))
        except Unavailable as e:  # a key that is not here, the disk, a process
            self._not_before[name] = asyncio.get_running_loop().time() + AGAIN
            self._note(name, "waiting", str(e))
        except (AgentError, WireError) as e:
            self._note(name, "failed", str(e))
        except Exception as e:
            # A bug met by one shadow must not end the others.
            log.exception("shadow of %s", name)
            self._note(name, "failed", f"{type(e).__name__}: {e}")
        else:
            self._not_before[name] = asyncio.get_running_loop().time() + LOOK
            self._note_waiting(name, reason)
        shadow = self._shadow(name)
        if shadow is not None and shadow.over:
            self._around.sweep()

    def _note_waiting(self, name: str, reason: str) -> None:
        shadow = self._shadow(name)
        if reason and shadow is not None:
            self._note(name, "paused" if shadow.here else "waiting", reason)

    async def _attempt(self, name: str) -> str:
        """What it waits for; "" once it runs."""
        shadow = self._shadow(name)
        assert shadow is not None
        if name not in self._service.names():
            return "no model answers that it could be held against"
        if not shadow.here:
            release = await self._releases.find(shadow.wanted.target, shadow.wanted.digest)
            if isinstance(release, Missing):
                return release.reason
            async with self._around.alone:
                self._note(name, "fetching")
                if not release.size and release.length <= WHOLE:  # an older signer: the manifest says what it takes
                    await self._fetcher.fetch(single(release.digest, release.length), lambda _chunks: None)
                if await self._has_no_room(name):
                    return ""
                await Download(self._store, self._fetcher, self._on_change).run(release)
                self._releases.check(release, shadow.wanted.digest)  # the floor may have risen meanwhile
                self._note(name, "self-test")
                await self._stage(name, shadow)
                outcome = await self._around.self_test(shadow.wanted.digest)
            shadow = self._note(name, "paused", memory=outcome.memory and outcome.memory + SHADOW_ROOM)
        if shadow is None or await self._has_no_room(name):
            return ""
        await self._start(name, shadow)
        return ""

    async def _stage(self, name: str, shadow: Shadow) -> None:
        """Raises `Incompatible` for one whose answers cannot be held against those of the active model."""
        bundle = await asyncio.to_thread(Bundle.open, self._store, shadow.wanted.digest)
        active = self._service.answering(name)
        if bundle.pipeline.language is not None:
            raise Incompatible("the answers of language models are not compared: measure it, or roll it out in waves")
        if bundle.pipeline.task != active.pipeline.task:
            raise Incompatible(f"it is for {bundle.pipeline.task}, the active model for {active.pipeline.task}")

    async def _has_no_room(self, name: str) -> bool:
        """Whether it was refused: what the other models need is not its to take."""
        try:
            await self._rooms.check_shadow(name, self._around.models())
        except Incompatible as e:
            self._note(name, "refused", str(e))
            return True
        return False

    async def _start(self, name: str, shadow: Shadow) -> None:
        """Raises `Unavailable` where its files are damaged or gone: it waits, and they come again."""
        digest = shadow.wanted.digest
        runner = await self._around.start(shadow, partial(self._meter.said, name, digest))
        current = self._shadow(name)
        if current is None or current.wanted.digest != digest:
            await runner.close()
            return
        self._running[name] = _Run(runner, asyncio.get_running_loop().time())
        self._service.beside[name] = runner
        self._note(name, "running", memory=runner.memory)

    # --- while it runs --------------------------------------------------------------------------------------------

    def _hindrance(self, shadow: Shadow, *, running: bool) -> str:
        temperature, throttled = self._heat()
        now = Conditions(temperature_c=temperature, throttled=throttled, available=psutil.virtual_memory().available)
        needs = shadow.memory or SHADOW_ROOM
        return hindrance(shadow.wanted, now, running=running, needs=needs)

    def _keep(self, name: str, shadow: Shadow, run: _Run) -> None:
        most = shadow.wanted.memory
        if most and run.runner.memory > most:
            self._let_go(name)
            self._note(name, "refused", f"it takes {run.runner.memory >> 20} MiB of memory, its budget is {most >> 20}")
            self._around.sweep()
            return
        if run.runner.memory > shadow.memory * 1.05:  # a flash card pays for each
            self._note(name, "running", memory=run.runner.memory)
        if not run.steady and asyncio.get_running_loop().time() - run.since > STEADY:
            run.steady = True
            self._past_of(name, run.runner.digest).deaths = 0
            if shadow.starts:
                self._put(name, replace(shadow, starts=0))

    def _pause(self, name: str, reason: str) -> None:
        if self._current is not None and self._bringing[0] == name:
            self._current.cancel()
        self._let_go(name)
        self._note_waiting(name, reason)

    def _died(self, name: str, runner: Runner) -> None:
        past = self._past_of(name, runner.digest)
        past.deaths += 1
        self._let_go(name)
        if past.deaths >= MAX_DEATHS:
            self._note(name, "failed", f"{past.deaths} times: {runner.fault}")
            self._around.sweep()
        else:
            self._note(name, "paused", runner.fault)

    def _let_go(self, name: str) -> None:
        """End its process; what it counted stays."""
        self._service.beside.pop(name, None)
        run = self._running.pop(name, None)
        if run is not None:
            self._past_of(name, run.runner.digest).counts.update(run.runner.counts)
            closing = asyncio.create_task(run.runner.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _report(self, name: str, shadow: Shadow) -> ShadowReport:
        """As it is: what is on disk of the run before counts for nothing as long as nothing runs."""
        return (shadow if name in self._running else shadowing.found_at_start(shadow, killed=False)).report()

    # --- what is known --------------------------------------------------------------------------------------------

    def _all(self) -> dict[str, Shadow]:
        return {name: model.shadow for name, model in self._around.models().items() if model.shadow is not None}

    def _shadow(self, name: str) -> Shadow | None:
        model = self._around.models().get(name)
        return model.shadow if model is not None else None

    def _counts(self, name: str, digest: str) -> Counter[str]:
        run = self._running.get(name)
        past = self._past.get((name, digest))
        return (past.counts if past else Counter()) + (run.runner.counts if run else Counter())

    def _past_of(self, name: str, digest: str) -> _Past:
        for old in [key for key in self._past if key[0] == name and key[1] != digest]:
            del self._past[old]
        return self._past.setdefault((name, digest), _Past())

    def _note(self, name: str, phase: ShadowPhase, reason: str = "", memory: int = 0) -> Shadow | None:
        """One step of a shadow that is still wanted."""
        shadow = self._shadow(name)
        if shadow is None or shadow.over:
            return None
        step = shadowing.noted(shadow, phase, reason, memory)
        if step != shadow:
            log.info("shadow of %s: %s is %s%s", name, step.wanted.target, phase, f": {reason}" if reason else "")
            self._put(name, step)
            self._on_change()
        return step

    def _put(self, name: str, shadow: Shadow) -> None:
        self._around.save(name, replace(self._around.models()[name], shadow=shadow))
