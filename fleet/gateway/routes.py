"""Which upstreams a request goes to, in which order. Pure: chance comes in as numbers from 0 to 1.

tries = plan(route, ["a", "b"], draws)              # of the upstreams that the breakers admit
await sleep(pause(2, draw))                         # before the third try
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from itertools import cycle, islice
from typing import Final

from fleet.gateway.config import Route, Target

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 3.0
ELSEWHERE: Final = frozenset({401, 403, 404, 408, 409, 425, 429, 500, 502, 503, 504})
"""Statuses of an upstream after which another target, or the same one later, may do better."""
BROKEN: Final = frozenset({401, 403, 500, 502, 503, 504})
"""Those of them that count against the upstream: 404 and 429 say something of one model or one moment."""


def plan(route: Route, admitted: Collection[str], draws: Iterable[float]) -> list[Target]:
    """The targets to try one after the other: by weighted chance, then the fallbacks as they stand in the file.

    Short of `attempts` it starts again from the front. Empty when no upstream of the route is admitted.
    """
    if len(route.targets) == 1:
        return [route.targets[0]] * route.attempts if route.targets[0].upstream in admitted else []
    there = [target for target in route.targets if target.upstream in admitted]
    # Efraimidis and Spirakis 2006: the smallest -log(u) / weight comes first with a chance of its share of the weights.
    keyed = sorted(
        (
            (-math.log(max(draw, 1e-300)) / target.weight, i, target)
            for i, (draw, target) in enumerate(zip(draws, [t for t in there if not t.fallback], strict=False))
        ),
    )
    once = [target for _, _, target in keyed] + [target for target in there if target.fallback]
    return list(islice(cycle(once), max(route.attempts, len(once)))) if once else []


def pause(tries: int, draw: float) -> float:
    """Seconds before the next of so many tries: a random share of a time that doubles (full jitter)."""
    return draw * min(_FIRST_PAUSE * 2.0 ** min(tries, 10), _LONGEST_PAUSE)
