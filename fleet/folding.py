"""Many alike requests folded into one: a flood of them must not fill the disk with entries of the audit log.

The first `each` of a key in a minute are worth an entry at once; those that follow are counted, and the minute's end
makes one entry of the count. All keys beyond `most` count as one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

WINDOW = 60.0
"""Seconds."""
OTHERS = "many others"


@dataclass
class _Window:
    opened: float
    left: int
    """Entries of their own that are still granted."""
    count: int = 0


class Folding:
    """Counts by key, in memory and bounded. Used from any thread; `now` is of a clock that never goes back."""

    def __init__(self, most: int, each: int = 1) -> None:
        self._most, self._each = most, each
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()

    def is_first(self, key: str, now: float) -> bool:
        """Note one more. True when it deserves an entry of its own."""
        with self._lock:
            if key not in self._windows and len(self._windows) >= self._most:
                key = OTHERS
            window = self._windows.setdefault(key, _Window(now, self._each))
            if window.left:
                window.left -= 1
                return True
            window.count += 1
            return False

    def due(self, now: float, *, window: float = WINDOW) -> list[tuple[str, int]]:
        """Keys whose minute is over, with how many more they were; each is given once."""
        with self._lock:
            over = {key: w for key, w in self._windows.items() if now - w.opened >= window}
            for key, w in over.items():
                if w.count:
                    self._windows[key] = _Window(now, self._each - 1)
                else:
                    del self._windows[key]
            return [(key, w.count) for key, w in over.items() if w.count]
