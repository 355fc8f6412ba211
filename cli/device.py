"""`shoal device`: let hardware join, and see how it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from cli.client import Fleet
from cli.errors import BadInput
from cli.options import Data
from cli.output import Json, console, show, table
from wire.units import show_size

app = typer.Typer(help="Let hardware join, and see how it does.", no_args_is_help=True)

_STATUS_STYLE = {"online": "green", "offline": "red", "enrolling": "yellow"}


@app.command()
def kit(
    device: Annotated[str, typer.Argument(help="Device id: a-z, 0-9 and -, up to 63 characters.")],
    profile: Annotated[str, typer.Option(help="Hardware class of the device; 'shoal profile list' shows them.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write. [default: DEVICE.kit]")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make the enrolment kit with which one device joins, once."""
    path = output or Path(f"{device}.kit")
    if path.exists():
        raise BadInput(f"{path}: exists already: choose another name with --output")
    document = Fleet.connect(data).post("/api/v1/devices", {"device": device, "profile": profile})
    # The kit holds a token: only its owner may read it.
    path.touch(mode=0o600)
    path.write_text(json.dumps(document))
    view = (
        f"{path}: kit of [bold]{device}[/], works once until {document['expires']}\n"
        f"On the device: shoal-agent enrol --kit {path.name} --state /var/lib/shoal"
    )
    show({"device": device, "kit": str(path), "expires": document["expires"]}, as_json, view)


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List every device: what it runs and how it does."""
    devices = Fleet.connect(data).get("/api/v1/devices")
    show(devices, as_json, device_table(devices))


@app.command("show")
def show_(device: Annotated[str, typer.Argument(help="Device id.")], data: Data = None, as_json: Json = False) -> None:
    """Show one device: slots, the newest updates, security events, health."""
    value = Fleet.connect(data).get(f"/api/v1/devices/{device}")
    show(value, as_json, device_table([value]))
    if not as_json:
        for view in _details(value):
            console.print(view)


def device_table(devices: list[dict[str, Any]]) -> RenderableType:
    """One row a device."""
    columns = ("Device", "Profile", "Status", "Runs", "Update", "#Requests", "#p50 ms", "#Accuracy", "Seen")
    return table(
        "Devices", columns, [_row(d) for d in devices], empty="no device yet: shoal device kit NAME --profile P"
    )


def _row(d: dict[str, Any]) -> list[object]:
    stats = d["stats"]
    style = _STATUS_STYLE.get(d["status"], "white")
    return [
        d["device"],
        f"{d['profile']} [dim]emulated[/]" if d["emulated"] else d["profile"],
        f"[{style}]{d['status']}[/]",
        ", ".join(_short(s["target"]) for s in d["slots"] if s["slot"] == "active"),
        ", ".join(f"{_short(u['target'])} {u['phase']}" for u in d["updates"] if u["phase"] != "committed"),
        stats["requests"],
        _number(stats["latency_p50_ms"]),
        _accuracy(stats),
        (d["last_seen"] or "")[:19].replace("T", " "),
    ]


def _details(d: dict[str, Any]) -> list[RenderableType]:
    slots = [[s["slot"], s["target"], s["digest"][:19]] for s in d["slots"]]
    updates = [[u["target"], u["phase"], u["reason"]] for u in d["updates"]]
    events = [[e["at"][:19], e["subject"], e["reason"]] for e in d["security"]]
    views = [
        table("Slots", ("Slot", "Release", "Digest"), slots),
        table("Updates", ("Release", "Phase", "Reason"), updates),
        table("Security events", ("At", "Subject", "Reason"), events, empty="none"),
    ]
    if h := d["health"]:
        memory = f"{show_size(h['memory_used'])} of {show_size(h['memory_total'])}"
        disk = f"{show_size(h['disk_free'])} of {show_size(h['disk_total'])}"
        cells = [
            f"{h['cpu_percent']:.0f} %",
            memory,
            show_size(h["agent_memory"]),
            disk,
            _number(h.get("temperature_c")),
        ]
        views.append(table("Health", ("#CPU", "Memory", "Agent", "Disk free", "#Temperature C"), [cells]))
    return views


def _short(target: str) -> str:
    """`kitchen 1.0.0` of a target path."""
    _, _, name, version, _ = target.split("/")
    return f"{name} {version}"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def _accuracy(stats: dict[str, Any]) -> str | None:
    total = stats["feedback_total"]
    return f"{stats['feedback_correct'] / total:.3f} (n={total})" if total else None
