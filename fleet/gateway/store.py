"""The gateway's part of the database: requests, what was spent, limits of keys. Runs on the serial thread."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlmodel import SQLModel, col, delete, select

from fleet.access import Caller, permissions_of
from fleet.errors import Conflict, Malformed, NotFound
from fleet.gateway.budgets import DAY, MONTH, SpendRow
from fleet.gateway.limits import Limits, limits_from
from fleet.gateway.pricing import NANOS
from fleet.gateway.records import OUTCOMES, Record
from fleet.store.database import Database
from fleet.store.gateway_tables import GatewayKey, GatewayRequest, GatewaySpend
from fleet.store.tables import ApiToken
from fleet.tokens import SESSION
from wire.units import instant, show_instant

BY: Final[Mapping[str, Any]] = {
    "who": col(GatewayRequest.who),
    "tenant": col(GatewayRequest.tenant),
    "groups": col(GatewayRequest.groups),
    "route": col(GatewayRequest.route),
    "model": col(GatewayRequest.model),
    "upstream": col(GatewayRequest.upstream),
    "outcome": col(GatewayRequest.outcome),
    "day": sa.func.substr(col(GatewayRequest.at), 1, 10),
}
MOST_ROWS: Final = 1000
SPENT_KEPT: Final = timedelta(days=400)


class GatewayStore:
    """Reads and writes of one database."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database, self._clock = database, clock

    def spent(self) -> list[SpendRow]:
        """What was used in the day and the month that are not over."""
        now = self._clock()
        current = col(GatewaySpend.window).in_([now.strftime(DAY), now.strftime(MONTH)])
        with self._database.transaction() as session:
            rows = session.exec(select(GatewaySpend).where(current)).all()
            return [SpendRow(r.account, r.window, r.requests, r.tokens, r.nanos) for r in rows]

    def write(self, records: Sequence[Record], spent: Sequence[SpendRow]) -> None:
        """Store both in one transaction. Raises `StorageFull` or `Unavailable`; then neither is stored."""
        with self._database.transaction() as session:
            connection = session.connection()
            if records:
                connection.execute(sa.insert(GatewayRequest), [record.to_row() for record in records])
            keys = [{"a": row.account, "w": row.window} for row in spent]
            if keys:
                table = SQLModel.metadata.tables["gateway_spend"]
                old = sa.delete(table).where(table.c.account == sa.bindparam("a"), table.c.window == sa.bindparam("w"))
                connection.execute(old, keys)
                connection.execute(sa.insert(GatewaySpend), [vars(row) for row in spent])

    def forget(self, kept: timedelta) -> None:
        """Drop records older than `kept`, and what was spent over a year ago."""
        now = self._clock()
        with self._database.transaction() as session:
            session.exec(delete(GatewayRequest).where(col(GatewayRequest.at) < show_instant(now - kept)))
            session.exec(delete(GatewaySpend).where(col(GatewaySpend.window) < (now - SPENT_KEPT).strftime(MONTH)))

    def usage(self, by: str, since: str, currency: str) -> list[dict[str, Any]]:
        """Sums over the requests since a time, by one of `BY`, the dearest first. Raises `Malformed`."""
        if by not in BY:
            raise Malformed(f"by: {by[:40]!r}: choose from {', '.join(BY)}")
        one = GatewayRequest
        query = (
            sa.select(
                BY[by].label("name"),
                sa.func.count().label("requests"),
                sa.func.sum(one.prompt_tokens).label("prompt_tokens"),
                sa.func.sum(one.completion_tokens).label("completion_tokens"),
                sa.func.sum(one.nanos).label("nanos"),
                sa.func.sum(sa.cast(one.estimated, sa.Integer)).label("estimated"),
                sa.func.avg(one.first_ms).label("first_ms"),
                *(
                    sa.func.sum(sa.case((col(one.outcome) == outcome, 1), else_=0)).label(outcome)
                    for outcome in OUTCOMES
                ),
            )
            .where(col(one.at) >= _since(since))
            .group_by(BY[by])
            .order_by(sa.desc("nanos"), sa.desc("requests"))
            .limit(MOST_ROWS)
        )
        with self._database.transaction() as session:
            rows = [dict(row) for row in session.connection().execute(query).mappings()]
        return [_usage_view(row, currency) for row in rows]

    def newest(self, limit: int, who: str, since: str) -> list[dict[str, Any]]:
        """The newest requests first. Raises `Malformed`."""
        if not 1 <= limit <= MOST_ROWS:
            raise Malformed(f"limit: expected 1 to {MOST_ROWS}")
        query = select(GatewayRequest).where(col(GatewayRequest.at) >= _since(since))
        query = query.where(col(GatewayRequest.who) == who) if who else query
        with self._database.transaction() as session:
            rows = session.exec(query.order_by(col(GatewayRequest.id).desc()).limit(limit)).all()
            return [_request_view(row) for row in rows]

    def key_limits(self) -> dict[str, Limits]:
        """The limits of keys that have some of their own and are not revoked."""
        with self._database.transaction() as session:
            live = sa.exists().where(col(ApiToken.id) == col(GatewayKey.token), col(ApiToken.revoked).is_(None))
            rows = session.exec(select(GatewayKey).where(live)).all()
            return {row.token: limits_from(json.loads(row.limits), f"key {row.token}") for row in rows}

    def set_limits(self, caller: Caller, token: str, limits: Limits) -> dict[str, Any]:
        """Give a key limits in the place of those it has. Raises `NotFound`, `Conflict`, `Forbidden`."""
        with self._database.transaction() as session:
            row = session.get(ApiToken, token)
            if row is None:
                raise NotFound(f"key {token[:40]!r}: no such key: `shoal gateway keys list` shows their ids")
            if row.name == SESSION:
                raise Conflict(f"key {token}: it is a login, which ends by itself: make a key for it")
            if row.revoked is not None:
                raise Conflict(f"key {token}: it is revoked: make another one")
            caller.check_may_give(json.loads(row.roles), json.loads(row.groups))
            session.merge(GatewayKey(token=token, limits=json.dumps(limits.to_value())))
            return _key_view(row, limits)

    def keys(self) -> list[dict[str, Any]]:
        """Every token that may ask the gateway and is not a login."""
        limits = self.key_limits()
        with self._database.transaction() as session:
            rows = session.exec(select(ApiToken).order_by(col(ApiToken.owner), col(ApiToken.name))).all()
            able = [row for row in rows if "gateway.use" in permissions_of(json.loads(row.roles))]
            return [_key_view(row, limits.get(row.id)) for row in able if row.name != SESSION]


def _since(text: str) -> str:
    return show_instant(instant(text, where="since")) if text else ""


def _usage_view(row: dict[str, Any], currency: str) -> dict[str, Any]:
    nanos = row.pop("nanos") or 0
    return {**row, "cost": nanos / NANOS, "currency": currency}


def _request_view(row: GatewayRequest) -> dict[str, Any]:
    value = row.model_dump(exclude={"nanos", "text"})
    return {**value, "cost": row.nanos / NANOS, **({"text": row.text} if row.text is not None else {})}


def _key_view(row: ApiToken, limits: Limits | None) -> dict[str, Any]:
    value = row.model_dump(include={"id", "name", "owner", "created", "expires", "last_used", "revoked"})
    return {**value, "groups": json.loads(row.groups), "limits": limits.to_value() if limits else {}}
