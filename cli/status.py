"""`shoal status`: the fleet at a glance."""

from __future__ import annotations

from cli.client import Fleet
from cli.options import Data
from cli.output import Json, show, table


def status(data: Data = None, as_json: Json = False) -> None:
    """Show the fleet at a glance: broker, trust, devices, releases, rollouts, telemetry."""
    value = Fleet.connect(data).get("/api/v1/status")
    trust = ", ".join(f"{name} v{t['version']}" for name, t in sorted(value["trust"].items()))
    rows = [
        ["Version", f"{value['version']}, contract {value['contract']}, up since {value['started'][:19]}"],
        ["Broker", f"{value['broker']['state']}, port {value['broker']['port']}"],
        ["Trust", trust or "no root yet: shoal release init"],
        ["Devices", _counts(value["devices"])],
        ["Releases", value["releases"]],
        ["Rollouts", _counts(value["rollouts"])],
        [
            "Telemetry",
            f"{value['telemetry']['records']} records, {value['telemetry']['duplicates']} sent again and dropped",
        ],
    ]
    show(value, as_json, table("Fleet", ("What", "State"), rows))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "none yet"
