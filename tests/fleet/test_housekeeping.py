"""What time alone changes goes on in every part, whatever happens in one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from fleet.housekeeping import Housekeeping
from fleet.up import tick

PARTS = ("revocations", "certificates", "inbox", "audit", "alerts", "keeper", "measuring", "rollouts", "deltas")


def services(faults: dict[str, Exception], done: list[str], *, leads: bool = True) -> Any:
    """Parts that say that it was their turn, and fail where a fault is put."""

    def ticks(name: str) -> Callable[..., list[str]]:
        def tick(*_: object) -> list[str]:
            done.append(name)
            if name in faults:
                raise faults[name]
            return [name]

        return tick

    parts: dict[str, Any] = {name: SimpleNamespace(tick=ticks(name)) for name in PARTS}
    parts["rollouts"].desired = SimpleNamespace(refresh=ticks("desired"))
    parts["deltas"].drop = lambda _forgotten: None
    published = SimpleNamespace(
        desired=lambda ids: done.append(f"published {ids}"), commands=ticks("orders"), trust=ticks("trust")
    )
    return SimpleNamespace(
        **parts,
        commands=SimpleNamespace(refresh=ticks("commands")),
        repository=SimpleNamespace(refresh=lambda: False),
        database=SimpleNamespace(transaction=nullcontext),
        outbox=published,
        hearing=lambda: None,
        courier=None,
        leads=lambda _session: leads,
        housekeeping=Housekeeping(),
    )


def test_a_stand_by_gives_no_orders_and_forgets_nothing() -> None:
    """Rollouts, alerts, evidence and desired states ask for the lease themselves."""
    done: list[str] = []
    tick(services({}, done, leads=False))
    assert {"revocations", "rollouts", "desired"} <= set(done)
    assert not {"measuring", "commands", "deltas"} & set(done)


@pytest.mark.parametrize("at_fault", [*PARTS, "desired", "commands"])
def test_a_part_that_fails_by_any_error_keeps_no_other_from_its_turn(at_fault: str) -> None:
    """Accident: a fault of ours, such as a missing key, in one part of the tick."""
    faults: dict[str, Exception] = {at_fault: KeyError("missing")}
    done: list[str] = []
    fleet = services(faults, done)
    tick(fleet)
    assert {*PARTS, "desired", "commands"} <= set(done)
    assert {"published ['rollouts']", "published ['desired']"} - set(done) <= {f"published ['{at_fault}']"}
    assert list(fleet.housekeeping.failing.values()) == ["KeyError: 'missing'"]
    del faults[at_fault]
    tick(fleet)
    assert fleet.housekeeping.failing == {}


def test_a_fault_that_stays_is_told_once_with_its_traceback_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    faults: dict[str, Exception] = {"rollouts": KeyError("missing")}
    fleet = services(faults, [])
    for _ in range(3):
        tick(fleet)
    faults["rollouts"] = ValueError("another")
    tick(fleet)
    faults.clear()
    tick(fleet)
    tick(fleet)
    told = [(r.getMessage(), r.exc_info is not None) for r in caplog.records]
    failed = ("housekeeping: rollouts failed: it is tried again", True)
    assert told == [failed, failed, ("housekeeping: rollouts goes on", False)]
