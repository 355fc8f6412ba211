"""Budgets of tokens and money, and rates of requests: reserved before a call, settled after it. Pure.

    reservation = budgets.reserve(accounts, tokens, nanos, now)     # raises OverBudget; then nothing was taken
    budgets.settle(reservation, usage.total, cost)                  # what it really was, estimated if nobody knows
    rows = budgets.changed()                                        # for the database, with what is under way

Everything on one thread between two waits, so no two calls share the last token of a budget. What the database holds
includes what is reserved: a fleet that is killed has charged for what was under way, and nobody got it for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Final

from fleet.errors import OverBudget
from fleet.gateway.limits import Limits
from fleet.gateway.pricing import MOST_STORED

DAY: Final = "%Y-%m-%d"
MONTH: Final = "%Y-%m"
HELD: Final = 100_000
"""Rates of accounts remembered; the one that was quiet longest goes first."""


@dataclass(frozen=True)
class Account:
    """Who pays: `key:...`, `user:...`, `device:...`, `group:...` or `total`, and within which limits."""

    name: str
    limits: Limits


@dataclass(frozen=True)
class SpendRow:
    """What an account used in a day (`2026-11-23`) or a month (`2026-11`)."""

    account: str
    window: str
    requests: int
    tokens: int
    nanos: int


@dataclass
class _Spend:
    requests: int = 0
    tokens: int = 0
    nanos: int = 0
    held_tokens: int = 0
    held_nanos: int = 0
    under_way: int = 0


_NOTHING: Final = _Spend()


@dataclass
class Reservation:
    """What a call may use at most, and of which accounts and windows."""

    tokens: int
    nanos: int
    keys: tuple[tuple[str, str], ...]
    settled: bool = False


@dataclass
class Budgets:
    """All accounts. `now` is an aware time for windows, `tick` in seconds, monotonic, for rates."""

    _spent: dict[tuple[str, str], _Spend] = field(default_factory=dict)
    _changed: set[tuple[str, str]] = field(default_factory=set)
    _rates: dict[str, tuple[float, float]] = field(default_factory=dict)
    _today: date | None = None
    _windows: tuple[str, str] = ("", "")

    def load(self, rows: Iterable[SpendRow]) -> None:
        """Take what the database holds, once, at the start."""
        for row in rows:
            self._spent[row.account, row.window] = _Spend(row.requests, row.tokens, row.nanos)

    def admit(self, accounts: Iterable[Account], tick: float) -> None:
        """Count a request against every rate. Raises `OverBudget`; then it counts against none."""
        levels: dict[str, tuple[float, float]] = {}
        for account in accounts:
            most = account.limits.requests_per_minute
            if most is None:
                continue
            level, since = self._rates.get(account.name, (float(most), tick))
            level = min(float(most), level + (tick - since) * most / 60)
            if level < 1:
                wait = (1 - level) * 60 / most
                raise OverBudget(f"{account.name}: over {most} requests a minute: try again in {wait:.0f} s", wait)
            levels[account.name] = (level - 1, tick)
        for name, level_at in levels.items():
            self._rates.pop(name, None)
            self._rates[name] = level_at
        while len(self._rates) > HELD:
            del self._rates[next(iter(self._rates))]

    def reserve(self, accounts: Iterable[Account], tokens: int, nanos: int, now: datetime) -> Reservation:
        """Set aside what a call may use at most. Raises `OverBudget` that names the account and the budget."""
        if now.date() != self._today:
            self._today, self._windows = now.date(), (now.strftime(DAY), now.strftime(MONTH))
        day, month = self._windows
        payers = tuple(accounts)
        for account in payers:
            limits = account.limits
            if limits.is_unbudgeted:
                continue
            self._check(account.name, day, tokens, limits.tokens_per_day, "tokens", now)
            self._check(account.name, month, tokens, limits.tokens_per_month, "tokens", now)
            self._check(account.name, day, nanos, limits.money_per_day, "nanos", now)
            self._check(account.name, month, nanos, limits.money_per_month, "nanos", now)
        keys = tuple((account.name, window) for account in payers for window in (day, month))
        for key in keys:
            spend = self._spent.get(key) or self._spent.setdefault(key, _Spend())
            spend.requests += 1
            spend.under_way += 1
            spend.held_tokens += tokens
            spend.held_nanos += nanos
        self._changed.update(keys)
        return Reservation(tokens, nanos, keys)

    def settle(self, reservation: Reservation, tokens: int, nanos: int) -> None:
        """Put what was used in the place of what was set aside. A second time changes nothing."""
        if reservation.settled:
            return
        reservation.settled = True
        for key in reservation.keys:
            spend = self._spent[key]
            spend.under_way -= 1
            spend.held_tokens -= reservation.tokens
            spend.held_nanos -= reservation.nanos
            spend.tokens += tokens
            spend.nanos += nanos
        self._changed.update(reservation.keys)

    def changed(self) -> list[SpendRow]:
        """What is not in the database yet, with what is under way as if it were used."""
        rows = [self._row(key) for key in sorted(self._changed)]
        self._changed.clear()
        return rows

    def not_stored(self, rows: Iterable[SpendRow]) -> None:
        """The database did not take them: they are told again."""
        self._changed.update((row.account, row.window) for row in rows)

    def forget(self, now: datetime) -> None:
        """Drop windows that are over and have nothing under way."""
        current = {now.strftime(DAY), now.strftime(MONTH)}
        over = [key for key, spend in self._spent.items() if key[1] not in current and not spend.under_way]
        for key in over:
            if key not in self._changed:
                del self._spent[key]

    def used(self, account: str, now: datetime) -> Mapping[str, SpendRow]:
        """What an account used today and this month."""
        windows = {"day": now.strftime(DAY), "month": now.strftime(MONTH)}
        return {name: self._row((account, window)) for name, window in windows.items()}

    def _row(self, key: tuple[str, str]) -> SpendRow:
        spend = self._spent.get(key) or _Spend()
        tokens, nanos = spend.tokens + spend.held_tokens, spend.nanos + spend.held_nanos
        return SpendRow(*key, spend.requests, min(tokens, MOST_STORED), min(nanos, MOST_STORED))

    def _check(self, account: str, window: str, asked: int, most: int | None, what: str, now: datetime) -> None:
        if most is None:
            return
        spend = self._spent.get((account, window)) or _NOTHING
        used = spend.tokens + spend.held_tokens if what == "tokens" else spend.nanos + spend.held_nanos
        if used + asked > most:
            period = "day" if len(window) > len("2026-11") else "month"
            unit = "tokens" if what == "tokens" else "money"
            raise OverBudget(
                f"{account}: the budget of {unit} for this {period} ({window}, UTC) has no room for this request: "
                "ask for a shorter answer, wait, or ask an admin for more",
                _until_next(now, period),
            )


def _until_next(now: datetime, period: str) -> float:
    start = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    following = start + timedelta(days=1)
    if period == "month":
        following = (start.replace(day=28) + timedelta(days=4)).replace(day=1)
    return max((following - now).total_seconds(), 1.0)
