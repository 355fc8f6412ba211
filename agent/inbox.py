"""What comes over the line: each message to the part that may act on it, and no earlier than it may.

Retained documents come in any order, and what the fleet signed may come before the metadata that names its key. So a
statement that does not hold waits for the next metadata, and is an attack when a quiet moment later nothing made it
right. One that only waits for the fleet to tell the time (`OutOfStep`) is no attack, however long it waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agent.errors import AgentError
from agent.install.fetch import Fetcher
from agent.install.installer import Installer
from agent.line.commands import Commands
from agent.store.state import StateFile
from agent.trust.acks import Acks
from agent.trust.clock import Clock
from agent.trust.keeper import TrustKeeper
from wire import topics
from wire.admission import check_order
from wire.dsse import open_by_role
from wire.errors import OutOfStep, Untrusted, WireError
from wire.messages import Presence
from wire.orders import Ack, Desired
from wire.units import instant

log = logging.getLogger("agent.inbox")

GATHER: Final = 0.05
"""Seconds in which trusted documents gather into one set."""
QUIET: Final = 2.0
"""Seconds without a new document after which what is still refused is an attack."""
EARLY: Final = 16
"""Acknowledgements and commands that wait at one time."""


@dataclass
class _Early:
    subject: str
    take: Callable[[bytes], None]
    payload: bytes
    fault: Untrusted


@dataclass(frozen=True, kw_only=True)
class Heard:
    """Whom the inbox tells. `fleet(there)`: the fleet is there, or away; `rotated`: by new online keys, too."""

    ack: Callable[[Ack], None]
    desired: Callable[[], None]
    fleet: Callable[[bool], None]
    trust: Callable[[], None]
    rotated: Callable[[], None]
    security: Callable[[str, str], None]


class Inbox:
    """The receiving end of every topic that a device reads."""

    def __init__(
        self,
        *,
        device: str,
        state: StateFile,
        clock: Clock,
        keeper: TrustKeeper,
        installer: Installer,
        fetcher: Fetcher,
        acks: Acks,
        commands: Commands,
        heard: Heard,
    ) -> None:
        self._device = device
        self._state = state
        self._clock = clock
        self._keeper = keeper
        self._installer = installer
        self._fetcher = fetcher
        self._acks = acks
        self._commands = commands
        self._heard = heard
        self._fleet_session = ""
        self._early: deque[_Early] = deque()
        self._waiting: bytes | None = None
        self._waiting_for: WireError | None = None
        self._settle_due: asyncio.TimerHandle | None = None
        self._judge_due: asyncio.TimerHandle | None = None
        self._new_desired = asyncio.Event()
        self._acting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Act on desired states from here on."""
        self._acting = asyncio.create_task(self._act(), name="desired state")

    def subscriptions(self) -> tuple[str, ...]:
        """Topic filters to ask for on every connect, and again when what is retained is needed again."""
        mine = (topics.Desired(self._device), topics.Ack(self._device), topics.Command(self._device))
        retained = (topics.FleetState().topic, topics.every(topics.TrustRoot), topics.every(topics.TrustRole))
        return (*(topic.topic for topic in mine), *retained)

    def take(self, topic: str, payload: bytes) -> None:
        """One message. Raises `WireError` for one that is not what its topic promises, `AgentError` for the disk.

        An empty one says that what was retained is gone, as of a revoked device: nothing to act on, and no attack.
        """
        parsed = topics.parse(topic)
        if not payload:
            return
        match parsed:
            case topics.Chunk() as chunk:
                self._fetcher.receive(chunk, payload)
            case topics.TrustRoot() | topics.TrustRole() as document:
                self._keeper.take(document, payload)
                self._settle_soon()
                self._judge_later()
            case topics.Desired():
                self._waiting, self._waiting_for = payload, None
                self._settle_soon()
                self._judge_later()
            case topics.Ack():
                self._hear("acknowledgement", self._take_ack, payload)
            case topics.Command():
                self._hear("command", self._commands.take, payload)
            case topics.FleetState():
                self._take_fleet_state(Presence.from_bytes(payload))

    def line_is_up(self) -> None:
        """Everything that is retained comes again."""
        self._keeper.start_over()

    def line_is_down(self) -> None:
        """Nobody knows about the fleet until it is heard again."""
        self._heard.fleet(False)

    def look_again(self) -> None:
        """The time was told, or it is another one: what waited for it goes on; what was refused may come again."""
        self._keeper.forget_judgements()
        self._installer.look_again()
        self._settle_soon()
        self._judge_later()

    async def stop(self) -> None:
        """Judge nothing any more."""
        for due in (self._settle_due, self._judge_due):
            if due is not None:
                due.cancel()
        if self._acting is not None:
            self._acting.cancel()
            await asyncio.gather(self._acting, return_exceptions=True)

    def _take_fleet_state(self, presence: Presence) -> None:
        if presence.online:
            self._fleet_session = presence.session
            self._heard.fleet(True)
        elif presence.session == self._fleet_session or not self._fleet_session:
            self._heard.fleet(False)

    def _take_ack(self, payload: bytes) -> None:
        ack = self._acks.take(payload)
        if ack is not None:
            self._heard.ack(ack)

    # --- what may be early --------------------------------------------------------------------------------------

    def _hear(self, subject: str, take: Callable[[bytes], None], payload: bytes) -> None:
        try:
            take(payload)
        except Untrusted as e:
            self._keep_early(_Early(subject, take, payload, e))
        except (WireError, AgentError) as e:
            log.warning("%s: %s", subject, e)

    def _keep_early(self, early: _Early) -> None:
        if any(early.payload == other.payload for other in self._early):
            return
        self._early.append(early)
        if len(self._early) > EARLY:
            self._judge_early(self._early.popleft())
        if self._judge_due is None:
            self._judge_later()

    def _hear_early(self) -> None:
        early, self._early = self._early, deque()
        for one in early:
            self._hear(one.subject, one.take, one.payload)

    def _judge_early(self, early: _Early) -> None:
        if isinstance(early.fault, OutOfStep):
            log.warning("%s: given up: %s", early.subject, early.fault)
        else:
            self._heard.security(early.subject, str(early.fault))

    # --- trust and desired state ------------------------------------------------------------------------------

    def _settle_soon(self) -> None:
        if self._settle_due is None:
            self._settle_due = asyncio.get_running_loop().call_later(GATHER, self._settle)

    def _judge_later(self) -> None:
        if self._judge_due is not None:
            self._judge_due.cancel()
        self._judge_due = asyncio.get_running_loop().call_later(QUIET, self._judge)

    def _settle(self) -> None:
        self._settle_due = None
        try:
            settled = self._keeper.settle()
        except AgentError as e:
            log.error("trusted metadata is not kept: %s", e)  # noqa: TRY400  a full disk, not a bug
        else:
            if settled.changed:
                self._installer.look_again()
                self._heard.trust()
            if settled.rotated:
                self._heard.rotated()
        self._hear_early()
        if self._waiting is not None:
            self._new_desired.set()

    def _judge(self) -> None:
        self._judge_due = None
        judged = self._keeper.judge()
        for name, error in judged.items():
            self._heard.security(name, str(error))
        if judged:
            self._settle_soon()  # a bad root held up everything behind it
            self._judge_later()
        bad = [early for early in self._early if not isinstance(early.fault, OutOfStep)]
        self._early = deque(early for early in self._early if early not in bad)
        for early in bad:
            self._judge_early(early)
        if self._waiting is not None and self._waiting_for is not None and not isinstance(self._waiting_for, OutOfStep):
            self._heard.security("desired state", str(self._waiting_for))
            self._waiting = self._waiting_for = None

    async def _act(self) -> None:
        """Desired states one after another; only the newest that waits counts."""
        while True:
            await self._new_desired.wait()
            self._new_desired.clear()
            payload = self._waiting
            if payload is None:
                continue
            try:
                await self._act_on(payload)
            except WireError as e:
                self._waiting_for = e
                continue
            except AgentError as e:
                log.error("the desired state is not acted on: %s", e)  # noqa: TRY400  a full disk, not a bug
            except Exception:
                # A bug met by one desired state must not wedge the next.
                log.exception("the desired state is not acted on")
            if self._waiting is payload:
                self._waiting = self._waiting_for = None

    async def _act_on(self, payload: bytes) -> None:
        desired = open_by_role(payload, Desired, self._keeper.trusted.targets())
        last = self._state.last_desired()
        if (desired.device, desired.number) == (self._device, last):
            return  # the retained one again, after a reconnect
        check_order(desired, device=self._device, last=last, now=self._clock.signed())
        if self._clock.now() >= instant(desired.expires):
            raise OutOfStep(f"desired state: expired {desired.expires} by this clock; the fleet has not told the time")
        await self._installer.desire(desired)
        self._heard.desired()
