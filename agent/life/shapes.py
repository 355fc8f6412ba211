"""What inputs and answers of each model look like, counted for an hour and then sent once, in at most 2 KB for all.

Windows of telemetry are a minute long: sixty of these tables an hour would cost more of the line than all the rest. An
agent that stops loses those of the open hour; whether a fleet drifts is seen over days, and on many devices.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from wire.shapes import ROOM, Shapes

if TYPE_CHECKING:
    from wire.processing import Result

Key = tuple[str, str]
"""Model and digest."""


class ShapeMeter:
    """The open hour, by model and digest. Holds no text, ever."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._open: dict[Key, Shapes] = {}

    def answered(self, key: Key, results: tuple[Result, ...]) -> None:
        """A request got its answer."""
        if results:
            shapes = self._open.get(key)
            if shapes is None:
                shapes = self._open[key] = Shapes()
            for result in results:
                shapes.add(result)

    def close(self) -> dict[Key, dict[str, Any]]:
        """What was counted, as fields of `InferenceStats`, the room shared by all models; then empty."""
        counted, self._open = self._open, {}
        room = ROOM // max(1, len(counted))
        return {key: shapes.fields(room=room, offset=self._chance()) for key, shapes in counted.items()}


def is_due(start: datetime, end: datetime, every: float) -> bool:
    """Whether a stretch of `every` seconds, counted from 1970, ended between two moments."""
    return start.timestamp() // every != end.timestamp() // every
