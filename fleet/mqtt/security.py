"""What is refused from devices, kept as security events: a few a minute for each, so no flood fills the disk.

The rest is counted, and told with the next event that is kept.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Final

from fleet import devices
from fleet.limits import HELD, Buckets
from fleet.mqtt.limits import device_in
from fleet.store.database import Database
from fleet.store.tables import Device

AT_ONCE: Final = 20
"""Events of one device that are kept when they come at once."""
A_SECOND: Final = 0.1
"""And from then on: each is a write to the disk."""
_log = logging.getLogger(__name__)


class SecurityLog:
    """Keeps security events. On the serial thread."""

    def __init__(
        self, database: Database, clock: Callable[[], datetime], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._database, self._clock, self._monotonic = database, clock, monotonic
        self._buckets = Buckets(rate=A_SECOND, burst=AT_ONCE)
        self._untold: OrderedDict[str, int] = OrderedDict()

    def note(self, topic: str, reason: str) -> None:
        """Something on this topic was refused: kept, or counted when it is one of too many."""
        device = device_in(topic)
        if self._buckets.take(device, self._monotonic()):
            self._count(device)
        else:
            self.keep(topic, reason)

    def keep(self, topic: str, reason: str) -> None:
        """Keep an event whatever there were before it: the caller makes few of them."""
        device = device_in(topic)
        untold = self._untold.pop(device, 0)
        if untold:
            reason += f" (and {untold} more were refused since the event before)"
        _log.warning("refused a message on %s: %s", topic, reason)
        with self._database.transaction() as session:
            if session.get(Device, device) is not None:
                devices.record_refusal(session, device, topic, reason, self._clock())

    def _count(self, device: str) -> None:
        self._untold[device] = self._untold.pop(device, 0) + 1
        while len(self._untold) > HELD:
            self._untold.popitem(last=False)
