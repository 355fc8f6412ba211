"""API tokens: 256 random bits that a person or a program shows. Only their SHA-256 is kept.

    token, row = issue(session, name="laptop", owner="alice", roles=[...], groups=[...], expires=..., now=now)
    caller, row = caller_of_token(session, token, now)      # raises Unauthorized

A token may no more than its owner may at the moment it is shown, so a user who is disabled is out at once. The first
token stands in the data folder, is an admin's and does not expire: `open_first_token` makes it, `reset_first_token`
replaces it when it is lost.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlmodel import Session, col, delete, select, update

from fleet.access import Caller, permissions_of
from fleet.audit import Audit, Deed
from fleet.errors import Unauthorized, Unavailable
from fleet.store.database import Database, elsewhere
from fleet.store.files import write
from fleet.store.folder import hold
from fleet.store.tables import ApiToken, UserRow
from fleet.trust.enrolment import hash_token
from fleet.trust.keys import OnlineKeys
from wire.units import instant, show_instant

PREFIX: Final = "shoal_"
"""Lets a scanner for leaked secrets know one when it sees it."""
TOKEN_FILE: Final = "operator-token"  # noqa: S105  a file name
"""Of the first token, in the data folder."""
WHERE_FROM: Final = (
    f"the first token stands in {TOKEN_FILE} in the fleet's data folder; when that is lost, "
    "`shoal token reset --data DIR` on the fleet's machine makes another one"
)
FIRST: Final = "first"
SESSION: Final = "session"
"""The name of a token that a login gives."""
RESERVED: Final = frozenset({FIRST, SESSION})
_TOUCH_AFTER: Final = timedelta(minutes=1)


def issue(
    session: Session,
    *,
    name: str,
    owner: str,
    roles: Iterable[str],
    groups: Iterable[str],
    now: datetime,
    lifetime: timedelta | None,
) -> tuple[str, ApiToken]:
    """A new token and its row. Without a lifetime it does not expire."""
    token = PREFIX + secrets.token_urlsafe(32)
    row = ApiToken(
        id=secrets.token_hex(6),
        sha256=hash_token(token),
        name=name,
        owner=owner,
        roles=json.dumps(sorted(set(roles))),
        groups=json.dumps(sorted(set(groups))),
        created=show_instant(now),
        expires=show_instant(now + lifetime) if lifetime is not None else None,
    )
    session.add(row)
    session.flush()
    return token, row


def caller_of_token(session: Session, token: str, now: datetime) -> tuple[Caller, ApiToken]:
    """Who shows a token. Raises `Unauthorized` that says why it is worth nothing."""
    row = session.exec(select(ApiToken).where(ApiToken.sha256 == hash_token(token))).first()
    if row is None:
        raise Unauthorized(f"token: this fleet does not know it; {WHERE_FROM}")
    if not is_valid(row, now):
        raise Unauthorized(f"token {row.name!r}: it expired or was revoked: log in again, or ask for another one")
    if not row.owner:
        roles, groups = frozenset(json.loads(row.roles)), frozenset(json.loads(row.groups))
        return Caller(f"token:{row.name}", roles, groups, token=row.id), row
    return _caller_of_person(session, row), row


def is_valid(row: ApiToken, now: datetime) -> bool:
    """Neither revoked nor expired."""
    return row.revoked is None and (row.expires is None or now < instant(row.expires))


def is_touch_due(row: ApiToken, now: datetime) -> bool:
    """Whether `last_used` is older than a minute: it is not worth a write at every request."""
    return row.last_used is None or now - instant(row.last_used) >= _TOUCH_AFTER


def touch(session: Session, token_id: str, now: datetime) -> None:
    """Note that a token was used."""
    session.exec(update(ApiToken).where(col(ApiToken.id) == token_id).values(last_used=show_instant(now)))


def revoke(session: Session, row: ApiToken, now: datetime) -> None:
    """End a token at once; one that was revoked before stays as it is."""
    row.revoked = row.revoked or show_instant(now)
    session.add(row)
    session.flush()


def end_sessions(session: Session, owner: str, now: datetime) -> None:
    """End every login of a user."""
    logins = update(ApiToken).where(col(ApiToken.owner) == owner, col(ApiToken.name) == SESSION)
    session.exec(logins.where(col(ApiToken.revoked).is_(None)).values(revoked=show_instant(now)))


def forget_expired_sessions(session: Session, now: datetime) -> None:
    """Drop logins that ran out, of anybody: nobody looks for them, and each login adds one."""
    session.exec(delete(ApiToken).where(col(ApiToken.name) == SESSION, col(ApiToken.expires) <= show_instant(now)))


def view(row: ApiToken) -> dict[str, Any]:
    """A token as it is shown: all but its hash."""
    value = row.model_dump(exclude={"sha256"})
    return {**value, "roles": json.loads(row.roles), "groups": json.loads(row.groups)}


def open_first_token(data: Path, database: Database, audit: Audit, clock: Callable[[], datetime]) -> None:
    """Make the first token of a new fleet, in a file that only this user may read."""
    with database.transaction() as session:
        if session.exec(select(ApiToken)).first() is None:
            _add_first(session, data, clock())
            audit.append(session, _local("fleet", "first token made"))


def reset_first_token(data: Path, clock: Callable[[], datetime]) -> Path:
    """Replace the first token, on the fleet's own machine, while the fleet runs or not. Gives back its file.

    Raises `Unavailable` when no fleet stands in the folder or its database is busy.
    """
    where = elsewhere(data)
    if where is None and not (data / "fleet.db").is_file():
        raise Unavailable(f"{data}: no fleet stands there: name its data folder with --data")
    with ExitStack() as stack:
        with suppress(Unavailable):  # it runs: SQLite's own lock keeps the two writers apart
            stack.enter_context(hold(data))
        database = stack.enter_context(closing(Database(*where) if where else Database.in_folder(data)))
        audit = Audit(database, OnlineKeys.open(data / "keys"), data / "keys", clock)
        with database.transaction() as session:
            # The write comes first: SQLite then waits for its turn instead of failing on what it read before.
            old = update(ApiToken).where(col(ApiToken.name) == FIRST, col(ApiToken.owner) == "")
            session.exec(old.where(col(ApiToken.revoked).is_(None)).values(revoked=show_instant(clock())))
            _add_first(session, data, clock())
            audit.append(session, _local(f"uid:{os.getuid()}", "first token reset"))
    return data / TOKEN_FILE


def _add_first(session: Session, data: Path, now: datetime) -> None:
    token, _ = issue(session, name=FIRST, owner="", roles=["admin"], groups=[], now=now, lifetime=None)
    write(data / TOKEN_FILE, token.encode() + b"\n")


def _local(who: str, action: str) -> Deed:
    return Deed(who=who, action=action, subject=f"token {FIRST}", source="local", outcome="done")


def _caller_of_person(session: Session, row: ApiToken) -> Caller:
    user = session.get(UserRow, row.owner)
    if user is None or user.disabled:
        raise Unauthorized(f"token {row.name!r}: its user {row.owner} is disabled: ask an admin")
    able = permissions_of(json.loads(user.roles))
    roles = frozenset(role for role in json.loads(row.roles) if permissions_of([role]) <= able)
    mine, its = set(json.loads(user.groups)), set(json.loads(row.groups))
    groups = mine & its if mine and its else mine | its
    if (mine or its) and not groups:  # no group is every group: none left must not become that
        raise Unauthorized(f"token {row.name!r}: its user {row.owner} has none of its groups any more: make a new one")
    is_session = row.name == SESSION
    name = user.name if is_session else f"{user.name}:{row.name}"
    return Caller(name, roles, frozenset(groups), user=user.name, token=row.id, session=is_session)
