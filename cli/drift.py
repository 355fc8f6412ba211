"""`shoal drift`: whether devices see and say other things than they used to."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from cli.client import Fleet
from cli.options import Data
from cli.output import Json, show, table

app = typer.Typer(help="See whether what devices are asked, and what they answer, moves away.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="A model's name, or its digest or the beginning of it, from 'drift list'.")]

_AGAINST = {"reference": "the examples of the build", "past": "its own four weeks", "rest": "the other devices"}
_SUBJECT = {"lengths": "input length", "sureness": "confidence by cohort", "accuracy": "accuracy by cohort"}


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List the open alarms, and how far each model moved on its newest day."""
    value = Fleet.connect(data).get("/api/v1/drift")
    show(value, as_json, Group(alarms_view(value["alarms"]), _models(value["models"])))


@app.command("show")
def show_(model: Model, data: Data = None, as_json: Json = False) -> None:
    """Show one model: every comparison of its newest day, and all its alarms."""
    fleet = Fleet.connect(data)
    for digest in _digests(fleet, model):
        value = fleet.get(f"/api/v1/drift/models/{digest}")
        show(value, as_json, Group(_scores(value), alarms_view(value["alarms"])))


def alarms_view(alarms: list[dict[str, Any]]) -> RenderableType:
    """A row an alarm, in words."""
    rows = [
        [
            a["model"],
            a["what"],
            _AGAINST[a["against"]],
            f"[red]{a['state']}[/]" if a["state"] == "open" else a["state"],
            a["first_seen"][:10],
            a["last_seen"][:10],
            (a["ended"] or "")[:10],
        ]
        for a in alarms
    ]
    columns = ("Model", "What moved", "Against", "State", "First seen", "Last seen", "Ended")
    return table("Drift alarms", columns, rows, empty="none: nothing moved that chance does not explain")


def _digests(fleet: Fleet, model: str) -> list[str]:
    """The digests that a name stands for; what is no name goes to the fleet as it is, and it says what is wrong."""
    models = fleet.get("/api/v1/drift")["models"]
    found = [m["digest"] for m in models if m["model"] == model or m["digest"].startswith(model)]
    return found or [model]


def _models(models: list[dict[str, Any]]) -> RenderableType:
    rows = [
        [
            m["model"],
            m["digest"][:19],
            m["window"][:10],
            m["devices"],
            *(_largest(m["scores"], kind) for kind in _KINDS),
        ]
        for m in models
    ]
    columns = ("Model", "Digest", "Day", "#Devices", "#Labels", "#Confidence", "#Lengths", "#Languages")
    title = "How far models moved (PSI; below 0.1 nothing is called drift)"
    return table(
        title, columns, rows, empty="no day was judged yet: devices tell once an hour, a day is judged 90 min later"
    )


_KINDS = ("labels", "confidence", "lengths", "languages")


def _largest(scores: list[dict[str, Any]], kind: str) -> str:
    """The larger of both comparisons of a kind, red where it is a sign of drift by its size."""
    of_kind = [s for s in scores if s["subject"] == kind]
    if not of_kind:
        return ""
    most = max(of_kind, key=lambda s: s["effect"])
    text = f"{most['effect']:.2f}"
    return f"[red]{text}[/]" if most["effect"] >= most["limit"] else text


def _scores(value: dict[str, Any]) -> RenderableType:
    rows = [
        [
            "all devices" if part["stratum"] == "all" else part["stratum"].replace(":", " "),
            _SUBJECT.get(s["subject"], s["subject"]),
            _AGAINST[s["against"]],
            s["devices"],
            f"{s['effect']:.2f}",
            f"{s['limit']:.2f}",
            _chance(s["p"]),
            s["words"],
        ]
        for part in value["strata"]
        for s in part["scores"]
    ]
    columns = ("Devices of", "What", "Against", "#Devices", "#Moved", "#Limit", "#By chance", "In words")
    title = f"{value['model']} {value['digest'][:19]} on {value['window'][:10]}"
    return table(title, columns, rows, empty="too little was told for a comparison")


def _chance(p: float) -> str:
    """How seldom chance moves it as far; nothing below the floor of the index is asked about."""
    return "-" if p == 1 else "< 0.0001" if p < 0.0001 else f"{p:.4f}"
