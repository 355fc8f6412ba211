"""Server-sent events of an answer, as bytes: whole events out of pieces, and what one says without reading all of it.

The format is WHATWG HTML 9.2, of which OpenAI-compatible servers use `data:` lines alone. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from fleet.errors import UpstreamDown
from fleet.gateway.document import parsed

DONE: Final = b"[DONE]"
_LONGEST: Final = 4 * 1024 * 1024
_BREAK: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_TEXT: Final = re.compile(rb'"(?:content|reasoning(?:_content)?|refusal|text|arguments)"\s*:\s*"((?:[^"\\]|\\.)*)"')
_END: Final = re.compile(rb'"finish_reason"\s*:\s*"')
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')


@dataclass
class Splitter:
    """Cuts a stream into events. What is no whole event yet waits for the rest of it."""

    _waiting: bytes = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that are whole now, each with its end. Raises `UpstreamDown` for one without end."""
        data = self._waiting + piece if self._waiting else piece
        events, at = [], 0
        for match in _BREAK.finditer(data):
            events.append(data[at : match.end()])
            at = match.end()
        self._waiting = data[at:]
        if len(self._waiting) > _LONGEST:
            raise UpstreamDown(f"cloud tier: an event of over {_LONGEST} bytes: it is no stream of answers")
        return events

    @property
    def rest(self) -> bytes:
        """What is left without an end."""
        return self._waiting


def data_of(event: bytes) -> bytes:
    """What stands behind `data:`; empty for a comment or a keep-alive."""
    if event.startswith(b"data:") and event.count(b"\n") <= 2 and b"\r" not in event:
        return event[5:].strip()
    lines = event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"\n".join(line[5:].lstrip(b" ") for line in lines if line.startswith(b"data:")).strip()


def value_of(data: bytes) -> dict[str, Any] | None:
    """The JSON object of an event."""
    try:
        value = parsed(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def tells_usage(event: bytes) -> bool:
    """Whether it is worth reading for its usage."""
    return b'"usage"' in event and _USAGE.search(event) is not None


def ends(event: bytes) -> bool:
    """Whether it says that the answer is at its end: `[DONE]`, or the reason why a choice ended."""
    return (b"[DONE]" in event and data_of(event) == DONE) or (b'"finish_reason"' in event and bool(_END.search(event)))


def text_size(event: bytes) -> int:
    """Bytes of the texts in an event, near enough for an estimate."""
    return sum(map(len, _TEXT.findall(event)))
