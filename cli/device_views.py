"""How devices and batches look on a terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import RenderableType

from cli.output import table
from wire.units import instant, show_seconds, show_size

_STATUS_STYLE = {
    "online": "green",
    "late": "yellow",
    "offline": "red",
    "unknown": "bold yellow",
    "enrolling": "yellow",
    "pending": "bold magenta",
    "retiring": "yellow",
    "rejected": "dim",
    "retired": "dim",
    "revoked": "dim red",
}


def device_table(devices: list[dict[str, Any]]) -> RenderableType:
    """One row a device."""
    columns = ("Device", "Profile", "Group", "Status", "Runs", "Update", "#Requests", "#p50 ms", "#Accuracy", "Seen")
    return table(
        "Devices", columns, [_row(d) for d in devices], empty="no device yet: shoal device kit NAME --profile P"
    )


def batch_table(batches: list[dict[str, Any]]) -> RenderableType:
    """One row a batch."""
    columns = ("Batch", "Profile", "Group", "#Devices", "#Quota", "Until", "State")
    return table("Batches", columns, [_batch_row(b) for b in batches], empty="none")


def details(d: dict[str, Any]) -> list[RenderableType]:
    """What a row does not say of a device."""
    certificates = [
        [c["serial"][:16], c["state"], c["issued"][:19], _expiry(c), c["reason"]] for c in d["certificates"]
    ]
    slots = [[s["slot"], s["target"], s["digest"][:19]] for s in d["slots"]]
    updates = [[u["target"], u["phase"], u["reason"]] for u in d["updates"]]
    shadows = [[s["target"], s.get("phase", "waiting"), s.get("reason")] for s in d["shadows"]]
    events = [[e["at"][:19], e["subject"], e["reason"]] for e in d["security"]]
    views = [
        table("Certificates", ("Serial", "State", "Issued", "Expires", "Reason"), certificates, empty="none"),
        table("Slots", ("Slot", "Release", "Digest"), slots),
        table("Updates", ("Release", "Phase", "Reason"), updates),
        *([table("In shadow", ("Release", "Phase", "Reason"), shadows)] if shadows else []),
        table("Security events", ("At", "Subject", "Reason"), events, empty="none"),
    ]
    if d["note"]:
        views.insert(0, table("Note", ("Note",), [[d["note"].replace("[", r"\[")]]))
    told = [[e["at"][:19], e["kind"], e["text"]] for e in d["events"]]
    events_table = table("Events", ("At", "Kind", "What"), told, empty="none")
    return [*views, events_table, *_health(d["health"], d["ages"]["health"]), _ledger(d["ledger"])]


def _ledger(streams: list[dict[str, Any]]) -> RenderableType:
    names = ("produced", "delivered", "merged", "dropped", "waiting", "stored", "lost")
    rows = [
        [s["stream"], *(s[name] for name in names), f"[red]{s['fault']}[/]" if s["fault"] else "[green]balances[/]"]
        for s in streams
    ]
    columns = ("Stream", *(f"#{name.capitalize()}" for name in names), "Ledger")
    return table("Telemetry", columns, rows, empty="none yet")


def _health(h: dict[str, Any] | None, age: dict[str, Any]) -> list[RenderableType]:
    if not h:
        return []
    return [_machine(h, h.get("machine") or {}, _title(age)), _line(h, h.get("line") or {}, _title(age))]


def _title(age: dict[str, Any]) -> str:
    return f", {seen(age)}" + (" [yellow](stale)[/]" if age["stale"] else "")


def _line(h: dict[str, Any], line: dict[str, Any], age: str) -> RenderableType:
    restarts = ", ".join(f"{n} {cause}" for cause, n in sorted(h.get("restarts", {}).items()))
    cells = [
        *(_number(line.get(name)) for name in ("rtt_ms", "rtt_worst_ms")),
        *(line.get(name) for name in ("reconnects", "unanswered")),
        restarts or "none",
        show_seconds(h["uptime_s"]) if h.get("uptime_s") else None,
        _number(h.get("clock_offset_s")),
    ]
    columns = ("#Round trip ms", "#Worst ms", "#Reconnects", "#Unanswered", "Restarts", "#Up", "#Clock ahead s")
    return table(f"Line and restarts{age}", columns, [cells])


def _machine(h: dict[str, Any], machine: dict[str, Any], age: str) -> RenderableType:
    cells = [
        f"{h['cpu_percent']:.0f} %",
        f"{show_size(h['memory_used'])} of {show_size(h['memory_total'])}",
        show_size(h["agent_memory"]),
        f"{show_size(h['disk_free'])} of {show_size(h['disk_total'])}",
        _number(h.get("temperature_c")),
        {True: "[red]yes[/]", False: "no", None: None}[machine.get("throttled")],
        machine.get("power_mode"),
        machine.get("power"),
    ]
    columns = ("#CPU", "Memory", "Agent", "Disk free", "#Temperature C", "Throttled", "Power mode", "Power")
    return table(f"Health{age}", columns, [cells])


def _row(d: dict[str, Any]) -> list[object]:
    stats = d["stats"]
    style = _STATUS_STYLE.get(d["status"], "white")
    return [
        d["device"],
        f"{d['profile']} [dim]emulated[/]" if d["emulated"] else d["profile"],
        d["group"] + (f" [dim]{' '.join(d['tags'])}[/]" if d["tags"] else ""),
        f"[{style}]{d['status']}[/]" + (f" of batch {d['batch']}" if d["status"] == "pending" else ""),
        ", ".join(_short(s["target"]) for s in d["slots"] if s["slot"] == "active"),
        ", ".join(f"{_short(u['target'])} {u['phase']}" for u in d["updates"] if u["phase"] != "committed"),
        stats["requests"],
        aged(_number(stats["latency_p50_ms"]), d["ages"]["stats"]),
        aged(_accuracy(stats), d["ages"]["stats"]),
        seen(d["ages"]["seen"]),
    ]


def _batch_row(b: dict[str, Any]) -> list[object]:
    over = instant(b["expires"]) <= datetime.now(UTC)
    state = "[dim red]revoked[/]" if b["revoked"] else "[dim]over[/]" if over else "[green]open[/]"
    return [b["batch"], b["profile"], b["group"], b["devices"], b["quota"], b["expires"][:10], state]


def _expiry(certificate: dict[str, Any]) -> str:
    left = (instant(certificate["expires"]) - datetime.now(UTC)).total_seconds()
    return f"{certificate['expires'][:19]} ({f'in {show_seconds(left)}' if left > 0 else '[red]expired[/]'})"


def _short(target: str) -> str:
    """`kitchen 1.0.0` of a target path."""
    _, _, name, version, _ = target.split("/")
    return f"{name} {version}"


def aged(text: str | None, age: dict[str, Any]) -> str | None:
    """A figure with its age; one that is stale stands dim, and says so by its age: it is never shown as fresh."""
    if text is None or not age["stale"]:
        return text
    return f"[dim]{text}, {seen(age)}[/]"


def seen(age: dict[str, Any]) -> str | None:
    """How long ago."""
    return None if age["age_s"] is None else f"{show_seconds(age['age_s'])} ago"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def _accuracy(stats: dict[str, Any]) -> str | None:
    total = stats["feedback_total"]
    return f"{stats['feedback_correct'] / total:.3f} (n={total})" if total else None
