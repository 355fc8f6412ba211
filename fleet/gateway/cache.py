"""Answers kept for the same request of the same tenant: exact, bounded, for a time. Pure; nothing is on a disk.

    key = key_of(tenant, asked) if may_keep(route, asked) else ""
    if (answer := cache.get(key, now)): ...
    cache.put(key, answer, until, now)

The key covers who asks and every parameter, so nobody is answered with what another one was told. There is no search by
meaning: two questions that are alike are two questions. Streams are neither kept nor answered from here.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fleet.gateway.asked import EMBEDDINGS, Asked
from fleet.gateway.config import Route
from fleet.gateway.filters import Filter

_NOT_ASKED: Final = frozenset({"stream", "stream_options"})
_OVERHEAD: Final = 512
"""Bytes of an entry besides its answer."""


@dataclass(frozen=True)
class Kept:
    """An answer, and where it came from."""

    body: bytes
    upstream: str
    model: str


@dataclass
class Cache:
    """At most `size` bytes; what was asked for longest ago goes first."""

    size: int
    _held: OrderedDict[str, tuple[float, Kept]] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def get(self, key: str, now: float) -> Kept | None:
        """What is kept and not too old."""
        found = self._held.get(key)
        if found is None:
            return None
        if now >= found[0]:
            self._drop(key)
            return None
        self._held.move_to_end(key)
        return found[1]

    def put(self, key: str, kept: Kept, until: float) -> None:
        """Keep an answer, unless it is larger than a quarter of all there is."""
        if len(kept.body) > self.size // 4:
            return
        self._drop(key)
        self._held[key] = (until, kept)
        self._bytes += len(kept.body) + _OVERHEAD
        while self._bytes > self.size:
            self._drop(next(iter(self._held)))

    @property
    def held(self) -> int:
        """Bytes held."""
        return self._bytes

    def _drop(self, key: str) -> None:
        found = self._held.pop(key, None)
        if found is not None:
            self._bytes -= len(found[1].body) + _OVERHEAD


def may_keep(route: Route, asked: Asked) -> bool:
    """Whether the answer to a request may serve again. What says no temperature has one above 0: it is 1 by default."""
    if route.cache <= 0 or asked.stream:
        return False
    return asked.path == EMBEDDINGS or route.cache_sampled or asked.value.get("temperature") == 0


def key_of(tenant: str, asked: Asked, filters: Sequence[Filter] = ()) -> str:
    """Of everything that could change the answer, also the filters that it passed."""
    value = {name: found for name, found in asked.value.items() if name not in _NOT_ASKED}
    text = json.dumps([tenant, asked.path, value, *map(repr, filters)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
