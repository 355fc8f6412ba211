"""The next token and the end of a text, for a runtime that leaves both to us. Pure.

`agent/serving/language_program.py` loads this file by its path. Needs Python 3.9 and numpy, imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def choose(logprobs: Any, temperature: float, top_p: float, random: Any) -> int:
    """A token by its logits: the likeliest at temperature 0, else drawn from the fewest that together have `top_p`."""
    if temperature == 0:
        return int(logprobs.argmax())
    scaled = logprobs / temperature
    shares = np.exp(scaled - scaled.max())
    order = np.argsort(-shares, kind="stable")
    sorted_shares = shares[order] / shares.sum()
    kept = int(np.searchsorted(np.cumsum(sorted_shares), top_p)) + 1
    drawn = sorted_shares[:kept] / sorted_shares[:kept].sum()
    return int(order[:kept][random.choice(len(drawn), p=drawn)])


class Pieces:
    """Text as it may be told: what could be the beginning of a stop sequence is held back, and nothing follows one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [s for s in stop if s]
        self._held = ""
        self.over = False

    def more(self, text: str) -> str:
        """What may be told now."""
        self._held += text
        places = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if places:
            self.over = True
            return self._told(min(places))
        return self._told(len(self._held) - self._doubt())

    def rest(self) -> str:
        """What was held back, at the end."""
        return "" if self.over else self._told(len(self._held))

    def _told(self, end: int) -> str:
        said, self._held = self._held[:end], self._held[end:]
        return said

    def _doubt(self) -> int:
        """How many characters at the end may begin a stop sequence."""
        longest = max((len(s) - 1 for s in self._stop), default=0)
        ends = (n for n in range(min(longest, len(self._held)), 0, -1))
        return next((n for n in ends if any(s.startswith(self._held[-n:]) for s in self._stop)), 0)
