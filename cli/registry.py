"""`shoal model versions | alias | lineage | suggest`: what the registry holds, and which model to take."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer
from rich.console import Group, RenderableType

from cli.client import Fleet
from cli.errors import BadInput
from cli.options import Data
from cli.output import Json, console, show, table
from cli.rollout import TermOptions, takes_terms
from wire.units import show_size

alias_app = typer.Typer(help="Names that stand for one version, such as production.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="Family and name: intents/kitchen.")]
_FIT_STYLE = {"fits": "green", "unknown": "yellow"}
_MODELS = "/api/v1/registry/models"


def versions(
    model: Annotated[str | None, typer.Argument(help="Family and name; every model without it.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List the versions of models, what aliases they have, and how many devices run each."""
    fleet = Fleet.connect(data)
    found = [fleet.get(_path(model))] if model else fleet.get(_MODELS)
    show(found, as_json, versions_table(found))


@alias_app.command("list")
def list_(model: Model, data: Data = None, as_json: Json = False) -> None:
    """Show what the aliases of a model mean, and how they moved."""
    value = Fleet.connect(data).get(_path(model))
    show(value, as_json, alias_view(value))


@alias_app.command("set")
@takes_terms
def set_(
    model: Model,
    alias: Annotated[str, typer.Argument(help="production, staging, or any other name.")],
    version: Annotated[str, typer.Argument(help="The version that it shall mean.")],
    terms: TermOptions,
    reason: Annotated[str, typer.Option(help="Why; it is kept.")] = "",
    was: Annotated[str | None, typer.Option(help="Only if it means this version now.", show_default=False)] = None,
    roll_out: Annotated[
        bool, typer.Option("--rollout", help="Begin a rollout of the version, too, on the terms above.")
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Have an alias mean a version; production takes an approver or an admin."""
    body: dict[str, Any] = {"version": version, "reason": reason, "was": was}
    if roll_out:
        body["rollout"] = terms.body()
    value = Fleet.connect(data).post(f"{_path(model)}/aliases/{quote(alias, safe='')}", body)
    show(value, as_json, alias_view(value))
    if value["rollout"] and not as_json:
        console.print(f"[dim]shoal rollout watch {value['rollout']} waits for its end[/]", highlight=False)


@alias_app.command("remove")
def remove(
    model: Model,
    alias: Annotated[str, typer.Argument(help="The name that goes.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept.")] = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Take an alias away. What runs goes on."""
    value = Fleet.connect(data).post(f"{_path(model)}/aliases/{quote(alias, safe='')}/remove", {"reason": reason})
    show(value, as_json, alias_view(value))


def lineage(
    model: Model,
    version: Annotated[str, typer.Argument(help="A version, or an alias such as @production.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show what a version was made of, and where it runs: from source and data to bundles to devices."""
    value = Fleet.connect(data).get(f"{_path(model)}/versions/{quote(version, safe='@')}/lineage")
    show(value, as_json, lineage_view(value))


def suggest(
    profile: Annotated[str, typer.Option(help="Hardware class: see 'shoal profile list'.")],
    task: Annotated[str, typer.Option(help="What it has to do, such as text-classification.")] = "",
    max_ms: Annotated[float, typer.Option(help="Longest median time of an answer in ms; 0: any.")] = 0.0,
    max_mb: Annotated[float, typer.Option(help="Largest bundle in MiB; 0: any.")] = 0.0,
    min_accuracy: Annotated[float, typer.Option(help="Least share of right answers, 0 to 1.")] = 0.0,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Rank what is released for a profile by what is known of it, this fleet's own experience first."""
    query = {"profile": profile, "task": task, "max_ms": max_ms, "max_mb": max_mb, "min_accuracy": min_accuracy}
    found = Fleet.connect(data).get(f"/api/v1/registry/suggest?{urlencode(query)}")
    show(found, as_json, suggest_table(profile, found))


def versions_table(models: list[dict[str, Any]]) -> RenderableType:
    """One row a version, the newest of a model last."""
    rows = [
        [one["model"], v["version"], *map(", ".join, (v["aliases"], v["profiles"])), v["devices"], v["devices_online"]]
        for one in models
        for v in one["versions"]
    ]
    columns = ("Model", "Version", "Aliases", "Profiles", "#Devices", "#Online")
    return table("Versions", columns, rows, empty="no release yet: shoal compile, shoal release sign")


def alias_view(value: dict[str, Any]) -> RenderableType:
    """What the aliases of a model mean, and their moves, the newest first."""
    now = [[alias, version] for alias, version in sorted(value["aliases"].items())]
    moves = [
        [m["at"][:19].replace("T", " "), m["alias"], m["was"], m["version"], m["who"], m["rollout"], m["reason"]]
        for m in value["moves"]
    ]
    columns = ("When", "Alias", "From", "To", "Who", "Rollout", "Reason")
    empty = f"no alias yet: shoal model alias set {value['model']} production VERSION"
    return Group(
        table(f"Aliases of {value['model']}", ("Alias", "Version"), now, empty=empty),
        *([table("How they moved", columns, moves)] if moves else []),
    )


def lineage_view(value: dict[str, Any]) -> RenderableType:
    """Three tables: what each bundle was made of, the data, and where it runs."""
    made = [
        [b["profile"], *_made(b["lineage"]), f"{b['runtime']} {b['precision']}", b["registered"]]
        for b in value["bundles"]
    ]
    sets = {(d["use"], d["name"], d["digest"], d["rows"], d["licence"]) for d in _datasets(value)}
    data = [[use, name, f"{digest[:19]}...", rows, licence] for use, name, digest, rows, licence in sorted(sets)]
    runs = [
        [b["profile"], f"{b['digest'][:19]}...", show_size(b["bytes"]), b["devices"], _some(b["running"])]
        for b in value["bundles"]
    ]
    rolled = [[r["rollout"], r["state"], r["started"][:19].replace("T", " "), r["devices"]] for r in value["rollouts"]]
    named = f" ({', '.join(value['aliases'])})" if value["aliases"] else ""
    return Group(
        table(
            f"{value['model']} {value['version']}{named}: made of",
            ("Profile", "Source", "Kind", "Architecture", "Recipe", "Becomes", "Registered as"),
            made,
        ),
        table("Data", ("Use", "Name", "Digest", "#Rows", "Licence"), data, empty="its bundles name none"),
        table("Bundles", ("Profile", "Digest", "#Size", "#Devices", "Running on"), runs),
        table("Rollouts", ("Rollout", "State", "Started", "#Devices"), rolled, empty="none yet: shoal rollout start"),
    )


def suggest_table(profile: str, found: list[dict[str, Any]]) -> RenderableType:
    """One row a release, the best first."""
    rows = [
        [
            one["target"].split("/", 1)[1].rsplit("/", 1)[0],
            f"[{_FIT_STYLE.get(one['fit'], 'red')}]{one['fit']}[/]",
            "; ".join(one["reasons"]),
            one["devices"],
            ", ".join(one["aliases"]),
        ]
        for one in found
    ]
    columns = ("Model", "Fit", "Why", "#Devices", "Aliases")
    return table(f"For {profile}", columns, rows, empty="nothing is released for it: shoal compile --profile")


def _path(model: str) -> str:
    family, _, name = model.partition("/")
    if not name or "/" in name:
        raise BadInput(f"{model!r}: expected family and name, such as intents/kitchen")
    return f"{_MODELS}/{quote(family, safe='')}/{quote(name, safe='')}"


def _made(lineage: dict[str, Any] | None) -> list[str | None]:
    if lineage is None:
        return [None] * 4
    return [f"{lineage['source'][:19]}...", lineage["source_kind"], lineage["architecture"], lineage["recipe"]]


def _datasets(value: dict[str, Any]) -> list[dict[str, Any]]:
    return [d for b in value["bundles"] if b["lineage"] for d in b["lineage"]["datasets"]]


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
