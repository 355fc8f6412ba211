"""`shoal status`: the fleet at a glance."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cli.client import Fleet
from cli.device_views import seen
from cli.options import Data
from cli.output import WARN_DAYS, Json, show, table
from wire.units import instant


def status(data: Data = None, as_json: Json = False) -> None:
    """Show the fleet at a glance: broker, trust, devices, releases, rollouts, telemetry."""
    value = Fleet.connect(data).get("/api/v1/status")
    trust = ", ".join(_role(name, t, datetime.now(UTC)) for name, t in sorted(value["trust"].items()))
    rows = [
        ["Version", f"{value['version']}, contract {value['contract']}, up since {value['started'][:19]}"],
        ["Broker", f"{value['broker']['state']}, port {value['broker']['port']}"],
        ["Trust", trust or "no root yet: shoal release init"],
        ["Devices", _counts(value["devices"])],
        ["Releases", value["releases"]],
        ["Rollouts", _counts(value["rollouts"])],
        [
            "Telemetry",
            f"{value['telemetry']['records']} records, {value['telemetry']['duplicates']} sent again and dropped"
            + _newest(value["telemetry"]["newest"]),
        ],
        ["Security", _security(value["security"])],
    ]
    show(value, as_json, table("Fleet", ("What", "State"), rows))


def _role(name: str, role: dict[str, Any], now: datetime) -> str:
    """Name and version; the days that are left when they are few. The fleet renews snapshot and timestamp itself."""
    days = (instant(role["expires"]) - now).days
    warns = days < WARN_DAYS and name not in ("snapshot", "timestamp")
    return f"{name} v{role['version']}" + (f" [red]expires in {days} days[/]" if warns else "")


def _newest(age: dict[str, Any]) -> str:
    if age["age_s"] is None:
        return ""
    words = f"; the newest is of {seen(age)}"
    return f"[yellow]{words}[/]" if age["stale"] else words


def _security(counts: dict[str, int]) -> str:
    if not counts["events"]:
        return "nothing was refused in the last 24 hours"
    return f"[red]{counts['events']} events[/] of {counts['devices']} devices in 24 hours: shoal device show DEVICE"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "none yet"
