"""The reported state: said when something changes, on every connect and every few minutes, until it is answered.

A report without an answer is said again under a new number and nonce, each time after twice the pause: somebody may
have lost or kept it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from agent.errors import Unavailable
from agent.line.voice import Voice
from agent.trust.acks import Acks
from wire import topics
from wire.messages import Reported

log = logging.getLogger("agent.line.reporter")

REPORT_AFTER: Final = 0.05
"""Seconds in which changes gather into one report."""
REPORT_EVERY: Final = 300.0
"""Longest pause in seconds between two reports: a broker under load may have dropped the last one."""


class Reporter:
    """`compose(starts, seq, nonce)` says what is now; `timeout` is how long an answer may take, in seconds.

    `on_silence` hears of each time that one took longer.
    """

    def __init__(
        self,
        voice: Voice,
        acks: Acks,
        compose: Callable[[int, int, str], Reported],
        *,
        timeout: float,
        on_silence: Callable[[], None] = lambda: None,
    ) -> None:
        self._voice = voice
        self._acks = acks
        self._compose = compose
        self._timeout, self._on_silence = timeout, on_silence
        self._pause = timeout
        self._seq = 0
        self._nonce = ""
        self._soon: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """Something changed: report in a moment, together with what else changes until then."""
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(REPORT_AFTER, self._report)

    def line_is_up(self) -> None:
        """A new connection: the fleet may not have what was said on the last one."""
        self._pause = self._timeout
        self.soon()

    def fleet_is_there(self) -> None:
        """The fleet came back: what it did not answer is said again."""
        if self._nonce:
            self.line_is_up()

    def answered(self, nonce: str) -> None:
        """The fleet answered a nonce."""
        if nonce == self._nonce:
            self._nonce, self._pause = "", self._timeout
            self._wait(REPORT_EVERY)

    def stop(self) -> None:
        """The line is down, or the agent stops."""
        for due in (self._soon, self._again):
            if due is not None:
                due.cancel()
        self._soon = self._again = None

    def _report(self) -> None:
        self._soon = None
        if not self._voice.up:
            return
        self._wait(self._pause)
        self._pause = min(2 * self._pause, REPORT_EVERY)
        try:
            starts = self._voice.starts()
            self._seq += 1
            self._nonce = self._acks.ask()
            reported = self._compose(starts, self._seq, self._nonce)
            self._voice.say(topics.Reported(self._voice.device), reported, retain=True)
        except Unavailable as e:
            log.error("no report now: %s", e)  # noqa: TRY400  a full disk, not a bug: models go on

    def _wait(self, pause: float) -> None:
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(pause, self._ask_again)

    def _ask_again(self) -> None:
        if self._nonce:
            self._on_silence()
        self.soon()
