"""Queries: what they say, and where they are wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import Malformed
from fleet.queries import (
    FIELDS,
    STATES,
    And,
    Everything,
    Is,
    Not,
    Or,
    Query,
    Standing,
    asks_for,
    parse,
    predicate,
    show,
)

PI = Standing("pi-1", "raspberry-pi-4", "floor-2", frozenset({"kitchen", "new"}), "online")
LAB = Standing("lab-1", "raspberry-pi-4", "lab", frozenset({"kitchen"}), "offline")
PC = Standing("pc-1", "x86-64", "floor-2", frozenset(), "late")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("all", "pi-1 lab-1 pc-1"),
        ("profile=raspberry-pi-4 and tag:kitchen and not group:lab", "pi-1"),
        ("profile=x86-64 or tag:new", "pi-1 pc-1"),
        ("device:pi-* or device=pc-1", "pi-1 pc-1"),
        ("device=pi-*", ""),
        ("device:p[ic]-?", "pi-1 pc-1"),
        ("online", "pi-1"),
        ("not online", "lab-1 pc-1"),
        ("state:l*", "pc-1"),
        ("tag:kit*", "pi-1 lab-1"),
        ("tag=kit*", ""),
        ("group=lab or group=floor-2 and profile=x86-64", "lab-1 pc-1"),
        ("(group=lab or group=floor-2) and profile=x86-64", "pc-1"),
        ("not (tag:new or group=lab)", "pc-1"),
        ("not not tag:new", "pi-1"),
        ("group=and or group=not", ""),
        ("  profile = x86-64  ", "pc-1"),
    ],
)
def test_a_query_means_these_devices(text: str, meant: str) -> None:
    matches = predicate(parse(text))
    assert [d.device for d in (PI, LAB, PC) if matches(d)] == meant.split()


@pytest.mark.parametrize(
    ("text", "at", "words"),
    [
        ("", 1, "there it ends"),
        ("profile", 1, "got 'profile'"),
        ("profile=", 9, "what profile should be"),
        ("profile==x", 9, "got '='"),
        ("colour=red", 1, "one of the fields"),
        ("profile=a profile=b", 11, "'and', 'or' or the end"),
        ("profile=a and", 14, "there it ends"),
        ("profile=a and or tag:b", 15, "got 'or'"),
        ("(tag:a", 7, "expected ')'"),
        ("(tag:a tag:b)", 8, "'and', 'or' or ')'"),
        ("tag:a)", 6, "got ')'"),
        ("tag:a & tag:b", 7, "got '&'"),
        ("tag:\u00e4", 5, "expected a word"),
        ("not", 4, "there it ends"),
        ("(" * 50 + "all" + ")" * 50, 42, "inside each other"),
    ],
)
def test_what_is_no_query_is_told_with_its_place(text: str, at: int, words: str) -> None:
    with pytest.raises(Malformed, match=rf"^query, character {at}: ") as fault:
        parse(text)
    assert words in str(fault.value)


def test_a_query_of_a_novel_is_refused() -> None:
    with pytest.raises(Malformed, match="at most 2000"):
        parse("tag:a or " * 1000)


def test_it_is_known_what_a_query_looks_at() -> None:
    query = parse("not (profile=a or tag:b) and all")
    assert [f for f in FIELDS if asks_for(query, f)] == ["profile", "tag"]


WORDS = st.text("abz09.-_*?[]", min_size=1, max_size=6) | st.sampled_from(["and", "or", "not", "all"])
TESTS: st.SearchStrategy[Query] = (
    st.just(Everything())
    | st.builds(Is, st.sampled_from(FIELDS), WORDS, st.booleans())
    | st.sampled_from(STATES).map(lambda s: Is("state", s))
)
QUERIES = st.recursive(
    TESTS,
    lambda inner: (
        inner.map(Not)
        | st.lists(inner, min_size=2, max_size=3).map(lambda of: And(tuple(of)))
        | st.lists(inner, min_size=2, max_size=3).map(lambda of: Or(tuple(of)))
    ),
    max_leaves=8,
)


@given(QUERIES)
def test_a_query_that_is_shown_and_read_again_is_the_same(query: Query) -> None:
    assert parse(show(query)) == query


@given(st.text(max_size=40) | st.text("()=: andortgl*-", max_size=40))
def test_no_text_brings_the_parser_down(text: str) -> None:
    try:
        query = parse(text)
    except Malformed:
        return
    predicate(query)(PI)
    assert parse(show(query)) == query
