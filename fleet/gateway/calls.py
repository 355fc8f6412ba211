"""One request on its way through the gateway, from its first byte to its one end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from fleet.gateway.asked import Asked
from fleet.gateway.budgets import Reservation
from fleet.gateway.customers import Customer
from fleet.gateway.filters import Verdicts
from fleet.gateway.pricing import FREE, Price, Usage, tokens_of
from fleet.gateway.records import ANSWERED, Record

TEXT_KEPT: Final = 64 * 1024
"""Characters of a request that the audit keeps where it keeps texts."""


@dataclass(slots=True)
class Call:
    """What is known of a request so far. `Gateway.end` turns it into a record, once."""

    customer: Customer
    record: Record
    started: float
    verdicts: Verdicts = field(default_factory=Verdicts)
    asked: Asked | None = None
    reservation: Reservation | None = None
    price: Price = FREE
    usage: Usage | None = None
    """As the upstream told it."""
    sent: bool = False
    """Whether an upstream may have worked on it."""
    streaming: bool = False
    pieces: int = 0
    """Events with text that the upstream sent."""
    size: int = 0
    """Bytes of text in them."""
    left: bool = False
    ended: bool = False

    def used(self, outcome: str) -> Usage:
        """What it used: as told, else estimated, so that neither a silent upstream nor a client that left is free."""
        if self.usage is not None:
            return self.usage
        if not self.sent or self.asked is None or self.reservation is None:
            return Usage(0, 0)
        prompt = self.asked.prompt
        if not self.pieces and (outcome != ANSWERED or not self.streaming):
            # The upstream may have worked on it to the end: nobody can say that it did not.
            return Usage(prompt, max(self.reservation.tokens - prompt, 0), estimated=True)
        return Usage(prompt, max(self.pieces, tokens_of(self.size)), estimated=True)

    def text(self) -> str:
        """The request as the upstream was sent it, for an audit that keeps texts."""
        return json.dumps(self.asked.value, ensure_ascii=False)[:TEXT_KEPT] if self.asked is not None else ""


@dataclass(frozen=True)
class Answer:
    """What the client gets: a whole body, or events one after the other."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    events: AsyncIterator[bytes] | None = None
    silence: float = 0.0
    """Seconds that the upstream of `events` may be silent."""
    outcome: str = ""
    """What the audit says when all of it was sent; empty: what the stream says itself."""
