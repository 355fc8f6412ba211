"""Everything of a device but its sockets: what it trusts, installs, serves and says, wired together.

The line is an argument (`agent.line.link`), and so is the clock: the tests' device is this one on a line in memory.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from securesystemslib.signer import Signer

from agent.errors import AgentError
from agent.inbox import Heard, Inbox
from agent.install.delta import Deltas
from agent.install.fetch import Fetcher
from agent.install.installer import Installer
from agent.install.keys import ChunkKeys
from agent.install.ranges import Ranges
from agent.life.life import Life
from agent.life.restarts import Run
from agent.life.telemetry import Outbox, WindowMeter
from agent.line.commands import Commands
from agent.line.link import Link
from agent.line.reporter import Reporter
from agent.line.voice import Voice
from agent.parts import Parts
from agent.serving.selftest import tests_of
from agent.serving.service import Bounds
from agent.settings import AgentSettings
from agent.status import view
from agent.store.blobs import FOLDER as BLOBS
from agent.store.blobs import Blobs
from agent.store.state import StateFile
from agent.trust.acks import Acks
from agent.trust.clock import Clock
from agent.trust.freshness import Freshness, Frozen
from agent.trust.keeper import TrustKeeper
from agent.trust.security import SecurityLog
from wire import topics
from wire.errors import WireError
from wire.messages import Reported
from wire.orders import Ack
from wire.profile import Limits
from wire.secrecy import public_text
from wire.trust import TrustedSet
from wire.units import show_instant

log = logging.getLogger("agent.core")

SECURITY_REPORTED: Final = 20
WATCH_EVERY: Final = 5.0
"""Longest pause in seconds between two looks at freshness."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a device says of itself that does not change while it runs."""

    device: str
    profile: str
    hardware: str
    emulated: bool
    agent: str
    runtimes: frozenset[str]
    limits: Limits | None = None


class Core:
    """A device. `signer()` gives the key of the certificate in use; `wipe` marks it for wiping and stops the agent.

    `on_trust` is called when other metadata is trusted, `on_time` when the fleet has told the time, `on_desired` when
    a newer desired state is acted on.
    """

    def __init__(
        self,
        *,
        about: About,
        settings: AgentSettings,
        state: StateFile,
        clock: Clock,
        link: Link,
        signer: Callable[[], Signer],
        sealing_key: EllipticCurvePrivateKey,
        wipe: Callable[[], None],
        on_trust: Callable[[TrustedSet], None] = lambda _trusted: None,
        on_time: Callable[[], None] = lambda: None,
        on_desired: Callable[[], None] = lambda: None,
        parts: Parts = Parts(),  # noqa: B008  it is frozen
        run: Run = Run(),  # noqa: B008  as well
        restart: Callable[[], None] = lambda: None,
        logs: Callable[[], Sequence[str]] = tuple,
        ranges: Ranges | None = None,
    ) -> None:
        self.about = about
        self.boot = uuid.uuid4().hex
        self.clock = clock
        self._settings = settings
        self._state = state
        self._link = link
        self._sealing_key = public_text(sealing_key.public_key())
        self._on_trust, self._on_time, self._on_desired = on_trust, on_time, on_desired
        self._capped_by = 0
        self._asked_again: float | None = None
        self._said_frozen = self._stopped = False
        self._line_since: float | None = None
        self._watching: asyncio.Task[None] | None = None

        self.freshness = Freshness(settings.freeze_after)
        self.meter = WindowMeter()
        self.life = Life(*(state, self.meter, clock, settings), boot=self.boot, run=run, sample=parts.health)
        self.recorder = self.life.recorder
        self.security = SecurityLog(
            state, now=clock.now, uptime=clock.uptime, on_change=self._changed, tell=self._tell_of_refusal
        )
        self.keeper = TrustKeeper(state, clock)
        self.voice = Voice(about.device, state, link, signer)
        self.acks = Acks(
            device=about.device,
            boot=self.boot,
            trusted=self.keeper.trusted,
            clock=clock,
            on_ask=self.freshness.asked,
            on_answer=self.life.line.answered,
        )
        self.reporter = Reporter(
            *(self.voice, self.acks, self._compose),
            timeout=settings.ack_timeout,
            on_silence=self.life.line.unanswered,
        )
        self.service = parts.service(self.meter, Bounds(settings.model_queue, settings.request_timeout))
        self.outbox = Outbox(
            state, self.voice, self.acks, timeout=settings.ack_timeout, on_silence=self.life.line.unanswered
        )
        self._wire_updates(ChunkKeys(about.device, sealing_key), parts.installer, ranges)
        self._wire_inbox(wipe, restart, logs)

    def _wire_updates(self, keys: ChunkKeys, installer: Callable[..., Installer], ranges: Ranges | None) -> None:
        self.store = Blobs(self._settings.state / BLOBS, self._settings.min_free)
        self.fetcher = Fetcher(
            *(self.about.device, self._link, self.store, keys),
            timeout=self._settings.fetch_timeout,
            bad_chunks=self._settings.bad_chunks,
            on_bad=self.note_security,
            slow=(self._settings.slow_rate, self._settings.slow_after),
            ranges=ranges,
        )
        self.deltas = Deltas(
            state=self._state,
            store=self.store,
            fetcher=self.fetcher,
            line_up=lambda: self._link.up,
            alarm=self.note_security,
        )
        self.installer = installer(
            settings=self._settings,
            state=self._state,
            store=self.store,
            fetcher=self.fetcher,
            keys=keys,
            service=self.service,
            trusted=self.keeper.trusted,
            now=self.clock.now,
            profile=self.about.profile,
            runtimes=self.about.runtimes,
            on_change=self._changed,
            beside=self.meter.beside,
            heat=self.life.heat,
            limits=self.about.limits,
            deltas=self.deltas,
        )
        self.life.golden = self.installer.golden

    def _wire_inbox(
        self, wipe: Callable[[], None], restart: Callable[[], None], logs: Callable[[], Sequence[str]]
    ) -> None:
        self.commands = Commands(
            state=self._state,
            voice=self.voice,
            trusted=self.keeper.trusted,
            clock=self.clock,
            report=(self.reporter.soon, self.close_window),
            wipe=wipe,
            restart=restart,
            logs=logs,
            self_test=lambda: tests_of(self.installer.slots(), self.store.folder, self._settings),
        )
        self.inbox = Inbox(
            device=self.about.device,
            state=self._state,
            clock=self.clock,
            keeper=self.keeper,
            installer=self.installer,
            fetcher=self.fetcher,
            acks=self.acks,
            commands=self.commands,
            heard=Heard(
                ack=self._answered,
                desired=self._acted,
                fleet=self._fleet,
                trust=self._trusts,
                rotated=self._another_time,
                security=self.note_security,
            ),
        )

    # --- beginning and end ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Models answer from here on, without any network."""
        self._watching = asyncio.create_task(self._watch(), name="freshness")
        self.inbox.start()
        self._on_trust(self.keeper.trusted)
        self.life.begin(self.installer.updates())
        await self.installer.restore()

    async def stop(self, *, clean: bool = True) -> None:
        """Leave everything where it is; what has to be known later is on disk. `clean`: somebody asked for it."""
        self._stopped = True
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.commands.stop()
        await self.installer.stop(clean=clean)
        await self.inbox.stop()
        self.life.close_window()
        self.security.fold()
        self.reporter.stop()
        self.outbox.forget()
        self.service.close()

    def close_window(self) -> None:
        """End a telemetry window and send what waits."""
        self.life.close_window()
        self.outbox.kick()

    def event(self, kind: str, text: str) -> None:
        """Something that people should know of, sent at once when the fleet is there."""
        self.life.event(kind, text)
        self.outbox.kick()

    # --- the line -------------------------------------------------------------------------------------------------

    def line_is_up(self) -> None:
        """Connected: hear what is retained, and say what is."""
        if self._stopped:
            return
        self._line_since = self.clock.uptime()
        self.life.line.went_up()
        self.freshness.line_is_up(self.clock.uptime())
        self.inbox.line_is_up()
        self._subscribe()
        self.fetcher.line_is_up()
        self.outbox.again()
        self.reporter.line_is_up()

    def line_is_down(self) -> None:
        """The connection is lost."""
        self._line_since = self.clock.uptime()
        self.freshness.line_is_down(self.clock.uptime())
        self.inbox.line_is_down()
        self.outbox.forget()
        self.reporter.stop()

    def take(self, topic: str, payload: bytes) -> None:
        """A message came."""
        if self._stopped:
            return
        try:
            self.inbox.take(topic, payload)
        except (WireError, AgentError) as e:
            log.warning("%s: %s", topic[:120], e)

    def _subscribe(self) -> None:
        for pattern in self.inbox.subscriptions():
            self._link.subscribe(pattern)

    def _fleet(self, there: bool) -> None:
        was_there, self.outbox.open = self.outbox.open, there
        if there:
            (self.outbox.kick if was_there else self.outbox.again)()
            self.reporter.fleet_is_there()

    def _acted(self) -> None:
        """A newer desired state is acted on."""
        self.freshness.holds(self._state.last_desired())
        self._on_desired()

    def _trusts(self) -> None:
        """Other metadata is trusted: the fleet may be believed now when it tells the time."""
        self._on_trust(self.keeper.trusted)
        if not self.clock.learnt:
            self.reporter.soon()

    # --- answers, time and freshness --------------------------------------------------------------------------------

    def _answered(self, ack: Ack) -> None:
        named = ack.desired_epoch, ack.desired_seq
        self.freshness.answered(self.clock.uptime(), named=named, held=self._state.last_desired())
        self.reporter.answered(ack.nonce)
        self._learn(ack)
        self.outbox.answered(ack)

    def _learn(self, ack: Ack) -> None:
        if not self.keeper.speaks_now():
            return
        latest, first = self.keeper.trusted.root.expires, not self.clock.learnt
        if ack.time > latest and self._capped_by != self.keeper.trusted.root_version:
            self._capped_by = self.keeper.trusted.root_version
            why = f"the fleet says {ack.issued}, and the root metadata expires {latest:%Y-%m-%d}: sign a new root"
            self.note_security("time", why)
        moved = self.clock.learn(ack.time, latest=latest)
        if moved:
            self._another_time()
        elif first:
            self.inbox.look_again()
        self._on_time()

    def _another_time(self) -> None:
        """What was refused by another time is heard again."""
        log.info("trusted time is %s now", show_instant(self.clock.now()))
        self.inbox.look_again()
        self._subscribe()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(self._settings.freeze_after / 4, WATCH_EVERY))
            try:
                self.look()
            except (WireError, AgentError) as e:
                log.error("not looked at freshness: %s", e)  # noqa: TRY400  a disk that cannot be read, not a bug

    def look(self) -> None:
        """Whether this device is frozen: said once when it begins. A desired state that does not come is asked for."""
        self.security.fold_when_due()
        self.life.look_at_memory()
        self._ask_for_desired()
        frozen = self._frozen()
        if frozen is None:
            self._said_frozen = False
        elif self.outbox.open and not self._said_frozen:  # a fleet that says that it is away is no attack
            self._said_frozen = True
            self.note_security("freshness", frozen.why)

    def _ask_for_desired(self) -> None:
        """Again and again: what came may have met a full disk, or been kept by somebody who is gone."""
        at, pause = self.clock.uptime(), self._settings.freeze_after
        if self.freshness.behind(at) <= pause / 2:
            self._asked_again = None
        elif self._asked_again is None or at - self._asked_again >= pause:
            self._asked_again = at
            self._link.subscribe(topics.Desired(self.about.device).topic)

    def _frozen(self) -> Frozen | None:
        until, now = self.keeper.fresh_until(), self.clock.now()
        expired = (now - until).total_seconds() if until is not None and self.clock.learnt else 0.0
        return self.freshness.frozen(self.clock.uptime(), expired_for=expired)

    # --- saying what is -------------------------------------------------------------------------------------------

    def note_security(self, subject: str, reason: str) -> None:
        """Something was refused because it could not be trusted: kept, and reported to the fleet."""
        self.security.note(subject, reason)

    def _tell_of_refusal(self, subject: str, reason: str) -> None:
        self.event("security", f"{subject}: {reason}")

    def _changed(self) -> None:
        self.reporter.soon()
        if self.life.updates_changed(self.installer.updates()):
            self.outbox.kick()

    def _compose(self, starts: int, seq: int, nonce: str) -> Reported:
        desired_epoch, desired_seq = self._state.last_desired()
        return Reported(
            device=self.about.device,
            boot=self.boot,
            starts=starts,
            seq=seq,
            nonce=nonce,
            time=show_instant(self.clock.now()),
            sealing_key=self._sealing_key,
            agent=self.about.agent,
            profile=self.about.profile,
            hardware=self.about.hardware,
            emulated=self.about.emulated,
            desired_epoch=desired_epoch,
            desired_seq=desired_seq,
            slots=self.installer.slots(),
            updates=self.installer.updates(),
            measured=self.installer.measurer.reports(),
            shadows=self.installer.shadows.reports(),
            security=self._state.security()[-SECURITY_REPORTED:],
        )

    def status(self) -> dict[str, Any]:
        """The device for people and programs beside it: the local API adds what it knows of the process."""
        return view(self, self._state, self._link, line_since=self._line_since, frozen=self._frozen())
