"""Messages that came while the deciding thread had other work: done together, in order, and no more than fit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from fleet import serial as module
from fleet.serial import TOGETHER, Gathered, Serial

WITHIN = 10.0


@pytest.fixture
def serial() -> Iterator[Serial]:
    made = Serial()
    yield made
    made.close()


class Work:
    """What was done together; the first time it waits until it is let go."""

    def __init__(self) -> None:
        self.done: list[list[int]] = []
        self.entered, self.go, self.through = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, things: Sequence[int]) -> None:
        self.entered.set()
        assert self.go.wait(WITHIN)
        self.done.append(list(things))
        if things[-1] < 0:
            self.through.set()
        if 13 in things:
            raise ValueError("thirteen")


def test_what_came_meanwhile_is_done_together_and_in_order(serial: Serial) -> None:
    work = Work()
    gathered = Gathered(serial, work, size=lambda _: 1)
    gathered.add(0)
    assert work.entered.wait(WITHIN)
    for i in range(1, 2 * TOGETHER):
        gathered.add(i)
    gathered.add(-1)
    work.go.set()
    assert work.through.wait(WITHIN)
    assert [len(things) for things in work.done] == [1, TOGETHER, TOGETHER]
    assert [i for things in work.done for i in things] == [*range(2 * TOGETHER), -1]


def test_an_error_costs_nothing_that_comes_after_it(serial: Serial) -> None:
    work = Work()
    work.go.set()
    gathered = Gathered(serial, work, size=lambda _: 1)
    gathered.add(13)
    gathered.add(-1)
    assert work.through.wait(WITHIN)


def test_who_hands_over_too_much_is_not_held_up_and_the_log_tells_of_it(
    serial: Serial, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread that hands over also sends: held up, it sent no answer, and everybody asked once more."""
    monkeypatch.setattr(module, "WAITING", 10)
    work = Work()
    gathered = Gathered(serial, work, size=lambda _: 5)
    gathered.add(0)
    assert work.entered.wait(WITHIN)
    for thing in (1, 2, 3):
        gathered.add(thing)
    work.go.set()
    deadline = time.monotonic() + WITHIN
    while work.done != [[0], [1]] or gathered._bytes:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    gathered.add(-1)
    assert work.through.wait(WITHIN)
    assert work.done == [[0], [1], [-1]]
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "1 messages wait, as many as may",
        "there is room again",
    ]
    assert "2 messages were dropped" in caplog.text


def test_a_request_does_not_wait_for_all_that_came_before_it(serial: Serial) -> None:
    work = Work()
    gathered = Gathered(serial, work, size=lambda _: 1)
    gathered.add(0)
    assert work.entered.wait(WITHIN)
    for i in range(5 * TOGETHER):
        gathered.add(i)
    asked: list[int] = []
    answered = threading.Event()

    def request() -> None:
        asked.append(len(work.done))
        answered.set()

    serial.post(request)
    work.go.set()
    assert answered.wait(WITHIN)
    assert asked == [1]
