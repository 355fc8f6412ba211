"""Messages from devices: verified, stored, answered. Called on the serial thread, one message after the other.

A device is who its topic says: the broker's access list lets nobody else write there. What needs more than that,
reports and telemetry, is signed by the key of the device's certificate; a forged one is noted and ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlmodel import Session, col, select

from fleet import devices, telemetry
from fleet.errors import FleetError, Unavailable, Untrusted
from fleet.mqtt.outbox import Outbox
from fleet.mqtt.transfer import Transfer
from fleet.rollout_service import Rollouts
from fleet.store.database import Database
from fleet.store.tables import Device
from fleet.trust.identity import key_of
from wire.dsse import open_by_key
from wire.errors import WireError
from wire.messages import Presence, Reported, Statement, TelemetryBatch, Want
from wire.topics import Reported as ReportedTopic
from wire.topics import State as StateTopic
from wire.topics import Telemetry as TelemetryTopic
from wire.topics import Want as WantTopic
from wire.topics import parse
from wire.units import show_instant

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inbox:
    """One method per kind of message. `remembered`: who is online only by the broker's memory, and since when."""

    database: Database
    outbox: Outbox
    rollouts: Rollouts
    transfer: Transfer
    offline_after: timedelta
    clock: Callable[[], datetime]
    remembered: dict[str, datetime] = field(default_factory=dict)

    def take(self, topic: str, payload: bytes, retained: bool) -> None:
        """Handle one message. Never raises for what a device sent."""
        if not payload:
            return  # a retained message was cleared
        try:
            self._dispatch(topic, payload, retained=retained)
        except Unavailable as e:  # our own disk: the device is not to blame, and sends it again
            _log.error("a message on %s was not taken: %s", topic, e)
        except (WireError, FleetError) as e:
            self._refuse(topic, e)

    def tick(self) -> None:
        """Devices that the broker remembered as online and that said nothing since are offline."""
        now = self.clock()
        silent = [d for d, since in self.remembered.items() if now - since >= self.offline_after]
        with self.database.transaction() as session:
            for device in silent:
                del self.remembered[device]
                row = devices.find(session, device)
                row.online = False
                session.add(row)

    def start(self) -> None:
        """A new process has seen nobody: those that were online say so again, or the broker remembers them."""
        with self.database.transaction() as session:
            for row in session.exec(select(Device).where(col(Device.online).is_(True))):
                row.online = False
                session.add(row)

    def _dispatch(self, topic: str, payload: bytes, *, retained: bool) -> None:
        match parse(topic):
            case StateTopic(device=device):
                self._state(device, Presence.from_bytes(payload), retained=retained)
            case ReportedTopic(device=device):
                self._reported(device, payload)
            case TelemetryTopic(device=device):
                self._telemetry(device, payload)
            case WantTopic(device=device):
                self._want(device, Want.from_bytes(payload))

    def _state(self, device: str, presence: Presence, *, retained: bool) -> None:
        with self.database.transaction() as session:
            row = self._seen(session, device, live=not retained)
            devices.take_presence(row, presence)
        if retained and presence.online:
            self.remembered.setdefault(device, self.clock())

    def _reported(self, device: str, payload: bytes) -> None:
        with self.database.transaction() as session:
            row = devices.find(session, device)
            reported = open_by_key(payload, Reported, key_of(row))
            _check_speaks_for_itself(reported, device)
            if not devices.take_report(row, reported):
                return
            session.add(row)
            changed = self.rollouts.take_report(session, device, reported)
        self.outbox.desired(changed)

    def _telemetry(self, device: str, payload: bytes) -> None:
        with self.database.transaction() as session:
            row = self._seen(session, device, live=True)
            batch = open_by_key(payload, TelemetryBatch, key_of(row))
            _check_speaks_for_itself(batch, device)
            ack = telemetry.store(session, row, batch, self.clock())
        self.outbox.ack(ack)

    def _want(self, device: str, want: Want) -> None:
        with self.database.transaction() as session:
            self._seen(session, device, live=True)
        self.transfer.want(want)

    def _seen(self, session: Session, device: str, *, live: bool) -> Device:
        row = devices.find(session, device)
        if live:
            row.last_seen = show_instant(self.clock())
            self.remembered.pop(device, None)
        session.add(row)
        return row

    def _refuse(self, topic: str, error: Exception) -> None:
        _log.warning("refused a message on %s: %s", topic, error)
        with self.database.transaction() as session:
            device = topic.split("/")[3] if topic.count("/") == 4 else ""
            if session.get(Device, device) is not None:
                devices.record_refusal(session, device, topic, str(error), self.clock())


def _check_speaks_for_itself(statement: Statement, device: str) -> None:
    if statement.device != device:
        raise Untrusted(f"{type(statement).__name__.lower()} of {statement.device}: sent by {device}")
