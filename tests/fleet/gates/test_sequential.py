"""Bets that pay what they may, and intervals that hold the truth at all looks."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.gates.sequential import (
    POWERS,
    STAKES,
    Wealth,
    fewest,
    log_evidence,
    mean,
    median,
    place,
    rank_bets,
    share_bets,
    stake,
)

values = st.floats(-1e6, 1e6)
ALPHA = 0.05


@given(st.lists(values, min_size=2, max_size=12, unique=True))
def test_over_all_places_of_a_block_every_bet_pays_1_on_average(block: list[float]) -> None:
    paid = [rank_bets(place(v, [p for p in block if p is not v])) for v in block]
    for k in range(len(POWERS)):
        assert sum(math.exp(one[k]) for one in paid) / len(block) == pytest.approx(1)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12))
def test_with_ties_as_well(block: list[int]) -> None:
    paid = [rank_bets(place(v, [*block[:i], *block[i + 1 :]])) for i, v in enumerate(block)]
    for k in range(len(POWERS)):
        assert sum(math.exp(one[k]) for one in paid) / len(block) == pytest.approx(1)


@given(st.floats(0.001, 0.9), st.floats(0, 1))
def test_a_bet_on_a_mean_at_its_limit_pays_1_on_average(limit: float, value: float) -> None:
    """Values of two points with that mean: any other is a mixture of such."""
    high = max(value, limit)
    chance = limit / high
    for k in range(len(STAKES)):
        expected = chance * math.exp(share_bets(high, limit)[k]) + (1 - chance) * math.exp(share_bets(0, limit)[k])
        assert expected == pytest.approx(1)


@given(st.lists(st.tuples(values, st.lists(values, max_size=9)), max_size=10), st.randoms())
def test_the_order_of_devices_does_not_matter(blocks: list[tuple[float, list[float]]], rng: random.Random) -> None:
    def evidence() -> float:
        wealth: Wealth = ()
        for value, peers in blocks:
            wealth = stake(wealth, rank_bets(place(value, peers)))
        return log_evidence(wealth)

    first = evidence()
    rng.shuffle(blocks)
    assert evidence() == pytest.approx(first)


def gaussian(rng: random.Random) -> float:
    return rng.gauss(0, 1)


def cauchy(rng: random.Random) -> float:
    return math.tan(math.pi * (rng.random() - 0.5))


def mostly_zero(rng: random.Random) -> float:
    return float(rng.random() < 0.1)


def ever(rng: random.Random, draw: Callable[[random.Random], float], shift: float, devices: int = 40) -> bool:
    """Whether the evidence is ever 1 / alpha, looked at after each device."""
    wealth: Wealth = ()
    for n in range(devices):
        busy = 3 * math.sin(n / 3)  # what is everybody's at one time
        peers = [busy + draw(rng) for _ in range(1 + n % 9)]
        wealth = stake(wealth, rank_bets(place(busy + shift + draw(rng), peers)))
        if log_evidence(wealth) >= -math.log(ALPHA):
            return True
    return False


@pytest.mark.parametrize("draw", [gaussian, cauchy, mostly_zero])
def test_chance_alone_is_ever_significant_no_more_often_than_stated(draw: Callable[[random.Random], float]) -> None:
    """Ville's inequality, for 1,500 equal models: 6.5 % would come by chance once in 100 times at a true 5 %."""
    rng = random.Random(7)
    assert sum(ever(rng, draw, 0.0) for _ in range(1500)) / 1500 <= 0.065


@pytest.mark.parametrize("draw", [gaussian, cauchy, mostly_zero])
def test_what_is_worse_is_found(draw: Callable[[random.Random], float]) -> None:
    """And the test above could fail: the same with a shift is above its limit."""
    rng = random.Random(8)
    assert sum(ever(rng, draw, 2.0) for _ in range(200)) / 200 > 0.9


def test_the_interval_of_a_median_holds_it_at_all_looks_together() -> None:
    rng, missed = random.Random(9), 0
    for _ in range(400):
        drawn = [cauchy(rng) for _ in range(60)]
        told = [median(drawn[:n]) for n in range(8, 61)]
        missed += any(t.low is None or t.high is None or not t.low <= 0 <= t.high for t in told)
    assert missed / 400 <= ALPHA + 0.03


def test_the_interval_of_a_share_holds_it_at_all_looks_together() -> None:
    """Devices of unequal quality: taking the answers for the unit would miss it more often than not."""
    rng, missed, naive = random.Random(10), 0, 0
    for _ in range(300):
        parts = []
        for _ in range(60):
            quality = min(1.0, rng.gauss(0.9, 0.05))
            parts.append((float(sum(rng.random() < quality for _ in range(50))), 50.0))
        told = [mean(parts[:n]) for n in range(10, 61)]
        missed += any(t.low is None or t.high is None or not t.low <= 0.9 <= t.high for t in told)
        totals = accumulate(parts, lambda a, b: (a[0] + b[0], a[1] + b[1]))
        shares = [(h / n, math.sqrt(h / n * (1 - h / n) / n)) for h, n in totals][9:]
        naive += any(abs(p - 0.9) > 1.96 * error for p, error in shares)
    assert missed / 300 <= ALPHA + 0.04
    assert naive / 300 > 0.5


def test_too_few_for_an_interval_have_none() -> None:
    assert (median([1.0, 2.0]).low, median([1.0, 2.0]).value) == (None, 1.5)
    assert median([float(n) for n in range(8)]).low == 0
    assert mean([(1.0, 2.0)]).high is None
    with pytest.raises(ValueError, match="nothing"):
        median([])
    with pytest.raises(ValueError, match="nothing"):
        mean([(0.0, 0.0)])


def test_how_many_devices_it_takes() -> None:
    """More peers make a device count more: alone it is a coin."""
    counts = [fewest(peers, 1e-4) for peers in (0, 1, 4, 9)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 5
    with pytest.raises(ValueError, match="too small"):
        fewest(1, 1e-300)
