"""Who may not use the broker: from the database into its access and revocation lists, and off its live connections.

revocations.apply()            # after the transaction that revoked something: in force when it returns, or a warning
revocations.tick()             # finds what nobody applied, and ends the connections of those who were shut out
revocations.hold("kitchen-1")  # out for a minute: it floods

Three things shut a device out, each for what the others leave open. The access list takes every right from its live
connection, its will too. The revocation list refuses its certificate on a new one. And a moment later `tick` takes
the live connection over, which ends it and drops what was queued for it: a device that kept it open would else have its
rights back the day its id is enrolled again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlmodel import Session, col, func, select

from fleet.errors import Unanswered, Unavailable
from fleet.mqtt.broker import Broker
from fleet.mqtt.link import Link
from fleet.mqtt.takeover import take_over
from fleet.store.database import Database
from fleet.store.tables import CertificateRow, ClaimRow, Device
from fleet.trust.ca import Authority
from fleet.trust.identity import OUT
from wire.topics import Desired, Reported, State, access_rules
from wire.units import show_instant

UNUSABLE: Final = ("revoked", "old")
"""States of a certificate that no connection is let in with."""
HELD_FOR: Final = 60.0
"""Seconds that a device stays out which floods; its next flood is told no earlier (`fleet.mqtt.limits.EVERY`)."""
LOOK_EVERY: Final = 2.0
"""Seconds between two looks for what was revoked and not applied."""
SOON: Final = 0.5
"""Seconds after which the connection of who was shut out is taken over."""
LATE: Final = 120.0
"""Seconds after which it is once more: mosquitto judges a connection by the lists of when it accepted it, and gives it
95 s to show its certificate."""
_EARLIER: Final = timedelta(hours=1)
"""The lists are dated back, so that the broker finds none from the future however fast they follow one another."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Barred:
    """Who is shut out: device ids and batch names by the access list, serial numbers by the revocation lists.

    `devices` are out for good, `held` for a moment.
    """

    devices: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    batches: frozenset[str] = frozenset()
    serials: frozenset[int] = frozenset()


@dataclass
class Revocations:
    """Used on the serial thread. `authority` and `database` say who is barred, `broker` and `link` carry it out."""

    database: Database
    authority: Authority
    broker: Broker
    link: Link
    clock: Callable[[], datetime]
    applied: Barred | None = None
    """What is in force; None before the first time."""
    _dated: datetime | None = None
    _seen: tuple[object, ...] | None = None
    """What the database showed when the lists were written; None while they may not be in force."""
    _look_at: float = 0.0
    _stale: bool = False
    """The lists on the disk may be others than those of `applied`, which the broker has read."""
    _leaving: dict[str, float] = field(default_factory=dict)
    _late: dict[str, float] = field(default_factory=dict)
    _held: dict[str, float] = field(default_factory=dict)

    def apply(self, session: Session | None = None) -> None:
        """Put what the database says in force. A broker that does not answer is told again by `tick`.

        Within a transaction that is not committed yet give its session.
        """
        if session is None:
            with self.database.transaction() as own:
                self._apply(own)
        else:
            self._apply(session)

    def reissue(self) -> None:
        """Sign the lists again though nobody was revoked: the authorities changed."""
        self._stale = True
        self.apply()

    def hold(self, device: str) -> None:
        """Shut a device out for a minute: what it may say is bounded, but reading its flood keeps others waiting."""
        self._held[device] = time.monotonic() + HELD_FOR
        self.apply()

    def tick(self) -> None:
        """Apply what was revoked without a word to us, and end the live connections of who was shut out."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look()
        for device in _due(self._leaving, now):
            self._end(device)
        for device in _due(self._late, now):
            self._end_late(device)
        over = _due(self._held, now)
        for device in over:
            del self._held[device]
        if over:
            self.apply()

    def _look(self) -> None:
        began = time.monotonic()
        with self.database.transaction() as session:
            if self.broker.unread or _signs(session) != self._seen:
                self._apply(session)
        # A broker that does not answer is waited for: requests wait meanwhile, but not most of the time.
        self._look_at = time.monotonic() + max(LOOK_EVERY, 2 * (time.monotonic() - began))

    def _apply(self, session: Session) -> None:
        # Who is on the way out stays barred until it is out, even if its id may come in again.
        held = frozenset(self._leaving) | frozenset(self._held)
        barred, before = _barred(session, self.clock(), held), self.applied
        self._seen = None  # a full disk may stop us here: the next look tries again
        if barred != before or self._stale or self.broker.unread:
            self._stale = True
            rules = access_rules(barred.devices | barred.held | barred.batches)
            try:
                self.broker.restrict(rules, self._lists(barred))
            except Unanswered as e:
                _log.warning("%s. Until it does, who was shut out may be in", e)
                return
            self.applied, self._stale = barred, False
            self._shut_out(before)
        self._seen = _signs(session)

    def _lists(self, barred: Barred) -> bytes:
        """A list of each authority, for without one the broker refuses all its certificates.

        Serial numbers are random, so each list may hold those of all.
        """
        earliest = (
            self._dated + timedelta(seconds=1) if self._dated else datetime.min.replace(tzinfo=self.clock().tzinfo)
        )
        self._dated = max(self.clock() - _EARLIER, earliest).replace(microsecond=0)
        serials = sorted(barred.serials)
        return b"".join(issuer.revocation_list(serials, self._dated) for issuer in self.authority.issuers())

    def _shut_out(self, before: Barred | None) -> None:
        """What the broker keeps of those who are barred now and were not before goes; their connection follows."""
        if before is None or self.applied is None:
            return
        for device in self.applied.devices - before.devices:
            for topic in (Desired(device), Reported(device), State(device)):
                self.link.publish(topic.topic, b"", retain=True)
        for device in (self.applied.devices | self.applied.held) - (before.devices | before.held):
            self._leaving[device] = time.monotonic() + SOON

    def _end(self, device: str) -> None:
        try:
            take_over(device, self.authority, self.broker.address, self.clock())
        except Unavailable as e:  # the broker is down, and so is the connection; else it is tried again
            self._leaving[device] = time.monotonic() + LOOK_EVERY
            _log.warning("%s", e)
        else:
            del self._leaving[device]
            self._late[device] = time.monotonic() + LATE
            self.apply()

    def _end_late(self, device: str) -> None:
        """One that is in again by now has thrown out whoever lurked, by connecting."""
        applied = self.applied or Barred()
        if device in applied.devices | applied.held:
            with suppress(Unavailable):
                take_over(device, self.authority, self.broker.address, self.clock())
        del self._late[device]


def _due(times: dict[str, float], now: float) -> list[str]:
    return [name for name, at in times.items() if now >= at]


def _barred(session: Session, now: datetime, held: frozenset[str]) -> Barred:
    serial, state = col(CertificateRow.serial), col(CertificateRow.state)
    unusable = select(serial).where(state.in_(UNUSABLE), CertificateRow.expires > show_instant(now))
    of_held = select(serial).where(col(CertificateRow.device).in_(held))
    denied = frozenset(session.exec(select(Device.id).where(col(Device.state).in_(OUT))))
    claims = session.exec(select(ClaimRow.batch, ClaimRow.serial)).all()
    # A claim is good for asking for admission over HTTPS, and for nothing here, ever.
    serials = {*session.exec(unusable), *session.exec(of_held), *(serial for _, serial in claims)}
    return Barred(
        devices=denied,
        held=held - denied,
        batches=frozenset(batch for batch, _ in claims),
        serials=frozenset(int(serial, 16) for serial in serials),
    )


def _signs(session: Session) -> tuple[object, ...]:
    """What changes whenever somebody is barred: cheap enough to ask every few seconds.

    A certificate that is forgotten as another one is replaced leaves their count alone, but with a new one issued.
    """
    issued = select(func.max(CertificateRow.issued))
    of_devices = select(func.count()).select_from(Device).where(col(Device.state).in_(OUT))
    of_certificates = select(func.count()).select_from(CertificateRow).where(col(CertificateRow.state).in_(UNUSABLE))
    of_claims = select(func.count()).select_from(ClaimRow)
    return tuple(session.exec(query).one() for query in (of_devices, of_certificates, of_claims, issued))
