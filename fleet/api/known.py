"""Who showed a credential a moment ago: so that the gateway does not ask the database at every request.

    caller = await known.who(credential, look_up, time.monotonic)

Every change over the HTTPS interface forgets all of it before anybody hears that the change is done. What changes
otherwise (another process, a message of a device, an expiry) counts within `FOR` seconds. When they are over, one
request looks up and all others with the same credential wait for it. Memory is bounded.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from fleet.access import Caller

FOR: Final = 1.0
_MOST: Final = 10_000


@dataclass
class _Asking:
    """A look-up under way. `generation` is the last change that it may have seen."""

    generation: int
    done: asyncio.Event = field(default_factory=asyncio.Event)
    caller: Caller | None = None
    """None when it came to nothing."""


@dataclass
class Known:
    """Callers by the hash of what they showed. One event loop."""

    generation: int = 0
    _held: dict[bytes, tuple[float, Caller]] = field(default_factory=dict)
    _asking: dict[bytes, _Asking] = field(default_factory=dict)

    async def who(self, credential: str, look_up: Callable[[], Awaitable[Caller]], tick: Callable[[], float]) -> Caller:
        """Who shows this credential. Raises what `look_up` raises, and remembers that of nobody."""
        key = _hash(credential)
        held = self._held.get(key)
        if held is not None and tick() < held[0]:
            return held[1]
        asking = self._asking.get(key)
        if asking is not None and asking.generation == self.generation:
            await asking.done.wait()
            if asking.caller is not None and asking.generation == self.generation:
                return asking.caller
        return await self._ask(key, look_up, tick)

    def forget(self) -> None:
        """Something changed: everybody is looked up again."""
        self.generation += 1
        self._held.clear()

    async def _ask(self, key: bytes, look_up: Callable[[], Awaitable[Caller]], tick: Callable[[], float]) -> Caller:
        asking = self._asking[key] = _Asking(self.generation)
        try:
            caller = asking.caller = await look_up()
        finally:
            asking.done.set()
            if self._asking.get(key) is asking:
                del self._asking[key]
        if asking.generation == self.generation:  # else something changed since the look-up began
            if len(self._held) >= _MOST:
                self._held.clear()
            self._held[key] = (tick() + FOR, caller)
        return caller


def _hash(credential: str) -> bytes:
    """Not the credential itself: a dump of memory should not hold a list of them."""
    return hashlib.sha256(credential.encode("utf-8", "surrogatepass")).digest()
