"""`shoal model`: what has been released."""

from __future__ import annotations

from typing import Any

import typer
from rich.table import Table

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


def model_table(models: list[dict[str, Any]]) -> Table:
    """One row a release and profile."""
    columns = (
        "Model",
        "Version",
        "Profile",
        "Runtime",
        "Precision",
        "#Size",
        "#Accuracy",
        "#Source",
        "#p50 ms",
        "Evidence",
        "#Devices",
    )
    return table(
        "Models", columns, [_row(m) for m in models], empty="no release yet: shoal compile, shoal release sign"
    )


def _row(m: dict[str, Any]) -> list[object]:
    evidence = Evidence.from_value(m["evidence"]) if m["evidence"] else None
    cells = [
        _figure(evidence, "accuracy", 3),
        _figure(evidence, "source_accuracy", 3),
        _figure(evidence, "latency_p50", 1),
    ]
    latency = evidence.get("latency_p50") if evidence else None
    return [
        f"{m['family']}/{m['name']}",
        *(m["version"], m["profile"], m["runtime"], m["precision"], show_size(m["bytes"])),
        *cells,
        latency.kind if latency else None,
        m["devices"],
    ]


def _figure(evidence: Evidence | None, metric: str, digits: int) -> str | None:
    found = evidence.get(metric) if evidence else None
    return f"{found.value:.{digits}f}" if found else None
