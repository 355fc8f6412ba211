"""A request of a product app and the reply to it, whichever server carries them.

    async def route(request: Request) -> Reply: ...
    return Reply.json(200, {"ready": True})
    return Reply(200, "text/event-stream", parts)        # parts: an async generator, closed when the client leaves

A generator that raises `Unavailable` in the middle ends the connection without an end of the body, so that the client
cannot take what came for the whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from wire.document import dump_json


@dataclass(slots=True)
class Request:
    """What was asked. `headers` by lower-case name; `body` is whole, and within the limit."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Fields(dict[str, str]):
    """Header fields that many replies have, none of which changes them: they are written once."""

    @cached_property
    def lines(self) -> str:
        """As they are sent."""
        return lines_of(self)


def lines_of(headers: Mapping[str, str]) -> str:
    """Header fields as they are sent."""
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()])


@dataclass(slots=True)
class Reply:
    """What is answered: bytes, or parts as they come."""

    status: int
    content_type: str
    body: bytes | AsyncGenerator[bytes, None]
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, status: int, value: Any, headers: Mapping[str, str] | None = None) -> Reply:
        """A JSON document."""
        return cls(status, "application/json", dump_json(value), headers or {})
