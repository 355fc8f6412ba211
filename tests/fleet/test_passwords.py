"""Passwords: how they are stored, what a guess costs, and how many may be made."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from argon2 import PasswordHasher

from fleet import passwords
from fleet.errors import Malformed, TooMany, Unauthorized
from fleet.passwords import Passwords
from fleet.throttle import FORGET, LONGEST, MOST, Throttle

PASSWORD = "correct horse battery"


def test_a_password_is_stored_as_argon2id_with_the_parameters_of_rfc_9106() -> None:
    stored = asyncio.run(Passwords().hash(PASSWORD))
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


@pytest.mark.parametrize("password", ["", "short", "x" * 11, "x" * 257])
def test_a_password_outside_the_limits_is_refused(password: str) -> None:
    with pytest.raises(Malformed, match="12 to 256 characters"):
        asyncio.run(Passwords().hash(password))


def test_a_hash_of_weaker_parameters_is_made_anew_at_the_next_login() -> None:
    weak = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    renewed = asyncio.run(Passwords().check(weak, PASSWORD, name="alice", source="10.0.0.1"))
    assert renewed is not None
    assert renewed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert asyncio.run(Passwords().check(renewed, PASSWORD, name="alice", source="10.0.0.1")) is None


def test_an_unknown_name_costs_a_hash_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: names are found by how long the answer takes."""
    measured: list[str] = []
    real = passwords._verify
    monkeypatch.setattr(passwords, "_verify", lambda stored, given: measured.append(stored) or real(stored, given))
    for stored in (None, asyncio.run(Passwords().hash(PASSWORD))):
        with pytest.raises(Unauthorized, match="name or password is wrong, or the user is disabled"):
            asyncio.run(Passwords().check(stored, "a wrong password", name="alice", source="10.0.0.1"))
    assert [m.split("$")[1:4] for m in measured] == [["argon2id", "v=19", "m=65536,t=3,p=4"]] * 2


def test_never_more_than_two_passwords_are_hashed_at_once_and_few_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: many logins at once, each of which takes 64 MiB and a tenth of a second."""
    lock, running, most = threading.Lock(), [0], [0]

    def slow(_stored: str, _given: str) -> bool:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1
        return False

    monkeypatch.setattr(passwords, "_verify", slow)

    async def flood() -> list[BaseException | str | None]:
        guard = Passwords()
        logins = (guard.check(None, "x", name=f"n{i}", source=f"10.0.0.{i}") for i in range(40))
        return await asyncio.gather(*logins, return_exceptions=True)

    outcomes = asyncio.run(flood())
    assert most[0] == passwords.AT_ONCE
    assert sum(isinstance(o, Unauthorized) for o in outcomes) == passwords.WAITING
    assert sum(isinstance(o, TooMany) for o in outcomes) == 40 - passwords.WAITING


def test_failures_make_the_next_attempt_wait_longer_and_longer() -> None:
    throttle = Throttle(free=5)
    assert [throttle.attempt("k", 0) for _ in range(5)] == [0] * 5
    waits, now = [], 0.0
    for _ in range(15):
        wait = throttle.attempt("k", now)
        waits.append(wait)
        assert throttle.attempt("k", now + wait / 2) > 0
        now += wait
        assert throttle.attempt("k", now) == 0
    assert waits[:4] == [1, 2, 4, 8]
    assert max(waits) == LONGEST
    assert throttle.attempt("k", now + LONGEST + FORGET + 1) == 0


def test_a_throttle_remembers_no_more_than_it_may() -> None:
    """Attack: failures from ever new addresses fill the memory."""
    throttle = Throttle(free=5)
    for i in range(MOST + 100):
        throttle.attempt(str(i), 0)
    assert len(throttle._failures) == MOST


@pytest.mark.alone
def test_the_64_bits_below_an_ipv6_address_count_as_one_source() -> None:
    async def guess() -> None:
        guard = Passwords()
        for i in range(passwords.FREE + 1):
            with pytest.raises(Unauthorized if i < passwords.FREE else TooMany):
                await guard.check(None, "x", name="alice", source=f"2001:db8::{i}")

    asyncio.run(guess())
