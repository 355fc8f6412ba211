"""Everything that stands in the data folder, opened or made on first use, and put together once.

with opened(settings, https_port) as services: ...
"""

from __future__ import annotations

import secrets
from collections import ChainMap
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from fleet import devices
from fleet.api.tls import ServerTls
from fleet.audit import Audit
from fleet.builds.delta import DeltaMaker
from fleet.builds.queue import Queue
from fleet.builds.runner import Runner
from fleet.commands import Commands
from fleet.deltas import Deltas
from fleet.drift.drift import Drift
from fleet.drift.views import drifting
from fleet.errors import Malformed, Unavailable
from fleet.evidence.comparing import comparisons
from fleet.evidence.keeping import Keeper
from fleet.evidence.recording import Recorder
from fleet.evidence.windows import Kept
from fleet.gates.history import History
from fleet.gates.judging import judge
from fleet.gates.thresholds import parse as parse_gates
from fleet.gateway import config as gateway_config
from fleet.gateway.gateway import Gateway
from fleet.gateway.store import GatewayStore
from fleet.health.alerts import Alerts
from fleet.health.courier import Courier
from fleet.health.hearing import hearing_of
from fleet.health.status import Hearing
from fleet.lease import Lease, alone, holder_of
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
from fleet.registry.observed import observed_until
from fleet.registry.registry import Registry
from fleet.rollout.gating import Gating
from fleet.rollout.service import Rollouts
from fleet.serial import Serial
from fleet.services import Services
from fleet.settings import FleetSettings
from fleet.shadows import Shadows
from fleet.store.blobs import BlobStore
from fleet.store.database import Database, open_database
from fleet.tags import tags_of
from fleet.tokens import open_first_token
from fleet.trust.acks import Acks
from fleet.trust.admission import Lifetimes
from fleet.trust.batches import Batches
from fleet.trust.blob_keys import BlobKeys
from fleet.trust.ca import Authority, KeyPair, load_certificate
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

LEASE: Final = timedelta(seconds=30)
"""How long a fleet that stopped keeps others from taking over."""


@contextmanager
def opened(settings: FleetSettings, https_port: int) -> Iterator[Services]:
    """Everything that stands in the data folder, opened or made, and put together."""
    with ExitStack() as stack:
        try:
            database = stack.enter_context(
                closing(open_database(settings.data, settings.database, settings.database_password_file))
            )
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
    lease = Lease("rollouts", holder_of(data), LEASE, _clock)
    # Of a database in the data folder no other process can have anything.
    leads = lease.held if settings.database else alone
    desired = DesiredStates(orders, blob_keys, lifetime, deltas.offers, leads)
    commands = Commands(orders, timedelta(seconds=settings.command_lifetime), timedelta(seconds=settings.wipe_lifetime))
    rollouts = Rollouts(
        repository=repository,
        desired=desired,
        settle_after=timedelta(seconds=settings.settle_after),
        clock=_clock,
        gating=Gating(parse=parse_gates, compare=comparisons, judge=judge, recall=History.from_text),
        lease=lease,
        judge_every=timedelta(seconds=settings.judge_every),
        ready=deltas.ready,
        # The line is made below: nobody is asked for before it stands.
        states=lambda session, _devices: devices.statuses(session, hearing()),
    )
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
    recorder = Recorder(Kept(fine=settings.windows_kept, hours=settings.hours_kept, days=settings.days_kept))
    keeper = Keeper(
        database,
        recorder,
        raw=timedelta(seconds=settings.telemetry_kept),
        events=timedelta(seconds=settings.events_kept),
        clock=_clock,
        leads=leads,
    )
    link = Link(client, authority.believed_path, session=secrets.token_hex(8))

    def hearing() -> Hearing:
        return hearing_of(settings, link.up_for, _clock())

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
        recorder=recorder,
    )
    builds = Queue(database, _clock)
    expiries = partial(_expiries, authority, server, repository)
    alerts = Alerts(data, database, _clock, own=expiries, drifting=drifting, leads=leads)
    courier = Courier(
        database, serial, lambda: alerts.rules, _clock, f"https://{settings.public_names[0]}:{https_port}", leads
    )
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
        leads=leads,
        registry=Registry(repository=repository, blobs=blobs, observe=observed_until(_clock), hearing=hearing),
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
        keeper=keeper,
        transfer=transfer,
        ranges=Ranges(chunks),
        gateway=Gateway(gateway_config.load(settings), GatewayStore(database, _clock), serial, _clock),
        people=People(database, _clock, timedelta(seconds=settings.session_lifetime)),
        audit=audit,
        builds=builds,
        compilers=Runner(settings, builds, blobs, serial),
        deltas=deltas,
        delta_maker=DeltaMaker(settings, deltas, database, blobs, serial),
        alerts=alerts,
        courier=courier,
        expiries=expiries,
        drift=Drift(database, serial, _clock, tags_of, leads),
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


def _expiries(authority: Authority, server: KeyPair, repository: Repository) -> dict[str, datetime]:
    """Snapshot and timestamp are left out: the fleet signs them itself, long before they run out."""
    roles = {f"metadata {name}": expires for name, (_, expires) in repository.versions().items()}
    own = {
        "authority": authority.certificate.not_valid_after_utc,
        "server": load_certificate(server.certificate.read_bytes()).not_valid_after_utc,
    }
    return own | {name: when for name, when in roles.items() if name.partition(" ")[2] not in ("snapshot", "timestamp")}


def _server_names(settings: FleetSettings) -> list[str]:
    hosts = [h for h in (settings.https_host, settings.broker_host) if h not in ("", "0.0.0.0", "::")]  # noqa: S104
    return [*settings.public_names, "localhost", "127.0.0.1", "::1", *hosts]


def _clock() -> datetime:
    return datetime.now(UTC)
