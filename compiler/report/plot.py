"""A scatter plot as SVG: what answers right, against what it costs, with the Pareto frontier. Pure.

The y axis is linear, the x axis logarithmic. A point far below the limit is drawn at the lower edge, as an arrow.
Shapes tell outcomes apart, colours come from the style sheet around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 40
_LETTER, _LINE = 6.2, 11.0
"""About what a digit of a label takes, in units of the drawing."""
_ROOM = 0.15
"""Share of an axis left free at its ends."""
_SHAPES = {
    "chosen": Markup('<path class="dot chosen" d="M0-7 2-2.3 7-2.1 3.1 1 4.5 6 0 3.2-4.5 6-3.1 1-7-2.1-2-2.3z"/>'),
    "pass": Markup('<circle class="dot pass" r="4.5"/>'),
    "fail": Markup('<path class="mark fail" d="M-4-4 4 4M-4 4 4-4"/>'),
    "inconclusive": Markup('<circle class="mark inconclusive" r="4"/>'),
}
_BELOW = Markup('<path class="mark fail" d="M-4-3 0 3 4-3"/>')


@dataclass(frozen=True)
class Point:
    """One candidate: `label` stands beside it, `title` is told on a pointer, `low` and `high` are the interval of x."""

    label: str
    title: str
    outcome: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A horizontal line with its name."""

    name: str
    y: float


@dataclass(frozen=True)
class _Axes:
    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        low, high = (math.log10(v) for v in self.x)
        return _LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def up(self, value: float) -> float:
        low, high = self.y
        return HEIGHT - _BOTTOM - (max(value, low) - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)


def scatter(points: Sequence[Point], lines: Sequence[Line], *, x: str, y: str, show: Callable[[float], str]) -> Markup:
    """SVG of points with x over 0. `x` and `y` name the axes, `show` writes a number of the x axis."""
    axes = _axes(points, lines)
    parts = [
        *_grid(axes, show),
        *_rules(lines, axes),
        _frontier(points, axes),
        *_whiskers(points, axes),
        *_marks(points, axes),
        *_labels(points, axes),
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (WIDTH + _LEFT) / 2, HEIGHT - 6, x
        ),
        Markup('<text class="axis" transform="translate(11 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
            (HEIGHT - _BOTTOM) / 2, y
        ),
    ]
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{} against {}">').format(WIDTH, HEIGHT, y, x)
    return head + Markup("").join(parts) + Markup("</svg>")


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no other point beats in both: smaller x and higher y. By x."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found


def _axes(points: Sequence[Point], lines: Sequence[Line]) -> _Axes:
    xs = [v for p in points for v in (p.x, p.low, p.high) if v is not None and v > 0]
    low, high = math.log10(min(xs)), math.log10(max(xs))
    room = max((high - low) * _ROOM, 0.08)
    heights = [line.y for line in lines]
    span = max(heights) - min(heights)
    # What is far below the limit is not worth the room of the others.
    seen = [p.y for p in points if p.y >= min(heights) - 3 * span] + heights
    air = max((max(seen) - min(seen)) * _ROOM, 0.05)
    return _Axes((10 ** (low - room), 10 ** (high + room)), (min(seen) - air, max(seen) + air))


def _grid(axes: _Axes, show: Callable[[float], str]) -> Iterator[Markup]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for value in _linear(*axes.y):
        at = round(axes.up(value), 1)
        yield Markup('<path class="grid" d="M{} {}H{}"/>').format(_LEFT, at, right)
        yield Markup('<text x="{}" y="{}" text-anchor="end">{:g}</text>').format(_LEFT - 5, at + 3.5, value)
    for value in _decades(*axes.x):
        at = round(axes.across(value), 1)
        yield Markup('<path class="grid" d="M{} {}V{}"/>').format(at, _TOP, bottom)
        yield Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(at, bottom + 14, show(value))


def _linear(low: float, high: float) -> list[float]:
    """About five round numbers."""
    raw = (high - low) / 5
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten; every digit where that gives fewer than two."""
    for factors in ((1, 2, 5), range(1, 10), (f / 10 for f in range(10, 100))):
        digits = list(factors)
        powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
        found = [round(f * 10**p, 10) for p in powers for f in digits if low <= f * 10**p <= high]
        if len(found) >= 2:
            return found[:: math.ceil(len(found) / 6)]
    return found


def _rules(lines: Sequence[Line], axes: _Axes) -> Iterator[Markup]:
    for line in lines:
        at, right = round(axes.up(line.y), 1), WIDTH - _RIGHT
        yield Markup('<path class="rule" d="M{} {}H{}"/>').format(_LEFT, at, right)
        yield Markup('<text class="rule" x="{}" y="{}">{}</text>').format(_LEFT + 3, at - 3, line.name)


def _frontier(points: Sequence[Point], axes: _Axes) -> Markup:
    """Steps: until the next point is paid for, the one before is the best that there is."""
    if not points:
        return Markup("")
    (first, *rest) = [(round(axes.across(p.x), 1), round(axes.up(p.y), 1)) for p in frontier(points)]
    steps = Markup("").join(Markup("H{}V{}").format(*at) for at in rest)
    return Markup('<path class="frontier" d="M{} {}{}"/>').format(*first, steps)


def _whiskers(points: Sequence[Point], axes: _Axes) -> Iterator[Markup]:
    for p in points:
        if p.low is not None and p.high is not None and 0 < p.low < p.high:
            ends = (round(axes.across(v), 1) for v in (p.low, p.high))
            yield Markup('<path class="whisker" d="M{0} {2}H{1}"/>').format(*ends, round(axes.up(p.y), 1))


def _marks(points: Sequence[Point], axes: _Axes) -> Iterator[Markup]:
    for p in points:
        shape = _BELOW if p.y < axes.y[0] else _SHAPES[p.outcome]
        place = (round(axes.across(p.x), 1), round(axes.up(p.y), 1))
        yield Markup('<g transform="translate({} {})"><title>{}</title>{}</g>').format(*place, p.title, shape)


def _labels(points: Sequence[Point], axes: _Axes) -> Iterator[Markup]:
    """Beside each point where there is room: right, left, above, below, and then further above."""
    taken = [_box(axes.across(p.x), axes.up(p.y), 8.0) for p in points]
    for p in points:
        x, y, wide = axes.across(p.x), axes.up(p.y), len(p.label) * _LETTER
        beside = ((x + 8, y + 4), (x - 8 - wide, y + 4), (x - wide / 2, y - 9), (x - wide / 2, y + 17))
        places = [*beside, *((x + 8, y - 8 - _LINE * n) for n in range(8))]
        boxes = [(left, base - _LINE + 2, left + wide, base) for left, base in places]
        free = [b for b in boxes if not any(_overlap(b, other) for other in taken) and _inside(b)] or boxes[:1]
        taken.append(free[0])
        left, _, _, base = (round(v, 1) for v in free[0])
        yield Markup('<text class="label" x="{}" y="{}">{}</text>').format(left, base, p.label)


_Box = tuple[float, float, float, float]


def _box(x: float, y: float, size: float) -> _Box:
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _inside(box: _Box) -> bool:
    return box[0] >= _LEFT and box[1] >= 0 and box[2] <= WIDTH and box[3] <= HEIGHT - _BOTTOM
