"""`shoal evidence`: how models do, by what devices say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.console import Group, RenderableType

from cli.client import Fleet
from cli.errors import BadInput
from cli.options import Data, Since, since_time
from cli.output import Json, show, table
from wire.document import check_device, check_name
from wire.units import show_size

app = typer.Typer(help="See how models do, by what devices say of them.", no_args_is_help=True)

Step = Annotated[str | None, typer.Option(help="Width of a step, such as '1 h'. [default: by the time shown]")]
_PATH = "/api/v1/evidence"


@app.command()
def device(
    device: Annotated[str, typer.Argument(help="Device id.")],
    since: Since = None,
    step: Step = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show what each model of a device did, and how the device was: of the last day, or since a time."""
    page = _get(data, f"devices/{check_device(device, 'device')}", since, step)
    _show(page, as_json, device_view(device, page))


@app.command()
def model(
    version: Annotated[str, typer.Argument(help="FAMILY/NAME/VERSION.")],
    since: Since = None,
    step: Step = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show what a version of a model did, by profile: of the last day, or since a time."""
    parts = version.split("/")
    if len(parts) != 3:
        raise BadInput(f"{version[:80]!r}: expected FAMILY/NAME/VERSION")
    path = "/".join(check_name(part, "version") for part in parts)
    page = _get(data, f"models/{path}", since, step)
    _show(page, as_json, model_view(version, page))


def device_view(device: str, page: Mapping[str, Any]) -> list[RenderableType]:
    """Each of its models in a row, then each by steps, then the device itself."""
    models = page["models"]
    return [
        table(device, _COLUMNS, [_row(one, _held(one)) for one in models], empty="no evidence"),
        *(_series(f"{_model(one)} of {device}", one["series"]) for one in models),
        _health(page["health"]),
    ]


def model_view(version: str, page: Mapping[str, Any]) -> list[RenderableType]:
    """Each profile in a row, what is known of how good it is there, then each by steps."""
    profiles = page["profiles"]
    rows = [_row(one, one["devices"])[:-2] for one in profiles]
    return [
        table(version, ("Profile", "#Devices", *_COLUMNS[2:-2]), rows, empty="no evidence"),
        table("How good it is", _FIGURES, list(_figures(profiles)), empty="nobody said so"),
        *(_series(f"{version} on {one['profile']}{_shadow(one)}", one["series"]) for one in profiles),
    ]


def _figures(profiles: list[Mapping[str, Any]]) -> Iterator[list[object]]:
    """Each kind in a row of its own: they mean different things."""
    for one in profiles:
        for kind, told in one["figures"].items():
            between = None if told["low"] is None else f"{100 * told['low']:.1f} to {100 * told['high']:.1f}"
            value = f"{100 * told['value']:.1f}"
            yield [
                f"{one['profile']}{_shadow(one)}",
                kind,
                value,
                between,
                told["n"],
                told["labelled"],
                told["devices"],
            ]


def _show(page: Any, as_json: bool, view: list[RenderableType]) -> None:
    show(page, as_json, Group(*view))


_FIGURES = ("Profile", "Figure", "#%", "#95 % interval", "#Answers", "#Labelled", "#Devices")
_COLUMNS = ("Model", "Golden set", *("#Requests", "#Errors %", "#p50 ms", "#p99 ms", "#Sure", "Accuracy", "Agreement"))


def _get(data: Any, path: str, since: str | None, step: str | None) -> Any:
    asked = {name: value for name, value in (("since", since_time(since)), ("step", step or "")) if value}
    return Fleet.connect(data).get(f"{_PATH}/{path}" + (f"?{urlencode(asked)}" if asked else ""))


def _row(one: Mapping[str, Any], second: object) -> list[object]:
    first = f"{one['profile']}{_shadow(one)}" if "devices" in one else _model(one)
    return [first, second, *_numbers(one), _share(one["accuracy"]), _share(one["agreement"])]


def _series(title: str, steps: list[dict[str, Any]]) -> RenderableType:
    rows = [
        [s["at"][:16].replace("T", " "), *_numbers(s), _share(s["accuracy"]), _share(s["agreement"])] for s in steps
    ]
    return table(title, ("From", *_COLUMNS[2:]), rows)


def _numbers(one: Mapping[str, Any]) -> list[object]:
    return [
        one["requests"],
        *(_number(one[name]) for name in ("errors_percent", "p50_ms", "p99_ms", "confidence_mean")),
    ]


def _health(steps: list[dict[str, Any]]) -> RenderableType:
    rows = [
        [
            s["at"][:16].replace("T", " "),
            show_size(s["memory"]),
            _number(s["temperature_c"]),
            _number(s["cpu_percent"]),
            s["restarts"],
        ]
        for s in steps
    ]
    return table("Device", ("From", "#Agent at most", "#Hottest C", "#CPU %", "#Restarts"), rows, empty="no evidence")


def _model(one: Mapping[str, Any]) -> str:
    return f"{one['model']} {one['digest'][7:19]}{_shadow(one)}"


def _shadow(one: Mapping[str, Any]) -> str:
    return " [dim]in shadow[/]" if one["shadow"] else ""


def _held(one: Mapping[str, Any]) -> str | None:
    golden = one["golden"]
    return None if golden is None else "holds" if golden["held"] else "[red]does not hold[/]"


def _share(value: Mapping[str, float] | None) -> str | None:
    return (
        None if value is None else f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f}, n={value['n']})"
    )


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
