"""The routing policy: every row of its table, what headers ask for, the cap, and what is believed of the cloud."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import Malformed
from agent.routing import Bucket, Decision, Features, Pace, Wish, decide, lowest, wish

UP = Features(target=True, online=True, confidence=0.4, threshold=0.6)
"""An unsure answer that nothing keeps here."""
PRIVATE, HERE, THERE = Wish(private=True), Wish(route="local"), Wish(route="cloud")
WAITS = Wish(queue_s=5)


@pytest.mark.parametrize(
    ("features", "where", "reason"),
    [
        # data class
        (replace(UP, wish=PRIVATE), "local", "private"),
        (replace(UP, wish=PRIVATE, here=False), "refuse", "private"),
        (replace(UP, wish=PRIVATE, tokens=9, context=8), "refuse", "private"),
        # what the request says
        (replace(UP, wish=HERE), "local", "asked"),
        (replace(UP, wish=HERE, here=False), "refuse", "asked"),
        (replace(UP, wish=THERE, confidence=0.99), "cloud", "asked"),
        # reachability
        (replace(UP, target=False), "local", "no-cloud"),
        (replace(UP, target=False, here=False), "refuse", "no-cloud"),
        (replace(UP, target=False, wish=THERE), "refuse", "no-cloud"),
        (replace(UP, online=False), "local", "offline"),
        (replace(UP, online=False, wish=WAITS), "local", "offline"),
        (replace(UP, online=False, here=False), "refuse", "offline"),
        (replace(UP, online=False, here=False, wish=WAITS), "wait", "offline"),
        (replace(UP, online=False, wish=THERE), "refuse", "offline"),
        (replace(UP, online=False, wish=Wish(route="cloud", queue_s=5)), "wait", "offline"),
        # deadline
        (replace(UP, left_ms=100.0, cloud_ms=200.0), "local", "deadline"),
        (replace(UP, left_ms=-1.0), "local", "deadline"),
        (replace(UP, left_ms=100.0, cloud_ms=200.0, here=False), "refuse", "deadline"),
        (replace(UP, left_ms=300.0, cloud_ms=200.0), "cloud", "unsure"),
        (replace(UP, left_ms=100.0), "cloud", "unsure"),
        # budget
        (replace(UP, budget=False), "local", "budget"),
        (replace(UP, budget=False, tokens=9, context=8), "refuse", "budget"),
        (replace(UP, budget=False, here=False), "cloud", "capability"),
        (replace(UP, budget=False, wish=THERE), "cloud", "asked"),
        # capability and context length
        (replace(UP, here=False, confidence=None), "cloud", "capability"),
        (replace(UP, tokens=9, context=8, confidence=None), "cloud", "context"),
        (replace(UP, tokens=8, context=8, confidence=None), "local", "unknown"),
        # a full queue
        (replace(UP, busy=True, confidence=None), "cloud", "busy"),
        (replace(UP, busy=True, confidence=None, tokens=9, context=8), "cloud", "context"),
        (replace(UP, busy=True, wish=PRIVATE), "refuse", "busy"),
        (replace(UP, busy=True, wish=HERE), "refuse", "busy"),
        (replace(UP, busy=True, budget=False), "refuse", "busy"),
        (replace(UP, busy=True, online=False, wish=WAITS), "refuse", "busy"),
        (replace(UP, busy=True, left_ms=100.0, cloud_ms=200.0), "refuse", "busy"),
        (replace(UP, busy=True, target=False), "refuse", "busy"),
        (replace(UP, busy=True, wish=THERE), "cloud", "asked"),
        # confidence
        (replace(UP, confidence=None), "local", "unknown"),
        (UP, "cloud", "unsure"),
        (replace(UP, confidence=0.6), "local", "sure"),
        (replace(UP, threshold=0.0, confidence=0.0), "local", "sure"),
    ],
)
def test_each_row_of_the_table(features: Features, where: str, reason: str) -> None:
    assert decide(features) == Decision(where, reason)


features = st.builds(
    Features,
    wish=st.builds(
        Wish,
        private=st.booleans(),
        route=st.sampled_from(("auto", "local", "cloud")),
        queue_s=st.sampled_from((0.0, 5.0)),
    ),
    here=st.booleans(),
    target=st.booleans(),
    online=st.booleans(),
    cloud_ms=st.floats(0, 1000),
    left_ms=st.none() | st.floats(-10, 1000),
    budget=st.booleans(),
    tokens=st.integers(0, 10),
    context=st.integers(0, 10),
    busy=st.booleans(),
    confidence=st.none() | st.floats(0, 1),
    threshold=st.floats(0, 1),
)


@given(features)
def test_whatever_comes_nothing_private_goes_up_and_nothing_stays_that_cannot_be_answered(f: Features) -> None:
    found = decide(f)
    if f.wish.private or f.wish.route == "local" or not f.online or not f.target:
        assert found.where != "cloud"
    if found.where == "local":
        assert f.fits
        assert not f.busy
        assert f.wish.route != "cloud"
    if found.where == "wait":
        assert f.wish.queue_s > 0
        assert not f.online
    if found.reason in ("unsure", "busy") and found.where == "cloud":
        assert f.budget


@given(features, st.floats(0, 1), st.floats(0, 1))
def test_a_surer_answer_never_goes_up_where_a_less_sure_one_stays(f: Features, a: float, b: float) -> None:
    low, high = sorted((a, b))
    if decide(replace(f, confidence=low)).where == "local":
        assert decide(replace(f, confidence=high)).where == "local"


# --- what a request asks for ----------------------------------------------------------------------------------------


def test_headers_say_what_a_request_wants() -> None:
    asked = wish({"shoal-data": "Private", "shoal-deadline-ms": "250", "shoal-queue": "30", "content-type": "x"})
    assert asked == Wish(private=True, deadline_ms=250.0, queue_s=30.0)
    assert wish({"shoal-route": "cloud"}) == Wish(route="cloud")
    assert wish({}) == Wish()


def test_a_device_that_holds_everything_private_is_not_talked_out_of_it() -> None:
    assert wish({"shoal-data": "open"}, private=True).private
    with pytest.raises(Malformed, match="private data stay on this device"):
        wish({"shoal-route": "cloud"}, private=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(("shoal-data", "shoal-route"), ("", "privat", "locale")),
        *product(("shoal-deadline-ms", "shoal-queue"), ("", "0", "-1", "nan", "inf", "1e9", "soon")),
    ],
)
def test_a_value_that_is_none_is_refused_and_not_passed_over(name: str, value: str) -> None:
    with pytest.raises(Malformed, match=name):
        wish({name: value})


# --- language models ------------------------------------------------------------------------------------------------


def test_a_language_model_is_as_sure_as_its_least_sure_tenth_of_tokens() -> None:
    assert lowest([]) is None
    assert lowest([0.5]) == 0.5
    assert lowest([0.9] * 18 + [0.1, 0.2]) == 0.2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(1, 5))
def test_an_answer_is_no_less_sure_for_being_longer(probabilities: list[float], times: int) -> None:
    """The product of all probabilities would fall with every repetition."""
    assert lowest(probabilities * times) == lowest(probabilities)


# --- the cap --------------------------------------------------------------------------------------------------------


@given(st.floats(0.001, 10), st.integers(1, 20), st.lists(st.floats(-1, 5), max_size=200))
def test_never_more_goes_up_than_the_burst_and_the_rate_over_time(rate: float, most: int, pauses: list[float]) -> None:
    bucket, now, taken = Bucket(rate, most, most, 0.0), 0.0, 0
    highest = 0.0
    for pause in pauses:
        now += pause
        highest = max(highest, now)
        if bucket.has(now):
            bucket, taken = bucket.take(now), taken + 1
    back = sum(-p for p in pauses if p < 0)  # a clock that goes back and comes again gives that time twice, at most
    assert taken <= most + rate * (highest + back) + 1e-6


def test_an_empty_bucket_of_no_rate_stays_empty() -> None:
    assert not Bucket(0.0, 0.0, 0.0, 0.0).has(1e9)


def test_what_is_believed_of_the_clouds_time_fades() -> None:
    pace = Pace().seen(1000.0, 10.0)
    assert pace.expected(10.0) == 1000.0
    assert pace.expected(70.0) == 500.0
    assert pace.seen(0.0, 70.0).expected(70.0) == 350.0
    assert Pace().expected(5.0) == 0.0
