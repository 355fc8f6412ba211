"""`shoal up`: one process that is the whole fleet.

code = run(settings)                                   # until SIGINT or SIGTERM
await serve(settings, announce=print, stop=event)      # the same in a loop of one's own
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
import uvloop

from fleet.api.app import create_app
from fleet.api.server import Server
from fleet.api.tls import TlsProtocol
from fleet.assembly import opened
from fleet.errors import FleetError, Unavailable
from fleet.mqtt.link import Message
from fleet.ports import listener
from fleet.serial import Gathered
from fleet.services import Services
from fleet.settings import FleetSettings
from fleet.store.folder import RunFile, hold

LINK_WITHIN = 10.0
_YOUNG = 10_000
"""New objects before a collection: a request makes hundreds, which go with it. Python's 700 had one at every third."""
TURN = 0.001
"""Seconds for which one thread may keep the others waiting: that of the broker has thousands of messages to take."""
TICK = 0.5
"""Seconds between looks at what time alone changes: deadlines, silence, freshness."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """Where a fleet that is ready can be found."""

    url: str
    broker: str
    data: Path


def run(settings: FleetSettings, *, announce: Callable[[Running], None]) -> int:
    """Serve until SIGINT or SIGTERM. The exit code: 0, or 1 after an error that was told on standard error."""
    sys.setswitchinterval(TURN)
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for chatty in ("alembic", "tuf"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        # uvloop: TLS and the loop in C take half of what a request costs in asyncio's own.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_signal(settings, announce))
    except FleetError as e:
        sys.stderr.write(f"error: {e}\n")
        return 1
    return 0


async def serve(settings: FleetSettings, *, announce: Callable[[Running], None], stop: asyncio.Event) -> None:
    """Run a fleet on its data folder until `stop` is set. Raises `FleetError` when it cannot start."""
    async with AsyncExitStack() as stack:
        stack.enter_context(hold(settings.data))
        bound = stack.enter_context(listener(settings))
        services = stack.enter_context(opened(settings, bound.getsockname()[1]))
        await stack.enter_async_context(_broker(services))
        await stack.enter_async_context(_link(services))
        stack.enter_context(_transfer(services))
        await stack.enter_async_context(_housekeeping(services))
        await stack.enter_async_context(services.compilers.running())
        await stack.enter_async_context(services.delta_maker.running())
        await stack.enter_async_context(services.gateway.running())
        await stack.enter_async_context(services.courier.running())
        await stack.enter_async_context(services.drift.running())
        await stack.enter_async_context(_https(services, bound))
        RunFile(bound.getsockname()[1], services.broker.address.port, os.getpid()).save(settings.data)
        addresses = services.enrolment.kits.addresses
        # What is there now stays: a collection need not look at it again, while requests wait.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG, 20, 20)
        announce(Running(addresses.fleet, addresses.broker, settings.data))
        await stop.wait()
        _log.info("stopping")


async def _until_signal(settings: FleetSettings, announce: Callable[[Running], None]) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, announce=announce, stop=stop)


@asynccontextmanager
async def _broker(services: Services) -> AsyncIterator[None]:
    await services.broker.start()
    try:
        yield
    finally:
        await services.broker.stop()


@asynccontextmanager
async def _link(services: Services) -> AsyncIterator[None]:
    """The connection to the broker. All that the fleet owns is published on every connect."""
    link, inbox, serial = services.link, services.inbox, services.serial

    messages, wishes = (Gathered(serial, inbox.take, size=Message.size) for _ in range(2))

    def receive(message: Message) -> None:
        if inbox.gate.admits(message.topic):
            # A wish does not wait for thousands of reports: a transfer is paced by them.
            (wishes if message.is_wish else messages).add(message)

    await serial.run(inbox.start)
    await serial.run(services.repository.refresh)
    address = services.broker.address
    link.start(
        address.local,
        address.port,
        receive=receive,
        connected=lambda: serial.post(services.outbox.everything),
    )
    try:
        await asyncio.to_thread(link.wait_until_up, LINK_WITHIN)
        yield
    finally:
        await asyncio.to_thread(link.stop)


@contextmanager
def _transfer(services: Services) -> Iterator[None]:
    services.transfer.start()
    try:
        yield
    finally:
        services.transfer.stop()


@asynccontextmanager
async def _housekeeping(services: Services) -> AsyncIterator[None]:
    task = asyncio.create_task(_tick_for_ever(services), name="housekeeping")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await services.serial.run(_close_audit, services)


async def _tick_for_ever(services: Services) -> None:
    while True:
        await asyncio.sleep(TICK)
        await services.serial.run(tick, services)


def _close_audit(services: Services) -> None:
    try:
        services.audit.close()
    except FleetError as e:
        _log.error("audit log: refusals that were only counted are not in it: %s", e)


def tick(services: Services) -> None:
    """What time alone changes, each part for itself and in a transaction of its own."""
    for name, part in (
        ("revocations", services.revocations.tick),
        ("certificates", services.certificates.tick),
        ("inbox", services.inbox.tick),
        ("audit", services.audit.tick),
        ("alerts", lambda: services.alerts.tick(services.hearing(), services.courier)),
        ("evidence", services.keeper.tick),
        ("metadata", lambda: _refresh_metadata(services)),
        ("measuring", lambda: _tick_measuring(services)),
        ("rollouts", lambda: _tick_rollouts(services)),
        ("desired states", lambda: _refresh_desired(services)),
        ("commands", lambda: _refresh_commands(services)),
        ("deltas", lambda: _tick_deltas(services)),
    ):
        services.housekeeping.turn(name, part)


def _refresh_metadata(services: Services) -> None:
    if services.repository.refresh():
        services.outbox.trust()


def _tick_measuring(services: Services) -> None:
    with services.database.transaction() as session:
        if services.leads(session):
            services.measuring.tick(session)


def _tick_rollouts(services: Services) -> None:
    with services.database.transaction() as session:
        changed = services.rollouts.tick(session)
    services.outbox.desired(changed)


def _refresh_desired(services: Services) -> None:
    with services.database.transaction() as session:
        changed = services.rollouts.desired.refresh(session)
    services.outbox.desired(changed)


def _refresh_commands(services: Services) -> None:
    with services.database.transaction() as session:
        ordered = services.commands.refresh(session) if services.leads(session) else []
    services.outbox.commands(ordered)


def _tick_deltas(services: Services) -> None:
    with services.database.transaction() as session:
        forgotten = services.deltas.tick(session) if services.leads(session) else []
    services.deltas.drop(forgotten)


@asynccontextmanager
async def _https(services: Services, bound: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        create_app(services),
        http=TlsProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=3,
        ssl_context_factory=lambda _config, _default: services.https.context,
    )
    server = Server(config)
    task = asyncio.create_task(server.serve(sockets=[bound]), name="https")
    try:
        await _until_started(server, task)
        yield
    finally:
        server.should_exit = True
        await task


async def _until_started(server: uvicorn.Server, task: asyncio.Task[None]) -> None:
    while not server.started:
        if task.done():
            await task  # it failed: say why
            raise Unavailable("https: the server ended before it was ready: see the log")
        await asyncio.sleep(0.01)
