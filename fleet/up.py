"""`shoal up`: one process that is the whole fleet.

code = run(settings)                                   # until SIGINT or SIGTERM
await serve(settings, announce=print, stop=event)      # the same in a loop of one's own
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
from collections import ChainMap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvicorn
from sqlalchemy.exc import SQLAlchemyError

from fleet.api.app import create_app
from fleet.api.limits import Listener
from fleet.api.tls import ServerTls, TlsProtocol
from fleet.audit import Audit
from fleet.builds.delta import DeltaMaker
from fleet.builds.queue import Queue
from fleet.builds.runner import Runner
from fleet.commands import Commands
from fleet.deltas import Deltas
from fleet.errors import FleetError, Malformed, Unavailable
from fleet.measuring import Measuring
from fleet.mqtt.broker import Broker, BrokerAddress, end_left_behind
from fleet.mqtt.inbox import Inbox
from fleet.mqtt.limits import Gate
from fleet.mqtt.link import Link, Message
from fleet.mqtt.outbox import Outbox
from fleet.mqtt.ranges import Ranges
from fleet.mqtt.security import SecurityLog
from fleet.mqtt.transfer import EncryptedChunks, Transfer
from fleet.own_certificates import OwnCertificates
from fleet.people import People
from fleet.rollout_service import Rollouts
from fleet.serial import Gathered, Serial
from fleet.services import Services
from fleet.settings import FleetSettings
from fleet.store.blobs import BlobStore
from fleet.store.database import Database
from fleet.store.folder import RunFile, hold
from fleet.tokens import open_first_token
from fleet.trust.acks import Acks
from fleet.trust.admission import Lifetimes
from fleet.trust.batches import Batches
from fleet.trust.blob_keys import BlobKeys
from fleet.trust.ca import Authority
from fleet.trust.certificates import Certificates
from fleet.trust.desired import DesiredStates
from fleet.trust.enrolment import Addresses, Enrolment, KitMaker, open_secret
from fleet.trust.keys import OnlineKeys
from fleet.trust.orders import OrderSigner
from fleet.trust.renewal import Renewals
from fleet.trust.repository import Repository
from fleet.trust.revocation import Revocations
from fleet.upstream import Upstream
from wire.errors import WireError
from wire.topics import FLEET_CLIENT

LINK_WITHIN = 10.0
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
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for chatty in ("alembic", "tuf"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        asyncio.run(_until_signal(settings, announce))
    except FleetError as e:
        sys.stderr.write(f"error: {e}\n")
        return 1
    return 0


async def serve(settings: FleetSettings, *, announce: Callable[[Running], None], stop: asyncio.Event) -> None:
    """Run a fleet on its data folder until `stop` is set. Raises `FleetError` when it cannot start."""
    async with AsyncExitStack() as stack:
        stack.enter_context(hold(settings.data))
        listener = stack.enter_context(_listener(settings))
        services = stack.enter_context(_open(settings, listener.getsockname()[1]))
        await stack.enter_async_context(_broker(services))
        await stack.enter_async_context(_link(services))
        stack.enter_context(_transfer(services))
        await stack.enter_async_context(_housekeeping(services))
        await stack.enter_async_context(services.compilers.running())
        await stack.enter_async_context(services.delta_maker.running())
        await stack.enter_async_context(_https(services, listener))
        RunFile(listener.getsockname()[1], services.broker.address.port, os.getpid()).save(settings.data)
        addresses = services.enrolment.kits.addresses
        announce(Running(addresses.fleet, addresses.broker, settings.data))
        await stop.wait()
        _log.info("stopping")


async def _until_signal(settings: FleetSettings, announce: Callable[[Running], None]) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, announce=announce, stop=stop)


@contextmanager
def _listener(settings: FleetSettings) -> Iterator[socket.socket]:
    """The HTTPS port, taken at once so that a taken one is told before anything starts."""
    last = RunFile.load(settings.data)
    with (
        _bind(settings.https_host, settings.https_port, last.https if last else 0, "https") as bound,
        Listener(bound, most=settings.max_connections) as listener,
    ):
        yield listener


def _broker_address(settings: FleetSettings) -> BrokerAddress:
    """The broker's port. mosquitto binds it itself, so a free one is found, let go and named in its configuration."""
    end_left_behind(settings.data / "broker")
    last = RunFile.load(settings.data)
    with _bind(settings.broker_host, settings.broker_port, last.broker if last else 0, "broker") as found:
        return BrokerAddress(settings.broker_host, found.getsockname()[1])


def _bind(host: str, port: int, last: int, option: str) -> socket.socket:
    """A socket on the port that was asked for; for 0 the one of last time, where devices look, or any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in [port] if port else [last, 0] if last else [0]:
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, candidate))
            bound.listen()  # a port that is only bound can be bound by another program too
        except OSError as e:
            bound.close()
            if candidate in (port, 0):
                raise Unavailable(
                    f"port {candidate} on {host}: {e.strerror}: free it, or choose another one with "
                    f"--{option} ADDRESS:PORT or the setting {option}_port"
                ) from e
        else:
            return bound
    raise AssertionError("unreachable: the last candidate returns or raises")


def _clock() -> datetime:
    return datetime.now(UTC)


@contextmanager
def _open(settings: FleetSettings, https_port: int) -> Iterator[Services]:
    """Everything that stands in the data folder, opened or made, and put together."""
    with ExitStack() as stack:
        try:
            database = stack.enter_context(closing(Database.in_folder(settings.data)))
            serial = stack.enter_context(closing(Serial()))
            services = _assemble(settings, database, serial, _clock(), https_port)
        except OSError as e:
            what = f"{e.filename or settings.data}: {e.strerror or e}"
            raise Unavailable(f"{what}: mend it, or put the fleet's own file back from a backup") from e
        except WireError as e:
            raise Malformed(f"{settings.data}: {e}: put the folder back from a backup") from e
        yield services


def _assemble(
    settings: FleetSettings, database: Database, serial: Serial, started: datetime, https_port: int
) -> Services:
    data = settings.data
    authority = Authority.open(data / "ca", started, timedelta(seconds=settings.server_lifetime))
    keys, blobs = OnlineKeys.open(data / "keys"), BlobStore(data / "blobs")
    lifetimes = Lifetimes(
        snapshot=timedelta(seconds=settings.snapshot_lifetime), timestamp=timedelta(seconds=settings.timestamp_lifetime)
    )
    repository = Repository(database, blobs, keys, lambda: authority.pem, lifetimes, _clock)
    audit = Audit(database, keys, data / "keys", _clock)
    open_first_token(data, database, audit, _clock)
    orders = OrderSigner.open(database, keys, _clock)
    blob_keys = BlobKeys(open_secret(data / "keys" / "chunk-secret"), repository)
    lifetime = timedelta(seconds=settings.desired_lifetime)
    deltas = Deltas(database, repository, blobs, _clock, kept=lifetime)
    desired = DesiredStates(orders, blob_keys, lifetime, deltas.offers)
    commands = Commands(orders, timedelta(seconds=settings.command_lifetime), timedelta(seconds=settings.wipe_lifetime))
    rollouts = Rollouts(repository, desired, timedelta(seconds=settings.settle_after), _clock, ready=deltas.ready)
    measuring = Measuring(repository, desired, _clock)
    names = _server_names(settings)
    client, server = authority.client(FLEET_CLIENT, started), authority.server(names, started)
    https = ServerTls(server, authority.believed_path)
    address = _broker_address(settings)
    broker = Broker(
        settings.mosquitto,
        data / "broker",
        address,
        server,
        client,
        authority.believed_path,
        settings.broker_connections,
    )
    link = Link(client, authority.believed_path, session=secrets.token_hex(8))
    revocations = Revocations(database, authority, broker, link, _clock)
    revocations.apply()
    certificates = OwnCertificates(authority, names, server, client, https, broker, _clock)
    outbox = Outbox(link, database, repository, orders)
    enrolment = _enrolment(settings, database, authority, desired, https_port, address.port)
    chunks = EncryptedChunks(blobs, blob_keys, lambda: ChainMap(repository.listed, deltas.listed))
    transfer = Transfer(link, chunks, gather=settings.gather, rate=settings.transfer_rate)
    inbox = Inbox(
        database=database,
        outbox=outbox,
        desired=desired,
        acks=Acks(orders, timedelta(seconds=settings.ack_lifetime)),
        commands=commands,
        rollouts=rollouts,
        measuring=measuring,
        transfer=transfer,
        gate=Gate(settings.mqtt_rate),
        security=SecurityLog(database, _clock),
        revoke=revocations.apply,
        hold=revocations.hold,
        offline_after=timedelta(seconds=settings.offline_after),
        clock=_clock,
    )
    builds = Queue(database, _clock)
    return Services(
        settings=settings,
        clock=_clock,
        started=started,
        serial=serial,
        database=database,
        blobs=blobs,
        authority=authority,
        keys=keys,
        repository=repository,
        enrolment=enrolment,
        batches=Batches(enrolment, authority),
        renewals=Renewals(database, authority, enrolment.certificates),
        rollouts=rollouts,
        measuring=measuring,
        commands=commands,
        broker=broker,
        https=https,
        certificates=certificates,
        revocations=revocations,
        link=link,
        outbox=outbox,
        inbox=inbox,
        transfer=transfer,
        ranges=Ranges(chunks),
        upstream=Upstream(settings.upstream, settings.upstream_key_file, settings.upstream_timeout),
        people=People(database, _clock, timedelta(seconds=settings.session_lifetime)),
        audit=audit,
        builds=builds,
        compilers=Runner(settings, builds, blobs, serial),
        deltas=deltas,
        delta_maker=DeltaMaker(settings, deltas, database, blobs, serial),
    )


def _enrolment(
    settings: FleetSettings, database: Database, authority: Authority, desired: DesiredStates, https: int, broker: int
) -> Enrolment:
    name = settings.public_names[0]
    return Enrolment(
        database=database,
        kits=KitMaker(authority, Addresses(fleet=f"https://{name}:{https}", broker=f"{name}:{broker}")),
        certificates=Certificates(authority, timedelta(seconds=settings.certificate_lifetime), _clock),
        desired=desired,
        secret=open_secret(settings.data / "keys" / "kit-secret"),
        kit_lifetime=timedelta(seconds=settings.kit_lifetime),
        clock=_clock,
    )


def _server_names(settings: FleetSettings) -> list[str]:
    hosts = [h for h in (settings.https_host, settings.broker_host) if h not in ("", "0.0.0.0", "::")]  # noqa: S104
    return [*settings.public_names, "localhost", "127.0.0.1", "::1", *hosts]


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
        try:
            await services.serial.run(tick, services)
        except (FleetError, WireError, SQLAlchemyError, OSError):
            _log.exception("housekeeping failed: it is tried again")


def _close_audit(services: Services) -> None:
    try:
        services.audit.close()
    except FleetError as e:
        _log.error("audit log: refusals that were only counted are not in it: %s", e)


def tick(services: Services) -> None:
    """What time alone changes."""
    services.revocations.tick()
    services.certificates.tick()
    services.inbox.tick()
    services.audit.tick()
    if services.repository.refresh():
        services.outbox.trust()
    with services.database.transaction() as session:
        services.measuring.tick(session)
        changed = [*services.rollouts.tick(session), *services.rollouts.desired.refresh(session)]
        ordered = services.commands.refresh(session)
        forgotten = services.deltas.tick(session)
    services.deltas.drop(forgotten)
    services.outbox.desired(changed)
    services.outbox.commands(ordered)


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: the fleet decides when it stops."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _https(services: Services, listener: socket.socket) -> AsyncIterator[None]:
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
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="https")
    try:
        await _until_started(server, task)
        yield
    finally:
        server.should_exit = True
        await task
        await services.upstream.close()


async def _until_started(server: uvicorn.Server, task: asyncio.Task[None]) -> None:
    while not server.started:
        if task.done():
            await task  # it failed: say why
            raise Unavailable("https: the server ended before it was ready: see the log")
        await asyncio.sleep(0.01)
