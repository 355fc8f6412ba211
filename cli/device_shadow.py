"""`shoal device shadow | end-shadow`: a device tries a release beside its model, and answers nobody with it."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.client import Fleet
from cli.options import Data
from cli.output import Json, show
from wire.document import check_device
from wire.shadow import ShadowModel
from wire.units import size

Device = Annotated[str, typer.Argument(help="Device id.")]


def add_to(app: typer.Typer) -> None:
    """The commands below, among those of `shoal device`."""
    app.command("shadow")(shadow)
    app.command("end-shadow")(end_shadow)


def shadow(
    device: Device,
    target: Annotated[str, typer.Argument(help="Release: models/FAMILY/NAME/VERSION/PROFILE.")],
    share: Annotated[int, typer.Option(help="Percent of the requests.")] = ShadowModel.share,
    cpu: Annotated[int, typer.Option(help="Percent of one core, over time.")] = ShadowModel.cpu,
    memory: Annotated[
        str, typer.Option(help="Most memory of its process, such as '200 MiB'; 0 B is what there is room for.")
    ] = "0 B",
    max_c: Annotated[float, typer.Option(help="Degrees Celsius above which it pauses.")] = ShadowModel.max_c,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Have a device run a release in shadow of its model: beside it, on a share of its requests."""
    asked = {"target": target, "share": share, "cpu": cpu, "memory": size(memory, where="--memory"), "max_c": max_c}
    shown = Fleet.connect(data).post(_path(device), asked)
    show(shown, as_json, f"{device}: {_words(shown)}")


def end_shadow(
    device: Device,
    model: Annotated[str, typer.Argument(help="Name of the model that it runs beside.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Have a device end what it runs in shadow of a model, and give its files up."""
    shown = Fleet.connect(data).delete(f"{_path(device)}/{quote(model, safe='')}")
    show(shown, as_json, f"{device}: {_words(shown)}")


def _path(device: str) -> str:
    return f"/api/v1/devices/{check_device(device, 'device')}/shadows"


def _words(shown: list[dict[str, Any]]) -> str:
    if not shown:
        return "runs nothing in shadow from now on"
    # What is as usual is left out of the document.
    models = [ShadowModel.from_value(value) for value in shown]
    told = (f"{m.target} on {m.share} % of the requests, {m.cpu} % of a core" for m in models)
    return f"runs in shadow {'; '.join(told)}"
