"""One blob on its way, without clock or network: what is published, in which order, how often, how far ahead."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.mqtt.flow import FIRST_WINDOW, LARGEST_WINDOW, PATIENCE, SMALLEST_WINDOW, Flow

CHUNK = 64 * 1024
TRIP = 4
"""Chunks that are between the fleet and a reader."""


class Reader:
    """A device on a line that keeps the order and loses some; it reports after every fourth chunk, and when asked."""

    def __init__(self, name: str, flow: Flow, count: int, loss: float = 0.0, seed: int = 0) -> None:
        self.name, self.flow, self.loss = name, flow, loss
        self.missing = set(range(count))
        self.seen, self.line, self.got = -1, list[int](), 0
        self.random = random.Random(seed)

    def deliver(self, index: int, now: float) -> None:
        self.line.append(index)
        if len(self.line) > TRIP:
            self.arrive(now)

    def arrive(self, now: float) -> None:
        index = self.line.pop(0)
        if self.random.random() < self.loss:
            return
        self.seen, self.got = index, self.got + 1
        self.missing.discard(index)
        if self.got % 4 == 0 or not self.missing:
            self.say(now)

    def say(self, now: float) -> None:
        self.flow.hear(self.name, frozenset(self.missing), self.seen, now)

    def give_up_on_the_line(self, now: float) -> None:
        while self.line:
            self.arrive(now)
        self.seen = -1
        self.say(now)


def run(flow: Flow, readers: list[Reader], *, then: Callable[[int], None] = lambda _published: None) -> list[int]:
    """Until everybody has everything: what was published, in order."""
    now, published = 0.0, list[int]()
    for reader in readers:
        reader.say(now)
    for _ in range(100_000):
        now += 0.01
        if all(not reader.missing for reader in readers):
            return published
        index = flow.take(now)
        if index is not None:
            published.append(index)
            for reader in readers:
                reader.deliver(index, now)
        elif flow.wait(now) == float("inf") or now % 1 < 0.01:
            give_up(readers, now)
        then(len(published))
    raise AssertionError("it never ends")


def give_up(readers: list[Reader], now: float) -> None:
    for reader in readers:
        if reader.missing:
            reader.give_up_on_the_line(now)


def flow_of(count: int, gather: float = 0.0) -> Flow:
    return Flow([CHUNK] * count, gather=gather)


def test_every_chunk_goes_out_once_for_any_number_of_readers() -> None:
    for readers in (1, 10):
        flow = flow_of(200)
        assert run(flow, [Reader(f"r{i}", flow, 200) for i in range(readers)]) == list(range(200))


@pytest.mark.parametrize("count", [10, 50])
def test_late_joiners_and_loss_cost_what_they_cost_for_any_number_of_readers(count: int) -> None:
    """A fifth comes half way, and every reader loses one chunk in twenty."""
    flow, chunks = flow_of(500), 500
    early = [Reader(f"early{i}", flow, chunks, 0.05, seed=i) for i in range(count * 4 // 5)]
    late = [Reader(f"late{i}", flow, chunks, 0.05, seed=100 + i) for i in range(count // 5)]
    readers = list(early)

    def join(published: int) -> None:
        if published == chunks // 2 and late:
            for reader in late:
                reader.say(0.01 * published)
            readers.extend(late)
            late.clear()

    published = run(flow, readers, then=join)
    assert not late
    assert len(published) / chunks <= 2.6


def test_late_joiners_alone_cost_what_they_missed() -> None:
    flow, readers = flow_of(400), list[Reader]()
    readers += [Reader(f"early{i}", flow, 400) for i in range(8)]
    late = [Reader(f"late{i}", flow, 400) for i in range(2)]

    def join(published: int) -> None:
        if published == 200 and late:
            for reader in late:
                reader.say(2.0)
            readers.extend(late)
            late.clear()

    assert len(run(flow, readers, then=join)) == 600


def test_what_is_on_its_way_is_not_sent_again_and_what_was_lost_is() -> None:
    flow = flow_of(16)
    flow.hear("a", frozenset(range(16)), -1, 0)
    assert [flow.take(0.1) for _ in range(16)] == list(range(16))
    flow.hear("a", frozenset({3, *range(6, 16)}), 5, 0.2)  # 5 came last: 3 is lost, 6 to 15 are on their way
    assert [flow.take(0.3), flow.take(0.3)] == [3, None]
    flow.hear("a", frozenset({3, 15}), 14, 0.4)
    assert flow.take(0.5) is None
    flow.hear("a", frozenset({3, 15}), -1, 0.6)  # nothing is on its way any more
    assert {flow.take(0.7), flow.take(0.7)} == {3, 15}


def test_a_chunk_that_was_sent_twice_and_seen_once_does_not_count_as_seen_twice() -> None:
    flow = flow_of(4)
    flow.hear("a", frozenset({0, 1, 2, 3}), -1, 0)
    assert [flow.take(0.1) for _ in range(4)] == [0, 1, 2, 3]
    flow.hear("b", frozenset({0}), -1, 0.2)
    assert flow.take(0.3) == 0
    flow.hear("a", frozenset({1, 2, 3}), 0, 0.4)  # the first 0: the others are behind it on the line
    assert flow.take(0.5) is None


def test_wishes_are_gathered_and_newcomers_prolong_that_up_to_a_limit() -> None:
    flow = flow_of(4, gather=0.1)
    flow.hear("a", frozenset({0}), -1, 0)
    assert flow.take(0.09) is None
    for i in range(1, 30):
        flow.hear(f"b{i}", frozenset({0, 1}), -1, 0.05 * i)
        if 0.05 * i < 0.95:
            assert flow.take(0.05 * i) is None
    assert flow.take(1.01) == 0


def test_many_readers_are_gathered_for_as_long_as_it_takes_to_serve_them() -> None:
    flow = flow_of(4, gather=0.1)
    for i in range(4000):  # 4 chunks for each take a broker 10 s
        flow.hear(f"b{i}", frozenset(range(4)), -1, i / 500)
        assert flow.take(i / 500) is None
    assert flow.take(9.1) == 0  # half a second after the last one, to those of the first seconds too
    assert [flow.take(9.2) for _ in range(4)] == [1, 2, 3, None]


def test_what_was_published_since_a_device_asked_is_on_its_way_to_it() -> None:
    """Its wish waited: it listened before it asked, and the round that began meanwhile is for it too."""
    flow = flow_of(2)
    flow.hear("a", frozenset({0, 1}), -1, 0)
    assert [flow.take(0.1), flow.take(0.2)] == [0, 1]
    flow.hear("b", frozenset({0, 1}), -1, 1.0, asked=0.05)
    assert flow.take(1.1) is None
    flow.hear("c", frozenset({0, 1}), -1, 1.0, asked=0.15)
    assert [flow.take(1.2), flow.take(1.3)] == [0, None]


def test_no_more_than_the_window_is_out_until_a_reader_says_that_it_came() -> None:
    flow = flow_of(1000)
    flow.hear("a", frozenset(range(1000)), -1, 0)
    sent = 0
    while flow.take(0.1) is not None:
        sent += 1
    assert sent * CHUNK == FIRST_WINDOW
    flow.hear("a", frozenset(range(8, 1000)), 7, 0.2)
    assert flow.window == FIRST_WINDOW + 8 * CHUNK
    while flow.take(0.3) is not None:
        sent += 1
    assert sent * CHUNK == FIRST_WINDOW + 16 * CHUNK


def test_nothing_is_sent_to_readers_that_are_silent_for_long() -> None:
    """A killed device costs one window."""
    flow = flow_of(1000)
    flow.hear("a", frozenset(range(1000)), -1, 0)
    while flow.take(0.1) is not None:
        pass
    assert flow.take(PATIENCE + 0.1) is None
    assert not flow


def test_a_quarter_of_the_readers_holds_nobody_up_and_gets_the_rest_in_the_next_round() -> None:
    flow = flow_of(64)
    for name in ("a", "b", "c", "slow"):
        flow.hear(name, frozenset(range(64)), -1, 0)
    now, sent = 0.0, 0
    while (index := flow.take(now)) is not None:
        sent, now = sent + 1, now + 0.01
        for name in ("a", "b", "c"):
            flow.hear(name, frozenset(range(index + 1, 64)), index, now)
    assert sent == 64
    flow.hear("slow", frozenset(range(4, 63)), 63, now)
    assert [flow.take(now) for _ in range(3)] == [4, 5, 6]


def test_the_window_opens_while_chunks_come_and_closes_when_they_are_lost_or_wait() -> None:
    flow = flow_of(2000)
    missing = set(range(2000))
    flow.hear("a", missing, -1, 9)

    def round_trip(begun: float, trip: float, *, lost: int = 0) -> None:
        sent = []
        while (index := flow.take(begun)) is not None:
            sent.append(index)
        missing.difference_update(sent[lost:])
        flow.hear("a", missing, sent[-1], begun + trip)

    for i in range(6):
        round_trip(10 + i, 0.1)
    assert flow.window == LARGEST_WINDOW
    round_trip(20, 0.1, lost=3)
    assert flow.window == LARGEST_WINDOW  # a few that are lost are repaired: a smaller window would lose as many
    round_trip(21, 0.1, lost=40)
    assert flow.window < LARGEST_WINDOW
    for i in range(20):
        round_trip(22 + 2 * i, 1.0)
    assert flow.window == SMALLEST_WINDOW


def test_a_long_transfer_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = flow_of(10)
    for turn in range(1000):
        flow.hear("a", frozenset(range(10)), -1, turn)
        while flow.take(turn + 0.5) is not None:
            pass
    assert len(flow._log.index) <= 4 * 10 + 1024
    flow.hear("a", frozenset({4}), 9, 1001)
    assert flow.take(1002) == 4


@given(st.data())
def test_whatever_readers_lose_everybody_ends_with_everything(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40))
    flow = flow_of(count)
    losses = data.draw(st.lists(st.floats(0, 0.6), min_size=1, max_size=4))
    readers = [Reader(f"r{i}", flow, count, loss, seed=i) for i, loss in enumerate(losses)]
    assert set(run(flow, readers)) == set(range(count))
