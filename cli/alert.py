"""`shoal alert`: what is wrong now, who knows of it, and what shall not be told for a while."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape

from cli.client import Fleet
from cli.options import Data
from cli.output import Json, console, show, table
from wire.units import seconds

app = typer.Typer(help="See what is wrong, say that you know, and keep alerts quiet.", no_args_is_help=True)

_SEVERITY = {"page": "bold red", "warning": "yellow", "info": "dim"}


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List open alerts, silences, and how the channels do."""
    value = Fleet.connect(data).get("/api/v1/alerts")
    show(value, as_json, _alerts(value["alerts"]))
    if not as_json:
        if value["silences"]:
            console.print(_silences(value["silences"]))
        console.print(_channels(value))
        if value["fault"]:
            console.print(f"[red]the rules of before hold:[/] {escape(value['fault'])}")


@app.command()
def ack(
    alert: Annotated[str, typer.Argument(help="Id of the alert; 'shoal alert list' shows it.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Say that you know of an alert: it is told again only when it is over."""
    value = Fleet.connect(data).post(f"/api/v1/alerts/{_id(alert)}/acknowledge", {})
    show(value, as_json, f"{value['rule']} {value['subject']}: acknowledged by {value['acknowledged']}")


@app.command()
def silence(
    lasts: Annotated[str, typer.Argument(help="How long, such as '2 h'.")],
    reason: Annotated[str, typer.Option(help="Why: others see it.")],
    rule: Annotated[str, typer.Option(help="Only this rule.")] = "",
    subject: Annotated[str, typer.Option(help="Only this device, model, rollout, ...")] = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Have nothing told for a while. Alerts open and end meanwhile as ever."""
    asked = {"rule": rule, "subject": subject, "lasts_s": max(1, int(seconds(lasts, where="lasts"))), "reason": reason}
    value = Fleet.connect(data).post("/api/v1/alerts/silences", asked)
    show(value, as_json, f"silence {value['id']} until {value['until'][:19]}")


@app.command()
def unsilence(
    silence_id: Annotated[str, typer.Argument(metavar="SILENCE", help="Id of the silence.")], data: Data = None
) -> None:
    """End a silence."""
    Fleet.connect(data).delete(f"/api/v1/alerts/silences/{_id(silence_id)}")
    console.print(f"silence {silence_id}: over")


@app.command("test")
def try_channel(
    channel: Annotated[str, typer.Argument(help="Name of the channel in alerts.toml.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Send a message to a channel, to see whether it arrives."""
    value = Fleet.connect(data).post("/api/v1/alerts/test", {"channel": channel})
    show(value, as_json, f"message {value['message']} is on its way: 'shoal alert list' shows how the channel does")


def _alerts(alerts: list[dict[str, Any]]) -> RenderableType:
    rows = [
        [
            a["id"],
            f"[{_SEVERITY.get(a['severity'], 'white')}]{a['severity']}[/]",
            escape(a["rule"]),
            escape(a["subject"]),
            escape(a["text"]),
            a["began"][:19].replace("T", " "),
            escape(a["acknowledged"]),
        ]
        for a in alerts
    ]
    columns = ("Alert", "Severity", "Rule", "Subject", "What", "Since", "Known to")
    return table("Alerts", columns, rows, empty="nothing is wrong that a rule knows of")


def _silences(silences: list[dict[str, Any]]) -> RenderableType:
    rows = [
        [
            s["id"],
            escape(s["rule"]) or "every",
            escape(s["subject"]) or "every",
            s["until"][:19],
            s["who"],
            escape(s["reason"]),
        ]
        for s in silences
    ]
    return table("Silences", ("Silence", "Rule", "Subject", "Until", "Who", "Why"), rows)


def _channels(value: dict[str, Any]) -> RenderableType:
    rows = [
        [escape(c["name"]), c["kind"], c["sent"], c["waiting"], f"[red]{c['failed']}[/]" if c["failed"] else 0]
        for c in value["channels"]
    ]
    title = f"Channels of {len(value['rules'])} rules"
    return table(title, ("Channel", "Kind", "#Sent", "#Waiting", "#Given up"), rows, empty="none in alerts.toml")


def _id(text: str) -> str:
    """An id in a path: nothing in it may begin another part of it."""
    return "".join(c for c in text if c.isalnum() or c in "-_")[:64] or "-"
