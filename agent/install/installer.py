"""The hands of the update machine: does what `agent.update` says, and tells it what came of it.

    verify     the release is listed, for us, not below its model's floor, and its digest is the one desired;
               waits while metadata or the keys of its blobs are on their way; then it has to fit (`agent.capacity`)
    fetch      manifest, chunk lists, then every blob that is missing; waiting for the line is no fault, and is said
    stage      the parts fit together, and the release still stands above the floor
    self-test  the golden set holds, in a child process, which says how much memory it took
    switch     load, warm up, let the candidate answer
    watch      probation (`agent.probation`): errors, latency, and the golden set again
    commit     the candidate is the active model; what nobody needs is removed

Every step is on disk before it is taken, so a killed agent knows where it was; a disk that takes none holds the update
up until it does. A step on this device that is not done by its deadline (settings) is a fault.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from datetime import datetime
from typing import Final

from agent import update
from agent.errors import AgentError, Incompatible, Keyless, Unavailable, Untrusted
from agent.install.delta import Deltas
from agent.install.download import Download
from agent.install.fetch import Fetcher
from agent.install.golden import GoldenSets
from agent.install.keys import ChunkKeys
from agent.install.measure import Measurer
from agent.install.releases import Missing, Releases
from agent.install.room import Rooms
from agent.install.shadows import Around, Heat, Say, Shadows
from agent.install.steps import deadline, how_it_ended, loaded, note_clean_stop, watch
from agent.install.sweep import Sweeper
from agent.life.beside import ShadowMeter
from agent.probation import Rules
from agent.serving.bundles import Bundle, prepare
from agent.serving.selftest import Outcome, self_test
from agent.serving.service import Served, Service
from agent.serving.shadow import Runner
from agent.settings import AgentSettings
from agent.shadowing import Shadow
from agent.shadowing import desire as desire_shadow
from agent.store.blobs import Blobs
from agent.store.state import StateFile
from agent.update import Action, Event, ModelState
from wire.chunks import WHOLE, single
from wire.errors import Untrusted as UntrustedByWire
from wire.errors import WireError
from wire.messages import SlotReport, UpdateReport
from wire.orders import Desired
from wire.profile import Limits
from wire.release import Release
from wire.trust import TrustedSet

log = logging.getLogger("agent.install.installer")

DISK_AGAIN: Final = 30.0
"""Seconds until a step that the disk did not take is written again."""
STILL: Final = 60.0
"""Seconds without a chunk after which an update says that it waits."""


class Installer:
    """Every update of this device, one at a time from its download on. `on_change` is called after every step."""

    def __init__(
        self,
        *,
        settings: AgentSettings,
        state: StateFile,
        store: Blobs,
        fetcher: Fetcher,
        keys: ChunkKeys,
        service: Service,
        trusted: TrustedSet,
        now: Callable[[], datetime],
        profile: str,
        runtimes: frozenset[str],
        on_change: Callable[[], None],
        beside: ShadowMeter,
        heat: Heat,
        limits: Limits | None = None,
        deltas: Deltas | None = None,
    ) -> None:
        self._settings = settings
        self._state = state
        self._store = store
        self._fetcher = fetcher
        self._keys = keys
        self._deltas = deltas
        self._service = service
        self._listed = Releases(trusted, state, store, keys, now, profile, runtimes)
        self._golden = GoldenSets(store)
        self._rooms = Rooms(store, self._listed, limits, settings.min_free)
        self._on_change = on_change
        self._models = state.models()
        self._downloads: dict[str, Download] = {}
        self._releases: dict[str, Release] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._unloaded: dict[str, frozenset[str]] = {}
        self._news = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._sweeper = Sweeper(store, self._one_at_a_time, self._manifests, deltas.needed if deltas else set)
        self.measurer = Measurer(
            *(settings, state, store, fetcher, self._listed, now),
            alone=self._one_at_a_time,
            busy=self._is_busy,
            sweep=self._sweeper.soon,
            on_change=self._measured,
        )
        self.shadows = Shadows(
            *(settings, store, fetcher, self._listed, self._rooms, service),
            around=Around(
                models=lambda: self._models,
                save=self._keep,
                alone=self._one_at_a_time,
                busy=lambda: self._is_busy() or bool(self.measurer.digests()),
                self_test=self._self_test,
                start=self._start_shadow,
                sweep=self._sweeper.soon,
            ),
            meter=beside,
            heat=heat,
            on_change=on_change,
        )

    # --- what the agent asks of it ----------------------------------------------------------------------------

    async def restore(self) -> None:
        """At start, without any network: the active models answer, and interrupted updates go on or roll back."""
        self._keys.take(self._state.sealed_keys())
        ended = how_it_ended(self._state)
        for name, model in list(self._models.items()):
            await self._restore_active(name, model)
        self._sweeper.soon()  # before any update: what a killed one left must not take the room of the next
        for name, model in list(self._models.items()):
            if model.busy:
                self._begin_task(name, self._resume(name, ended))
        self.measurer.take(self._state.measuring())
        self.shadows.restore(killed=ended is Event.KILLED)

    async def desire(self, desired: Desired) -> None:
        """A newer desired state, verified and addressed to this device: it supersedes every other.

        What it asks for already and is under way goes on: it may only bring keys.
        """
        wanted = {model.model: model for model in desired.models}
        steps = {name: update.desire(self._models.get(name, ModelState()), model) for name, model in wanted.items()}
        ranks = {name: rank for rank, name in enumerate(wanted)}
        touched = [name for name, (_, actions) in steps.items() if actions]
        gone = self._models.keys() - wanted.keys()
        beside = {shadow.model: shadow for shadow in desired.shadows}
        models = {
            name: dataclasses.replace(
                model, rank=ranks[name], shadow=desire_shadow(model.shadow, beside.get(name), wanted[name].digest)
            )
            for name, (model, _) in steps.items()
        }
        shown = {name: model.shadow.wanted.digest for name, model in self._models.items() if model.shadow}
        keys = desired.keys if self._keys.take(desired.keys) else ""
        measuring = self.measurer.wanted(desired.measure)
        self._state.accept_desired(desired.number, models, keys, measuring)
        if self._deltas is not None:
            self._deltas.take(desired.offers)
        self._models = models
        for name in (*touched, *gone):
            self._unloaded.pop(name, None)
        self._news.set()
        await self._cancel(*touched, *gone)
        for name in gone:
            self._service.remove(name)
        for name in touched:
            self._begin(name, steps[name][1])
        if gone or any(self._shadow_of(name) != digest for name, digest in shown.items()):
            self._sweeper.soon()
        self.measurer.take(measuring)
        self.shadows.look_again()
        self._on_change()

    def look_again(self) -> None:
        """New metadata was trusted, or it is another time: updates that wait look again."""
        self._news.set()
        self.measurer.look_again()
        self.shadows.look_again()

    async def stop(self, *, clean: bool = True) -> None:
        """Leave every update where it is; its intent is on disk. `clean`: somebody asked the agent to end."""
        await self._cancel(*self._tasks)
        await self.measurer.stop()
        await self.shadows.stop()
        await self._golden.stop()
        await self._sweeper.stop()
        if clean:
            note_clean_stop(self._state)

    def slots(self) -> tuple[SlotReport, ...]:
        """Who stands in which slot."""
        return tuple(slot for name, model in sorted(self._models.items()) for slot in update.slots(name, model))

    def golden(self) -> dict[str, bool]:
        """Whether the golden set of each model in a slot held when it was run last, by digest."""
        return self._golden.held(slot.digest for slot in self.slots())

    def updates(self) -> tuple[UpdateReport, ...]:
        """The newest update of every model."""
        reports = (self._report(name, model) for name, model in sorted(self._models.items()))
        return tuple(report for report in reports if report is not None)

    def _report(self, name: str, model: ModelState) -> UpdateReport | None:
        """With what holds its download up, as the fetcher sees it."""
        report, trouble = update.report(model, *self._progress(name)), self._fetcher.trouble
        if report is None or not trouble or model.update is None or model.update.state != "fetching":
            return report
        return dataclasses.replace(report, reason=trouble)

    def _progress(self, name: str) -> tuple[int, int]:
        download = self._downloads.get(name)
        return (download.done, download.total) if download else (0, 0)

    # --- starting and ending ----------------------------------------------------------------------------------

    async def _restore_active(self, name: str, model: ModelState) -> None:
        """The active model, or the previous one when the active one's files are damaged: those are fetched again."""
        wanted, unloaded = model, set()
        for placed in (model.active, model.previous):
            if placed is None:
                continue
            fault = await self._place(name, placed)
            if fault is None:
                if placed is not model.active:
                    self._models[name] = dataclasses.replace(wanted, active=placed, previous=None)
                    self._save_if_it_can(name)
                return
            if not isinstance(fault, Unavailable):
                unloaded.add(placed.digest)
            elif placed is model.active:
                wanted = update.wanted_again(model)
        # Said as it is: nothing of this name is loaded. Files that are sound stay until a newer desired state: what
        # keeps them from loading may be gone at the next start.
        self._models[name] = dataclasses.replace(wanted, active=None, previous=None)
        self._unloaded[name] = frozenset(unloaded)

    async def _place(self, name: str, placed: update.Placed) -> Exception | None:
        """Let it answer, or say why it cannot."""
        try:
            served = await self._load(placed.digest)
            self._service.place(name, served)
            self._golden.soon(served)
        except (AgentError, WireError) as e:
            log.error("%s: %s cannot answer: %s", name, placed.target, e)  # noqa: TRY400  a reason, not a bug
            return e
        except Exception as e:
            # A bug met by one model must not keep the others, and the next update, from this device.
            log.exception("%s: %s cannot answer", name, placed.target)
            return e
        return None

    def _is_busy(self) -> bool:
        return any(model.busy for model in self._models.values())

    def _measured(self) -> None:
        self._on_change()
        self.shadows.look_again()  # what is timed has the machine for itself

    def _shadow_of(self, name: str) -> str:
        model = self._models.get(name)
        return model.shadow.wanted.digest if model is not None and model.shadow is not None else ""

    async def _start_shadow(self, shadow: Shadow, say: Say) -> Runner:
        return await Runner.start(self._store.folder, shadow.wanted, self._settings.workers, say)

    def _keep(self, name: str, model: ModelState) -> None:
        """A step that is taken also where the disk does not take it: the next start takes it again."""
        self._models[name] = model
        self._save_if_it_can(name)

    def _save_if_it_can(self, name: str) -> None:
        try:
            self._state.save_model(name, self._models[name])
        except Unavailable as e:
            log.error("%s: the next start finds this again: %s", name, e)  # noqa: TRY400  a full disk, not a bug

    async def _load(self, digest: str) -> Served:
        bundle = await asyncio.to_thread(Bundle.open, self._store, digest)
        if bundle.tokenizer is not None:
            prepare()
        return await loaded(lambda: Served.load(bundle, self._settings.workers))

    def _begin(self, name: str, actions: tuple[Action, ...]) -> None:
        """First undo what is superseded, then start what is wanted."""
        self._downloads.pop(name, None)
        for action in actions:
            if action is Action.ROLL_BACK:
                self._service.roll_back(name)
            if action in (Action.DROP, Action.ROLL_BACK):
                self._sweeper.soon()
            else:
                self._start(name, action)

    def _start(self, name: str, action: Action) -> None:
        self._begin_task(name, self._drive(name, action))

    def _begin_task(self, name: str, work: Coroutine[None, None, None]) -> None:
        self.measurer.interrupt()
        self.shadows.interrupt()
        self._tasks[name] = asyncio.create_task(work, name=f"update {name}")

    async def _cancel(self, *names: str) -> None:
        """All at once: one that went on while another ends would take a step in an update that is not its own."""
        tasks = [self._tasks.pop(name) for name in names if name in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _save(self, name: str, model: ModelState) -> None:
        """Write a step, as soon as the disk takes it: nothing is done before."""
        while True:
            model = dataclasses.replace(model, shadow=self._models[name].shadow)  # which goes its own way meanwhile
            try:
                self._state.save_model(name, model)
                break
            except Unavailable as e:
                log.error("%s: the update waits: %s", name, e)  # noqa: TRY400  a full disk, not a bug
                self._models[name] = update.waiting(self._models[name], str(e))
                self._on_change()
            await asyncio.sleep(DISK_AGAIN)
        self._models[name] = model
        assert model.update is not None
        log.info("%s: %s is %s%s", name, model.update.target, model.update.state, _because(model.update.reason))
        self._on_change()

    # --- one update -------------------------------------------------------------------------------------------

    async def _resume(self, name: str, ended: Event) -> None:
        """Go on with an update that a restart interrupted."""
        model, action = update.step(self._models[name], ended)
        await self._save(name, model)
        await self._drive(name, action)

    async def _drive(self, name: str, action: Action) -> None:
        """From one state to the next until the update ends. Waiting for metadata or keys holds up no other model."""
        while True:
            if action is Action.VERIFY:
                action = await self._advance(name, action)
            async with self._one_at_a_time:
                while action not in (Action.VERIFY, Action.COMMIT, Action.DROP, Action.ROLL_BACK):
                    action = await self._advance(name, action)
                if action is not Action.VERIFY:
                    await self._end(name, action)
                    return

    async def _advance(self, name: str, action: Action) -> Action:
        event, reason = await self._attempt(name, action)
        model, following = update.step(self._models[name], event, reason)
        await self._save(name, model)
        return following

    async def _attempt(self, name: str, action: Action) -> tuple[Event, str]:
        """Do it, and put what came of it in the words of the table."""
        try:
            await self._perform(name, action)
        except (Untrusted, UntrustedByWire) as e:
            return Event.UNTRUSTED, str(e)
        except Keyless as e:
            return Event.KEYLESS, str(e)
        except (AgentError, WireError) as e:
            return Event.FAULT, str(e)
        except Exception as e:
            # A bug in one update must not wedge the next: it ends this one, with its trace in the log.
            log.exception("%s: %s", name, action)
            return Event.FAULT, f"{action}: {type(e).__name__}: {e}"
        return Event.DONE, ""

    async def _perform(self, name: str, action: Action) -> None:
        wanted = self._models[name].update
        assert wanted is not None
        match action:
            case Action.VERIFY:
                await self._verify(name, wanted)
            case Action.FETCH:
                await self._fetch(name, self._releases[name])
            case Action.STAGE:
                # the floor may have risen during a long download
                self._listed.check(self._releases[name], wanted.digest)
                async with deadline("staging", self._settings.stage_timeout):
                    await asyncio.to_thread(Bundle.open, self._store, wanted.digest)
            case Action.SELF_TEST:
                outcome = await self._self_test(wanted.digest)
                self._models[name] = update.measured(self._models[name], outcome.memory)
                await self._rooms.check(name, self._models)
            case Action.SWITCH:
                async with deadline("switching", self._settings.switch_timeout):
                    self._service.try_out(name, await self._load(wanted.digest))
            case Action.WATCH:
                await self._watch(name)
            case _:
                raise AssertionError(action)

    async def _verify(self, name: str, wanted: update.Update) -> Release:
        """The release of a target, as soon as every document on the way to it and its keys are here, and if it fits."""
        while True:
            self._news.clear()
            found = await self._listed.find(wanted.target, wanted.digest)
            if not isinstance(found, Missing):
                self._releases[name] = found
                await self._check_room(name, self._one_at_a_time)
                return found
            await self._note_waiting(name, found.reason)
            await self._news.wait()

    async def _check_room(self, name: str, alone: AbstractAsyncContextManager[None]) -> None:
        """Raises `Incompatible`. What is only in shadow gives way. `alone`: the lock, unless it is held."""
        try:
            await self._rooms.check(name, self._models)
        except Incompatible:
            if not await self._rooms.fits_without_shadows(name, self._models) or not self.shadows.give_way(name):
                raise
            async with alone:
                await self._sweeper.now()
            await self._rooms.check(name, self._models)

    async def _note_waiting(self, name: str, reason: str) -> None:
        waiting = update.waiting(self._models[name], reason)
        if waiting != self._models[name]:
            await self._save(name, waiting)

    async def _fetch(self, name: str, release: Release) -> None:
        download = self._downloads[name] = Download(self._store, self._fetcher, self._on_change, self._deltas)
        saying = asyncio.create_task(self._say_when_still(name, download), name=f"waiting {name}")
        try:
            await self._fetch_size(name, release)
            await download.run(release)
        finally:
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)

    async def _fetch_size(self, name: str, release: Release) -> None:
        """Where an older signer left sizes out, manifests come first, and no byte of the rest before it fits.

        Also those of the models before this one: they take their room first, whichever of them gets here first.
        """
        before = [await self._learn_size(one) for one in self._coming_before(name)]
        if not release.size:
            await self._fetch_manifest(release)
        if not release.size or any(before):
            await self._check_room(name, nullcontext())

    def _coming_before(self, name: str) -> list[update.Update]:
        """The updates under way of the models that the desired state names before this one."""
        place = (self._models[name].rank, name)
        ahead = (model for other, model in self._models.items() if (model.rank, other) < place)
        return [model.update for model in ahead if model.busy and model.update is not None]

    async def _learn_size(self, wanted: update.Update) -> bool:
        """The size of a release that is not in the metadata; whether that was needed. One that fails needs no room."""
        with suppress(AgentError, WireError):
            release = await self._listed.find(wanted.target, wanted.digest)
            if not isinstance(release, Missing) and not release.size:
                await self._fetch_manifest(release)
                return True
        return False

    async def _fetch_manifest(self, release: Release) -> None:
        if release.length <= WHOLE:
            await self._fetcher.fetch(single(release.digest, release.length), lambda _chunks: None)

    async def _say_when_still(self, name: str, download: Download) -> None:
        """A line that is down is no fault of the update, so it has no deadline; but nobody should have to guess."""
        while True:
            before = download.heard
            await asyncio.sleep(STILL)
            still = download.heard == before
            why = self._fetcher.trouble or f"no chunk came for {STILL:.0f} s: is the line up?"
            await self._note_waiting(name, why if still else "")

    async def _self_test(self, digest: str) -> Outcome:
        self._golden.note(digest, held=False)
        found = await self_test(self._store.folder, digest, self._settings.selftest_timeout, self._settings.workers)
        self._golden.note(digest, held=True)
        return found

    async def _watch(self, name: str) -> None:
        """Probation. Raises `Incompatible` when the candidate is not as good as the active model."""
        candidate, active = self._service.answering(name), self._service.before(name)
        rules = Rules(
            requests=self._settings.probation_requests,
            errors=self._settings.probation_errors,
            slowdown=self._settings.probation_slowdown,
        )
        await watch(candidate, active.figures if active else None, rules, self._settings.probation_time)
        async with deadline("probation", self._settings.switch_timeout):
            await self._golden.run(candidate)

    async def _end(self, name: str, action: Action) -> None:
        if action is Action.COMMIT:
            self._service.commit(name)
            self._unloaded.pop(name, None)
        if action is Action.ROLL_BACK:
            self._service.roll_back(name)
        await self._sweeper.now()
        self.measurer.look_again()
        self.shadows.look_again()
        self._on_change()

    def _manifests(self) -> set[str]:
        """Those whose files must stay: in a slot, now or when the agent started, under way, or being measured."""
        held = (*(model.digests for model in self._models.values()), *self._unloaded.values())
        return self.measurer.digests().union(*held)


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
