"""Routes for people and programs: logins, users, tokens. No answer and no log names a password."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, SecretStr

from fleet import tokens
from fleet.access import Caller
from fleet.api.auth import caller_of, tell
from fleet.people import DAYS, NewToken, check_user_name
from fleet.services import Services, services_of

router = APIRouter(prefix="/api/v1")


class Login(BaseModel):
    """Name and password of a user."""

    name: str
    password: SecretStr


class NewUser(BaseModel):
    """A user; without groups it acts on every group."""

    name: str
    password: SecretStr
    roles: list[str]
    groups: list[str] = []


class NewPassword(BaseModel):
    """Another password; `current` is needed for one's own."""

    password: SecretStr
    current: SecretStr = SecretStr("")


class Token(BaseModel):
    """A token; without roles or groups it gets those of whoever asks."""

    name: str
    roles: list[str] = []
    groups: list[str] = []
    days: int = DAYS
    program: bool = False


@router.post("/sessions", status_code=201)
async def log_in(request: Request, login: Login) -> dict[str, Any]:
    """A token of a user, for some hours. A name that is not there takes as long, and gives the same answer."""
    services = services_of(request)
    stored, renewed = await _checked(request, login.name, login.password.get_secret_value())
    token, row = await services.serial.run(services.people.log_in, login.name, stored, renewed)
    tell(request, who=login.name)
    return {**tokens.view(row), "token": token}


@router.delete("/sessions/current", status_code=204)
async def log_out(request: Request) -> Response:
    """End the login that this request came with."""
    services = services_of(request)
    await services.serial.run(services.people.log_out, caller_of(request))
    return Response(status_code=204)


@router.get("/me")
async def me(request: Request) -> dict[str, Any]:
    """Who asks, and what they may."""
    caller = caller_of(request)
    return {
        "name": caller.name,
        "roles": sorted(caller.roles),
        "groups": sorted(caller.groups),
        "permissions": sorted(caller.permissions),
    }


@router.get("/users")
async def list_users(request: Request) -> list[dict[str, Any]]:
    """Every user."""
    services = services_of(request)
    return await services.serial.run(services.people.users)


@router.post("/users", status_code=201)
async def add_user(request: Request, new: NewUser) -> dict[str, Any]:
    """Add a user."""
    services, caller = services_of(request), caller_of(request)
    check_user_name(new.name)
    tell(request, subject=f"user {new.name}")
    stored = await services.people.passwords.hash(new.password.get_secret_value())
    rights = tuple(new.roles), tuple(new.groups)
    return await services.serial.run(services.people.add, caller, new.name, stored, *rights)


@router.post("/users/{user}/disable")
async def disable_user(request: Request, user: str) -> dict[str, Any]:
    """Let a user in no more; logins end, tokens are worth nothing as long as it lasts."""
    return await _set_disabled(request, user, disabled=True)


@router.post("/users/{user}/enable")
async def enable_user(request: Request, user: str) -> dict[str, Any]:
    """Let a user in again."""
    return await _set_disabled(request, user, disabled=False)


@router.post("/users/{user}/password")
async def set_password(request: Request, user: str, new: NewPassword) -> dict[str, Any]:
    """Another password: one's own with the current one, or as an admin. Every login of the user ends."""
    services, caller = services_of(request), caller_of(request)
    if caller.user == user:
        # A login that was left open on a desk is not enough to keep its owner out.
        await _checked(request, user, new.current.get_secret_value())
    else:
        caller.check("people.manage")
    stored = await services.people.passwords.hash(new.password.get_secret_value())
    return await services.serial.run(services.people.set_password, caller, user, stored)


@router.get("/tokens")
async def list_tokens(request: Request) -> list[dict[str, Any]]:
    """One's own tokens, or everybody's for an admin; what a token itself is stays unknown."""
    services = services_of(request)
    return await services.serial.run(services.people.tokens, caller_of(request))


@router.post("/tokens", status_code=201)
async def add_token(request: Request, token: Token) -> dict[str, Any]:
    """A token, shown this once."""
    services = services_of(request)
    new = NewToken(
        name=token.name,
        roles=tuple(token.roles),
        groups=tuple(token.groups),
        days=token.days,
        program=token.program,
    )
    made = await services.serial.run(services.people.add_token, caller_of(request), new)
    tell(request, subject=f"token {made['id']} {made['name']} of {made['owner'] or 'no user'}")
    return made


@router.delete("/tokens/{token}")
async def revoke_token(request: Request, token: str) -> dict[str, Any]:
    """End a token at once."""
    services = services_of(request)
    return await services.serial.run(services.people.revoke_token, caller_of(request), token)


async def _set_disabled(request: Request, user: str, *, disabled: bool) -> dict[str, Any]:
    services, caller = services_of(request), caller_of(request)
    return await services.serial.run(_disable, services, caller, user, disabled)


def _disable(services: Services, caller: Caller, user: str, disabled: bool) -> dict[str, Any]:
    return services.people.set_disabled(caller, user, disabled=disabled)


async def _checked(request: Request, name: str, password: str) -> tuple[str, str | None]:
    """The stored hash that a password fits, and one to replace it with when it is of an older kind."""
    services = services_of(request)
    stored = await services.serial.run(services.people.stored, name)
    if stored is not None:  # what is no user's name may be a password in the wrong place
        tell(request, subject=f"user {name}")
    source = request.client.host if request.client else "unknown"
    renewed = await services.people.passwords.check(stored, password, name=name, source=source)
    assert stored is not None  # without one the check has raised
    return stored, renewed
