"""`shoal device`: let hardware join, see how it does, and put it out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import device_commands, device_shadow
from cli.asking import Yes, confirm
from cli.client import Fleet
from cli.device_labels import Where
from cli.device_labels import add_to as add_labels
from cli.device_views import batch_table, details, device_table
from cli.errors import BadInput
from cli.options import Data
from cli.output import Json, console, show
from cli.secret_files import write_secret
from wire.document import check_device

app = typer.Typer(help="Let hardware join, see how it does, and put it out.", no_args_is_help=True)
device_commands.add_to(app)
device_shadow.add_to(app)
add_labels(app)

Device = Annotated[str, typer.Argument(help="Device id.")]
Group = Annotated[str | None, typer.Option(help="Group of devices that the same people operate.")]
Reason = Annotated[str, typer.Option(help="Why: kept with what is known of the device.")]

_DAY = 86_400


@app.command()
def kit(
    profile: Annotated[str, typer.Option(help="Hardware class of the device; 'shoal profile list' shows them.")],
    device: Annotated[
        str | None, typer.Argument(help="Device id: a-z, 0-9 and -, up to 63 characters.", show_default=False)
    ] = None,
    group: Annotated[str, typer.Option(help="Group of devices that the same people operate.")] = "default",
    batch: Annotated[
        str | None, typer.Option(help="Make one kit for many devices, each of which waits until it is accepted.")
    ] = None,
    quota: Annotated[int | None, typer.Option(min=1, help="How many devices of the batch may ask.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days in which they may ask.  [default: 30]")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write. [default: NAME.kit]")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make the enrolment kit with which one device joins, once; or many devices of a batch."""
    name = _name_of_kit(device, batch, quota, days)
    path = output or Path(f"{name}.kit")
    if path.exists():
        raise BadInput(f"{path}: exists already: choose another name with --output")
    if batch is None:
        asked: dict[str, Any] = {"device": name, "profile": profile, "group": group}
        document = Fleet.connect(data).post("/api/v1/devices", asked)
        what = f"kit of [bold]{name}[/], works once until {document['expires']}"
    else:
        asked = {"batch": name, "profile": profile, "group": group, "quota": quota, "lifetime_s": (days or 30) * _DAY}
        document = Fleet.connect(data).post("/api/v1/batches", asked)
        what = f"kit of batch [bold]{name}[/], for up to {quota} devices until {document['expires']}"
    write_secret(path, json.dumps(document))
    more = "\nThen, for each of them: shoal device accept DEVICE" if batch else ""
    view = f"{path}: {what}\nOn the device: shoal-agent enrol --kit {path.name} --state /var/lib/shoal{more}"
    key = "device" if batch is None else "batch"
    show({key: name, "kit": str(path), "expires": document["expires"]}, as_json, view)


@app.command()
def accept(
    device: Device,
    group: Group = None,
    profile: Annotated[str | None, typer.Option(help="Hardware class, if it is not that of the batch.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Let a pending device of a batch in."""
    value = Fleet.connect(data).post(_path(device, "accept"), {"group": group, "profile": profile})
    show(value, as_json, f"{device}: accepted into group {value['group']} as {value['profile']}")


@app.command()
def reject(device: Device, reason: Reason, data: Data = None, as_json: Json = False) -> None:
    """Turn a pending device of a batch away."""
    value = Fleet.connect(data).post(_path(device, "reject"), {"reason": reason})
    show(value, as_json, f"{device}: rejected")


@app.command("list")
def list_(
    pending: Annotated[bool, typer.Option("--pending", help="Only those that wait to be accepted.")] = False,
    group: Group = None,
    where: Where = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List every device: what it runs and how it does; and the batches."""
    fleet = Fleet.connect(data)
    asked = {"status": "pending" if pending else None, "group": group, "where": where}
    devices = fleet.devices(**{name: value for name, value in asked.items() if value})
    show(devices, as_json, device_table(devices))
    if not as_json and not where and (batches := fleet.get("/api/v1/batches")):
        console.print(batch_table(batches))


@app.command("show")
def show_(device: Device, data: Data = None, as_json: Json = False) -> None:
    """Show one device: certificates, slots, updates, security events, health, line, restarts and its ledger."""
    value = Fleet.connect(data).get(_path(device))
    show(value, as_json, device_table([value]))
    if not as_json:
        for view in details(value):
            console.print(view)


@app.command()
def revoke(
    device: Annotated[str | None, typer.Argument(help="Device id.", show_default=False)] = None,
    reason: Annotated[str, typer.Option(help="Why: kept with what is known of the device.")] = "",
    batch: Annotated[str | None, typer.Option(help="Take no device of this batch in any more.")] = None,
    yes: Yes = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Put a device out at once: broker, API and renewal refuse it. Only a new kit lets it in again."""
    if device is not None and batch is not None:
        raise BadInput("revoke: name either a device, or a batch with --batch")
    if batch is not None:
        confirm(f"Revoke batch {batch}? No further device gets in with its kit.", yes=yes)
        value = Fleet.connect(data).post(f"/api/v1/batches/{check_device(batch, 'batch')}/revoke", {})
        show(value, as_json, f"batch {batch}: revoked; the {value['devices']} devices that asked stay what they are")
        return
    if device is None:
        raise BadInput("revoke: name either a device, or a batch with --batch")
    if not reason:
        raise BadInput(f"revoke {device}: say why with --reason")
    confirm(f"Revoke {device}? Only a new kit lets it in again.", yes=yes)
    value = Fleet.connect(data).post(_path(device, "revoke"), {"reason": reason})
    show(value, as_json, f"{device}: revoked")


@app.command()
def retire(
    device: Device,
    now: Annotated[bool, typer.Option("--now", help="Do not wait until it has wiped itself.")] = False,
    yes: Yes = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Have a device forget its identity, keys, models and data, and put it out."""
    confirm(f"Retire {device}? It wipes itself.", yes=yes)
    value = Fleet.connect(data).post(_path(device, "retire"), {"now": now})
    waits = ": it wipes itself as soon as it is there; --now does not wait" if value["status"] == "retiring" else ""
    show(value, as_json, f"{device}: {value['status']}{waits}")


def _name_of_kit(device: str | None, batch: str | None, quota: int | None, days: int | None) -> str:
    if batch is None and (quota is not None or days is not None):
        raise BadInput("kit: --quota and --days are of a batch: name it with --batch")
    if batch is not None and quota is None:
        raise BadInput(f"kit: batch {batch}: say with --quota how many devices may ask")
    name = batch if device is None else device
    if name is None or (device is not None and batch is not None):
        raise BadInput("kit: name either a device, or a batch with --batch")
    return name


def _path(device: str, *more: str) -> str:
    return "/".join(("/api/v1/devices", check_device(device, "device"), *more))
