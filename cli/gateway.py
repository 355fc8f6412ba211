"""`shoal gateway`: what was asked of the cloud tier and what it cost, its routes, and the keys of programs."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer
from rich.console import RenderableType
from rich.markup import escape

from cli.client import Fleet
from cli.options import Data, Since, since_time
from cli.output import Json, show, table

app = typer.Typer(help="The cloud tier: usage, routes, keys.", no_args_is_help=True)
keys = typer.Typer(
    help="Keys that open the cloud tier and nothing else, with limits of their own.", no_args_is_help=True
)
app.add_typer(keys, name="keys")

Models = Annotated[list[str] | None, typer.Option("--model", help="It may ask for this route only. May be repeated.")]
Filters = Annotated[
    list[str] | None, typer.Option("--filter", help="A filter of gateway.toml that its texts pass. May be repeated.")
]
Rate = Annotated[int | None, typer.Option("--requests-per-minute", min=1)]
TokensDay = Annotated[int | None, typer.Option("--tokens-per-day", min=1, help="Of prompts and answers together.")]
TokensMonth = Annotated[int | None, typer.Option("--tokens-per-month", min=1)]
MoneyDay = Annotated[float | None, typer.Option("--money-per-day", min=0, help="In the currency of gateway.toml.")]
MoneyMonth = Annotated[float | None, typer.Option("--money-per-month", min=0)]


@app.command()
def usage(
    by: Annotated[str, typer.Option(help="who, tenant, groups, route, model, upstream, outcome or day.")] = "who",
    since: Since = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Requests, tokens and cost, the dearest first."""
    query = urlencode({"by": by, "since": since_time(since)})
    rows = Fleet.connect(data).get(f"/api/v1/gateway/usage?{query}")
    show(rows, as_json, _usage(by, rows))


@app.command()
def requests(
    since: Since = None,
    who: Annotated[str, typer.Option(help="One caller, such as device:kitchen-1 or token:shop.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, the newest first.")] = 50,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Single requests: who asked which model, what came of it, what it cost. Without the text."""
    query = urlencode({"limit": limit, "who": who, "since": since_time(since)})
    rows = Fleet.connect(data).get(f"/api/v1/gateway/requests?{query}")
    show(rows, as_json, _requests(rows))


@app.command()
def routes(data: Data = None, as_json: Json = False) -> None:
    """Which model goes to which upstreams, and how they are."""
    found = Fleet.connect(data).get("/api/v1/gateway/routes")
    rows = [
        [r["route"], t["upstream"], t["model"] or "as asked", t["weight"], "yes" if t["fallback"] else "", t["state"]]
        for r in found
        for t in r["targets"]
    ]
    show(found, as_json, table("Routes", ("Model", "Upstream", "Model there", "#Weight", "Fallback", "State"), rows))


@keys.command("list")
def list_keys(data: Data = None, as_json: Json = False) -> None:
    """Every token that may ask the cloud tier, with its own limits."""
    found = Fleet.connect(data).get("/api/v1/gateway/keys")
    rows = [
        [
            k["id"],
            escape(k["name"]),
            k["owner"] or "program",
            ", ".join(k["groups"]),
            _limits(k["limits"]),
            (k["expires"] or "")[:10],
            "revoked" if k["revoked"] else "",
        ]
        for k in found
    ]
    show(found, as_json, table("Keys", ("Id", "Name", "Owner", "Groups", "Limits", "Expires", "State"), rows))


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, such as shop.")],
    group: Annotated[
        list[str] | None, typer.Option("--group", help="It pays with this group too. May be repeated.")
    ] = None,
    days: Annotated[int, typer.Option(help="Days until it expires, at most 365.")] = 90,
    model: Models = None,
    filter_: Filters = None,
    requests_per_minute: Rate = None,
    tokens_per_day: TokensDay = None,
    tokens_per_month: TokensMonth = None,
    money_per_day: MoneyDay = None,
    money_per_month: MoneyMonth = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make a key for a program. It is shown this once."""
    limits = _given(
        model, filter_, requests_per_minute, tokens_per_day, tokens_per_month, money_per_day, money_per_month
    )
    body = {"name": name, "groups": group or [], "days": days, "limits": limits}
    key = Fleet.connect(data).post("/api/v1/gateway/keys", body)
    view = f"{key['token']}\nKey {key['id']}, {_limits(key['limits'])}, until {key['expires']}; it is not shown again."
    show(key, as_json, view)


@keys.command("limit")
def limit_key(
    key: Annotated[str, typer.Argument(help="Id of the key; 'shoal gateway keys list' shows it.")],
    model: Models = None,
    filter_: Filters = None,
    requests_per_minute: Rate = None,
    tokens_per_day: TokensDay = None,
    tokens_per_month: TokensMonth = None,
    money_per_day: MoneyDay = None,
    money_per_month: MoneyMonth = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Other limits for a key, in the place of all that it has. What is not named is as gateway.toml says for each."""
    limits = _given(
        model, filter_, requests_per_minute, tokens_per_day, tokens_per_month, money_per_day, money_per_month
    )
    changed = Fleet.connect(data).post(f"/api/v1/gateway/keys/{quote(key, safe='')}/limits", limits)
    show(changed, as_json, f"key {changed['id']} {changed['name']}: {_limits(changed['limits'])}")


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Id of the key; 'shoal gateway keys list' shows it.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """End a key at once."""
    value = Fleet.connect(data).delete(f"/api/v1/tokens/{quote(key, safe='')}")
    show(value, as_json, f"key {value['id']} {value['name']} is revoked")


def _given(
    models: list[str] | None,
    filters: list[str] | None,
    rate: int | None,
    tokens_day: int | None,
    tokens_month: int | None,
    money_day: float | None,
    money_month: float | None,
) -> dict[str, Any]:
    limits = {
        "models": models or None,
        "filters": filters or None,
        "requests_per_minute": rate,
        "tokens_per_day": tokens_day,
        "tokens_per_month": tokens_month,
        "money_per_day": money_day,
        "money_per_month": money_month,
    }
    return {name: value for name, value in limits.items() if value is not None}


def _limits(limits: dict[str, Any]) -> str:
    shown = (f"{name} {', '.join(v) if isinstance(v, list) else v}" for name, v in sorted(limits.items()))
    return "; ".join(shown).replace("_", " ") or "limits as for each"


def _usage(by: str, rows: list[dict[str, Any]]) -> RenderableType:
    counts = ("#Requests", "#Prompt", "#Answer", "#Cost", "#First ms", "#Cached", "#Blocked", "#Failed")
    shown = [
        [
            escape(str(r["name"])),
            r["requests"],
            r["prompt_tokens"],
            r["completion_tokens"],
            f"{r['cost']:.4f} {r['currency']}",
            f"{r['first_ms']:.0f}" if r["first_ms"] is not None else None,
            r["cached"],
            r["blocked"] + r["blocked-mid-stream"],
            r["failed"] + r["broke-off"],
        ]
        for r in rows
    ]
    return table("Usage of the cloud tier", (by.capitalize(), *counts), shown)


def _requests(rows: list[dict[str, Any]]) -> RenderableType:
    columns = ("At", "Who", "Model", "Upstream", "Outcome", "#Prompt", "#Answer", "#Cost", "#ms", "Verdicts")
    shown = [
        [
            r["at"][:19].replace("T", " "),
            escape(r["who"]),
            escape(r["route"]),
            escape(r["upstream"]),
            r["outcome"] + (" (fallback)" if r["fallback"] else ""),
            f"~{r['prompt_tokens']}" if r["estimated"] else r["prompt_tokens"],
            f"~{r['completion_tokens']}" if r["estimated"] else r["completion_tokens"],
            f"{r['cost']:.6f}",
            f"{r['total_ms']:.0f}",
            escape(r["verdicts"]),
        ]
        for r in rows
    ]
    return table("Requests to the cloud tier", columns, shown)
