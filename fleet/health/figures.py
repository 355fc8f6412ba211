"""Reads the figures of the metrics from a running fleet. On the serial thread."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from sqlmodel import Session, col, func, select

from fleet import devices
from fleet.health import courier
from fleet.health.alerts import Alerts
from fleet.health.metrics import Figures
from fleet.rollout.table import OPEN, STATES
from fleet.services import Services
from fleet.store.health_tables import AlertRow
from fleet.store.tables import BuildRow, CertificateRow, LedgerRow, RolloutRow
from wire.units import instant

_BUILDS: Final = ("queued", "running")
_FILES: Final = ("fleet.db", "fleet.db-wal")


def read(services: Services) -> Figures:
    """All figures, of one transaction."""
    hearing, inbox = services.hearing(), services.inbox
    with services.database.transaction() as session:
        telemetry = devices.telemetry_counts(session, hearing)
        lost, faults = _ledgers(session)
        return Figures(
            version=version("shoal"),
            started=services.started.timestamp(),
            devices=devices.counts(session, hearing),
            rollouts=_rollouts(session),
            rollouts_held=_held(session),
            releases=len(services.repository.releases),
            records=telemetry["records"],
            duplicates=telemetry["duplicates"],
            lost=lost,
            ledger_faults=faults,
            evidence_age_s=telemetry["newest"]["age_s"],
            security_events=devices.security_counts(session, hearing.now)["events"],
            lag_s=inbox.meter.lag_s,
            mqtt_up=services.link.is_up,
            mqtt_taken=inbox.meter.taken,
            mqtt_refused=inbox.meter.refused,
            broker_up=services.broker.state == "running",
            chunks=services.transfer.published,
            alerts=_alerts(session, services.alerts),
            alert_messages=courier.counts(session),
            alert_rules_fault=bool(services.alerts.fault),
            housekeeping_faults=len(services.housekeeping.failing),
            builds=_builds(session),
            expiry={of: (when - hearing.now).total_seconds() for of, when in services.expiries().items()},
            device_expiry_s=_device_expiry(session, hearing.now),
            database_bytes=_size(services.settings.data),
        )


def _ledgers(session: Session) -> tuple[int, int]:
    lost = session.exec(select(func.sum(LedgerRow.lost))).one() or 0
    return int(lost), session.exec(select(func.count()).where(col(LedgerRow.fault) != "")).one()


def _rollouts(session: Session) -> Mapping[str, int]:
    counted = session.exec(select(RolloutRow.state, func.count()).group_by(col(RolloutRow.state))).all()
    return dict.fromkeys(STATES, 0) | dict(counted)


def _held(session: Session) -> int:
    held = select(func.count()).where(col(RolloutRow.state).in_(OPEN), col(RolloutRow.verdict) == "HOLD")
    return session.exec(held).one()


def _alerts(session: Session, alerts: Alerts) -> Mapping[str, int]:
    found = dict.fromkeys(("page", "warning", "info"), 0)
    open_ = (col(AlertRow.opened).is_not(None), col(AlertRow.ended).is_(None))
    for name, n in session.exec(select(AlertRow.rule, func.count()).where(*open_).group_by(col(AlertRow.rule))):
        rule = alerts.rules.rules.get(name)
        if rule is not None:
            found[rule.severity] += n
    return found


def _builds(session: Session) -> Mapping[str, int]:
    query = select(BuildRow.state, func.count()).where(col(BuildRow.state).in_(_BUILDS))
    return dict.fromkeys(_BUILDS, 0) | dict(session.exec(query.group_by(col(BuildRow.state))).all())


def _device_expiry(session: Session, now: datetime) -> float | None:
    first = session.exec(select(func.min(CertificateRow.expires)).where(CertificateRow.state == "current")).one()
    return (instant(first) - now).total_seconds() if first else None


def _size(data: Path) -> int:
    return sum(path.stat().st_size for name in _FILES if (path := data / name).exists())
