"""`shoal user`, `shoal login`, `shoal logout`: people. A password is asked for, or comes from `SHOAL_PASSWORD`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from cli.client import Fleet, context
from cli.errors import BadInput, CliError
from cli.options import Data
from cli.output import Json, console, show, table
from cli.session import Session

app = typer.Typer(help="People who may use the fleet, and what each may do.", no_args_is_help=True)

User = Annotated[str, typer.Argument(help="Name: a-z, 0-9, '.', '_' and '-', up to 64 characters.")]
Roles = Annotated[
    list[str], typer.Option("--role", help="viewer, operator, release-manager, approver or admin. May be repeated.")
]
Groups = Annotated[
    list[str] | None, typer.Option("--group", help="Act on this group of devices only. May be repeated. [default: all]")
]


@app.command()
def add(name: User, role: Roles, group: Groups = None, data: Data = None, as_json: Json = False) -> None:
    """Let a person in."""
    fleet = Fleet.connect(data)
    body = {"name": name, "password": _new_password(f"Password of {name}"), "roles": role, "groups": group or []}
    user = fleet.post("/api/v1/users", body)
    show(user, as_json, f"{name} may now `shoal login {name}` as {', '.join(user['roles'])}")


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List every user."""
    users = Fleet.connect(data).get("/api/v1/users")
    show(users, as_json, _table(users))


@app.command()
def disable(name: User, data: Data = None, as_json: Json = False) -> None:
    """Let a person in no more, at once: logins end and tokens are worth nothing."""
    user = Fleet.connect(data).post(f"/api/v1/users/{name}/disable", {})
    show(user, as_json, f"{name} is disabled")


@app.command()
def enable(name: User, data: Data = None, as_json: Json = False) -> None:
    """Let a person in again, with the same password and tokens."""
    user = Fleet.connect(data).post(f"/api/v1/users/{name}/enable", {})
    show(user, as_json, f"{name} is enabled")


@app.command()
def password(name: User, data: Data = None, as_json: Json = False) -> None:
    """Set a password: your own, or as an admin another's. It ends every login of that user."""
    fleet = Fleet.connect(data)
    is_own = fleet.get("/api/v1/me")["name"].partition(":")[0] == name
    current = _secret("Current password", "SHOAL_PASSWORD") if is_own else ""
    new = _new_password(f"New password of {name}", "SHOAL_NEW_PASSWORD" if is_own else "SHOAL_PASSWORD")
    user = fleet.post(f"/api/v1/users/{name}/password", {"password": new, "current": current})
    show(user, as_json, f"{name} has another password; log in with it")


def login(
    name: User,
    url: Annotated[str | None, typer.Option(help="Address of the fleet. [default: that of the last login]")] = None,
    ca: Annotated[
        Path | None, typer.Option(help="PEM file: CA of the fleet. [default: that of the last login]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Log in to a fleet: later commands are yours until the login runs out, or `shoal logout`."""
    where, pem = _where(url, ca)
    body = {"name": name, "password": _secret(f"Password of {name}", "SHOAL_PASSWORD")}
    token = Fleet(where, "", context(pem)).post("/api/v1/sessions", body)
    session = Session(url=where, ca=pem, name=name, token=token["token"], expires=token["expires"])
    path = session.save()
    value = {"name": name, "url": where, "expires": session.expires, "file": str(path)}
    show(value, as_json, f"[bold]{name}[/] is logged in at {where} until {session.expires}")


def logout() -> None:
    """End the login of `shoal login`, here and on the fleet."""
    try:
        session = Session.load()
        if session is not None:
            Fleet.of(session).delete("/api/v1/sessions/current")
    except CliError as e:
        sys.stderr.write(f"shoal: the fleet was not told: {e}\n")
    console.print("logged out" if Session.forget() else "there was no login")


def _where(url: str | None, ca: Path | None) -> tuple[str, str]:
    last = Session.load() if url is None or ca is None else None
    if last is None and (url is None or ca is None):
        raise BadInput("login: name the fleet with --url https://HOST:8443 and its CA with --ca FILE")
    try:
        pem = ca.read_text() if ca else last.ca if last else ""
    except (OSError, UnicodeDecodeError) as e:
        raise BadInput(f"{ca}: cannot be read as a PEM file: {e}") from e
    where = (url or (last.url if last else "")).rstrip("/")
    if not where.startswith("https://"):
        raise BadInput(f"--url {where!r}: expected an address such as https://fleet.example:8443")
    return where, pem


def _secret(question: str, variable: str) -> str:
    given = os.environ.get(variable)
    if given:
        return given
    if not sys.stdin.isatty():
        raise BadInput(f"{question}: nobody can be asked here: set {variable}")
    return str(typer.prompt(question, hide_input=True, err=True))


def _new_password(question: str, variable: str = "SHOAL_PASSWORD") -> str:
    if os.environ.get(variable) or not sys.stdin.isatty():
        return _secret(question, variable)
    return str(typer.prompt(f"{question} (12 characters or more)", hide_input=True, confirmation_prompt=True, err=True))


def _table(users: list[dict[str, Any]]) -> RenderableType:
    rows = [
        [
            u["name"],
            ", ".join(u["roles"]),
            ", ".join(u["groups"]) or "all",
            "[red]disabled[/]" if u["disabled"] else "enabled",
            u["created"][:10],
        ]
        for u in users
    ]
    return table(
        "Users", ("Name", "Roles", "Groups", "State", "Since"), rows, empty="none: shoal user add NAME --role R"
    )
