"""What `GET /metrics` says, in the text format of Prometheus 0.0.4: counts and times, no input, no label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

import psutil

from agent.serving.service import Served
from agent.serving.shadow import Beside
from agent.serving.tally import BOUNDS, Tally

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES: Final = ("answered", "failed", "malformed", "busy", "late", "left")
Sample = tuple[str, Mapping[str, str], float]


def text(
    models: Sequence[tuple[str, Served]],
    *,
    shadows: Sequence[tuple[str, Beside]] = (),
    statuses: Mapping[int, int],
    online: bool,
    version: str,
    uptime: float,
) -> bytes:
    """The page. Counts of a model begin anew with each version of it, named by its digest."""
    named = [({"model": name, "digest": served.digest}, served) for name, served in models]
    memory = psutil.Process().memory_info().rss
    families = [
        _family("shoal_agent_info", "gauge", "The agent.", [("", {"version": version}, 1)]),
        _family("shoal_agent_online", "gauge", "1 while the line to the fleet is up.", [("", {}, int(online))]),
        _family("shoal_agent_uptime_seconds", "gauge", "Since the local API was made.", [("", {}, round(uptime, 3))]),
        _family("process_resident_memory_bytes", "gauge", "Memory of the agent.", [("", {}, memory)]),
        _family(
            "shoal_http_replies_total",
            "counter",
            "Replies of the local API by status code.",
            [("", {"code": str(code)}, n) for code, n in sorted(statuses.items())],
        ),
        _family(
            "shoal_model_info",
            "gauge",
            "The models that answer.",
            [
                ("", {**labels, "version": served.names["shoal-model-version"], "runtime": served.runtime}, 1)
                for labels, served in named
            ],
        ),
        _family(
            "shoal_model_requests_total",
            "counter",
            "Requests by outcome: answered, failed (the model's fault), malformed, busy, late, left (the client did).",
            [
                ("", {**labels, "outcome": outcome}, served.tally.outcomes[outcome])
                for labels, served in named
                for outcome in OUTCOMES
            ],
        ),
        _family(
            "shoal_model_in_hand",
            "gauge",
            "Requests that wait for the model or run.",
            [("", labels, served.in_hand) for labels, served in named],
        ),
        _family(
            "shoal_model_latency_seconds",
            "histogram",
            "From the parsed request to its answer.",
            [sample for labels, served in named for sample in _histogram(labels, served.tally)],
        ),
        *_in_shadow(shadows),
    ]
    return "".join(line for family in families for line in family).encode()


def _in_shadow(shadows: Sequence[tuple[str, Beside]]) -> Iterator[Iterator[str]]:
    """What runs beside those that answer; nothing where nothing does."""
    families = (
        ("requests", ("run", "failed", "dropped"), "Requests that a model in shadow was asked too, and dropped ones."),
        ("answers", ("compared", "agreed"), "Its answers that were held against the model's, and those that agreed."),
    )
    for name, outcomes, about in families if shadows else ():
        samples = [
            ("", {"model": model, "digest": beside.digest, "outcome": outcome}, beside.counts[outcome])
            for model, beside in shadows
            for outcome in outcomes
        ]
        yield _family(f"shoal_shadow_{name}_total", "counter", about, samples)


def _histogram(labels: Mapping[str, str], tally: Tally) -> Iterator[Sample]:
    for bound, n in zip((*map(str, BOUNDS), "+Inf"), accumulate(tally.buckets), strict=True):
        yield "_bucket", {**labels, "le": bound}, n
    yield "_sum", labels, tally.seconds
    yield "_count", labels, sum(tally.buckets)


def _family(name: str, kind: str, about: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {about}\n# TYPE {name} {kind}\n"
    for suffix, labels, value in samples:
        pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"{name}{suffix}{{{pairs}}} {value}\n" if pairs else f"{name}{suffix} {value}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
