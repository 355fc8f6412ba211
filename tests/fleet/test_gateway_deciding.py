"""What the gateway decides, without any I/O: budgets, breaker, order of upstreams, cache, prices, requests."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.access import Caller
from fleet.errors import Forbidden, Malformed, OverBudget
from fleet.gateway import sse
from fleet.gateway.asked import CHAT, COMPLETIONS, EMBEDDINGS, has_numbers, read
from fleet.gateway.breaker import LONGEST, TRIAL_FOR, Breaker
from fleet.gateway.budgets import Account, Budgets, SpendRow
from fleet.gateway.cache import Cache, Kept, key_of, may_keep
from fleet.gateway.calls import Call
from fleet.gateway.config import GatewayConfig, Route, Target
from fleet.gateway.customers import customer_of
from fleet.gateway.filters import Filter
from fleet.gateway.limits import Limits, limits_from
from fleet.gateway.pricing import NANOS, Price, Usage, estimate, usage_of
from fleet.gateway.records import Record
from fleet.gateway.routes import pause, plan

NOW = datetime(2026, 11, 30, 23, 59, 0, tzinfo=UTC)


def request(path: str = CHAT, **more: object) -> Any:
    content: dict[str, object] = {"messages": [{"role": "user", "content": "Hi"}]}
    return read(path, json.dumps({"model": "m", **(content if path == CHAT else {}), **more}).encode())


# --- budgets ----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 400), st.booleans()), max_size=40))
def test_no_order_of_calls_uses_more_than_a_budget(calls: list[tuple[int, int, bool]]) -> None:
    """Each call uses at most what it set aside; some end at once, some while others are under way."""
    budgets, account = Budgets(), Account("key:1", Limits(tokens_per_day=1000))
    under_way, used = [], 0
    for asked, share, ends in calls:
        try:
            under_way.append((budgets.reserve([account], asked, 0, NOW), min(share, asked)))
        except OverBudget:
            continue
        if ends:
            reservation, tokens = under_way.pop(0)
            budgets.settle(reservation, tokens, 0)
            used += tokens
    for reservation, tokens in under_way:
        budgets.settle(reservation, tokens, 0)
        used += tokens
    assert used <= 1000
    assert budgets.used("key:1", NOW)["day"].tokens == used


def test_every_account_has_to_have_room_and_the_refusal_takes_nothing() -> None:
    mine, ours = Account("key:1", Limits(tokens_per_day=1000)), Account("group:a", Limits(money_per_month=10))
    budgets = Budgets()
    with pytest.raises(OverBudget, match=r"group:a: the budget of money for this month \(2026-11, UTC\)") as error:
        budgets.reserve([mine, ours], 500, 11, NOW)
    assert error.value.retry_after == 60  # December begins in a minute
    assert budgets.used("key:1", NOW)["day"].tokens == 0
    budgets.reserve([mine, ours], 1000, 10, NOW)
    with pytest.raises(OverBudget, match="key:1: the budget of tokens for this day"):
        budgets.reserve([mine], 1, 0, NOW)


def test_a_new_day_has_a_budget_of_its_own_and_what_ran_over_midnight_belongs_to_the_day_before() -> None:
    budgets, account = Budgets(), Account("key:1", Limits(tokens_per_day=100))
    late = budgets.reserve([account], 100, 0, NOW)
    tomorrow = NOW + timedelta(minutes=2)
    early = budgets.reserve([account], 100, 0, tomorrow)
    budgets.settle(late, 70, 0)
    budgets.settle(late, 70, 0)  # a second time changes nothing
    budgets.settle(early, 30, 0)
    assert budgets.used("key:1", NOW)["day"].tokens == 70
    assert budgets.used("key:1", tomorrow)["day"].tokens == 30


def test_what_is_under_way_is_stored_as_spent_and_loaded_again() -> None:
    """Accident: SIGKILL while a call is under way."""
    budgets, account = Budgets(), Account("key:1", Limits(tokens_per_day=100))
    budgets.reserve([account], 60, 5, NOW)
    rows = budgets.changed()
    assert rows == [SpendRow("key:1", window, 1, 60, 5) for window in ("2026-11", "2026-11-30")]
    assert budgets.changed() == []
    budgets.not_stored(rows)
    assert budgets.changed() == rows
    again = Budgets()
    again.load(rows)
    with pytest.raises(OverBudget):
        again.reserve([account], 41, 0, NOW)
    again.reserve([account], 40, 0, NOW)


def test_old_windows_are_forgotten_once_they_are_stored() -> None:
    budgets = Budgets()
    reservation = budgets.reserve([Account("key:1", Limits())], 1, 0, NOW)
    later = NOW + timedelta(days=40)
    budgets.settle(reservation, 1, 0)
    budgets.forget(later)
    assert budgets.used("key:1", NOW)["day"].tokens == 1  # not stored yet
    budgets.changed()
    budgets.forget(later)
    assert budgets.used("key:1", NOW)["day"].tokens == 0


def test_a_rate_refills_and_a_refusal_of_one_account_costs_the_other_nothing() -> None:
    budgets = Budgets()
    fast, slow = Account("a", Limits(requests_per_minute=60)), Account("b", Limits(requests_per_minute=1))
    budgets.admit([fast, slow], 0)
    with pytest.raises(OverBudget, match="b: over 1 requests a minute") as error:
        budgets.admit([fast, slow], 30)
    assert error.value.retry_after == pytest.approx(30)
    for _ in range(60):
        budgets.admit([fast], 30)
    with pytest.raises(OverBudget):
        budgets.admit([fast], 30)


# --- who asks ---------------------------------------------------------------------------------------------------


def test_a_second_token_of_a_person_is_no_second_budget() -> None:
    config = GatewayConfig(each=Limits(tokens_per_day=5), groups={"a": Limits(models=("small",))})
    laptop = Caller("alice:laptop", frozenset(), frozenset({"a"}), user="alice", token="1")
    phone = Caller("alice:phone", frozenset(), user="alice", token="2")
    first, second = (customer_of(caller, config, {}) for caller in (laptop, phone))
    assert [a.name for a in first.accounts] == ["user:alice", "group:a", "total"]
    assert first.accounts[0] == second.accounts[0]
    with pytest.raises(Forbidden, match="group:a may ask for small"):
        first.check_model("large")
    own = customer_of(phone, config, {"2": Limits(tokens_per_day=9)})
    assert [a.limits.tokens_per_day for a in own.accounts[:2]] == [9, 5]


def test_nobody_is_without_the_limits_for_each() -> None:
    config = GatewayConfig(
        each=Limits(tokens_per_day=5, requests_per_minute=7), devices={"d": Limits(tokens_per_day=9)}
    )
    admin = customer_of(Caller("token:first", frozenset({"admin"}), token="f"), config, {})
    device = customer_of(Caller("device:d", frozenset({"device"}), frozenset({"a"})), config, {})
    other = customer_of(Caller("device:e", frozenset({"device"})), config, {})
    assert admin.accounts[0] == Account("key:f", config.each)
    assert device.accounts[0].limits == Limits(tokens_per_day=9, requests_per_minute=7)
    assert other.accounts[0] == Account("device:e", config.each)


def test_limits_are_told_as_they_were_written() -> None:
    value = {"models": ["a"], "money_per_day": 2.5, "tokens_per_day": 7}
    assert limits_from(value, "x").money_per_day == 2.5 * NANOS
    assert limits_from(value, "x").to_value() == value
    with pytest.raises(Malformed, match="x: colour: there is no such setting"):
        limits_from({"colour": 1}, "x")


# --- upstreams --------------------------------------------------------------------------------------------------


def test_a_breaker_opens_lets_one_trial_through_and_closes() -> None:
    breaker = Breaker(failures=2, pause=10)
    breaker.failed(0)
    assert breaker.admits(0)
    breaker.failed(1)
    assert (breaker.admits(1), breaker.state(1), breaker.wait(1)) == (False, "open", 10)
    assert (breaker.admits(11), breaker.state(11)) == (True, "half-open")
    breaker.begin(11)
    assert not breaker.admits(12)  # the trial is under way
    breaker.failed(12)
    assert breaker.wait(12) == 20  # twice as long
    breaker.begin(40)
    assert breaker.admits(40 + TRIAL_FOR)  # nobody heard of that trial again
    breaker.succeeded()
    assert (breaker.admits(40), breaker.state(40)) == (True, "closed")
    for i in range(50):
        breaker.failed(i * LONGEST)
    assert breaker.wait(49 * LONGEST) == LONGEST


def test_what_began_before_a_breaker_opened_is_no_failed_trial() -> None:
    """Accident: sixty requests are under way when an upstream dies, and it was left alone for five minutes."""
    breaker = Breaker(failures=2, pause=10)
    for _ in range(60):
        breaker.failed(1)
    assert breaker.wait(1) == 10
    breaker.begin(11)
    breaker.failed(12)
    assert breaker.wait(12) == 20


def test_weights_share_the_requests_and_fallbacks_come_last() -> None:
    targets = (
        Target(upstream="a", weight=3),
        Target(upstream="b", weight=1),
        Target(upstream="c", fallback=True),
    )
    route = Route(name="r", targets=targets, attempts=1)
    draws = [((i * 7919) % 1000 / 1000, (i * 104729 + 500) % 1009 / 1009) for i in range(1, 4000)]
    plans = [[t.upstream for t in plan(route, {"a", "b", "c"}, pair)] for pair in draws]
    assert {p[-1] for p in plans} == {"c"}
    assert 0.70 < sum(p[0] == "a" for p in plans) / len(plans) < 0.80
    assert [t.upstream for t in plan(route, {"c"}, draws[0])] == ["c"]
    assert plan(route, set(), draws[0]) == []
    alone = Route(name="r", targets=targets[:1], attempts=3)
    assert [t.upstream for t in plan(alone, {"a"}, [0.5])] == ["a", "a", "a"]


def test_a_pause_is_a_random_share_of_a_time_that_doubles() -> None:
    assert [pause(n, 1.0) for n in (1, 2, 3)] == [0.2, 0.4, 0.8]
    assert (pause(3, 0.0), pause(60, 1.0)) == (0.0, 3.0)


# --- requests ---------------------------------------------------------------------------------------------------


def test_every_text_of_a_request_is_found_wherever_it_stands() -> None:
    """Attack: what a filter should see, in a part that it does not look at."""
    asked = request(
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "x"}}],
            },
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "two", "arguments": "three"}}]},
            {"role": "two words", "content": [{"type": "file", "file": {"filename": "seven", "file_data": "x"}}]},
            {"role": "a role of more than two hundred characters " * 6, "content": "four"},
        ],
        tools=[{"type": "function", "function": {"description": "five", "file": {"description": "eight"}}}],
        stop=["six"],
    )
    found = {place.get() for place in asked.texts}
    assert {"one", "two", "three", "four", "five", "six", "seven", "eight", "two words"} <= found
    assert any(text.startswith("a role of more") for text in found)
    assert asked.prompt > 1500  # the picture counts


@pytest.mark.parametrize(
    ("path", "more", "words"),
    [
        (CHAT, {"messages": "Hi"}, "a list of messages"),
        (CHAT, {"model": ""}, "expected the name of a model"),
        (CHAT, {"max_tokens": -1}, "max_tokens: expected a whole number"),
        (CHAT, {"n": True}, "n: expected"),
        (CHAT, {"stream_options": 3}, "stream_options"),
        (CHAT, {"stream": 1}, "stream: expected true or false"),
        (COMPLETIONS, {}, "an object with prompt"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(path: str, more: dict[str, object], words: str) -> None:
    with pytest.raises(Malformed, match=words):
        request(path, **more)


def test_an_upstream_is_told_its_own_model_a_longest_answer_and_to_count() -> None:
    asked = request(stream=True)
    body = json.loads(asked.body_for("theirs", "openai", 77, usage=True))
    assert (body["model"], body["max_completion_tokens"]) == ("theirs", 77)
    assert body["stream_options"] == {"include_usage": True}
    assert json.loads(asked.body_for("", "compatible", 77, usage=False)) == {**asked.value, "max_tokens": 77}
    assert request(max_tokens=5, n=3).most_output(77) == 15
    assert request(EMBEDDINGS, input="Hi").most_output(77) == 0
    assert has_numbers(request(EMBEDDINGS, input=[[1, 2], [3]]))


def test_what_is_set_aside_is_the_most_that_an_upstream_may_make_of_a_request() -> None:
    """Attack: two words for the longest answer, many prompts in one request, tokens that do not look like numbers."""
    assert request(max_completion_tokens=1, max_tokens=100_000).most_output(7) == 100_000
    assert request(COMPLETIONS, prompt=["a", "b", "c"], max_tokens=5, n=2).most_output(7) == 30
    assert request(COMPLETIONS, prompt=[[1, 2], [3]]).most_output(7) == 14
    assert request(COMPLETIONS, prompt=[1, 2, 3]).most_output(7) == 7
    for tokens in ([1.0, 2.0], [[1.5], [True]], [None]):
        assert has_numbers(request(EMBEDDINGS, input=tokens))
    assert not has_numbers(request(EMBEDDINGS, input=["a", ["b"]]))


def test_tokens_and_money_are_rather_too_many_than_too_few() -> None:
    assert (estimate("abcd"), estimate("äöü"), estimate("")) == (2, 2, 0)
    assert Price(input=0.15, output=0.6).cost(Usage(1_000_000, 1_000_000)) == 0.75 * NANOS
    assert Price(input=0.0001, output=0).cost(Usage(1, 0)) == 1
    assert usage_of({"usage": {"prompt_tokens": 3}}) == Usage(3, 0)
    for wrong in ({}, {"usage": None}, {"usage": {"prompt_tokens": -1}}, {"usage": {"prompt_tokens": "3"}}, []):
        assert usage_of(wrong) is None


# --- cache and events -------------------------------------------------------------------------------------------


def test_a_key_of_the_cache_covers_who_asks_and_all_that_could_change_the_answer() -> None:
    same = request(temperature=0, user="x")
    assert key_of("key:1", same) == key_of("key:1", request(user="x", temperature=0))
    others = [
        request(temperature=0),
        request(temperature=0, user="x", seed=1),
        request(temperature=0, user="x", messages=[{"role": "system", "content": "Hi"}]),
    ]
    keys = {key_of("key:1", asked) for asked in others} | {key_of("key:2", same), key_of("key:1", same)}
    assert len(keys) == 5
    filters = [(Filter(name="f"),), (Filter(name="f", deny=("x",)),), (Filter(name="f"), Filter(name="g")), ()]
    assert len({key_of("key:1", same, some) for some in filters}) == 4


def test_only_what_gives_the_same_answer_again_is_kept() -> None:
    route = Route(name="r", targets=(Target(upstream="a"),), cache=60)
    assert may_keep(route, request(temperature=0))
    assert may_keep(route, request(EMBEDDINGS, input="Hi"))
    assert not may_keep(route, request())
    assert not may_keep(route, request(temperature=0.1))
    assert not may_keep(route, request(temperature=0, stream=True))
    assert may_keep(Route(name="r", targets=route.targets, cache=60, cache_sampled=True), request())
    assert not may_keep(Route(name="r", targets=route.targets), request(temperature=0))


def test_the_cache_is_bounded_and_forgets() -> None:
    cache = Cache(size=10_000)
    for i in range(100):
        cache.put(str(i), Kept(b"x" * 1000, "u", "m"), until=60)
    assert cache.held <= 10_000
    assert cache.get("0", 0) is None
    assert cache.get("99", 59) is not None
    assert cache.get("99", 60) is None
    cache.put("large", Kept(b"x" * 5000, "u", "m"), until=60)
    assert cache.get("large", 0) is None


@given(st.lists(st.integers(1, 40), max_size=30))
def test_events_come_out_whole_however_they_were_cut(cuts: list[int]) -> None:
    stream = b'data: {"a": 1}\n\n: keep-alive\n\ndata: {"b":\r\ndata: 2}\r\n\r\ndata: [DONE]\n\n'
    splitter, events, at = sse.Splitter(), [], 0
    for cut in [*cuts, len(stream)]:
        events += splitter.feed(stream[at : at + cut])
        at += cut
    assert b"".join(events) + splitter.rest == stream
    assert [sse.data_of(e) for e in events] == [b'{"a": 1}', b"", b'{"b":\n2}', b"[DONE]"]


def test_an_event_says_whether_the_answer_is_at_its_end() -> None:
    assert sse.ends(b"data: [DONE]\n\n")
    assert sse.ends(b'data: {"choices":[{"finish_reason": "stop"}]}\n\n')
    assert not sse.ends(b'data: {"choices":[{"finish_reason": null,"delta":{"content":"[DONE]"}}]}\n\n')


def test_an_event_tells_its_usage_and_how_much_text_it_has() -> None:
    assert sse.tells_usage(b'data: {"usage": {"prompt_tokens": 1}}\n\n')
    assert not sse.tells_usage(b'data: {"usage": null}\n\n')
    assert sse.text_size(b'data: {"delta":{"content":"a\\"b"}}\n\n') == 4
    assert sse.text_size(b'data: {"delta":{"reasoning":"abc","refusal":"d"}}\n\n') == 4


@pytest.mark.parametrize(
    ("outcome", "sent", "pieces", "streaming", "tokens"),
    [
        ("failed", True, 0, False, 107),  # a deadline that passed while the upstream worked
        ("client-left", True, 0, True, 107),
        ("broke-off", True, 3, True, 10),
        ("answered", True, 0, True, 7),
        ("failed", False, 0, False, 0),
    ],
)
def test_what_an_upstream_may_have_done_is_paid_for(
    outcome: str, sent: bool, pieces: int, streaming: bool, tokens: int
) -> None:
    asked = request()
    call = Call(customer_of(Caller("x", frozenset()), GatewayConfig(), {}), Record("", "", "", "", ""), 0.0)
    call.asked, call.reservation = asked, Budgets().reserve([], asked.prompt + 100, 0, NOW)
    call.sent, call.pieces, call.streaming = sent, pieces, streaming
    assert call.used(outcome).total == tokens - (7 - asked.prompt if sent else 0)
