"""The agent: one asyncio loop that serves models, keeps the line, and does what the fleet may ask.

await Agent(identity, settings).run(stop)
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.metadata
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from agent import hardware
from agent.blobs import Blobs
from agent.errors import AgentError, Unavailable
from agent.health import HealthMeter
from agent.identity import Identity
from agent.inbox import Inbox
from agent.install.fetch import Fetcher
from agent.install.installer import Installer
from agent.keeper import TrustKeeper
from agent.link import MqttLink
from agent.serving import runtimes
from agent.serving.api import LocalApi
from agent.serving.cloud import Cloud
from agent.serving.server import LocalServer
from agent.serving.service import Service
from agent.settings import AgentSettings
from agent.state import StateFile
from agent.telemetry import Outbox, Recorder, WindowMeter
from wire import topics
from wire.dsse import seal
from wire.errors import WireError
from wire.messages import Reported, SecurityEvent
from wire.units import show_instant

log = logging.getLogger("agent")

STATE_FILE: Final = "agent.db"
REPORT_AFTER: Final = 0.05
"""Seconds in which changes gather into one report."""
REPORT_EVERY: Final = 300.0
"""Seconds after which a report is sent again unchanged: a broker under load may have dropped the last one."""
SECURITY_REPORTED: Final = 20


class Agent:
    """Everything of one device, wired together. Make it on the loop that runs it."""

    def __init__(self, identity: Identity, settings: AgentSettings, state: StateFile) -> None:
        self._identity = identity
        self._settings = settings
        self._state = state
        self._boot = uuid.uuid4().hex
        self._reported = 0
        self._report_due: asyncio.TimerHandle | None = None
        self._machine = hardware.detect()
        self._signer = identity.signer()
        self._keeper = TrustKeeper(state, self.now)
        self._link = MqttLink(
            identity, now=self.now, on_up=self._line_up, on_down=self._line_down, on_message=self._message
        )
        store = Blobs(settings.state / "blobs", settings.min_free)
        self._fetcher = Fetcher(
            *(identity.device, self._link, store),
            timeout=settings.fetch_timeout,
            bad_chunks=settings.bad_chunks,
            on_bad=self.note_security,
        )
        self._meter = WindowMeter()
        self._service = Service(self._meter)
        self._installer = Installer(
            settings=settings,
            state=state,
            store=store,
            fetcher=self._fetcher,
            service=self._service,
            trusted=self._keeper.trusted,
            now=self.now,
            profile=identity.profile.name,
            runtimes=runtimes.installed(),
            on_change=self._report_soon,
        )
        self._recorder = Recorder(
            *(state, self._meter),
            boot=self._boot,
            limit=settings.queue,
            now=self.now,
            health=HealthMeter(settings.state).sample,
        )
        self._outbox = Outbox(
            *(identity.device, state, self._link, self._signer, self._keeper.trusted), timeout=settings.ack_timeout
        )
        self._inbox = Inbox(
            device=identity.device,
            state=state,
            keeper=self._keeper,
            installer=self._installer,
            fetcher=self._fetcher,
            outbox=self._outbox,
            now=self.now,
            note_security=self.note_security,
        )

    # --- the story --------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`: first the local API and the models that are here, then the line to the fleet."""
        server = LocalServer(self._api(), self._settings.socket, self._settings.tcp)
        self._inbox.start()
        answering = await server.start()
        log.info("answering on %s%s", self._settings.socket, f" and {server.tcp_address}" if server.tcp_address else "")
        windows = asyncio.create_task(self._close_windows(), name="telemetry windows")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await self._installer.restore()
            self._link.start()
            await asyncio.wait([stopping, answering], return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                raise Unavailable("the local API ended by itself: the log says why; start the agent again")
        finally:
            for task in (windows, stopping):
                task.cancel()
            await asyncio.gather(windows, stopping, return_exceptions=True)
            await self._installer.stop()
            await self._inbox.stop()
            await server.stop(answering)
            self._close_window()  # after the last answer, which it counts
            self._outbox.forget()
            await self._link.stop()
            self._service.close()
            self._forget_report()

    async def _close_windows(self) -> None:
        while True:
            await asyncio.sleep(self._settings.window)
            self._close_window()
            self._outbox.kick()

    def _close_window(self) -> None:
        try:
            self._recorder.close_window()
        except Unavailable as e:
            log.error("no telemetry record now: %s", e)  # noqa: TRY400  a full disk, not a bug: models go on

    def now(self) -> datetime:
        """Trusted time: the clock, and never below the newest time that the fleet signed."""
        return max(datetime.now(UTC), self._state.newest_time())

    # --- the line ---------------------------------------------------------------------------------------------

    def _line_up(self) -> None:
        self._inbox.line_is_up()
        for pattern in self._inbox.subscriptions():
            self._link.subscribe(pattern)
        self._fetcher.line_is_up()
        self._outbox.again()
        self._report_soon()

    def _line_down(self) -> None:
        self._inbox.line_is_down()
        self._outbox.forget()

    def _message(self, topic: str, payload: bytes) -> None:
        try:
            self._inbox.take(topic, payload)
        except (WireError, AgentError) as e:
            log.warning("%s: %s", topic[:120], e)

    # --- saying what is -----------------------------------------------------------------------------------------

    def note_security(self, subject: str, reason: str) -> None:
        """Something was refused because it could not be trusted: kept, and reported to the fleet."""
        log.warning("refused %s: %s", subject, reason)
        event = SecurityEvent(at=show_instant(self.now()), subject=subject, reason=reason)
        try:
            self._state.note_security(event)
        except Unavailable as e:
            log.error("a security event is not kept: %s", e)  # noqa: TRY400  a full disk, not a bug
        self._report_soon()

    def _report_soon(self) -> None:
        self._report_within(REPORT_AFTER)

    def _report_within(self, delay: float) -> None:
        loop = asyncio.get_running_loop()
        if self._report_due is not None:
            if self._report_due.when() <= loop.time() + delay:
                return
            self._report_due.cancel()
        self._report_due = loop.call_later(delay, self._report)

    def _forget_report(self) -> None:
        if self._report_due is not None:
            self._report_due.cancel()

    def _report(self) -> None:
        self._report_due = None
        self._report_within(REPORT_EVERY)
        if not self._link.up:
            return
        self._reported += 1
        epoch, seq = self._state.last_desired()
        reported = Reported(
            device=self._identity.device,
            boot=self._boot,
            seq=self._reported,
            time=show_instant(self.now()),
            agent=version(),
            profile=self._identity.profile.name,
            hardware=str(self._machine),
            emulated=self._emulated,
            desired_epoch=epoch,
            desired_seq=seq,
            slots=self._installer.slots(),
            updates=self._installer.updates(),
            security=self._state.security()[-SECURITY_REPORTED:],
        )
        self._link.publish(topics.Reported(self._identity.device), seal(reported, self._signer), retain=True)

    @property
    def _emulated(self) -> bool:
        return not self._identity.profile.matches(machine=self._machine.machine, board=self._machine.board)

    def _api(self) -> LocalApi:
        return LocalApi(
            service=self._service,
            meter=self._meter,
            cloud=Cloud(self._identity, self._settings.cloud_timeout, self.now),
            status=self.status,
            online=lambda: self._link.up,
            body_limit=self._settings.body_limit,
            version=version(),
        )

    def status(self) -> dict[str, Any]:
        """What `GET /shoal/status` answers."""
        epoch, seq = self._state.last_desired()
        return {
            "device": self._identity.device,
            "profile": self._identity.profile.name,
            "emulated": self._emulated,
            "hardware": str(self._machine),
            "agent": version(),
            "boot": self._boot,
            "pid": os.getpid(),
            "link": {"up": self._link.up, "fleet": self._outbox.open},
            "desired": {"epoch": epoch, "seq": seq},
            "slots": [slot.to_value() for slot in self._installer.slots()],
            "updates": [report.to_value() for report in self._installer.updates()],
            "telemetry": self._state.telemetry(),
            "requests": self._service.requests,
            "security": [event.to_value() for event in self._state.security()],
        }


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """One agent per state folder. Raises `Unavailable` naming the other one's process."""
    path = state / "agent.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            file.seek(0)
            raise Unavailable(f"{state}: an agent runs here already (process {file.read().strip()}): stop it") from e
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def version() -> str:
    """The version of this distribution."""
    return importlib.metadata.version("shoal")
