"""How the inbox keeps up: what was taken, and how long it had waited. Written on the serial thread, read anywhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet.mqtt.link import Message


@dataclass
class Meter:
    """Counts since the start. `lag_s`: how long the oldest of the messages taken last had waited."""

    taken: int = 0
    refused: int = 0
    lag_s: float = 0.0

    def count(self, messages: Sequence[Message], refused: int) -> None:
        """Messages that were taken together."""
        self.taken += len(messages)
        self.refused += refused
        came = [message.came for message in messages if message.came is not None]
        self.lag_s = max(0.0, time.monotonic() - min(came)) if came else 0.0
