"""One HTML page on bundles, made of their evidence alone: no network, no script, no font from elsewhere. Pure.

page([layout.evidence(bundle.digest), ...], {digest: [measurement, ...]})
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from compiler.report.card import doubts, told_interval, told_recipe, told_value
from compiler.report.plot import Line, Point, scatter
from wire.bundle import split_target
from wire.evidence import Attempt, ClassChange, Decision, Evidence, Measurement
from wire.units import show_size

_FIGURES = ("latency_p50", "size", "memory")


@dataclass(frozen=True)
class Plot:
    """A drawing with its caption; `kind` is measured or emulated."""

    svg: Markup
    caption: str
    kind: str


@dataclass(frozen=True)
class Tried:
    """A candidate as a row: `number` is its label in the drawings, `cells` are figures with their intervals."""

    number: int
    attempt: Attempt
    recipe: str
    metric: Measurement | None
    drop: Measurement | None
    figures: tuple[Measurement | None, ...]


@dataclass(frozen=True)
class Section:
    """What the page says of one bundle."""

    evidence: Evidence
    title: str
    anchor: str
    measured: tuple[Measurement, ...]
    metric: Measurement | None
    p50: Measurement | None
    source: float
    plots: tuple[Plot, ...]
    tried: tuple[Tried, ...]
    classes: tuple[ClassChange, ...]
    changed: tuple[ClassChange, ...]
    doubts: tuple[str, ...]


def page(records: Sequence[Evidence], measured: Mapping[str, Sequence[Measurement]] | None = None) -> str:
    """The page. `measured` are figures that devices took later, by the digest of the bundle's manifest."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"value": told_value, "interval": told_interval, "size": show_size}
    template = environment.from_string(files("compiler.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(sections=[_section(e, (measured or {}).get(e.subject, ())) for e in records])


def _section(evidence: Evidence, measured: Sequence[Measurement]) -> Section:
    _, name, version, profile = split_target(evidence.target)
    tried = tuple(_tried(i, a, evidence.decision) for i, a in enumerate(evidence.attempts, 1))
    classes = sorted(evidence.classes, key=lambda c: (c.variant - c.source, c.label))
    said = {doubt for m in _all(evidence) for doubt in doubts(m)}
    return Section(
        evidence=evidence,
        title=f"{name} {version} for {profile}",
        anchor=f"{name}-{version}-{profile}",
        measured=tuple(m for m in measured if m.kind == "measured"),
        metric=evidence.get(evidence.decision.metric),
        p50=evidence.get("latency_p50"),
        source=_source(evidence),
        plots=tuple(_plots(tried, evidence)),
        tried=tried,
        classes=tuple(classes),
        changed=tuple(c for c in classes if not c.source == c.variant == c.both),
        doubts=tuple(sorted(said)),
    )


def _all(evidence: Evidence) -> Iterator[Measurement]:
    yield from evidence.measurements
    for attempt in evidence.attempts:
        yield from attempt.measurements


def _tried(number: int, attempt: Attempt, decision: Decision) -> Tried:
    figures = tuple(attempt.get(name) for name in _FIGURES)
    return Tried(number, attempt, told_recipe(attempt), attempt.get(decision.metric), attempt.get("drop"), figures)


def _source(evidence: Evidence) -> float:
    """The source's value of the metric: it agrees with itself."""
    found = evidence.get("source_accuracy")
    return found.value if found and evidence.decision.metric == "accuracy" else 1.0


def _plots(tried: Sequence[Tried], evidence: Evidence) -> Iterator[Plot]:
    """Against latency, measured and emulated apart, and against the size of the model file."""
    for kind in ("measured", "emulated", "predicted"):
        times = [(t, p50) for t, p50 in _with(tried, "latency_p50") if p50.kind == kind]
        if times:
            (_, first) = times[0]
            caption = f"Latency {kind} on {first.device}: median of {first.n}, batch 1, one thread, with its interval."
            yield _plot(times, evidence, "median latency, ms", "{:g}".format, caption, kind)
    sizes = _with(tried, "size")
    if sizes:
        caption = "Size of the model file: exact, the same on every machine."
        yield _plot(
            sizes, evidence, "size of the model, MB (10^6 bytes)", lambda v: f"{v / 1e6:g}", caption, "measured"
        )


def _with(tried: Sequence[Tried], metric: str) -> list[tuple[Tried, Measurement]]:
    """The candidates that can be drawn against a metric, on a logarithmic axis."""
    found = ((t, t.attempt.get(metric)) for t in tried if t.metric)
    return [(t, m) for t, m in found if m and m.value > 0]


def _plot(
    found: Sequence[tuple[Tried, Measurement]], evidence: Evidence, x: str, show: Any, caption: str, kind: str
) -> Plot:
    decision = evidence.decision
    top = 100 * _source(evidence)
    lines = (Line("source", top), Line(f"source - {decision.max_drop:g}", top - decision.max_drop))
    points = [
        Point(
            label=str(t.number),
            title=f"{t.recipe}: {told_value(m)}, {decision.metric} {t.metric.value:.4f}, {t.attempt.outcome}",
            outcome=t.attempt.outcome,
            x=m.value,
            y=100 * t.metric.value,
            low=m.low,
            high=m.high,
        )
        for t, m in found
        if t.metric
    ]
    return Plot(scatter(points, lines, x=x, y=f"{decision.metric}, %", show=show), caption, kind)
