"""Waves: how many of the devices that a rollout may reach it reaches by and by. Pure.

    waves = parse_waves("5,10%,100%")       # five devices, then a tenth, then all
    limit(waves, 1, eligible=200)           # 20: what stands reached at most while the second wave lasts

Numbers without a sign are devices. Where no number has a sign all are percentages: `25,100` is `25%,100%`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from fleet.errors import Malformed

MOST: Final = 100
"""Waves that one rollout may have."""
_WAVE: Final = re.compile(r"\s*([0-9]{1,9})\s*(%?)\s*")


@dataclass(frozen=True)
class Wave:
    """So many devices, or so many percent of those that may be reached."""

    amount: int
    percent: bool = True

    def __str__(self) -> str:
        return f"{self.amount}%" if self.percent else str(self.amount)

    def reaches(self, eligible: int) -> int:
        """How many of the eligible devices: the share, rounded up."""
        return -(-self.amount * eligible // 100) if self.percent else min(self.amount, eligible)


def limit(waves: Sequence[Wave], wave: int, eligible: int) -> int:
    """How many devices may stand reached while a wave lasts: never fewer than in the waves before it."""
    return max(w.reaches(eligible) for w in waves[: wave + 1])


def parse_waves(given: str | Sequence[str | int]) -> tuple[Wave, ...]:
    """Waves from text, or from a list in which a bare number is a percentage.

    Raises `Malformed` unless numbers of one kind rise and the last wave is 100%.
    """
    if isinstance(given, str):
        waves = _of_text(given)
    else:
        waves = tuple(Wave(w) if isinstance(w, int) else one for w in given for one in _of_item(w))
    _check(waves, given)
    return waves


def _of_item(item: str | int) -> tuple[Wave, ...]:
    return (Wave(item),) if isinstance(item, int) else (_one(item),)


def _of_text(text: str) -> tuple[Wave, ...]:
    waves = tuple(map(_one, text.split(",")))
    return waves if any(w.percent for w in waves) else tuple(Wave(w.amount) for w in waves)


def _one(text: str) -> Wave:
    match = _WAVE.fullmatch(text)
    if match is None:
        raise Malformed(f"waves: expected numbers of devices or percentages such as 5,10%,100%, got {text[:40]!r}")
    return Wave(int(match[1]), match[2] == "%")


def _check(waves: Sequence[Wave], given: object) -> None:
    kinds = ([w.amount for w in waves if w.percent], [w.amount for w in waves if not w.percent])
    rising = all(a < b for kind in kinds for a, b in pairwise(kind))
    sound = bool(waves) and min(w.amount for w in waves) >= 1 and waves[-1] == Wave(100) and len(waves) <= MOST
    if not (sound and rising and max(kinds[0]) <= 100):
        shown = ",".join(map(str, given)) if not isinstance(given, str) and isinstance(given, Sequence) else given
        raise Malformed(
            f"waves {str(shown)[:80]!r}: expected up to {MOST} rising percentages or numbers of devices that end at "
            "100%, such as 5,10%,100%"
        )
