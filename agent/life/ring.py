"""The last lines of the log, in memory: what the fleet gets when it asks for the log of a device.

Nothing secret is in them: no text of a request, no token, no key. The agent writes no such thing into its log, and what
libraries put into their messages is taken out here: the message of an exception, and everything that looks like a key.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections import deque
from typing import Final

LINES: Final = 400
LONGEST_LINE: Final = 300
"""Characters."""
SENT_BYTES: Final = 32 * 1024
"""Of the newest lines, in one answer."""
TAKEN_OUT: Final = "[taken out]"
_PEM: Final = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|$)", re.DOTALL)
_SECRET: Final = re.compile(
    r"(?i)\b((?:(?:authorization|bearer|basic|token|password|secret|api[-_]?key)\b[\"']?[=:\s]+)+)\S+"
)
_LONG: Final = re.compile(r"[A-Za-z0-9+_-]{24,}={0,2}")
"""Keys, tokens, hashes: long runs without a space, a dot or a slash."""
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{12})[0-9a-f]{52}")
"""A digest is no secret, and its beginning is enough to know it by."""


def clean(line: str) -> str:
    """A line without what could be secret."""
    line = _PEM.sub(TAKEN_OUT, line)
    line = _DIGEST.sub(r"sha256:\1", line)
    line = _SECRET.sub(rf"\1{TAKEN_OUT}", line)
    return _LONG.sub(TAKEN_OUT, line).replace("\n", " ")[:LONGEST_LINE]


class Ring(logging.Handler):
    """Keeps the last `LINES` of what the agent logs, from the level INFO on."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[str] = deque(maxlen=LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Of an exception its kind and its place: its message may hold what somebody sent."""
        try:
            line = f"{_when(record)} {record.levelname} {record.name}: {record.getMessage()}{_exception(record)}"
            self._lines.append(clean(line))
        except Exception:  # noqa: BLE001  as every handler: whatever it is, the program goes on
            self.handleError(record)

    def newest(self) -> tuple[str, ...]:
        """As many of the newest lines as one answer holds, the oldest of them first."""
        self.acquire()  # other threads log, and a deque that grows cannot be read
        try:
            lines = tuple(self._lines)
        finally:
            self.release()
        room, found = SENT_BYTES, []
        for line in reversed(lines):
            room -= len(line.encode()) + 4
            if room < 0:
                break
            found.append(line)
        return tuple(reversed(found))


def _when(record: logging.LogRecord) -> str:
    return logging.Formatter("%(asctime)s").formatTime(record)


def _exception(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    frames = traceback.extract_tb(record.exc_info[2])
    place = f" at {'/'.join(frames[-1].filename.split('/')[-2:])}:{frames[-1].lineno}" if frames else ""
    return f" ({record.exc_info[0].__name__}{place})"
