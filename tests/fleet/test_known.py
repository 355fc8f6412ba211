"""Who asks is looked up once a second, by one request for all, and never from before a change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from fleet.access import Caller
from fleet.api.known import FOR, Known
from fleet.errors import Unauthorized

ANNA = Caller("user:anna", frozenset({"gateway"}), frozenset())


class Database:
    """Look-ups that end when the test says so. `rows` may change meanwhile, as a real database does."""

    def __init__(self) -> None:
        self.rows, self.asked = {"a": ANNA}, 0
        self.answers = asyncio.Event()

    async def look_up(self) -> Caller:
        """What holds when it begins; known when the answer comes."""
        self.asked += 1
        found = self.rows.get("a")
        await self.answers.wait()
        if found is None:
            raise Unauthorized("nobody")
        return found


def run(test: Callable[[Known, Database], Awaitable[None]]) -> None:
    async def made() -> None:
        await asyncio.wait_for(test(Known(), Database()), 20)

    asyncio.run(made())


async def turn() -> None:
    """Everybody who can go on has gone on."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_all_requests_in_flight_wait_for_one_look_up() -> None:
    async def test(known: Known, database: Database) -> None:
        asking = [asyncio.create_task(known.who("a", database.look_up, lambda: 0.0)) for _ in range(20)]
        await turn()
        assert database.asked == 1
        database.answers.set()
        assert await asyncio.gather(*asking) == [ANNA] * 20
        assert await known.who("a", database.look_up, lambda: FOR - 0.01) == ANNA
        assert database.asked == 1
        assert await known.who("a", database.look_up, lambda: FOR) == ANNA
        assert database.asked == 2

    run(test)


def test_who_asks_after_a_change_does_not_hear_what_was_before_it() -> None:
    """Attack: a revoked key is used while a look-up of before its revocation is under way."""

    async def test(known: Known, database: Database) -> None:
        before = asyncio.create_task(known.who("a", database.look_up, lambda: 0.0))
        waits = asyncio.create_task(known.who("a", database.look_up, lambda: 0.0))
        await turn()
        database.rows.clear()
        known.forget()
        after = asyncio.create_task(known.who("a", database.look_up, lambda: 0.0))
        await turn()
        assert database.asked == 2
        database.answers.set()
        assert await before == ANNA  # its request came before the change
        for late in (waits, after):
            with pytest.raises(Unauthorized):
                await late
        with pytest.raises(Unauthorized):
            await known.who("a", database.look_up, lambda: 0.0)

    run(test)


def test_a_request_that_leaves_takes_nobody_with_it() -> None:
    """Accident: the client whose request looks up for all others hangs up, and so does one that waits."""

    async def test(known: Known, database: Database) -> None:
        asking = [asyncio.create_task(known.who("a", database.look_up, lambda: 0.0)) for _ in range(4)]
        await turn()
        asking[0].cancel()
        asking[1].cancel()
        await turn()
        assert asking[0].cancelled()
        assert asking[1].cancelled()
        database.answers.set()
        assert await asyncio.gather(*asking[2:]) == [ANNA] * 2

    run(test)


def test_a_look_up_that_fails_is_not_remembered() -> None:
    async def test(known: Known, database: Database) -> None:
        database.answers.set()
        database.rows.clear()
        with pytest.raises(Unauthorized):
            await known.who("a", database.look_up, lambda: 0.0)
        database.rows["a"] = ANNA
        assert await known.who("a", database.look_up, lambda: 0.0) == ANNA

    run(test)
