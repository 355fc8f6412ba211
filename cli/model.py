"""`shoal model`: what has been released."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from cli.client import Fleet
from cli.compile import compile_only
from cli.errors import BadInput
from cli.options import Data
from cli.output import Json, show, table
from cli.profile import load, names
from cli.registry import alias_app, lineage, suggest, versions
from wire.evidence import Evidence, Measurement
from wire.units import show_size

app = typer.Typer(help="What has been released: evidence, versions, aliases, lineage.", no_args_is_help=True)
app.command("versions")(versions)
app.command("lineage")(lineage)
app.command("suggest")(suggest)
app.add_typer(alias_app, name="alias")


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List every release with its size, how it holds its source's answers, and latency."""
    models = Fleet.connect(data).get("/api/v1/models")
    show(models, as_json, model_table(models))


@app.command("show")
def show_(
    target: Annotated[str, typer.Argument(help="Target path: models/FAMILY/NAME/VERSION/PROFILE.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show every figure of one release: those of its build, and those that devices took, each on its own."""
    found = next((m for m in Fleet.connect(data).get("/api/v1/models") if m["target"] == target), None)
    if found is None:
        raise BadInput(f"{target}: no such release: 'shoal model list' shows those there are")
    show(found, as_json, figures_table(found))


@app.command("agreement")
def agreement(data: Data = None, as_json: Json = False) -> None:
    """Show how often devices' answers agree with the reference in the cloud, and how often they are right.

    Agreement is not accuracy: the reference errs, too. Accuracy stands here once enough checked answers have a label.
    """
    models = [m for m in Fleet.connect(data).get("/api/v1/models") if m["agreement"]]
    values = [{"target": m["target"], "digest": m["digest"], **m["agreement"]} for m in models]
    show(values, as_json, agreement_table(values))


def agreement_table(values: list[dict[str, Any]]) -> RenderableType:
    """One row a release that devices had checked."""
    columns = ("Release", "#Answers", "#Checked", "#Agreement", "#95 %", "#Labelled", "#Accuracy, corrected", "#95 % ")
    rows = [
        [v["target"], v["answers"], v["checked"], *_share(v["agreement"]), v["labelled"], *_share(v["accuracy"])]
        for v in values
    ]
    return table(
        "Agreement with the reference", columns, rows, empty="nothing was checked: see cloud_model of the agent"
    )


@app.command("routes")
def routes(data: Data = None, as_json: Json = False) -> None:
    """Show where devices answered the requests to each model, here or in the cloud, and why.

    Only requests that the routing decided are counted: those of devices with cloud_model, or that said what they want.
    """
    models = [m for m in Fleet.connect(data).get("/api/v1/models") if m["routes"]]
    values = [{"target": m["target"], "digest": m["digest"], "routes": m["routes"]} for m in models]
    show(values, as_json, routes_table(values))


def routes_table(values: list[dict[str, Any]]) -> RenderableType:
    """One row a release and route, the most frequent first, with its share of the release's requests."""
    rows = [
        [v["target"], *route.split(" ", 1), requests, f"{100 * requests / max(sum(v['routes'].values()), 1):.1f} %"]
        for v in values
        for route, requests in sorted(v["routes"].items(), key=lambda one: (-one[1], one[0]))
    ]
    empty = "nothing was routed: see cloud_model of the agent"
    return table("Local or cloud", ("Release", "Where", "Why", "#Requests", "#Share"), rows, empty=empty)


def _share(estimate: dict[str, float] | None) -> tuple[str | None, str | None]:
    if estimate is None:
        return None, None
    return f"{estimate['value']:.4f}", f"{estimate['low']:.4f} to {estimate['high']:.4f}"


def figures_table(m: dict[str, Any]) -> RenderableType:
    """One row a figure. Figures of the build and of devices are never averaged."""
    columns = ("Metric", "#Value", "#Low", "#High", "Unit", "#n", "Is", "Taken on", "Runtime", "From")
    rows = [_figure(figure, source) for figure, source in _all_figures(m)]
    return table(m["target"], columns, rows, empty="no evidence yet: shoal release publish, shoal measure start")


def _all_figures(m: dict[str, Any]) -> Iterator[tuple[Measurement, str]]:
    if m["evidence"]:
        yield from ((figure, "build") for figure in Evidence.from_value(m["evidence"]).measurements)
    for job in m["measured"]:
        yield from ((Measurement.from_value(value), job["job"]) for value in job["measurements"])


def _figure(figure: Measurement, source: str) -> list[object]:
    values = (f"{v:.4g}" if v is not None else None for v in (figure.value, figure.low, figure.high))
    return [figure.metric, *values, figure.unit, figure.n, figure.kind, figure.device, figure.runtime, source]


def model_table(models: list[dict[str, Any]]) -> RenderableType:
    """One row a release and profile. `Drop` is what the variant lost against its source, in points of the metric.

    `p50` is the build's; what devices took by a measuring job stands beside it, the newest of each kind.
    """
    columns = (
        *("Model", "Profile", "Runtime", "#Size", "#Metric", "#Drop", "#p50 ms", "Latency is"),
        *("Devices' p50 ms", "#Devices"),
    )
    return table(
        "Models", columns, [_row(m) for m in models], empty="no release yet: shoal compile, shoal release sign"
    )


def _row(m: dict[str, Any]) -> list[object]:
    head = [f"{m['family']}/{m['name']} {m['version']}", _profile(m), f"{m['runtime']} {m['precision']}"]
    evidence = Evidence.from_value(m["evidence"]) if m["evidence"] else None
    return [*head, show_size(m["bytes"]), *(_figures(evidence) if evidence else [None] * 4), _taken(m), _devices(m)]


def _taken(m: dict[str, Any]) -> str | None:
    newest: dict[str, str] = {}
    for job in m["measured"]:
        for value in job["measurements"]:
            if value["metric"] == "latency_p50":
                newest.setdefault(value["kind"], f"{value['value']:.1f} {value['kind']} on {job['device']}")
    return ", ".join(newest.values()) or None


def _devices(m: dict[str, Any]) -> str:
    """How many said last that they run it; of those that are not online nobody knows what they run now."""
    there: int = m["devices"]
    online = m.get("devices_online", there)
    return f"{there}" if online == there else f"{there} ({online} online)"


def _profile(m: dict[str, Any]) -> str:
    known = load(m["profile"]) if m["profile"] in names() else None
    return f"{m['profile']} (compile-only)" if compile_only(known, m["runtime"]) else str(m["profile"])


def _figures(evidence: Evidence) -> list[str | None]:
    decision, latency = evidence.decision, evidence.get("latency_p50")
    metric = evidence.get(decision.metric)
    return [
        f"{decision.metric} {metric.value:.3f}" if metric else None,
        f"{decision.drop:.1f}",
        f"{latency.value:.1f}" if latency else None,
        latency.kind if latency else None,
    ]
