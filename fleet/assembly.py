"""Everything that stands in the data folder, opened or made on first use, and put together once.

with opened(settings, https_port) as services: ...
"""

from __future__ import annotations

import secrets
from collections import ChainMap
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta

from fleet.api.tls import ServerTls
from fleet.audit import Audit
from fleet.builds.delta import DeltaMaker
from fleet.builds.queue import Queue
from fleet.builds.runner import Runner
from fleet.commands import Commands
from fleet.deltas import Deltas
from fleet.errors import Malformed, Unavailable
from fleet.gateway import config as gateway_config
from fleet.gateway.gateway import Gateway
from fleet.gateway.store import GatewayStore
from fleet.measuring import Measuring
from fleet.mqtt.broker import Broker
from fleet.mqtt.inbox import Inbox
from fleet.mqtt.limits import Gate
from fleet.mqtt.link import Link
from fleet.mqtt.outbox import Outbox
from fleet.mqtt.ranges import Ranges
from fleet.mqtt.security import SecurityLog
from fleet.mqtt.transfer import EncryptedChunks, Transfer
from fleet.own_certificates import OwnCertificates
from fleet.people import People
from fleet.ports import broker_address
from fleet.rollout_service import Rollouts
from fleet.serial import Serial
from fleet.services import Services
from fleet.settings import FleetSettings
from fleet.shadows import Shadows
from fleet.store.blobs import BlobStore
from fleet.store.database import Database
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
from wire.errors import WireError
from wire.topics import FLEET_CLIENT


@contextmanager
def opened(settings: FleetSettings, https_port: int) -> Iterator[Services]:
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
    address = broker_address(settings)
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
        shadows=Shadows(repository, desired),
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
        gateway=Gateway(gateway_config.load(settings), GatewayStore(database, _clock), serial, _clock),
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


def _clock() -> datetime:
    return datetime.now(UTC)
