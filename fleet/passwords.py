"""Passwords of people: argon2id, hashed on other threads and never more than two at a time, guesses slowed down.

    stored = await passwords.hash("correct horse battery")
    await passwords.check(stored, given, name="alice", source="10.0.0.7")     # raises Unauthorized or TooMany

One hash takes 64 MiB and about a tenth of a second: without a limit, logins would be a way to stop the fleet.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from fleet.errors import Malformed, TooMany, Unauthorized
from fleet.limits import source as counts_as
from fleet.throttle import Throttle

P = ParamSpec("P")
T = TypeVar("T")

# RFC 9106, section 4, second recommended option: what the library takes by default, said here so that it stays.
HASHER: Final = PasswordHasher(time_cost=3, memory_cost=65536, parallelism=4, hash_len=32, salt_len=16, type=Type.ID)
SHORTEST, LONGEST = 12, 256
"""Characters."""
AT_ONCE = 2
WAITING = 16
FREE = 5
"""Failures of one name from one source before it waits."""
FREE_OF_SOURCE = 20
"""The same of all names from one source."""


class Passwords:
    """Used on the loop alone."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._by_name, self._by_source = Throttle(FREE), Throttle(FREE_OF_SOURCE)
        # What an unknown name is measured against, so that its answer takes as long as that of a known one.
        self._nobody = HASHER.hash(secrets.token_urlsafe())

    async def hash(self, password: str) -> str:
        """What is stored. Raises `Malformed` for a length outside the limits, `TooMany` when too many wait."""
        if not SHORTEST <= len(password) <= LONGEST:
            raise Malformed(f"password: expected {SHORTEST} to {LONGEST} characters, got {len(password)}")
        return await self._run(HASHER.hash, password)

    async def check(self, stored: str | None, given: str, *, name: str, source: str) -> str | None:
        """A new hash to store when the parameters changed since, else None; `stored` is None for an unknown name.

        Raises `Unauthorized` for a wrong password, `TooMany` after too many of them.
        """
        network, now = counts_as(source), time.monotonic()
        pair = f"{network} {name[:64]}"
        wait = max(self._by_source.attempt(network, now), self._by_name.attempt(pair, now))
        if wait:
            raise TooMany(f"login: too many failures: try again in {wait:.0f} seconds", wait)
        right = await self._run(_verify, stored or self._nobody, given[: LONGEST + 1])
        if not right or stored is None:
            raise Unauthorized("login: name or password is wrong, or the user is disabled: ask an admin")
        self._by_name.succeeded(pair)
        self._by_source.undo(network)
        return await self._run(HASHER.hash, given) if HASHER.check_needs_rehash(stored) else None

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._waiting >= WAITING:
            raise TooMany("login: too many at once: try again in a few seconds", 2)
        self._waiting += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(work, *args, **kwargs)
        finally:
            self._waiting -= 1


def _verify(stored: str, given: str) -> bool:
    try:
        return HASHER.verify(stored, given)
    except (VerificationError, InvalidHashError):
        return False
