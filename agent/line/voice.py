"""What this device says of itself: signed by its key, under numbers that it never used before.

    voice.say(topics.Reported(device), reported, retain=True)

`(starts, n)` rises with every statement of a kind, so the fleet takes an older one for a replay or a clone. `starts` is
on disk before the first statement of a start leaves.
"""

from __future__ import annotations

from collections.abc import Callable

from securesystemslib.signer import Signer

from agent.line.link import Link
from agent.store.state import StateFile
from wire import topics
from wire.dsse import seal
from wire.messages import Statement


class Voice:
    """The speaking end of the line. `signer()` gives the key of the certificate in use."""

    def __init__(self, device: str, state: StateFile, link: Link, signer: Callable[[], Signer]) -> None:
        self.device = device
        self._state = state
        self._link = link
        self._signer = signer
        self._starts = 0

    @property
    def up(self) -> bool:
        """Whether anybody would hear it."""
        return self._link.up

    def starts(self) -> int:
        """Which start of the agent this is, counted since enrolment. Raises `Unavailable` when the disk takes none."""
        if not self._starts:
            self._starts = self._state.begin_start()
        return self._starts

    def say(self, topic: topics.Topic, statement: Statement, *, retain: bool = False) -> None:
        """Sign and send; nothing happens while the line is down."""
        self._link.publish(topic, seal(statement, self._signer()), retain=retain)
