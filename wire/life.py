"""What a device tells of its own life: its line, what happened to it, and how its models do in a self-test."""

from __future__ import annotations

from dataclasses import dataclass

from wire.document import Document, check_digest, check_token
from wire.units import instant


@dataclass(frozen=True, kw_only=True)
class LineState(Document):
    """How good the line is. Round trips are of questions that the fleet answered in this window, in ms.

    `reconnects` and `unanswered` (questions: reports and batches) count since the start of the agent.
    """

    rtt_ms: float | None = None
    rtt_worst_ms: float | None = None
    reconnects: int = 0
    unanswered: int = 0


@dataclass(frozen=True, kw_only=True)
class DeviceEvent(Document):
    """Something that people should know of. `kind` is one word, such as `security`, `throttled` or `watchdog`."""

    at: str
    kind: str
    text: str

    def __post_init__(self) -> None:
        instant(self.at, where="event.at")
        check_token(self.kind, "event.kind")


@dataclass(frozen=True, kw_only=True)
class ModelTest(Document):
    """The golden set of an active model, run now. `fault` says what does not hold; "" when all does. Times in ms."""

    model: str
    digest: str
    fault: str = ""
    load_ms: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None

    def __post_init__(self) -> None:
        check_digest(self.digest, f"self-test of {self.model[:80]}")
