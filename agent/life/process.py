"""What the process of an agent brings to it: how the last run ended, its pulse, and the last lines of its log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from agent.life import restarts
from agent.life.pulse import Notifier, Pulse
from agent.life.restarts import LastWords, Run
from agent.life.ring import Ring
from agent.store.state import StateFile


@dataclass(frozen=True)
class Process:
    """One run of the agent in a process. `close` it when the run is over."""

    state: StateFile
    words: LastWords
    run: Run
    pulse: Pulse
    ring: Ring

    @classmethod
    def begin(cls, folder: Path, state: StateFile, environment: Mapping[str, str], ring: Ring) -> Self:
        """Find out how the last run ended, and mark this one as begun."""
        words = LastWords(folder)
        run = restarts.begin(state, words.said)
        return cls(state, words, run, Pulse(Notifier.of(environment), state, words), ring)

    def close(self, *, clean: bool) -> None:
        """The run is over; `clean`: because somebody asked for it."""
        self.words.close()
        if clean:
            restarts.end(self.state)
