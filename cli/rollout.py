"""`shoal rollout`: send a release to devices, in waves."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

import typer

from cli.client import Fleet
from cli.errors import BadInput, Refused, Unavailable
from cli.options import Data
from cli.output import Json, console, show
from cli.rollout_views import ENDED, aborted_profiles, plan_view, reason_of, rollout_view, rollouts_view
from wire.errors import Malformed
from wire.units import instant, seconds, show_instant

app = typer.Typer(help="Send a release to devices, in waves; watch it; stop it; bring it back.", no_args_is_help=True)

_POLL_S = 0.5
Approval = Literal["none", "start", "every-wave"]

Model = Annotated[str, typer.Argument(help="Family and name: intents/kitchen.")]
Version = Annotated[str, typer.Argument(help="The version to send, or an alias of the model: @production.")]
Rollout = Annotated[str, typer.Argument(help="Rollout id, from 'shoal rollout list'.")]
Why = Annotated[str, typer.Option("--reason", help="Why; it is kept with the rollout.")]

To = Annotated[
    str, typer.Option("--to", help="Which devices: 'profile=x86-64 and tag:kitchen and not group:lab'; all by default.")
]
Waves = Annotated[
    str, typer.Option(help="How many get it by and by: 5,10%,100% is five devices, a tenth, all. 25,100 is 25%,100%.")
]
GroupOf = Annotated[str | None, typer.Option("--group", help="Only devices of this group.")]
Soak = Annotated[str, typer.Option(help="How long each wave stands before the next, such as '2 h'.")]
GatesOf = Annotated[
    list[str] | None,
    typer.Option(
        "--gates", help="What has to hold: measured (default), install, or a limit such as latency='1.2 times'."
    ),
]
Windows = Annotated[
    list[str] | None, typer.Option("--window", help="Only in these hours: 'mon-fri 01:00-05:00 Europe/Berlin'.")
]
PerHour = Annotated[int | None, typer.Option(help="At most so many devices within an hour.")]
Mains = Annotated[bool, typer.Option("--mains", help="Only devices on mains power.")]
Battery = Annotated[int | None, typer.Option(help="Or with more than so many percent in their battery.")]
Load = Annotated[float | None, typer.Option(help="Only devices whose load is below.")]
Online = Annotated[bool, typer.Option("--only-online", help="Only devices that are connected.")]
Deadline = Annotated[
    str | None, typer.Option(help="Reach nobody new afterwards: a time in RFC 3339, or from now, such as '2 d'.")
]
Approve = Annotated[str, typer.Option(help="Who has to let it go on: none, or another person at start or every-wave.")]


@dataclass(frozen=True)
class TermOptions:
    """What a rollout keeps to, as options of a command."""

    to: To = "all"
    waves: Waves = "25,100"
    group: GroupOf = None
    soak: Soak = "0 s"
    gates: GatesOf = None
    window: Windows = None
    per_hour: PerHour = None
    mains: Mains = False
    battery_above: Battery = None
    load_below: Load = None
    only_online: Online = False
    deadline: Deadline = None
    approval: Approve = "none"

    def body(self) -> dict[str, Any]:
        """As the API takes them. Raises `BadInput`."""
        if self.approval not in get_args(Approval):
            raise BadInput(f"--approval {self.approval!r}: expected one of {', '.join(get_args(Approval))}")
        return {
            "target": self.to,
            "waves": self.waves,
            "group": self.group,
            "soak": self.soak,
            "gates": parse_gates(self.gates or ["measured"]),
            "windows": self.window or [],
            "per_hour": self.per_hour,
            "mains": self.mains,
            "battery_above": self.battery_above,
            "load_below": self.load_below,
            "online": self.only_online,
            "deadline": _deadline(self.deadline),
            "approval": self.approval,
        }


def takes_terms(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `TermOptions` in the place of its parameter `terms`: typer reads signatures."""
    hints = get_type_hints(TermOptions, include_extras=True)
    options = {f.name: Parameter(f.name, _BY_NAME, default=f.default, annotation=hints[f.name]) for f in TERMS}
    own = {
        name: one.replace(kind=_BY_NAME)
        for name, one in signature(command, eval_str=True).parameters.items()
        if name != "terms"
    }

    @wraps(command)
    def filled(**given: Any) -> None:
        terms = TermOptions(**{name: given.pop(name) for name in options})
        command(**given, terms=terms)

    asked = {name: one for name, one in own.items() if one.default is Parameter.empty}
    everything = {**asked, **options, **own}
    filled.__signature__ = Signature(list(everything.values()))  # type: ignore[attr-defined]
    filled.__annotations__ = {name: one.annotation for name, one in everything.items()}
    return filled


_BY_NAME: Final = Parameter.KEYWORD_ONLY
TERMS: Final = fields(TermOptions)


@app.command()
@takes_terms
def plan(model: Model, version: Version, terms: TermOptions, data: Data = None, as_json: Json = False) -> None:
    """Show who would get what, in which wave, and when at the earliest. Nothing is sent."""
    value = Fleet.connect(data).post("/api/v1/rollouts/plan", {**_release(model, version), **terms.body()})
    show(value, as_json, plan_view(value))


@app.command()
@takes_terms
def start(
    model: Model,
    version: Version,
    terms: TermOptions,
    plan_id: Annotated[str | None, typer.Option("--plan", help="Keep the order of this plan.")] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the end; 0 returns at once.")] = 0,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Send a release to the devices that are meant and whose profile has one of this version."""
    fleet = Fleet.connect(data)
    rollout = fleet.post("/api/v1/rollouts", {**_release(model, version), **terms.body(), "plan": plan_id})
    if wait:
        rollout = _watched(fleet, rollout["rollout"], wait, lambda value: value["state"] in ENDED)
    show(rollout, as_json, rollout_view(rollout))
    if wait:
        _check(rollout, "done")
    elif not as_json:
        console.print(f"[dim]shoal rollout watch {rollout['rollout']} waits for its end[/]", highlight=False)


@app.command()
def watch(
    rollout: Rollout,
    until: Annotated[
        str, typer.Option(help="What to wait for: done, aborted, or a wave that has begun: wave:2.")
    ] = "done",
    timeout: Annotated[str, typer.Option(help="How long: seconds, or with a unit, such as '2 h'.")] = "3600",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Wait for a rollout; exit code 0 only if what was waited for came, else not 0 with the reason."""
    wave, limit = _wave(until), _seconds(timeout)

    def over(value: dict[str, Any]) -> bool:
        return value["state"] in ENDED or _has_begun(value, wave)

    value = _watched(Fleet.connect(data), rollout, limit, over)
    show(value, as_json, rollout_view(value))
    if not _has_begun(value, wave) or value["state"] in ("aborted", "rolled-back"):
        _check(value, until)


@app.command("show")
def show_(rollout: Rollout, data: Data = None, as_json: Json = False) -> None:
    """Show one rollout: where it stands and why, each device that it reached, and what happened."""
    value = Fleet.connect(data).get(f"/api/v1/rollouts/{rollout}")
    show(value, as_json, rollout_view(value))


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List every rollout."""
    values = Fleet.connect(data).get("/api/v1/rollouts")
    show(values, as_json, rollouts_view(values))


@app.command()
def approve(rollout: Rollout, data: Data = None, as_json: Json = False) -> None:
    """Let a rollout that somebody else made start, or go on to its next wave."""
    waits = Fleet.connect(data).get(f"/api/v1/rollouts/{rollout}")["wave"]
    _act(rollout, "approve", {"wave": waits}, data, as_json=as_json)


@app.command()
def pause(rollout: Rollout, reason: Why = "", data: Data = None, as_json: Json = False) -> None:
    """Reach nobody new until it is resumed."""
    _act(rollout, "pause", {"reason": reason}, data, as_json=as_json)


@app.command()
def resume(rollout: Rollout, data: Data = None, as_json: Json = False) -> None:
    """Go on with a rollout that was paused."""
    _act(rollout, "resume", {}, data, as_json=as_json)


@app.command()
def retry(rollout: Rollout, data: Data = None, as_json: Json = False) -> None:
    """Have the devices that failed try again."""
    _act(rollout, "retry", {}, data, as_json=as_json)


@app.command()
def abort(
    rollout: Rollout,
    reason: Annotated[str, typer.Option(help="Why; it is kept with the rollout.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Stop a rollout and return every device that it touched."""
    _act(rollout, "abort", {"reason": reason}, data, as_json=as_json)


@app.command()
def rollback(
    rollout: Rollout,
    reason: Annotated[str, typer.Option(help="Why; it is kept with the rollout.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Return every device of a rollout that is done to what it ran before."""
    _act(rollout, "rollback", {"reason": reason}, data, as_json=as_json)


def parse_gates(given: list[str]) -> str | dict[str, str | int]:
    """`measured`, `install`, or `latency=1.2 times` after one of them, as the fleet takes it."""
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    found: dict[str, str | int] = {}
    for one in given:
        name, marked, value = one.partition("=")
        found[name if marked else "preset"] = int(value) if value.isdecimal() else value or name
    return found


def _release(model: str, version: str) -> dict[str, str]:
    family, _, name = model.partition("/")
    if not name:
        raise BadInput(f"{model!r}: expected family and name, such as intents/kitchen")
    return {"family": family, "name": name, "version": version}


def _deadline(text: str | None) -> str | None:
    if text is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?\s*[a-z]+", text.strip()):
        return show_instant(datetime.now(UTC) + timedelta(seconds=seconds(text, where="--deadline")))
    try:
        return show_instant(instant(text, where="--deadline"))
    except Malformed as e:
        raise BadInput(f"{e}; or a time from now such as '2 d'") from e


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return seconds(text, where="--timeout")


def _wave(until: str) -> int | None:
    """The wave that is waited for. Raises `BadInput`."""
    match = re.fullmatch(r"wave:([1-9][0-9]{0,2})", until)
    if match is None and until not in ("done", "aborted"):
        raise BadInput(f"--until {until!r}: expected done, aborted, or a wave such as wave:2")
    return int(match[1]) if match else None


def _has_begun(value: dict[str, Any], wave: int | None) -> bool:
    """Whether a wave has: one that waits for an approval has not."""
    return wave is not None and value["wave"] + 1 >= wave and value["state"] != "awaiting"


def _act(rollout: str, what: str, body: dict[str, Any], data: Path | None, *, as_json: bool) -> None:
    value = Fleet.connect(data).post(f"/api/v1/rollouts/{rollout}/{what}", body)
    show(value, as_json, rollout_view(value))


def _watched(fleet: Fleet, rollout: str, timeout_s: float, over: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The rollout once it is `over`. Raises `Unavailable` after `timeout_s` seconds.

    A fleet that answered once and does not now may be starting again: it is asked until the time is over.
    """
    deadline = time.monotonic() + timeout_s
    path = f"/api/v1/rollouts/{rollout}"
    value = fleet.get(path)
    while not over(value):
        if time.monotonic() > deadline:
            what = f"rollout {rollout}: still {value['state']} after {timeout_s:.0f} s"
            raise Unavailable(f"{what} ({value['verdict']}: {reason_of(value)})")
        time.sleep(_POLL_S)
        try:
            value = fleet.get(path)
        except Unavailable:
            if time.monotonic() > deadline:
                raise
    return dict(value)


def _check(value: dict[str, Any], until: str) -> None:
    """Raises `Refused` where a rollout has ended, and not as it was waited for."""
    what = f"rollout {value['rollout']} ended {value['state']}"
    if until == "aborted":
        if value["state"] == "done":
            raise Refused(f"{what}: {reason_of(value)}")
    elif value["state"] != "done":
        raise Refused(f"{what}: {reason_of(value)}")
    elif fallen := aborted_profiles(value):
        raise Refused(f"{what}, but was aborted on {' and on '.join(fallen)}")
