"""`shoal device self-test | logs | report | restart | reset`: a device does something once, and answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from cli.asking import Yes, confirm
from cli.client import Fleet
from cli.errors import Refused, Unavailable
from cli.options import Data
from cli.output import Json, console, show, table
from wire.document import check_device

Device = Annotated[str, typer.Argument(help="Device id.")]
Wait = Annotated[float, typer.Option(help="Seconds to wait for the answer; 0 returns at once.")]

_POLL_S = 0.3
_WAITING = ("waiting", "retiring")


def add_to(app: typer.Typer) -> None:
    """The commands below, among those of `shoal device`."""
    for name, command in _COMMANDS.items():
        app.command(name)(command)


def self_test(device: Device, wait: Wait = 120, data: Data = None, as_json: Json = False) -> None:
    """Run the golden sets of the models that answer on a device, now, on its own runtime."""
    _do(device, "self-test", wait, data, as_json, _tests_table)


def logs(device: Device, wait: Wait = 30, data: Data = None, as_json: Json = False) -> None:
    """Show the newest lines of a device's log. They hold no text of a request, no token and no key."""
    _do(device, "logs", wait, data, as_json, lambda value: "\n".join(value["log"]) or "the log is empty")


def report(device: Device, wait: Wait = 30, data: Data = None, as_json: Json = False) -> None:
    """Have a device say now how it is: its reported state, and the telemetry of the open window."""
    _do(device, "report", wait, data, as_json, _in_words)


def restart(device: Device, wait: Wait = 30, data: Data = None, as_json: Json = False) -> None:
    """Have the agent of a device end and begin again. Its models do not answer for a moment."""
    _do(device, "restart", wait, data, as_json, _in_words)


def reset(device: Device, yes: Yes = False, wait: Wait = 30, data: Data = None, as_json: Json = False) -> None:
    """Reset a device to how it came: it wipes keys, data and models, and the fleet revokes it when it says so."""
    confirm(f"Reset {device}? It forgets everything, and only a new kit lets it in again.", yes=yes)
    fleet, path = Fleet.connect(data), _path(device)
    fleet.post(f"{path}/retire", {"now": False})
    value = _until(lambda: fleet.get(path), "status", wait)
    done = value["status"] == "retired"
    words = "wiped, and revoked here" if done else "it wipes itself as soon as it is there, and is revoked then"
    show({"device": device, "status": value["status"]}, as_json, f"{device}: {words}")
    if wait and not done:
        raise Unavailable(f"{device}: it did not say within {wait:g} s that it is wiped: the order waits for it")


_COMMANDS: dict[str, Callable[..., None]] = {
    "self-test": self_test,
    "logs": logs,
    "report": report,
    "restart": restart,
    "reset": reset,
}


def _do(
    device: str, action: str, wait: float, data: Data, as_json: bool, view: Callable[[dict[str, Any]], RenderableType]
) -> None:
    fleet, path = Fleet.connect(data), f"{_path(device)}/commands"
    sent = fleet.post(path, {"action": action})
    value = _until(lambda: fleet.get(f"{path}/{sent['id']}"), "state", wait) if wait else sent
    if as_json or value["state"] == "done":
        show(value, as_json, view(value))
    elif value["tests"]:
        console.print(view(value))
    if wait or value["state"] not in _WAITING:
        _check(value, wait)
    elif not as_json:
        console.print(_in_words(value))


def _check(value: dict[str, Any], wait: float) -> None:
    what = f"{value['device']}: {value['action']} {value['id']}"
    if value["state"] == "waiting":
        raise Unavailable(f"{what}: no answer within {wait:g} s: is it online? It is done until {value['expires']}")
    if value["state"] != "done":
        raise Refused(f"{what}: {value['state']} {value['reason']}".rstrip())


def _until(look: Callable[[], dict[str, Any]], key: str, wait: float) -> dict[str, Any]:
    """What it is when it is decided, or when the time is over."""
    deadline = time.monotonic() + wait
    while (value := look())[key] in _WAITING and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return value


def _tests_table(value: dict[str, Any]) -> RenderableType:
    rows = [
        [
            t["model"],
            t["digest"][:19],
            "[red]failed[/]" if t.get("fault") else "[green]holds[/]",
            *_times(t),
            t.get("fault"),
        ]
        for t in value["tests"]
    ]
    columns = ("Model", "Digest", "Golden set", "#Load ms", "#p50 ms", "#p99 ms", "Why")
    return table(f"Self-test of {value['device']}", columns, rows, empty="no model is active")


def _times(test: dict[str, Any]) -> list[str | None]:
    values = [test.get(name) for name in ("load_ms", "p50_ms", "p99_ms")]
    return [None if value is None else f"{value:.2f}" for value in values]


def _in_words(value: dict[str, Any]) -> str:
    return f"{value['device']}: {value['action']} {value['state']} {value['reason']}".rstrip()


def _path(device: str) -> str:
    return f"/api/v1/devices/{check_device(device, 'device')}"
