"""The metrics of a fleet, as Prometheus reads them. Pure: `Figures` are read by `fleet.health.figures`.

Labels are words of ours (statuses, states, roles) and names from the operator's files: no device can make up one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fleet.exposition import Labels, family


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All of them, at one moment. Times in seconds; None: nothing is known of it."""

    version: str
    started: float
    devices: Mapping[str, int]
    rollouts: Mapping[str, int]
    rollouts_held: int
    releases: int
    records: int
    duplicates: int
    lost: int
    ledger_faults: int
    evidence_age_s: float | None
    security_events: int
    lag_s: float
    mqtt_up: bool
    mqtt_taken: int
    mqtt_refused: int
    broker_up: bool
    chunks: int
    alerts: Mapping[str, int] = field(default_factory=dict)
    alert_messages: Mapping[tuple[str, str], int] = field(default_factory=dict)
    alert_rules_fault: bool = False
    housekeeping_faults: int = 0
    builds: Mapping[str, int] = field(default_factory=dict)
    expiry: Mapping[str, float] = field(default_factory=dict)
    device_expiry_s: float | None = None
    database_bytes: int = 0


def text(f: Figures) -> str:
    """For Prometheus."""
    return "".join(_lines(f))


def _lines(f: Figures) -> Iterator[str]:
    yield from family("shoal_info", "The fleet that answers.", "gauge", [((("version", f.version),), 1)])
    yield from _one("shoal_start_time_seconds", "When it started, in seconds since 1970.", "gauge", f.started)
    yield from family("shoal_devices", "Devices by status.", "gauge", _by("status", f.devices))
    yield from family("shoal_rollouts", "Rollouts by state.", "gauge", _by("state", f.rollouts))
    yield from _one("shoal_rollouts_held", "Open rollouts whose verdict is HOLD.", "gauge", f.rollouts_held)
    yield from _one("shoal_releases", "Releases that are listed.", "gauge", f.releases)
    yield from _one("shoal_telemetry_records_total", "Records of telemetry that were stored.", "counter", f.records)
    yield from _one("shoal_telemetry_duplicates_total", "Records that came again.", "counter", f.duplicates)
    yield from _one("shoal_telemetry_lost_total", "Records that were lost with a device's memory.", "counter", f.lost)
    yield from _one("shoal_ledger_faults", "Streams whose ledger does not balance.", "gauge", f.ledger_faults)
    yield from _one("shoal_evidence_age_seconds", "Age of the newest telemetry.", "gauge", f.evidence_age_s)
    yield from _one("shoal_security_events", "Security events of the last 24 hours.", "gauge", f.security_events)
    yield from _one("shoal_ingest_lag_seconds", "How long messages waited to be taken.", "gauge", f.lag_s)
    yield from _one("shoal_mqtt_up", "1 while the fleet is connected to its broker.", "gauge", f.mqtt_up)
    yield from _one("shoal_mqtt_messages_total", "Messages of devices that were taken.", "counter", f.mqtt_taken)
    yield from _one("shoal_mqtt_refused_total", "Messages of devices that were refused.", "counter", f.mqtt_refused)
    yield from _one("shoal_broker_up", "1 while the broker runs.", "gauge", f.broker_up)
    yield from _one("shoal_chunks_sent_total", "Chunks of blobs that were published.", "counter", f.chunks)
    yield from family("shoal_alerts_open", "Open alerts by severity.", "gauge", _by("severity", f.alerts))
    messages = (((("channel", channel), ("state", state)), n) for (channel, state), n in f.alert_messages.items())
    yield from family("shoal_alert_messages", "Messages of alerts of the last days.", "gauge", messages)
    yield from _one(
        "shoal_alert_rules_fault",
        "1 while alerts.toml cannot be read and older rules hold.",
        "gauge",
        f.alert_rules_fault,
    )
    about = "Parts of housekeeping (rollouts, alerts and others) that failed at their last turn: see the log."
    yield from _one("shoal_housekeeping_faults", about, "gauge", f.housekeeping_faults)
    yield from family("shoal_builds", "Builds by state.", "gauge", _by("state", f.builds))
    about = "Until the authority, the server certificate or metadata of a role expires."
    yield from family("shoal_expiry_seconds", about, "gauge", _by("of", f.expiry))
    about = "Until the first certificate of a device expires."
    yield from _one("shoal_device_certificate_expiry_seconds", about, "gauge", f.device_expiry_s)
    yield from _one("shoal_database_bytes", "Size of the database.", "gauge", f.database_bytes)


def _one(name: str, about: str, kind: Literal["counter", "gauge"], value: float | None) -> Iterator[str]:
    return family(name, about, kind, [] if value is None else [((), value)])


def _by(label: str, values: Mapping[str, float]) -> Iterator[tuple[Labels, float]]:
    return ((((label, key),), value) for key, value in values.items())
