"""Streams through a filter, byte by byte: whatever shape their events have, and however they come together."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.access import Caller
from fleet.gateway.asked import CHAT, read
from fleet.gateway.calls import Call
from fleet.gateway.config import GatewayConfig, parse
from fleet.gateway.customers import customer_of
from fleet.gateway.metrics import Metrics
from fleet.gateway.records import Record
from fleet.gateway.shapes import shape_of
from fleet.gateway.sse import data_of, value_of
from fleet.gateway.streams import Stream
from fleet.gateway.window import Window

CONFIG: GatewayConfig = parse(
    {
        "filters": {"f": {"deny": ["project nautilus"], "personal": "redact"}},
        "limits": {"each": {"filters": ["f"]}},
    },
    "gateway.toml",
)
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": true}'
HEAD = {"id": "1", "model": "content", "created": 7}


class Answer:
    """An upstream's answer in these pieces, and its own content."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.content, self._pieces = self, iter(pieces)

    async def piece(self) -> bytes:
        return next(self._pieces, b"")

    def at_eof(self) -> bool:
        return True

    def release(self) -> None:
        """Nothing to give back."""

    close = release


class Upstream:
    """The part of one that a stream needs."""

    def give_back(self) -> None:
        """Nobody waits."""

    def reading(self, answer: Answer) -> Answer:
        return answer


def passed(pieces: list[bytes]) -> tuple[Call, list[dict[str, Any]]]:
    """What is known after a stream, and the events that a client got of it."""
    caller = Caller("token:t", frozenset({"gateway"}), frozenset(), token="t")
    customer = customer_of(caller, CONFIG, {})
    call = Call(customer, Record(datetime.now(UTC).isoformat(), "t", "t", "", CHAT), 0.0)
    call.asked = read(CHAT, BODY)

    async def all_of_it() -> bytes:
        stream = Stream(call, cast(Any, Upstream()), cast(Any, Answer(pieces)), Metrics(), time.monotonic)
        await stream.start()
        return b"".join([out async for out in stream.events()])

    events = asyncio.run(all_of_it()).split(b"\n\n")
    assert events.pop() == b""
    return call, [value for e in events if (value := value_of(data_of(e))) is not None]


def event(content: str, *, index: int = 0, indent: int | None = None, **more: Any) -> bytes:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": None}
    value = {**HEAD, "choices": [choice], "usage": None, **more}
    return b"data: " + json.dumps(value, ensure_ascii=indent is None).encode() + b"\n\n"


def end(index: int = 0) -> bytes:
    choice = {"index": index, "delta": {}, "finish_reason": "stop"}
    return b"data: " + json.dumps({**HEAD, "choices": [choice]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def text_of(events: list[dict[str, Any]], index: int = 0) -> str:
    choices = [c for e in events for c in e["choices"] if c["index"] == index]
    return "".join(c["delta"].get("content", "") for c in choices)


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at, i = 0, 0
    while at < len(data):
        yield data[at : at + sizes[i % len(sizes)]]
        at, i = at + sizes[i % len(sizes)], i + 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Nd"], exclude_characters="@:"), max_size=8), max_size=30),
    st.lists(st.integers(1, 900), min_size=1, max_size=9),
    st.sampled_from([None, 1]),
)
def test_every_text_comes_out_as_it_went_in_however_events_come_together(
    texts: list[str], sizes: list[int], indent: int | None
) -> None:
    """Quotes, breaks of lines, backslashes and signs of any script; a piece may hold many events or a part of one."""
    data = b"".join(event(text, indent=indent) for text in texts) + end() + DONE
    call, events = passed(list(cut(data, sizes)))
    assert text_of(events) == "".join(texts)
    assert [e for e in events if e["choices"][0]["finish_reason"] == "stop"]
    assert all({k: e[k] for k in HEAD} == HEAD for e in events)
    assert (call.pieces, call.size) == (sum(map(bool, texts)), len("".join(texts)))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.lists(st.integers(1, 900), min_size=1, max_size=9))
def test_no_way_to_send_it_gets_personal_data_through(cuts: list[int], sizes: list[int]) -> None:
    whole = "Write to anna@example.org about 4111 1111 1111 1111. " + "Then wait. " * 12
    data = b"".join(event(p.decode()) for p in cut(whole.encode(), cuts)) + end() + DONE
    call, events = passed(list(cut(data, sizes)))
    assert text_of(events) == "Write to [mail] about [card]. " + "Then wait. " * 12
    assert call.verdicts.counts == {"f/personal mail redacted": 1, "f/personal card redacted": 1}


@pytest.mark.parametrize("together", [True, False])
def test_a_phrase_is_cut_off_also_between_events_of_one_shape(together: bool) -> None:
    events = [event(text) for text in ("the ", "pro", "ject ", "naut", "ilus ", "is here")]
    call, got = passed([b"".join([*events, end(), DONE])] if together else [*events, end(), DONE])
    assert "naut" not in text_of(got)
    assert got[-1]["choices"][0]["finish_reason"] == "content_filter"
    assert call.verdicts.blocked


def test_events_of_several_answers_and_of_changing_shapes_keep_their_places() -> None:
    data = [event(f"{i}.{n} ", index=n, **({"extra": i} if i % 3 else {})) for i in range(20) for n in (0, 1)]
    _, events = passed([*data, end(0), end(1), DONE])
    for n in (0, 1):
        assert text_of(events, n) == "".join(f"{i}.{n} " for i in range(20))


def test_what_stands_beside_the_text_is_sent_where_it_is_new() -> None:
    """Some servers repeat the role in every event: it is not lost while the text waits."""
    with_role = event("some words ").replace(b'"delta": {', b'"delta": {"role": "assistant", ')
    _, events = passed([with_role] * 5 + [end(), DONE])
    assert text_of(events) == "some words " * 5
    assert sum("role" in e["choices"][0]["delta"] for e in events) >= 5


@pytest.mark.parametrize(
    "data",
    [
        event("a").replace(b'"delta"', b'"content": "b", "delta"'),
        event("a").replace(b'"content": "a"', b'"content": "a", "cont\\u0065nt": "b"'),
        event("a").replace(b"\n\n", b"\r\n\r\n"),
        event("a").replace(b"data: ", b"event: x\ndata: "),
        event("a").replace(b'"index": 0, ', b""),
    ],
    ids=["named twice", "named twice, once escaped", "other ends of lines", "more lines", "no index"],
)
def test_of_an_event_that_can_be_read_in_two_ways_no_shape_is_learnt(data: bytes) -> None:
    """Attack: an upstream whose next events would be taken for what they are not."""
    value = value_of(data_of(data))
    assert value is not None
    window = Window([CONFIG.filters["f"]], passed([DONE])[0].verdicts)
    found = window.one_text(value)
    assert found is None or shape_of(data, value, found[1]) is None


def test_a_shape_takes_one_string_and_nothing_that_only_looks_like_it() -> None:
    """Attack: bytes that begin and end as a known event and hold more than a text between."""
    data = event("hello")
    value = value_of(data_of(data))
    assert value is not None
    shape = shape_of(data, value, Window([CONFIG.filters["f"]], passed([DONE])[0].verdicts).one_text(value)[1])  # type: ignore[index]
    assert shape is not None
    assert shape.text_of(event('a "b" \\ \n \u00e9')) == 'a "b" \\ \n \u00e9'
    assert shape.event("new") == data.replace(b"hello", b"new").replace(b": ", b":").replace(b", ", b",").replace(
        b"data:", b"data: "
    )
    for between in (b'"a", "tool_calls": "b"', b'"a"', b'"a\n"', b'"a"\n', b"null", b'"\\ud800"', b"", b'"'):
        other = data.replace(b'"hello"', between)
        assert (shape.text_of(other) == "a") == (between == b'"a"')
    assert shape.text_of(end()) is None
