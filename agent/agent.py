"""The agent: one asyncio loop that serves models, keeps the line, and does what the fleet may ask.

await Agent(credentials, settings, state, process).run(stop)
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.metadata
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from agent.core import About, Core
from agent.enrolment.renewal import Renewal
from agent.enrolment.wipe import begin_wipe
from agent.errors import AgentError, Unavailable
from agent.identity.credentials import Credentials
from agent.identity.tls import Https
from agent.install import ranges
from agent.life import hardware
from agent.life.process import Process
from agent.line.link import MqttLink
from agent.serving import runtimes
from agent.serving.api import LocalApi
from agent.serving.capture import Capture
from agent.serving.cloud import Cloud
from agent.serving.doors import TOKEN_FILE, TcpDoor, token_of
from agent.serving.router import Router
from agent.serving.server import LocalServer
from agent.settings import AgentSettings
from agent.store.state import StateFile
from agent.trust.clock import Clock
from wire.errors import WireError
from wire.trust import TrustedSet

log = logging.getLogger("agent")
Ending = Literal["stopped", "wiped", "restart"]


class Agent:
    """A device with its sockets: the line to the broker, and the local API. Make it on the loop that runs it."""

    def __init__(self, credentials: Credentials, settings: AgentSettings, state: StateFile, process: Process) -> None:
        self._credentials = credentials
        self._settings = settings
        self._process = process
        self._wiped, self._restart = asyncio.Event(), asyncio.Event()
        self._clock = Clock(state)
        self._renewal = Renewal(
            credentials,
            self._clock,
            state,
            spread=settings.renewal_spread,
            on_renewed=lambda: self._link.hang_up("the certificate was renewed"),
        )
        self._link = MqttLink(
            credentials,
            now=self._clock.signed,
            on_up=self._line_up,
            on_down=self._line_down,
            on_message=self._message,
            on_expired=self._renewal.expired,
            on_authority=self._renewal.served_by,
        )
        self._core = Core(
            about=_about(credentials, settings),
            settings=settings,
            state=state,
            clock=self._clock,
            link=self._link,
            signer=credentials.signer,
            sealing_key=credentials.sealing_key(),
            wipe=self._wipe,
            restart=self._restart.set,
            logs=process.ring.newest,
            run=process.run,
            ranges=ranges.Ranges(Https(credentials.joined.fleet, credentials.tls, self._clock.now, ranges.TIMEOUT)),
            on_trust=self._believe,
            on_time=self._link.check_again,
            on_desired=self._renewal.look_at_epoch,
        )
        cloud = Cloud(credentials.joined.fleet, credentials.tls, settings.cloud_timeout, self._clock.now)
        self._router = Router(cloud, lambda: self._link.up, self._core.meter.agreement, settings)

    # --- the story --------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> Ending:
        """Serve until `stop`, or the fleet's command to wipe or restart: first the local API and models, then the line.

        Why it ended. Raises `Unavailable` when the local API did by itself.
        """
        server = self._server()
        answering = await server.start()
        log.info("answering on %s%s", self._settings.socket, f" and {server.tcp_address}" if server.tcp_address else "")
        beside = [asyncio.create_task(self._close_windows(), name="telemetry windows")]
        ending = [asyncio.create_task(event.wait()) for event in (stop, self._wiped, self._restart)]
        try:
            await self._core.start()
            self._link.start()
            beside.append(asyncio.create_task(self._renewal.run(), name="renewal"))
            self._process.pulse.ready()
            beside.append(asyncio.create_task(self._process.pulse.run(), name="pulse"))
            await asyncio.wait([*ending, answering], return_when=asyncio.FIRST_COMPLETED)
            return self._why(stop)
        finally:
            (self._process.pulse.restarting if self._restarts(stop) else self._process.pulse.stopping)()
            for task in (*beside, *ending):
                task.cancel()
            await asyncio.gather(*beside, *ending, return_exceptions=True)
            await server.stop(answering)
            await self._router.stop()
            asked = stop.is_set() or self._restart.is_set()
            await self._core.stop(clean=asked)  # after the last answer, which its last window counts
            await self._link.stop()

    def _restarts(self, stop: asyncio.Event) -> bool:
        return self._restart.is_set() and not (self._wiped.is_set() or stop.is_set())

    def _why(self, stop: asyncio.Event) -> Ending:
        if self._wiped.is_set():
            return "wiped"
        if stop.is_set() or self._restart.is_set():
            return "restart" if self._restarts(stop) else "stopped"
        raise Unavailable("the local API ended by itself: the log says why; start the agent again")

    async def _close_windows(self) -> None:
        while True:
            await asyncio.sleep(self._settings.window)
            try:
                await asyncio.to_thread(self._core.life.look)
                self._core.close_window()
            except Exception:
                # What the kernel says of a machine in trouble is beyond us; the next window must be counted.
                log.exception("a telemetry window is not closed")

    def _believe(self, trusted: TrustedSet) -> None:
        """Other metadata is trusted: it may name other authorities for broker and fleet."""
        try:
            gone = self._credentials.believe(trusted.authorities())
        except (WireError, AgentError) as e:
            log.error("the authorities believed stay as they were: %s", e)  # noqa: TRY400  the metadata's fault
        else:
            if gone:
                self._link.hang_up("an authority is not believed any more")

    def _wipe(self) -> None:
        begin_wipe(self._settings.state)
        log.warning("the fleet wipes this device")
        self._wiped.set()

    # --- the line, which is made before the core ------------------------------------------------------------------

    def _line_up(self) -> None:
        self._core.line_is_up()
        self._router.line_is_up()

    def _line_down(self) -> None:
        self._core.line_is_down()

    def _message(self, topic: str, payload: bytes) -> None:
        self._core.take(topic, payload)

    # --- the local API ------------------------------------------------------------------------------------------

    def _server(self) -> LocalServer:
        settings = self._settings
        door = TcpDoor(token_of(settings.state), settings.state / TOKEN_FILE) if settings.tcp else None
        return LocalServer(self._api(), settings.socket, settings.tcp, door=door, connections=settings.connections)

    def _api(self) -> LocalApi:
        return LocalApi(
            service=self._core.service,
            meter=self._core.meter,
            router=self._router,
            status=self.status,
            online=lambda: self._link.up,
            body_limit=self._settings.body_limit,
            version=version(),
            capture=self._capture(),
            language_queue=self._settings.language_queue,
        )

    def _capture(self) -> Capture | None:
        percent, size = self._settings.capture, self._settings.capture_size
        if not percent:
            return None
        log.warning("data capture is on: %s %% of the requests are kept in memory, see /shoal/capture", percent)
        return Capture(percent=percent, size=size, chance=random.random)

    def status(self) -> dict[str, Any]:
        """What `GET /shoal/status` answers."""
        return {**self._core.status(), "pid": os.getpid(), "certificate": self._renewal.status()}


def _about(credentials: Credentials, settings: AgentSettings) -> About:
    machine, profile = hardware.detect(), credentials.profile
    return About(
        device=credentials.device,
        profile=profile.name,
        hardware=str(machine),
        emulated=not profile.matches(machine=machine.machine, board=machine.board),
        agent=version(),
        runtimes=runtimes.installed(settings.workers),
        limits=profile.limits,
    )


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """One agent per state folder. Raises `Unavailable` naming the other one's process."""
    with _lock_file(state / "agent.lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            file.seek(0)
            other = file.read().decode(errors="replace").strip()
            raise Unavailable(f"{state}: an agent runs here already (process {other}): stop it") from e
        try:
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        except OSError as e:
            log.warning("%s: this process is not named there: %s", state, e)
        yield


def _lock_file(path: Path) -> FileIO:
    """For writing, and for reading on a disk that is read-only: a lock needs no more."""
    try:
        return path.open("ab+", buffering=0)
    except OSError as e:
        try:
            return path.open("rb", buffering=0)
        except OSError:
            raise Unavailable(f"{path}: cannot be made: {e.strerror}: make room, or check the disk") from e


def version() -> str:
    """The version of this distribution."""
    return importlib.metadata.version("shoal")
