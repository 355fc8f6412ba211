"""What ended the last run of this agent: somebody asked it to, a crash, the watchdog, or the machine lost its power.

    run = begin(state, words)      # at the start: how the last one ended, and the counts since enrolment
    end(state)                     # asked to stop: the next start is a clean one

A run is marked as begun with the kernel's boot id. Whoever finds the mark of another kernel knows that the machine went
down under it. `LastWords` is a file into which C code writes where the process stood: when it crashed, and when the
loop did not turn for as long as the watchdog waits, which is how a hang differs from a crash.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Final, Literal

from agent.errors import Unavailable
from agent.store.state import StateFile

log = logging.getLogger("agent.life.restarts")

Cause = Literal["first", "clean", "crash", "watchdog", "power"]
FILE: Final = "last-words"
LONGEST_WORDS: Final = 64 * 1024
_KEY: Final = "run"
_KERNEL: Final = Path("/proc/sys/kernel/random/boot_id")
_HUNG: Final = "Timeout ("
"""How a dump of `faulthandler` begins that a timer made, and no crash."""
_FRAME: Final = re.compile(r'File "(?:.*/)?([^/"]+/[^/"]+)", line (\d+) in (\S+)')
_WORDS: Final[Mapping[str, str]] = {
    "crash": "the agent crashed or was killed",
    "watchdog": "the agent hung and was restarted by the watchdog",
    "power": "the machine went down without stopping the agent: a power cut or a reset",
}


@dataclass(frozen=True)
class Run:
    """How the run before this one ended, and how often each cause was since enrolment."""

    cause: Cause = "first"
    where: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def alarm(self) -> str:
        """What people should know of it; "" when there is nothing."""
        words = _WORDS.get(self.cause, "")
        return f"{words} (it stood in {self.where})" if words and self.where else words


def cause_of(marked: str, kernel: str, words: str) -> Cause:
    """By the mark of the last run ("" for none, `clean`, or the kernel's boot id then) and its last words."""
    if marked in ("", "clean"):
        return "clean" if marked else "first"
    if marked != kernel:
        return "power"
    return "watchdog" if _HUNG in words else "crash"


def place(words: str) -> str:
    """Where the main thread stood, as `store/state.py:97 queue`; "" where the words do not say. It is dumped last."""
    main = words.rpartition("hread 0x")[2]
    frame = _FRAME.search(main)
    return f"{frame[1]}:{frame[2]} {frame[3]}" if frame else ""


def begin(state: StateFile, words: str, kernel: Path = _KERNEL) -> Run:
    """Mark a run as begun, and say how the last one ended. On a disk that takes nothing no mark is made."""
    marked, counts = _remembered(state)
    with suppress(OSError):
        booted = kernel.read_text().strip()
        cause = cause_of(marked, booted, words)
        if cause != "first":
            counts[cause] = counts.get(cause, 0) + 1
        try:
            state.remember(_KEY, json.dumps({"marked": booted, "counts": counts}))
        except Unavailable as e:
            log.error("this start is not noted: %s", e)  # noqa: TRY400  a full disk, not a bug
        return Run(cause, place(words) if cause in ("crash", "watchdog") else "", counts)
    return Run()


def end(state: StateFile) -> None:
    """This run ends because somebody asked for it."""
    try:
        _, counts = _remembered(state)
        state.remember(_KEY, json.dumps({"marked": "clean", "counts": counts}))
    except Unavailable as e:
        log.error("the end is not noted, and will look like a crash: %s", e)  # noqa: TRY400  a full disk, not a bug


def _remembered(state: StateFile) -> tuple[str, dict[str, int]]:
    """The mark of the last run, and the counts. A row that is damaged keeps no model from answering: it is empty."""
    try:
        row = json.loads(state.recall(_KEY) or '{"marked": "", "counts": {}}')
        return str(row["marked"]), {str(cause): int(count) for cause, count in dict(row["counts"]).items()}
    except (ValueError, KeyError, TypeError, OverflowError) as e:
        log.warning("how the last run ended is not known, nor how often it was what: %r", e)
        return "", {}


class LastWords:
    """The file that C code writes to. `said` is what the last run left there."""

    def __init__(self, folder: Path) -> None:
        self.said = ""
        self._file: FileIO | None = None
        with suppress(OSError):  # a disk that takes nothing keeps no last words
            self._file = (folder / FILE).open("ab+", buffering=0)
            self._file.seek(0)
            self.said = self._file.read(LONGEST_WORDS).decode(errors="replace")
            self._file.truncate(0)
            faulthandler.enable(self._file)

    def unless_within(self, seconds: float) -> None:
        """Write down where every thread stands unless this is called again in time. A hung loop cannot stop it."""
        if self._file is not None:
            faulthandler.dump_traceback_later(seconds, file=self._file)

    def close(self) -> None:
        """The run ends."""
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
        if self._file is not None:
            self._file.close()
