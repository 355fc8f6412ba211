"""The log of a build: a bounded file that grows line by line and can be read while it does.

with BuildLog(path) as log:
    log.write("a line")
read(path, offset=0, limit=65536, ended=False)     # (text, next offset)
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Final, Self

LARGEST: Final = 1024 * 1024
LAST: Final = 100
"""Lines at the end that are kept of a log that is over its limit: they tell what went wrong."""
_LONGEST: Final = 2000


class BuildLog:
    """A log that takes lines for ever and keeps its beginning and its end."""

    def __init__(self, path: Path, *, limit: int = LARGEST) -> None:
        self._file, self._room = path.open("wb"), limit
        self._last: deque[str] = deque(maxlen=LAST)
        self._over = 0
        self.tail: deque[str] = deque(maxlen=1)
        """The newest line."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def write(self, line: str) -> None:
        """Add a line; what a terminal would obey is made harmless."""
        plain = "".join(c if c.isprintable() or c == "\t" else "?" for c in line.rstrip()[:_LONGEST])
        self.tail.append(plain)
        data = plain.encode() + b"\n"
        self._room -= len(data)
        if self._room >= 0:
            self._file.write(data)
            self._file.flush()
        else:
            self._over += 1
            self._last.append(plain)

    def close(self) -> None:
        """Write what was kept back, and end."""
        if self._over:
            left_out = self._over - len(self._last)
            self._file.write("\n".join([f"... {left_out} lines are left out here ...", *self._last, ""]).encode())
        self._file.close()


def read(path: Path, *, offset: int, limit: int, ended: bool) -> tuple[str, int]:
    """Whole lines from a place on, and where the next ones begin. Empty where there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(limit)
            rest = bool(file.read(1))
    except FileNotFoundError:
        return "", offset
    whole = data if ended and not rest else data[: data.rfind(b"\n") + 1]
    return whole.decode(errors="replace"), offset + len(whole)
