"""What the gateway writes to its database, and what becomes of what no database takes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from fleet.access import Caller
from fleet.errors import Conflict, Malformed, Unavailable
from fleet.gateway.asked import CHAT, read
from fleet.gateway.book import Book
from fleet.gateway.budgets import Account, Budgets, SpendRow
from fleet.gateway.config import GatewayConfig, Route, Target, UpstreamConfig
from fleet.gateway.gateway import Gateway
from fleet.gateway.limits import NO_LIMITS, Limits
from fleet.gateway.records import Record
from fleet.gateway.store import GatewayStore
from fleet.serial import Serial
from fleet.store.database import Database
from fleet.store.gateway_tables import GatewayKey
from fleet.tokens import SESSION, forget_expired_sessions, issue

NOW = datetime(2026, 11, 30, 23, 59, 0, tzinfo=UTC)


class Choosy(GatewayStore):
    """The real store, whose database takes nothing that holds one word."""

    refuses: str | None = "poison"
    full = False

    def write(self, records: Sequence[Record], spent: Sequence[SpendRow]) -> None:
        if self.full:
            raise Unavailable("database: no room")
        if self.refuses is None or any(self.refuses in r.model for r in records):
            raise sa.exc.DataError("insert", {}, ValueError())
        super().write(records, spent)


def opened(folder: Path) -> tuple[Choosy, Budgets]:
    return Choosy(Database.in_folder(folder), lambda: NOW), Budgets()


def record(model: str) -> Record:
    return Record(at="2026-11-30T23:59:00Z", who="device:d", tenant="device:d", groups="", path=CHAT, model=model)


def write(store: Choosy, budgets: Budgets, *models: str) -> tuple[bool, Book]:
    serial = Serial()
    book = Book(store, serial, budgets)
    for model in models:
        book.keep(record(model))
    try:
        return asyncio.run(book.write()), book
    finally:
        serial.close()


def test_one_record_that_no_database_takes_costs_the_others_and_the_budgets_nothing(tmp_path: Path) -> None:
    """Accident: one value that the driver refuses; from then on nothing was written, and nobody was answered."""
    store, budgets = opened(tmp_path)
    budgets.reserve([Account("key:1", NO_LIMITS)], 60, 5, NOW)
    taken, book = write(store, budgets, *(f"m{i}" for i in range(9)), "poison", "last")
    assert (taken, book.waiting, budgets.changed()) == (False, 0, [])
    assert {r["model"] for r in store.newest(50, "", "")} == {*(f"m{i}" for i in range(9)), "last"}
    assert {row.tokens for row in store.spent()} == {60}


@pytest.mark.parametrize("how", [{"full": True}, {"refuses": None}])
def test_a_database_that_takes_nothing_loses_nothing(tmp_path: Path, how: dict[str, object]) -> None:
    store, budgets = opened(tmp_path)
    vars(store).update(how)
    budgets.reserve([Account("key:1", NO_LIMITS)], 60, 5, NOW)
    taken, book = write(store, budgets, "a", "b")
    assert (taken, book.waiting, len(budgets.changed())) == (False, 2, 2)


def test_what_a_request_or_an_upstream_says_fits_the_database(tmp_path: Path) -> None:
    """Attack: a name with a lone surrogate, a NUL, a price of over 64 bits."""
    store, budgets = opened(tmp_path)
    odd = record("a\ud800b\0")
    odd.detail, odd.nanos = "upstream: \udce9", 2**70
    store.write([odd], [])
    (row,) = store.newest(1, "", "")
    assert (row["model"], row["detail"]) == ("a?b?", "upstream: ?")
    budgets.reserve([Account("key:1", NO_LIMITS)], 2**64, 2**70, NOW)
    assert write(store, budgets)[0]
    assert {row.nanos for row in store.spent()} == {2**63 - 1}


def test_a_model_is_a_name_that_can_be_printed_and_an_answer_has_an_end() -> None:
    with pytest.raises(Malformed, match="expected the name of a model"):
        read(CHAT, b'{"model": "a\\u0000", "messages": []}')
    asked = read(CHAT, b'{"model": "a", "n": 10000000, "max_tokens": 10000000, "messages": []}')
    assert asked.most_output(4096) == 1_000_000_000


def test_a_login_is_no_key_and_limits_never_keep_one_from_being_forgotten(tmp_path: Path) -> None:
    """Accident: limits for the token of a login; once it ran out nobody could log in any more."""
    database = Database.in_folder(tmp_path)
    admin = Caller("first", frozenset({"admin"}), token="f")
    with database.transaction() as session:
        made = issue(session, name=SESSION, owner="", roles=[], groups=[], now=NOW, lifetime=timedelta(hours=1))
    token = made[1].id
    with pytest.raises(Conflict, match="it is a login"):
        GatewayStore(database, lambda: NOW).set_limits(admin, token, Limits())
    with database.transaction() as session:
        session.add(GatewayKey(token=token, limits="{}"))
    with database.transaction() as session:
        forget_expired_sessions(session, NOW + timedelta(hours=2))
    assert GatewayStore(database, lambda: NOW).key_limits() == {}


def test_a_key_whose_filter_or_price_is_gone_stops_the_start_and_is_named(tmp_path: Path) -> None:
    """Accident: gateway.toml loses a filter; its keys would go unfiltered, or every request of theirs fail."""
    database, serial = Database.in_folder(tmp_path), Serial()
    store = GatewayStore(database, lambda: NOW)
    with database.transaction() as session:
        key = issue(session, name="k", owner="", roles=[], groups=[], now=NOW, lifetime=None)[1].id
    targets = (Target(upstream="a"),)
    upstreams = {"a": UpstreamConfig(name="a", url="http://127.0.0.1:9/v1")}
    config = GatewayConfig(upstreams=upstreams, routes={"r": Route(name="r", targets=targets)})

    async def start() -> None:
        async with Gateway(config, store, serial, lambda: NOW).running():
            pass

    admin = Caller("first", frozenset({"admin"}), token="f")
    try:
        for limits, words in (
            (Limits(filters=("gone",)), "filters: 'gone'"),
            (Limits(money_per_day=1), "has no price"),
        ):
            store.set_limits(admin, key, limits)
            with pytest.raises(Malformed, match=f"the limits of key {key}.*{words}"):
                asyncio.run(start())
        store.set_limits(admin, key, Limits(tokens_per_day=1))
        asyncio.run(start())
    finally:
        serial.close()
