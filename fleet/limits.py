"""How much anybody may ask for: token buckets, by name, in bounded memory. Pure: the time comes in.

buckets = Buckets(rate=10, burst=50)
if (wait := buckets.take("192.0.2.7", now)): ...      # seconds until it may ask again; 0 lets it through
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache

HELD = 10_000
"""Names remembered. The one that was quiet longest goes first: after that long its bucket is full again anyway."""


@lru_cache(HELD)
def source(address: str) -> str:
    """Who an address counts as: itself; for IPv6 its /64 network, every address of which one machine can take."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    mapped = parsed.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


@dataclass
class Buckets:
    """A bucket of `burst` tokens for each name, filled by `rate` tokens a second. `now` is in seconds, monotonic."""

    rate: float
    burst: float
    _levels: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def take(self, name: str, now: float) -> float:
        """Take one token; 0, or the seconds until there is one."""
        level, since = self._levels.pop(name, (self.burst, now))
        level = min(self.burst, level + (now - since) * self.rate)
        wait = 0.0 if level >= 1 else (1 - level) / self.rate
        self._levels[name] = (level - (wait == 0), now)
        if len(self._levels) > HELD:
            self._levels.popitem(last=False)
        return wait
