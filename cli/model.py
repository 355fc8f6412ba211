"""`shoal model`: what has been released."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import RenderableType

from cli.client import Fleet
from cli.options import Data
from cli.output import Json, show, table
from wire.evidence import Evidence
from wire.units import show_size

app = typer.Typer(help="What has been released, with its evidence.", no_args_is_help=True)


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List every release with its size, accuracy and latency."""
    models = Fleet.connect(data).get("/api/v1/models")
    show(models, as_json, model_table(models))


def model_table(models: list[dict[str, Any]]) -> RenderableType:
    """One row a release and profile. `Drop` is what the variant lost against its source, in points of a percent."""
    columns = ("Model", "Profile", "Runtime", "#Size", "#Accuracy", "#Drop", "#p50 ms", "Latency is", "#Devices")
    return table(
        "Models", columns, [_row(m) for m in models], empty="no release yet: shoal compile, shoal release sign"
    )


def _row(m: dict[str, Any]) -> list[object]:
    head = [f"{m['family']}/{m['name']} {m['version']}", m["profile"], f"{m['runtime']} {m['precision']}"]
    evidence = Evidence.from_value(m["evidence"]) if m["evidence"] else None
    return [*head, show_size(m["bytes"]), *(_figures(evidence) if evidence else [None] * 4), m["devices"]]


def _figures(evidence: Evidence) -> list[str | None]:
    accuracy, source, latency = (evidence.get(k) for k in ("accuracy", "source_accuracy", "latency_p50"))
    drop = (source.value - accuracy.value) * 100 if source and accuracy else None
    return [
        f"{accuracy.value:.3f}" if accuracy else None,
        f"{drop:.1f}" if drop is not None else None,
        f"{latency.value:.1f}" if latency else None,
        latency.kind if latency else None,
    ]
