"""`shoal token`: credentials of programs, and of people who do not want to log in every day."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from cli.client import Fleet, default_data
from cli.options import Data
from cli.output import Json, show, table

app = typer.Typer(help="Tokens for programs: scoped, expiring, revoked at once.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, such as ci.")],
    role: Annotated[
        list[str] | None, typer.Option("--role", help="No more than you may. May be repeated. [default: yours]")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option("--group", help="This group of devices only. May be repeated. [default: yours]")
    ] = None,
    days: Annotated[int, typer.Option(help="Days until it expires, at most 365.")] = 90,
    program: Annotated[
        bool, typer.Option("--program", help="It belongs to no user and goes on without you. Takes an admin.")
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make a token. It is shown this once."""
    body = {"name": name, "roles": role or [], "groups": group or [], "days": days, "program": program}
    token = Fleet.connect(data).post("/api/v1/tokens", body)
    rights = ", ".join(token["roles"])
    view = f"{token['token']}\nToken {token['id']}, {rights}, until {token['expires']}; it is not shown again."
    show(token, as_json, view)


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List your tokens; an admin sees all."""
    tokens = Fleet.connect(data).get("/api/v1/tokens")
    show(tokens, as_json, _table(tokens))


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(help="Id of the token; 'shoal token list' shows it.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """End a token at once."""
    value = Fleet.connect(data).delete(f"/api/v1/tokens/{token}")
    show(value, as_json, f"token {value['id']} {value['name']} is revoked")


@app.command()
def reset(data: Data = None, as_json: Json = False) -> None:
    """Replace the first token when its file is lost: on the fleet's own machine, while it runs or not."""
    from fleet.tokens import reset_first_token  # noqa: PLC0415

    path = reset_first_token(data or default_data(), lambda: datetime.now(UTC))
    show({"file": str(path)}, as_json, f"{path}: a new first token; the one before it is worth nothing now")


def _table(tokens: list[dict[str, Any]]) -> RenderableType:
    columns = ("Id", "Name", "Owner", "Roles", "Groups", "Expires", "Last used", "State")
    return table("Tokens", columns, [_row(t) for t in tokens])


def _row(t: dict[str, Any]) -> list[object]:
    return [
        t["id"],
        t["name"],
        t["owner"] or "program",
        ", ".join(t["roles"]),
        ", ".join(t["groups"]) or "all",
        (t["expires"] or "never")[:10],
        (t["last_used"] or "")[:16].replace("T", " "),
        _state(t),
    ]


def _state(t: dict[str, Any]) -> str:
    if t["revoked"]:
        return "[red]revoked[/]"
    expired = t["expires"] is not None and datetime.now(UTC) >= datetime.fromisoformat(t["expires"])
    return "[yellow]expired[/]" if expired else "valid"
