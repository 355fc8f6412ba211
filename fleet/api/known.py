"""Who showed a credential a moment ago: so that the gateway does not ask the database at every request.

    if (caller := known.get(credential, now)) is None:
        generation = known.generation
        caller = ...                                   # look it up
        known.put(credential, caller, now, generation)

Every change over the HTTPS interface forgets all of it before anybody hears that the change is done. What changes
otherwise (another process, a message of a device, an expiry) counts within `FOR` seconds. Memory is bounded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from fleet.access import Caller

FOR: Final = 1.0
_MOST: Final = 10_000


@dataclass
class Known:
    """Callers by the hash of what they showed. `now` is in seconds, monotonic. One thread."""

    generation: int = 0
    _held: dict[bytes, tuple[float, Caller]] = field(default_factory=dict)

    def get(self, credential: str, now: float) -> Caller | None:
        """Who showed it less than `FOR` seconds ago and was let in."""
        found = self._held.get(_hash(credential))
        return found[1] if found is not None and now < found[0] else None

    def put(self, credential: str, caller: Caller, now: float, generation: int) -> None:
        """Remember somebody, unless something changed since the look-up began."""
        if generation != self.generation:
            return
        if len(self._held) >= _MOST:
            self._held.clear()
        self._held[_hash(credential)] = (now + FOR, caller)

    def forget(self) -> None:
        """Something changed: everybody is looked up again."""
        self.generation += 1
        self._held.clear()


def _hash(credential: str) -> bytes:
    """Not the credential itself: a dump of memory should not hold a list of them."""
    return hashlib.sha256(credential.encode("utf-8", "surrogatepass")).digest()
