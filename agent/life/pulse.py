"""The watchdog's side of the agent: systemd hears that it lives only while its loop turns and its database answers.

    pulse = Pulse(Notifier.of(os.environ), state, words)
    pulse.ready(); await pulse.run()      # on the loop
    pulse.stopping()                      # or restarting(), when the same process begins again

The protocol is sd_notify(3): datagrams to the Unix socket that the environment names; a library is not needed for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from agent.errors import Unavailable
from agent.life.restarts import LastWords
from agent.store.state import StateFile

log = logging.getLogger("agent.life.pulse")

SOON: Final = 0.8
"""Of the watchdog's time: then the last words are written, while the process is still there to do it."""
BEATS: Final = 4
"""In the watchdog's time."""
START: Final = 600
"""Seconds that a restart may take without a beat: what the unit gives a start."""


@dataclass(frozen=True)
class Notifier:
    """Whom to tell, and within how many seconds each time (None: nobody watches)."""

    address: str = ""
    within: float | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str], pid: int | None = None) -> Self:
        """From the variables that systemd sets; those of a watchdog for another process do not count."""
        watched = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid() if pid is None else pid))
        time = environment.get("WATCHDOG_USEC", "")
        within = int(time) / 1_000_000 if watched and time.isascii() and time.isdigit() and int(time) else None
        return cls(environment.get("NOTIFY_SOCKET", ""), within)

    def tell(self, words: str) -> None:
        """Send it. Who does not take it is not waited for: the watchdog then says so."""
        if not self.address:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(words.encode(), address)
            except OSError as e:
                log.warning("%s: the service manager does not listen: %s", self.address, e)


class Pulse:
    """Beats on the agent's loop."""

    def __init__(self, notifier: Notifier, state: StateFile, words: LastWords) -> None:
        self._notifier = notifier
        self._state = state
        self._words = words

    def ready(self) -> None:
        """The models answer."""
        self._notifier.tell("READY=1")
        if self._notifier.within is not None:
            self._notifier.tell(f"WATCHDOG_USEC={_microseconds(self._notifier.within)}")  # again, after a restart

    def stopping(self) -> None:
        """The agent was asked to end, or cannot go on."""
        self._notifier.tell("STOPPING=1")

    def restarting(self) -> None:
        """Another program takes the place of this one in its process: who says STOPPING=1 is killed after a while."""
        lines = ["RELOADING=1", f"MONOTONIC_USEC={_microseconds(time.clock_gettime(time.CLOCK_MONOTONIC))}"]
        if self._notifier.within is not None:
            lines.append(f"WATCHDOG_USEC={_microseconds(START)}")
        self._notifier.tell("\n".join(lines))

    async def run(self) -> None:
        """Beat for ever; ends at once where nobody watches."""
        if self._notifier.within is None:
            return
        while True:
            self.beat(self._notifier.within)
            await asyncio.sleep(self._notifier.within / BEATS)

    def beat(self, within: float) -> None:
        """One sign of life, if the database answers."""
        try:
            self._state.recall("run")
        except Unavailable as e:
            log.error("no sign of life for the watchdog: %s", e)  # noqa: TRY400  the disk, not a bug
            return
        self._words.unless_within(SOON * within)
        self._notifier.tell("WATCHDOG=1")


def _microseconds(seconds: float) -> int:
    return int(seconds * 1_000_000)
