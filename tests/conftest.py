"""What every test shares: no wall-clock rules of hypothesis, no width of a terminal, and its turn among processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy two-core machine is not a fault.
settings.register_profile("shoal", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("shoal")

# The first process imports readline, which sets these for the others, and tables would be cut off at 80 columns.
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)

_DOOR, _ROOM = Path(__file__), Path(__file__).parent
"""Locked while one comes in, and while one is in; the processes of a run have these two in common."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: at the end one process would be left with them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test marked `alone` runs while no other process runs any; the wait is no part of its timeout."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with _turn(fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH):
        return (yield)


@contextmanager
def _turn(kind: int) -> Iterator[None]:
    with ExitStack() as inside:
        # Who waits for the room holds the door, so that nobody who came later is in before.
        with _locked(_DOOR, fcntl.LOCK_EX):
            inside.enter_context(_locked(_ROOM, kind))
        yield


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, kind)
        yield
    finally:
        os.close(fd)
