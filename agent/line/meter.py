"""How good the line is: round trips of questions that the fleet answers, reconnects, questions without an answer."""

from __future__ import annotations

from statistics import median

from wire.life import LineState


class LineMeter:
    """Counts since the start of the agent; round trips by window."""

    def __init__(self) -> None:
        self._round_trips: list[float] = []
        self._ups = 0
        self._unanswered = 0

    def went_up(self) -> None:
        """A connection was made."""
        self._ups += 1

    def answered(self, seconds: float) -> None:
        """The fleet answered a question so long after it was sent."""
        self._round_trips.append(seconds * 1000)

    def unanswered(self) -> None:
        """A question is asked again: nobody answered it in time."""
        self._unanswered += 1

    def close(self) -> LineState:
        """The state of the line; the next window has no round trip yet."""
        trips, self._round_trips = self._round_trips, []
        return LineState(
            rtt_ms=round(median(trips), 1) if trips else None,
            rtt_worst_ms=round(max(trips), 1) if trips else None,
            reconnects=max(0, self._ups - 1),
            unanswered=self._unanswered,
        )
