"""`shoal rollout`: send a release to devices, in waves."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from cli.client import Fleet
from cli.errors import BadInput, Refused, Unavailable
from cli.options import Data
from cli.output import Json, console, show, table

app = typer.Typer(help="Send a release to devices, in waves; watch it; stop it.", no_args_is_help=True)

_VERDICT_STYLE = {"PROCEED": "green", "HOLD": "yellow", "ABORT": "red"}
_POLL_S = 0.5

Rollout = Annotated[str, typer.Argument(help="Rollout id, from 'shoal rollout list'.")]


@app.command()
def start(
    model: Annotated[str, typer.Argument(help="Family and name: intents/kitchen.")],
    version: Annotated[str, typer.Argument(help="The version to send.")],
    waves: Annotated[str, typer.Option(help="Rising shares of the devices in percent, ending at 100.")] = "25,100",
    group: Annotated[str | None, typer.Option(help="Only devices of this group.")] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the end; 0 returns at once.")] = 0,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Send a release to every enrolled device whose profile has one of this version."""
    family, _, name = model.partition("/")
    if not name:
        raise BadInput(f"{model!r}: expected family and name, such as intents/kitchen")
    fleet = Fleet.connect(data)
    body = {"family": family, "name": name, "version": version, "waves": parse_waves(waves), "group": group}
    rollout = fleet.post("/api/v1/rollouts", body)
    if wait:
        rollout = watch_until_ended(fleet, rollout["rollout"], wait)
    show(rollout, as_json, rollout_view(rollout))
    if wait:
        _exit_unless_done(rollout)
    elif not as_json:
        console.print(f"[dim]shoal rollout watch {rollout['rollout']} waits for its end[/]", highlight=False)


@app.command()
def watch(
    rollout: Rollout,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 3600,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Wait until a rollout has ended; exit code 0 only if it is done."""
    value = watch_until_ended(Fleet.connect(data), rollout, timeout)
    show(value, as_json, rollout_view(value))
    _exit_unless_done(value)


@app.command("show")
def show_(rollout: Rollout, data: Data = None, as_json: Json = False) -> None:
    """Show one rollout with each of its devices."""
    value = Fleet.connect(data).get(f"/api/v1/rollouts/{rollout}")
    show(value, as_json, rollout_view(value))


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List every rollout."""
    values = Fleet.connect(data).get("/api/v1/rollouts")
    rows = [[*_head(v), v["started"][:19].replace("T", " "), "; ".join(v["reasons"])] for v in values]
    columns = ("Rollout", "Release", "Group", "State", "Verdict", "Wave", "Devices", "Started", "Reasons")
    show(values, as_json, table("Rollouts", columns, rows, empty="no rollout yet: shoal rollout start"))


@app.command()
def abort(
    rollout: Rollout,
    reason: Annotated[str, typer.Option(help="Why; it is kept with the rollout.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Stop a rollout and return every device that it touched."""
    value = Fleet.connect(data).post(f"/api/v1/rollouts/{rollout}/abort", {"reason": reason})
    show(value, as_json, rollout_view(value))


def parse_waves(text: str) -> list[int]:
    """`25,100` as numbers; the fleet checks that they rise to 100. Raises `BadInput`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as e:
        raise BadInput(f"waves {text!r}: expected percentages with commas, such as 10,50,100") from e


def watch_until_ended(fleet: Fleet, rollout: str, timeout_s: float) -> dict[str, Any]:
    """The rollout once it runs no more. Raises `Unavailable` after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while (value := fleet.get(f"/api/v1/rollouts/{rollout}"))["state"] == "running":
        if time.monotonic() > deadline:
            why = "; ".join(value["reasons"]) or "no reason given"
            raise Unavailable(f"rollout {rollout}: still running after {timeout_s:.0f} s ({value['verdict']}: {why})")
        time.sleep(_POLL_S)
    return dict(value)


def rollout_view(value: dict[str, Any]) -> RenderableType:
    """One rollout: a row a device."""
    rows = [[d["device"], d["target"], d["wave"] + 1, d["state"], d["reason"]] for d in value["devices"]]
    _, release, group, state, verdict, wave, _ = _head(value)
    title = f"Rollout {value['rollout']}: {release} to {group}, {state}, wave {wave}, {verdict}"
    view = table(title, ("Device", "Release", "#Wave", "State", "Reason"), rows)
    return Group(view, *(f"  {reason}" for reason in value["reasons"]))


def _head(v: dict[str, Any]) -> list[str]:
    style = _VERDICT_STYLE.get(v["verdict"], "white")
    settled = sum(d["state"] == "committed" for d in v["devices"])
    wave = f"{min(v['wave'] + 1, len(v['waves']))} of {len(v['waves'])}"
    release = f"{v['family']}/{v['name']} {v['version']}"
    verdict, devices = f"[{style}]{v['verdict']}[/]", f"{settled} of {len(v['devices'])}"
    return [v["rollout"], release, v["group"] or "every group", v["state"], verdict, wave, devices]


def _exit_unless_done(value: dict[str, Any]) -> None:
    if value["state"] != "done":
        raise Refused(f"rollout {value['rollout']} ended {value['state']}: {'; '.join(value['reasons'])}")
