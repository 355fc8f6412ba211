"""`shoal dataset`: files of examples that the fleet's builds may use, registered for good with licence and use."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client import Fleet
from cli.errors import BadInput
from cli.options import Data
from cli.output import Json, show, table
from wire.lineage import Use
from wire.units import show_size

app = typer.Typer(help="Examples for builds on the fleet, registered for good.", no_args_is_help=True)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="JSONL or CSV of text and label, or .npz of arrays.")],
    name: Annotated[str, typer.Option(help="What builds and lineages call it: reviews-test.")],
    licence: Annotated[str, typer.Option(help="An SPDX expression such as CC-BY-4.0, or 'unknown'.")],
    use: Annotated[Use, typer.Option(help="What for; a test set is never used for anything else.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Upload a file and register it. Neither its bytes nor what is said of it ever change."""
    fleet = Fleet.connect(data)
    body = {"digest": upload(fleet, file), "name": name, "licence": licence, "use": use}
    value = fleet.post("/api/v1/datasets", body)
    show(value, as_json, _view([value]))


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List every data set."""
    values = Fleet.connect(data).get("/api/v1/datasets")
    show(values, as_json, _view(values))


@app.command("show")
def show_(
    dataset: Annotated[str, typer.Argument(help="Name or digest.")], data: Data = None, as_json: Json = False
) -> None:
    """Show one data set."""
    value = Fleet.connect(data).get(f"/api/v1/datasets/{dataset}")
    show(value, as_json, _view([value]))


def upload(fleet: Fleet, file: Path) -> str:
    """Send a file unless the fleet has it; gives its digest. Raises `BadInput`, `Refused`, `Unavailable`."""
    try:
        with file.open("rb") as content:
            digest = "sha256:" + hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as e:
        raise BadInput(f"{file}: cannot be read: {e.strerror}") from e
    fleet.put_file(f"/api/v1/blobs/{digest}", file)
    return digest


def _view(values: list[dict[str, Any]]) -> Any:
    columns = ("Name", "Use", "Licence", "#Rows", "#Size", "Digest")
    rows = [[v["name"], v["use"], v["licence"], v["rows"], show_size(v["size"]), v["digest"]] for v in values]
    return table("Data sets", columns, rows, empty="none yet: shoal dataset add")
