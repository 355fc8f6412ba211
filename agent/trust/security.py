"""What was refused here, on disk and bounded: a flash card pays for each write, and an attacker chooses how many.

Equal ones (by subject) within a minute become one event that counts them; of different ones a few a minute are written,
the rest is counted together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from agent.errors import Unavailable
from agent.store.state import LONGEST_REASON, LONGEST_SUBJECT, StateFile
from wire.messages import SecurityEvent
from wire.units import show_instant

log = logging.getLogger("agent.trust.security")

MINUTE: Final = 60.0
PER_MINUTE: Final = 10
"""Events with a subject of their own; one more counts the others."""
OTHERS: Final = "other refusals"


@dataclass
class _Noted:
    row: int | None
    more: int = 0


class SecurityLog:
    """`now` for people, `uptime` in seconds for counting; `on_change` when there is something new to report.

    `tell` hears of each that is written: an event for the telemetry.
    """

    def __init__(
        self,
        state: StateFile,
        *,
        now: Callable[[], datetime],
        uptime: Callable[[], float],
        on_change: Callable[[], None],
        tell: Callable[[str, str], None] = lambda _subject, _reason: None,
    ) -> None:
        self._state = state
        self._now = now
        self._uptime = uptime
        self._on_change, self._tell = on_change, tell
        self._began = uptime()
        self._noted: dict[str, _Noted] = {}

    def note(self, subject: str, reason: str) -> None:
        """Something was refused because it could not be trusted."""
        self.fold_when_due()
        subject = subject[:LONGEST_SUBJECT]
        if subject not in self._noted and len(self._noted) >= PER_MINUTE:
            reason, subject = f"{subject}: {reason}", OTHERS
        if subject in self._noted:
            self._noted[subject].more += 1
            log.debug("refused %s again: %s", subject, reason)
            return
        log.warning("refused %s: %s", subject, reason[:LONGEST_REASON])
        self._noted[subject] = _Noted(self._write(subject, reason))
        self._tell(subject, reason)
        self._on_change()

    def _write(self, subject: str, reason: str) -> int | None:
        try:
            return self._state.note_security(
                SecurityEvent(at=show_instant(self._now()), subject=subject, reason=reason)
            )
        except Unavailable as e:
            log.error("a security event is not kept: %s", e)  # noqa: TRY400  a full disk, not a bug
            return None

    def fold_when_due(self) -> None:
        """After a minute: write how often each came again, and begin the next minute."""
        if self._uptime() - self._began >= MINUTE:
            self.fold()

    def fold(self) -> None:
        """Write it now: the agent stops."""
        again = {n.row: f" ... and {n.more} more" for n in self._noted.values() if n.more and n.row is not None}
        self._noted, self._began = {}, self._uptime()
        if not again:
            return
        try:
            self._state.fold_security(again)
        except Unavailable as e:
            log.error("repeated security events are not counted: %s", e)  # noqa: TRY400  a full disk, not a bug
        self._on_change()
