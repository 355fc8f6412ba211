"""Everything that a request may need, put together once in `fleet.assembly`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast

from starlette.requests import HTTPConnection

from fleet.api.tls import ServerTls
from fleet.audit import Audit
from fleet.builds.delta import DeltaMaker
from fleet.builds.queue import Queue
from fleet.builds.runner import Runner
from fleet.commands import Commands
from fleet.deltas import Deltas
from fleet.drift.drift import Drift
from fleet.evidence.keeping import Keeper
from fleet.gateway.gateway import Gateway
from fleet.health.alerts import Alerts
from fleet.health.courier import Courier
from fleet.health.hearing import hearing_of
from fleet.health.status import Hearing
from fleet.housekeeping import Housekeeping
from fleet.lease import Leads
from fleet.measuring import Measuring
from fleet.mqtt.broker import Broker
from fleet.mqtt.inbox import Inbox
from fleet.mqtt.link import Link
from fleet.mqtt.outbox import Outbox
from fleet.mqtt.ranges import Ranges
from fleet.mqtt.transfer import Transfer
from fleet.own_certificates import OwnCertificates
from fleet.people import People
from fleet.registry.registry import Registry
from fleet.rollout.service import Rollouts
from fleet.serial import Serial
from fleet.settings import FleetSettings
from fleet.shadows import Shadows
from fleet.store.blobs import BlobStore
from fleet.store.database import Database
from fleet.trust.batches import Batches
from fleet.trust.ca import Authority
from fleet.trust.enrolment import Enrolment
from fleet.trust.keys import OnlineKeys
from fleet.trust.renewal import Renewals
from fleet.trust.repository import Repository
from fleet.trust.revocation import Revocations


@dataclass(frozen=True, kw_only=True)
class Services:
    """The parts of a running fleet. What changes something runs on `serial`."""

    settings: FleetSettings
    clock: Callable[[], datetime]
    started: datetime
    serial: Serial
    database: Database
    blobs: BlobStore
    authority: Authority
    keys: OnlineKeys
    repository: Repository
    enrolment: Enrolment
    batches: Batches
    renewals: Renewals
    rollouts: Rollouts
    leads: Leads
    registry: Registry
    measuring: Measuring
    shadows: Shadows
    commands: Commands
    broker: Broker
    https: ServerTls
    certificates: OwnCertificates
    """Those of the fleet itself."""
    revocations: Revocations
    link: Link
    outbox: Outbox
    inbox: Inbox
    keeper: Keeper
    transfer: Transfer
    ranges: Ranges
    gateway: Gateway
    people: People
    audit: Audit
    builds: Queue
    compilers: Runner
    deltas: Deltas
    delta_maker: DeltaMaker
    alerts: Alerts
    courier: Courier
    expiries: Callable[[], Mapping[str, datetime]]
    """Until when the authority, the server's certificate and the metadata of the offline roles are good."""

    def hearing(self) -> Hearing:
        """How the fleet hears its devices now."""
        return hearing_of(self.settings, self.link.up_for, self.clock())

    drift: Drift
    housekeeping: Housekeeping = field(default_factory=Housekeeping)


def services_of(request: HTTPConnection) -> Services:
    """The services of the application that a request came to."""
    return cast(Services, request.app.state.services)
