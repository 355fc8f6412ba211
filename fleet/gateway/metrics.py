"""Counters of the gateway since its start, and their text for Prometheus (exposition format 0.0.4). Pure.

Labels are routes, upstreams, classifiers and outcomes, which the configuration bounds; who asked
stands in the audit, not here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from fleet.exposition import Labels, family, labels_text
from fleet.gateway.pricing import NANOS
from fleet.gateway.records import Record

FIRST: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds to the first token."""
SPEED: Final = (1.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
"""Tokens per second after it."""
JUDGED: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Seconds that a classifier or a finder of personal data took over the texts of a request."""


@dataclass
class Histogram:
    """Counts between the bounds, a sum and a count."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0
    number: int = 0

    def add(self, value: float) -> None:
        """Count one."""
        if not self.counts:
            self.counts = [0] * (len(self.bounds) + 1)
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total, self.number = self.total + value, self.number + 1


@dataclass
class Metrics:
    """All of them."""

    requests: Counter[Labels] = field(default_factory=Counter)
    tokens: Counter[Labels] = field(default_factory=Counter)
    nanos: Counter[Labels] = field(default_factory=Counter)
    errors: Counter[Labels] = field(default_factory=Counter)
    verdicts: Counter[Labels] = field(default_factory=Counter)
    first: dict[str, Histogram] = field(default_factory=dict)
    speed: dict[str, Histogram] = field(default_factory=dict)
    judging: dict[str, Histogram] = field(default_factory=dict)
    finding: Histogram = field(default_factory=lambda: Histogram(JUDGED))

    def count(self, record: Record, verdicts: Mapping[str, int]) -> None:
        """One request that ended."""
        where = (("route", record.route or "none"),)
        self.requests[(*where, ("outcome", record.outcome))] += 1
        if record.prompt_tokens or record.completion_tokens:
            at = (("upstream", record.upstream),)
            self.tokens[(*at, ("kind", "prompt"))] += record.prompt_tokens
            self.tokens[(*at, ("kind", "completion"))] += record.completion_tokens
            self.nanos[at] += record.nanos
        for rule, times in verdicts.items():
            name, _, action = rule.rpartition(" ")
            self.verdicts[("rule", name), ("action", action)] += times
        if record.first_ms is not None and record.upstream:
            self._time(record, record.first_ms)

    def failed(self, upstream: str, why: str) -> None:
        """One try at an upstream that came to nothing."""
        self.errors[("upstream", upstream), ("why", why)] += 1

    def judged(self, classifier: str, seconds: float) -> None:
        """One request that a classifier looked at, or should have."""
        self.judging.setdefault(classifier, Histogram(JUDGED)).add(seconds)

    def looked(self, seconds: float) -> None:
        """One look of Presidio, at a request, an answer or a piece of one, its wait included."""
        self.finding.add(seconds)

    def _time(self, record: Record, first_ms: float) -> None:
        self.first.setdefault(record.upstream, Histogram(FIRST)).add(first_ms / 1000)
        rest = (record.total_ms - first_ms) / 1000
        if record.stream and rest > 0 and record.completion_tokens > 1:
            speed = (record.completion_tokens - 1) / rest
            self.speed.setdefault(record.upstream, Histogram(SPEED)).add(speed)

    def text(self, states: Mapping[str, str], queues: Mapping[str, int], waiting: int, cache_bytes: int) -> str:
        """For Prometheus. States and queues are those of the upstreams; `waiting`: records not on the disk yet."""
        return "".join(self._lines(states, queues, waiting, cache_bytes))

    def _lines(
        self, states: Mapping[str, str], queues: Mapping[str, int], waiting: int, cache_bytes: int
    ) -> Iterator[str]:
        yield from _counter("requests_total", "Requests by what came of them.", self.requests.items())
        yield from _counter("tokens_total", "Tokens, as told or estimated.", self.tokens.items())
        cost = ((labels, nanos / NANOS) for labels, nanos in self.nanos.items())
        yield from _counter("cost_total", "Money, in the currency of the prices.", cost)
        yield from _counter("upstream_errors_total", "Tries that came to nothing.", self.errors.items())
        yield from _counter("filter_verdicts_total", "What filters did.", self.verdicts.items())
        yield from _histogram("first_token_seconds", "Time to the first byte of an answer.", self.first)
        yield from _histogram("tokens_per_second", "Speed of streams behind their first token.", self.speed)
        yield from _histogram("classifier_seconds", "Time that a classifier took.", self.judging, "classifier")
        found = {"presidio": self.finding} if self.finding.number else {}
        yield from _histogram("personal_seconds", "Time that a look for personal data took.", found, "finder")
        closed = (((("upstream", name),), state == "closed") for name, state in states.items())
        yield from _gauge("upstream_up", "1 while requests go to it.", closed)
        lengths = (((("upstream", name),), length) for name, length in queues.items())
        yield from _gauge("upstream_waiting", "Requests that wait for a place.", lengths)
        yield from _gauge("records_waiting", "Records of the audit not on the disk yet.", [((), waiting)])
        yield from _gauge("cache_bytes", "Bytes of answers that are kept.", [((), cache_bytes)])


def _counter(name: str, about: str, values: Iterable[tuple[Labels, float]]) -> Iterator[str]:
    return family(f"shoal_gateway_{name}", about, "counter", values)


def _gauge(name: str, about: str, values: Iterable[tuple[Labels, float]]) -> Iterator[str]:
    return family(f"shoal_gateway_{name}", about, "gauge", values)


def _histogram(name: str, about: str, by: Mapping[str, Histogram], of: str = "upstream") -> Iterator[str]:
    full = f"shoal_gateway_{name}"
    yield f"# HELP {full} {about}\n# TYPE {full} histogram\n"
    for key, one in sorted(by.items()):
        at = (of, key)
        for bound, count in zip(one.bounds, accumulate(one.counts), strict=False):
            yield f"{full}_bucket{labels_text((at, ('le', f'{bound:g}')))} {count}\n"
        yield f"{full}_bucket{labels_text((at, ('le', '+Inf')))} {one.number}\n"
        yield f"{full}_sum{labels_text((at,))} {one.total:.10g}\n{full}_count{labels_text((at,))} {one.number}\n"
