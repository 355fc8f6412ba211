"""What time alone changes, part by part: what fails in one part keeps no other from its turn.

housekeeping.turn("rollouts", lambda: tick(...))  # told in the log if it fails, and tried again at the next tick
housekeeping.failing                              # the parts that failed at their last turn, and with what
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Housekeeping:
    """Takes the parts of a tick in turn. A fault that stays is told once, not twice a second."""

    failing: dict[str, str] = field(default_factory=dict)

    def turn(self, part: str, work: Callable[[], None]) -> None:
        """Do one part. Raises nothing: whatever went wrong is told with its traceback."""
        try:
            work()
        except Exception as e:  # noqa: BLE001  a fault of ours in one part must not end the others until a restart
            fault = f"{type(e).__name__}: {e}"
            if self.failing.get(part) != fault:
                _log.exception("housekeeping: %s failed: it is tried again", part)
            self.failing[part] = fault
            return
        if self.failing.pop(part, None) is not None:
            _log.info("housekeeping: %s goes on", part)
