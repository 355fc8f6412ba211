"""The events of a stream that differ in one text alone, as nearly all of them do: read and written by that text. Pure.

    shape = shape_of(event, value, place)           # learnt from one that was read and checked whole; None: it has none
    text = shape.text_of(another)                   # None: that one has to be read whole
    shape.event("what to send in its place")

Bytes that begin and end as those of a known event, with one JSON string between them where its text stood, are the same
object with another text: JSON leaves no other reading. To parse, walk and write it again costs ten times as much.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from fleet.gateway import sse
from fleet.gateway.asked import Place
from fleet.gateway.document import parsed, written

_PROBE: Final = "\u2063a text of ours\u2063"
_QUOTE: Final = b'"'


@dataclass(frozen=True)
class Shape:
    """What stands around the text: as it came, and as it is sent."""

    head: bytes
    tail: bytes
    sent_head: bytes
    sent_tail: bytes

    def text_of(self, event: bytes) -> str | None:
        """The text of an event of this shape."""
        if not (event.startswith(self.head) and event.endswith(self.tail)):
            return None
        literal = event[len(self.head) : len(event) - len(self.tail)]
        if not (literal.startswith(_QUOTE) and literal.endswith(_QUOTE)):
            return None
        try:
            text = parsed(literal)
        except ValueError:
            return None
        return text if isinstance(text, str) else None

    def event(self, text: str) -> bytes:
        """The event with a text."""
        return self.sent_head + written(text) + self.sent_tail


def shape_of(event: bytes, value: dict[str, Any], place: Place) -> Shape | None:
    """The shape of an event that says `value`, whose one text stands in `place`."""
    found = list(re.finditer(_literal_at(str(place.key)), event))
    if len(found) != 1 or event.count(b"\n") != 2 or b"\r" in event:
        return None
    (start, end), before = found[0].span(1), place.get()
    probe = written(_PROBE)
    place.set(_PROBE)
    try:
        same = _value(event[:start] + probe + event[end:]) == value
        sent = b"data: " + written(value) + b"\n\n"
    finally:
        place.set(before)
    if not same or sent.count(probe) != 1:
        return None
    return Shape(event[:start], event[end:], *sent.split(probe))


def _value(event: bytes) -> dict[str, Any] | None:
    return sse.value_of(sse.data_of(event))


def _literal_at(key: str) -> re.Pattern[bytes]:
    return re.compile(rb'"' + re.escape(key.encode()) + rb'"\s*:\s*("(?:[^"\\]|\\.)*")')
