"""People and programs: users with a password, tokens for programs, and who may give what to whom.

    stored = await people.passwords.hash(password)           # on the loop
    people.add(caller, NewUser(...), stored)                 # on the serial thread, in one transaction
    token, row = people.log_in("alice", old, new)

Nobody gives what they do not have, and the last way for an admin to get in cannot be closed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from sqlmodel import Session, col, select

from fleet import tokens
from fleet.access import Caller, check_roles
from fleet.errors import Conflict, Malformed, NotFound, Unauthorized
from fleet.passwords import Passwords
from fleet.store.database import Database
from fleet.store.tables import ApiToken, UserRow
from wire.document import check_name
from wire.units import show_instant

_NAME: Final = re.compile(r"[a-z0-9._-]{1,64}")
_TAKEN: Final = frozenset({"token", "device", "fleet", "local", "uid"})
"""How callers that are no users are called in logs."""
DAYS, MOST_DAYS = 90, 365
"""How long a token lives by default, and at most."""


@dataclass(frozen=True, kw_only=True)
class NewToken:
    """A token that is asked for. Without roles or groups it gets those of whoever asks.

    `program` makes one that belongs to nobody: it goes on when the user who made it is disabled.
    """

    name: str
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    days: int = DAYS
    program: bool = False


@dataclass(frozen=True)
class People:
    """Users and tokens of one database. All but `passwords` runs on one thread at a time."""

    database: Database
    clock: Callable[[], datetime]
    session_lifetime: timedelta
    passwords: Passwords = field(default_factory=Passwords)

    # --- users --------------------------------------------------------------------------------------------------

    def add(
        self, caller: Caller, name: str, stored: str, roles: tuple[str, ...], groups: tuple[str, ...]
    ) -> dict[str, Any]:
        """Add a user with a hashed password. Raises `Malformed`, `Forbidden`, or `Conflict` for a taken name."""
        check_user_name(name)
        _check_rights(caller, roles, groups)
        with self.database.transaction() as session:
            if session.get(UserRow, name):
                raise Conflict(f"user {name}: exists already: choose another name, or `shoal user password {name}`")
            row = UserRow(
                name=name,
                password=stored,
                roles=json.dumps(sorted(set(roles))),
                groups=json.dumps(sorted(set(groups))),
                created=show_instant(self.clock()),
            )
            session.add(row)
        return _view(row)

    def users(self) -> list[dict[str, Any]]:
        """Every user, by name."""
        with self.database.transaction() as session:
            return [_view(row) for row in session.exec(select(UserRow).order_by(col(UserRow.name)))]

    def set_disabled(self, caller: Caller, name: str, *, disabled: bool) -> dict[str, Any]:
        """Let a user in no more, or again. Raises `Conflict` for the last admin."""
        with self.database.transaction() as session:
            row = self._managed(session, caller, name)
            row.disabled = disabled
            session.add(row)
            if disabled:
                tokens.end_sessions(session, name, self.clock())
                session.flush()
                self._check_admin_left(session)
            return _view(row)

    def set_password(self, caller: Caller, name: str, stored: str) -> dict[str, Any]:
        """Store another hashed password, and end every login of the user. Its API tokens go on."""
        with self.database.transaction() as session:
            row = _user(session, name) if caller.user == name else self._managed(session, caller, name)
            row.password = stored
            session.add(row)
            tokens.end_sessions(session, name, self.clock())
            return _view(row)

    # --- logins -------------------------------------------------------------------------------------------------

    def stored(self, name: str) -> str | None:
        """The hash that a login is checked against; None for a user who is not there or may not come in."""
        with self.database.transaction() as session:
            row = session.get(UserRow, name) if _NAME.fullmatch(name) else None
            return row.password if row is not None and not row.disabled else None

    def log_in(self, name: str, checked: str, renewed: str | None) -> tuple[str, ApiToken]:
        """A session of a user whose password was checked against the hash `checked`; `renewed` replaces it.

        Raises `Unauthorized` when user or password changed since.
        """
        now = self.clock()
        with self.database.transaction() as session:
            row = session.get(UserRow, name)
            if row is None or row.disabled or row.password != checked:
                raise Unauthorized("login: the user was changed meanwhile: log in again")
            row.password = renewed or row.password
            session.add(row)
            tokens.forget_expired_sessions(session, now)
            return tokens.issue(
                session,
                name=tokens.SESSION,
                owner=name,
                roles=json.loads(row.roles),
                groups=json.loads(row.groups),
                now=now,
                lifetime=self.session_lifetime,
            )

    # --- tokens -------------------------------------------------------------------------------------------------

    def caller(self, token: str) -> tuple[Caller, str | None]:
        """Who shows a token, and the id of the token when its use has to be noted. Raises `Unauthorized`."""
        now = self.clock()
        with self.database.transaction() as session:
            caller, row = tokens.caller_of_token(session, token, now)
            return caller, row.id if tokens.is_touch_due(row, now) else None

    def touch(self, token_id: str) -> None:
        """Note that a token was used."""
        with self.database.transaction() as session:
            tokens.touch(session, token_id, self.clock())

    def add_token(self, caller: Caller, new: NewToken) -> dict[str, Any]:
        """A token for a caller's own use or for a program, shown this once. Raises as `add` does.

        An API token makes no token of its own, unless it is an admin's: whoever stole it would outlive its end.
        """
        if not caller.session or new.program:
            caller.check("people.manage")
        roles, groups = new.roles or tuple(sorted(caller.roles)), new.groups or tuple(sorted(caller.groups))
        _check_token_name(new)
        _check_rights(caller, roles, groups)
        owner = "" if new.program else caller.user
        with self.database.transaction() as session:
            self._check_free(session, owner, new.name)
            token, row = tokens.issue(
                session,
                name=new.name,
                owner=owner,
                roles=roles,
                groups=groups,
                now=self.clock(),
                lifetime=timedelta(days=new.days),
            )
        return {**tokens.view(row), "token": token}

    def tokens(self, caller: Caller) -> list[dict[str, Any]]:
        """The tokens of a caller; those of everybody for one who manages people."""
        query = select(ApiToken).order_by(col(ApiToken.owner), col(ApiToken.name), col(ApiToken.created))
        if "people.manage" not in caller.permissions:
            query = query.where(col(ApiToken.owner) == caller.user, col(ApiToken.owner) != "")
        with self.database.transaction() as session:
            return [tokens.view(row) for row in session.exec(query)]

    def revoke_token(self, caller: Caller, token_id: str) -> dict[str, Any]:
        """End a token at once. Raises `NotFound`, `Forbidden`, or `Conflict` for the last way of an admin."""
        with self.database.transaction() as session:
            row = session.get(ApiToken, token_id)
            manages = "people.manage" in caller.permissions
            if row is None or not (manages or (caller.user and row.owner == caller.user)):
                raise NotFound(f"token {token_id[:40]!r}: no such token: `shoal token list` shows their ids")
            if row.owner != caller.user or not row.owner:
                caller.check_may_give(json.loads(row.roles), json.loads(row.groups))
            tokens.revoke(session, row, self.clock())
            self._check_admin_left(session)
            return tokens.view(row)

    def log_out(self, caller: Caller) -> None:
        """End the login that a caller came with. Raises `Conflict` for an API token."""
        if not caller.session:
            raise Conflict(f"{caller.name}: came with an API token, which no logout ends: `shoal token revoke` does")
        with self.database.transaction() as session:
            tokens.revoke(session, session.get_one(ApiToken, caller.token), self.clock())

    # --- rules --------------------------------------------------------------------------------------------------

    def _managed(self, session: Session, caller: Caller, name: str) -> UserRow:
        """A user whom a caller may change: one who may no more than the caller."""
        caller.check("people.manage")
        row = _user(session, name)
        caller.check_may_give(json.loads(row.roles), json.loads(row.groups))
        return row

    def _check_admin_left(self, session: Session) -> None:
        programs = select(ApiToken).where(col(ApiToken.owner) == "", col(ApiToken.revoked).is_(None))
        lasting: list[UserRow | ApiToken] = [
            *session.exec(select(UserRow).where(col(UserRow.disabled).is_(False))),
            *session.exec(programs.where(col(ApiToken.expires).is_(None))),
        ]
        if not any("admin" in json.loads(row.roles) and not json.loads(row.groups) for row in lasting):
            raise Conflict("this is the last way for an admin to get in: add another admin with `shoal user add` first")

    def _check_free(self, session: Session, owner: str, name: str) -> None:
        query = select(ApiToken).where(col(ApiToken.owner) == owner, col(ApiToken.name) == name)
        if any(tokens.is_valid(row, self.clock()) for row in session.exec(query)):
            raise Conflict(f"token {name}: there is one of this name already: revoke it, or choose another name")


def check_user_name(name: str) -> None:
    """Raises `Malformed`. What was given is not repeated: it may be a password in the wrong place."""
    if not _NAME.fullmatch(name) or name in _TAKEN:
        reserved = ", ".join(sorted(_TAKEN))
        raise Malformed(f"user: the name must be 1 to 64 characters a-z, 0-9, '.', '_' and '-', and none of {reserved}")


def _check_token_name(new: NewToken) -> None:
    if not _NAME.fullmatch(new.name) or new.name in tokens.RESERVED:
        raise Malformed(
            "token: the name must be 1 to 64 characters a-z, 0-9, '.', '_' and '-', and none of "
            + ", ".join(sorted(tokens.RESERVED))
        )
    if not 1 <= new.days <= MOST_DAYS:
        raise Malformed(f"token {new.name}: expected 1 to {MOST_DAYS} days, got {new.days}")


def _check_rights(caller: Caller, roles: tuple[str, ...], groups: tuple[str, ...]) -> None:
    check_roles(roles)
    for group in groups:
        check_name(group, "group")
    caller.check_may_give(roles, groups)


def _user(session: Session, name: str) -> UserRow:
    row = session.get(UserRow, name)
    if row is None:
        raise NotFound(f"user {name[:64]!r}: no such user: `shoal user list` shows them")
    return row


def _view(row: UserRow) -> dict[str, Any]:
    """A user as it is shown: all but the password."""
    value = row.model_dump(exclude={"password"})
    return {**value, "roles": json.loads(row.roles), "groups": json.loads(row.groups)}
