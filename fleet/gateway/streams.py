"""A streamed answer: passed on event by event as it comes, checked, and its usage heard.

An event is sent as soon as it is whole. With filters that look at answers its text waits in their window. What the
client did not ask for, the event that tells the usage, stays here.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import aiohttp

from fleet.errors import Blocked, NotJudged, UpstreamDown
from fleet.gateway import sse
from fleet.gateway.calls import Call
from fleet.gateway.filters import finder_of
from fleet.gateway.metrics import Metrics
from fleet.gateway.pricing import usage_of
from fleet.gateway.shapes import Shape, shape_of
from fleet.gateway.upstreams import Failed, Upstream
from fleet.gateway.window import Channel, Window, as_event, brings_nothing_else, end_of

_log = logging.getLogger(__name__)


_LESSONS: Final = 16
"""Events of a stream from which the shape of the others is learnt: some servers give each another one."""


@dataclass(frozen=True)
class _Known:
    """An event that others are like."""

    shape: Shape
    channel: Channel
    value: dict[str, Any]
    is_silent: bool
    """Whether it need not be sent without its text."""


class BrokeOff(Exception):
    """The upstream ended in the middle of its answer: the client must not take it for whole."""


class Stream:
    """One answer. `start` before anything is sent, then `events`, which close it; else `close`."""

    def __init__(
        self,
        call: Call,
        upstream: Upstream,
        answer: aiohttp.ClientResponse,
        metrics: Metrics,
        tick: Callable[[], float],
    ) -> None:
        self._call, self._upstream, self._answer = call, upstream, answer
        self._metrics, self._tick = metrics, tick
        filters = [rules for rules in call.customer.filters if rules.checks_answers]
        self._window = Window(filters, call.verdicts) if filters else None
        self._finder = finder_of(filters)
        self._splitter = sse.Splitter()
        self._reading = upstream.reading(answer)
        self._first = b""
        self._newest: dict[str, Any] | None = None
        self._known: _Known | None = None
        self._lessons = _LESSONS
        self._closed = self._ended = False

    async def start(self) -> None:
        """Wait for the first bytes. Raises `Failed` without any: another upstream may do better still."""
        try:
            self._first = await self._reading.piece()
        except (TimeoutError, aiohttp.ClientError, ConnectionError) as e:
            raise self._failed(e) from e
        if not self._first:
            raise self._failed(UpstreamDown("an empty answer"))
        self._call.streaming = True

    async def events(self) -> AsyncIterator[bytes]:
        """What the client is sent. Raises `BrokeOff` where the upstream did, after an event that says so."""
        piece, read, split, finder = self._first, self._reading.piece, self._splitter.feed, self._finder
        try:
            while piece:
                pass_on = partial(self._all_passed, split(piece))
                out = pass_on() if finder is None else await finder.run(pass_on)
                if out:
                    self._call.record.sent += 1
                    yield out
                piece = await read()
            if end := self._end() if finder is None else await finder.run(self._end):
                yield end
            self._check_ended()
        except Blocked:
            self._call.record.detail = "a filter cut the answer"
            yield end_of(self._newest)
        except NotJudged as e:
            self._call.record.detail = str(e)
            yield as_event({"error": {"code": "unavailable", "message": str(e)}})
            raise BrokeOff from e
        except (TimeoutError, aiohttp.ClientError, ConnectionError, UpstreamDown) as e:
            name = self._upstream.config.name
            _log.warning("%s: the upstream broke off: %s: %s", self._call.customer.who, name, e or type(e).__name__)
            self._call.record.detail = f"{name} broke off: {type(e).__name__}"
            self._metrics.failed(name, "broke-off")
            self._upstream.breaker.failed(self._tick())
            message = f"cloud tier: {name} broke off in the middle of its answer: ask again"
            yield as_event({"error": {"code": "unavailable", "message": message}})
            raise BrokeOff from e
        finally:
            self.close()

    def _check_ended(self) -> None:
        if not self._ended:
            raise UpstreamDown("it ended before its answer did")

    def close(self) -> None:
        """Give the connection and the place back; an answer that is not at its end is cut off."""
        if not self._closed:
            self._closed = True
            self._reading.close()
            if not self._answer.content.at_eof():
                self._answer.close()
            self._answer.release()
            self._upstream.give_back()

    def _all_passed(self, events: Sequence[bytes]) -> bytes:
        """Events that came together. Of those that differ in one text alone only that is read, and checked once."""
        if self._window is None:
            return b"".join([self._passed(event) for event in events])
        out: list[bytes] = []
        texts: list[str] = []
        for event in events:
            text = self._known.shape.text_of(event) if self._known is not None else None
            if text is not None:
                texts.append(text)
                continue
            out += [self._grown(texts, self._window), self._passed(event)]
            texts = []
        out.append(self._grown(texts, self._window))
        return b"".join(out)

    def _grown(self, texts: list[str], window: Window) -> bytes:
        known = self._known
        if not texts or known is None:
            return b""
        out = window.grow(known.channel, texts, known.value)
        self._call.pieces, self._call.size = window.pieces, window.size
        return known.shape.event(out) if out or not known.is_silent else b""

    def _learnt(self, event: bytes, value: dict[str, Any], window: Window) -> _Known | None:
        """What the next events have in common with this one, if it is worth a look: not once none was like another."""
        found = window.one_text(value)
        if found is None or self._lessons <= 0 or sse.tells_usage(event):
            return None
        channel, place = found
        if not place.get():
            return None
        self._lessons -= 1
        shape = shape_of(event, value, place)
        return _Known(shape, channel, value, brings_nothing_else(value, place)) if shape else None

    def _passed(self, event: bytes) -> bytes:
        """An event as the client gets it; empty when it gets none."""
        self._ended = self._ended or sse.ends(event)
        if sse.tells_usage(event):
            value = sse.value_of(sse.data_of(event))
            self._call.usage = usage_of(value) or self._call.usage
            if value is not None and not value.get("choices") and not self._wants_usage:
                return b""
        elif self._window is None:
            size = sse.text_size(event)
            self._call.size += size
            self._call.pieces += size > 0
        return event if self._window is None else self._checked(event, self._window)

    def _checked(self, event: bytes, window: Window) -> bytes:
        data = sse.data_of(event)
        if not data:
            return event
        if data == sse.DONE:
            return b"".join(map(as_event, window.close())) + event
        value = sse.value_of(data)
        if value is None:
            raise UpstreamDown("an event that is not JSON, which no filter can read")
        self._newest = value
        known = self._learnt(event, value, window)
        out = window.feed(value)
        self._known = None if self._ended else known
        self._call.pieces, self._call.size = window.pieces, window.size
        return as_event(out[0]) if len(out) == 1 else b"".join(map(as_event, out))

    def _end(self) -> bytes:
        """What is left when the upstream is at its end without `[DONE]`."""
        rest = self._splitter.rest.strip()
        out = self._passed(rest + b"\n\n") if rest else b""
        return out + (b"".join(map(as_event, self._window.close())) if self._window is not None else b"")

    @property
    def _wants_usage(self) -> bool:
        return self._call.asked is not None and self._call.asked.wants_usage

    def _failed(self, error: Exception) -> Failed:
        name = self._upstream.config.name
        down = UpstreamDown(f"cloud tier: {name} broke off before its answer: {error or type(error).__name__}")
        failed = Failed("broke-off", down)
        failed.sent = True
        return failed
