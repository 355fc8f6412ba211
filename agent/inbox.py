"""What comes over the line: each message to the part that may act on it, and no earlier than it may.

Retained documents come in any order. A desired state whose signature does not verify may only be early, as a trusted
document may: it waits for the next metadata, and is an attack when a quiet moment later nothing made it right.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Final

from agent.errors import AgentError
from agent.install.fetch import Fetcher
from agent.install.installer import Installer
from agent.keeper import TrustKeeper
from agent.state import StateFile
from agent.telemetry import Outbox
from wire import topics
from wire.admission import check_desired
from wire.dsse import open_by_role
from wire.errors import Untrusted, WireError
from wire.messages import Desired, Presence

log = logging.getLogger("agent.inbox")

GATHER: Final = 0.05
"""Seconds in which trusted documents gather into one set."""
QUIET: Final = 2.0
"""Seconds without a new document after which what is still refused is an attack."""


class Inbox:
    """The receiving end of every topic that a device reads."""

    def __init__(
        self,
        *,
        device: str,
        state: StateFile,
        keeper: TrustKeeper,
        installer: Installer,
        fetcher: Fetcher,
        outbox: Outbox,
        now: Callable[[], datetime],
        note_security: Callable[[str, str], None],
    ) -> None:
        self._device = device
        self._state = state
        self._keeper = keeper
        self._installer = installer
        self._fetcher = fetcher
        self._outbox = outbox
        self._now = now
        self._note_security = note_security
        self._fleet_session = ""
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
        """Topic filters to ask for on every connect."""
        mine = (topics.Desired(self._device).topic, topics.Ack(self._device).topic)
        return (*mine, topics.FleetState().topic, topics.every(topics.TrustRoot), topics.every(topics.TrustRole))

    def take(self, topic: str, payload: bytes) -> None:
        """One message. Raises `WireError` for one that is not what its topic promises, `AgentError` for the disk."""
        match topics.parse(topic):
            case topics.Chunk() as chunk:
                self._fetcher.receive(chunk, payload)
            case topics.TrustRoot() | topics.TrustRole() as document:
                self._keeper.take(document, payload)
                self._settle_soon()
            case topics.Desired():
                self._waiting, self._waiting_for = payload, None
                self._settle_soon()
            case topics.Ack():
                self._take_ack(payload)
            case topics.FleetState():
                self._take_fleet_state(Presence.from_bytes(payload))

    def line_is_up(self) -> None:
        """Everything that is retained comes again."""
        self._keeper.start_over()

    def line_is_down(self) -> None:
        """Nobody knows about the fleet until it is heard again."""
        self._outbox.open = False

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
            self._outbox.open = True
            self._outbox.kick()
        elif presence.session == self._fleet_session or not self._fleet_session:
            self._outbox.open = False

    def _take_ack(self, payload: bytes) -> None:
        try:
            self._outbox.take_ack(payload)
        except Untrusted as e:
            self._note_security("acknowledgement", str(e))

    # --- trust and desired state ------------------------------------------------------------------------------

    def _settle_soon(self) -> None:
        loop = asyncio.get_running_loop()
        if self._settle_due is None:
            self._settle_due = loop.call_later(GATHER, self._settle)
        if self._judge_due is not None:
            self._judge_due.cancel()
        self._judge_due = loop.call_later(QUIET, self._judge)

    def _settle(self) -> None:
        self._settle_due = None
        if self._keeper.settle():
            self._installer.trust_changed()
        if self._waiting is not None:
            self._new_desired.set()

    def _judge(self) -> None:
        judged = self._keeper.judge()
        for name, error in judged.items():
            self._note_security(name, str(error))
        if judged:
            self._settle_soon()  # a bad root held up everything behind it
        if self._waiting is not None and self._waiting_for is not None:
            self._note_security("desired state", str(self._waiting_for))
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
        if desired.device == self._device and (desired.epoch, desired.seq) == last:
            return  # the retained one again, after a reconnect
        check_desired(desired, device=self._device, last=last, now=self._now())
        await self._installer.desire(desired)
