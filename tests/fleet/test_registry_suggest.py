"""Ranking models by evidence: pure, so every rule is a case."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fleet.intervals import wilson
from fleet.registry.suggest import Candidate, Latency, Quality, Wish, suggest

MB = 2**20
PI = "raspberry-pi-4"


def candidate(name: str, **changes: Any) -> Candidate:
    one = Candidate(
        target=f"models/intents/{name}/1.0.0/{PI}",
        digest=f"sha256:{name}",
        task="text-classification",
        profile=PI,
        size=10 * MB,
        latencies=(Latency(ground="measured", p50_ms=10, low=9, high=11, n=500),),
        qualities=(Quality(ground="build", metric="accuracy", value=0.95, low=0.94, high=0.96, n=2000),),
    )
    return replace(one, **changes)


def quality(value: float, *, ground: Any = "build", n: int = 2000) -> Quality:
    low, high = wilson(value, n)
    return Quality(ground=ground, metric="accuracy", value=value, low=low, high=high, n=n)


def names(found: list[Any]) -> list[str]:
    return [one.candidate.target.split("/")[2] for one in found]


def fit(one: Candidate, **limits: Any) -> str:
    (found,) = suggest([one], Wish(profile=PI, **limits))
    return found.fit


def test_only_what_is_of_the_profile_and_the_task_is_suggested() -> None:
    others = [candidate("other", profile="x86-64"), candidate("words", task="token-classification"), candidate("mine")]
    assert names(suggest(others, Wish(profile=PI, task="text-classification"))) == ["mine"]
    assert len(suggest(others, Wish(profile=PI))) == 2


def test_what_fits_stands_before_what_may_fit_and_that_before_what_does_not() -> None:
    slow = candidate("slow", latencies=(Latency(ground="measured", p50_ms=40, low=39, high=41, n=500),))
    guess = candidate("guess", latencies=(Latency(ground="predicted", p50_ms=1),), qualities=(quality(0.99),))
    large = candidate("large", size=90 * MB)
    found = suggest([slow, large, guess, candidate("good")], Wish(profile=PI, max_ms=20, max_mb=50))
    assert names(found) == ["good", "guess", "slow", "large"]
    assert [one.fit for one in found] == ["fits", "unknown", "too slow", "too large"]


@pytest.mark.parametrize(
    ("latency", "expected"),
    [
        (Latency(ground="measured", p50_ms=10, low=9, high=11, n=500), "fits"),
        (Latency(ground="measured", p50_ms=19, low=17, high=22, n=5), "unknown"),  # its interval reaches over the limit
        (Latency(ground="measured", p50_ms=24, low=22, high=26, n=500), "too slow"),
        (Latency(ground="emulated", p50_ms=10, low=9, high=11, n=500), "unknown"),  # another machine promises nothing
        (Latency(ground="predicted", p50_ms=10), "unknown"),
        (Latency(ground="predicted", p50_ms=30), "too slow"),
        (Latency(ground="fleet", p50_ms=10, n=5000, devices=40), "fits"),
    ],
)
def test_a_time_is_believed_as_far_as_its_ground_and_interval_go(latency: Latency, expected: str) -> None:
    assert fit(candidate("one", latencies=(latency,)), max_ms=20) == expected


def test_without_any_figure_nothing_is_promised_and_the_reason_says_what_to_do() -> None:
    (found,) = suggest([candidate("new", latencies=(), qualities=())], Wish(profile=PI, max_ms=20, min_accuracy=0.9))
    assert found.fit == "unknown"
    assert any("shoal measure start" in reason for reason in found.reasons)


def test_the_fleets_own_experience_counts_before_the_build_once_there_is_enough_of_it() -> None:
    build = Latency(ground="measured", p50_ms=10, low=9, high=11, n=500)
    seldom, often = (Latency(ground="fleet", p50_ms=30, n=n, devices=3) for n in (20, 2000))
    assert candidate("one", latencies=(build, seldom)).latency == build
    assert candidate("one", latencies=(build, often)).latency == often
    few, many = (quality(0.7, ground="fleet", n=n) for n in (10, 900))
    assert candidate("one", qualities=(quality(0.95), few)).quality == quality(0.95)
    assert candidate("one", qualities=(quality(0.95), many)).quality == many
    assert fit(candidate("one", qualities=(quality(0.95), many)), min_accuracy=0.9) == "not accurate enough"


def test_among_those_that_fit_the_surer_quality_comes_first_then_time_then_size() -> None:
    sure, vague = quality(0.95, n=5000), quality(0.96, n=50)
    fast = Latency(ground="measured", p50_ms=5, low=4, high=6, n=500)
    found = suggest(
        [
            candidate("vague", qualities=(vague,)),
            candidate("small", qualities=(sure,), size=5 * MB),
            candidate("large", qualities=(sure,), size=9 * MB),
            candidate("fast", qualities=(sure,), latencies=(fast,), size=9 * MB),
        ],
        Wish(profile=PI),
    )
    assert names(found) == ["fast", "small", "large", "vague"]
