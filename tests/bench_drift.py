"""How often drift is seen where there is none, how soon where there is some, and what it costs a device.

    scripts/bench drift [repetitions]

Drawn fleets (`drift_worlds`), the real tables and decisions, a window a day. Without a change: alarms in 100 windows,
by the size of the fleet. With one: windows until the alarm, after 14 windows without. Then the bytes of an hour, and
what it costs to tell the language of a text.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from drift_device import answers
from drift_worlds import DIGEST, LABELS, Change, Shape, World

from agent.life.telemetry import WindowMeter
from wire.language import language_of
from wire.shapes import ROOM
from wire.sketch import Histogram, Sketch

QUIET = 100
BEFORE, WITHIN = 14, 6
COUNTS = 0.2
"""Changes of fewer requests are shown, and may be too small to be called drift."""
FLEETS = (
    ("5 devices", Shape(5)),
    ("20 devices, far apart", Shape(20, apart=0.8, bursts=0.4, shared=0.1)),
    ("50 devices, other weekends", Shape(50, weekend=0.3)),
    ("200 devices", Shape(200)),
    ("500 devices", Shape(500, requests=40)),
)
CHANGES = tuple(
    Change(kind, size) for kind in ("labels", "confidence", "lengths", "languages") for size in (0.1, 0.2, 0.4)
)
EMPTY: Any = {"labels": {}, "languages": {}, "confidence": Histogram(), "lengths": Sketch()}
TEXTS = ("turn on the light in the kitchen", "mach bitte das Licht in der Küche an", "включи свет на кухне, пожалуйста")


def quiet(shape: Shape, seed: int) -> int:
    """Alarms in `QUIET` windows of a fleet where nothing changes."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(shape, seed, Path(folder))
        world.live(QUIET)
        world.close()
        return len(world.opened)


def windows_to_alarm(shape: Shape, change: Change, seed: int) -> int | None:
    """Windows from the change to the alarm that names it; None where none came within `WITHIN`."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(shape, seed, Path(folder))
        world.live(BEFORE)
        world.change = change
        world.live(WITHIN)
        world.close()
    days = [day - BEFORE + 1 for day, alarm in world.opened if alarm["subject"] == change.kind and day >= BEFORE]
    return min(days, default=None)


def hour_bytes(labels: Sequence[str], requests: int) -> int:
    """Bytes of shapes in the 60 windows of an hour of one device: all that is sent, less what is sent without them."""
    meter, sent, without = WindowMeter(), 0, 0
    for window in range(60):
        for result in answers(labels, requests // 60, seed=window):
            meter.answered("kitchen", DIGEST, 1.0, (result,))
        for stats in meter.close(shapes=window == 59):
            sent += len(stats.to_bytes())
            without += len(replace(stats, **EMPTY).to_bytes())
    return sent - without


def main() -> None:
    """Print the table and the figures."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    figures: dict[str, Any] = {}
    print(f"{'without a change':44} {'windows':>8} {'false alarms':>13}")
    false, windows = 0, 0
    for name, shape in FLEETS:
        found = sum(quiet(shape, seed) for seed in range(repetitions))
        false, windows = false + found, windows + QUIET * repetitions
        print(f"{name:44} {QUIET * repetitions:>8} {found:>13}", flush=True)
    figures["false_alarms_per_100_windows"] = round(100 * false / windows, 3)
    print(f"\n{'change (share of requests), 50 devices':44} {'found':>8} {'windows to alarm':>17}")
    slowest, missed = 0, 0
    for change in CHANGES:
        took = [windows_to_alarm(Shape(50), change, 100 + seed) for seed in range(repetitions)]
        there = sorted(w for w in took if w is not None)
        told = f"{there[0]} to {there[-1]}" if there else "-"
        print(f"{change.kind + f' {change.size:.0%}':44} {len(there):>3} of {len(took)} {told:>15}", flush=True)
        if change.size >= COUNTS:
            slowest, missed = max([slowest, *there]), missed + len(took) - len(there)
    figures |= {"most_windows_to_alarm": slowest, "missed": missed}
    for name, labels, requests in (("12 labels", LABELS, 600), ("400 long labels", _long_labels(), 60_000)):
        figures[f"hour_bytes_{len(labels)}_labels"] = size = hour_bytes(labels, requests)
        print(f"\n{name}, {requests} requests in an hour: {size} bytes of at most {ROOM}")
    figures["language_us"] = round(max(_language_us(text) for text in TEXTS), 1)
    print(f"\nthe language of a text: {figures['language_us']} us of CPU time at most")
    print(json.dumps(figures))


def _long_labels() -> tuple[str, ...]:
    return tuple(f"a-label-of-forty-characters-number-{i:05}" for i in range(400))


def _language_us(text: str) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for _ in range(1000):
            language_of(text)
        best = min(best, (time.process_time() - began) * 1000)
    return best


if __name__ == "__main__":
    main()
