"""Microsoft Presidio behind the gateway's filters: real processes of it, where the extra is installed."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from cloud_stub import CloudStub, cloud_stub
from fleet_process import FleetProcess
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import Malformed, NotJudged
from fleet.gateway.asked import CHAT, read
from fleet.gateway.config import PresidioConfig, load
from fleet.gateway.filters import Filter, Verdicts, check
from fleet.gateway.personal import Found, joined
from fleet.gateway.presidio import WAITING, Presidio
from fleet.gateway.window import Window
from fleet.settings import load as settings_of

needs_presidio = pytest.mark.skipif(
    find_spec("presidio_analyzer") is None, reason="the extra is not installed: pip install 'shoal[presidio]'"
)
CONFIG = """
[upstreams.main]
url = "URL"
[routes."*"]
[[routes."*".targets]]
upstream = "main"
[filters.strict]
personal = "redact"
personal_by = "presidio"
[limits.each]
filters = ["strict"]
"""
SSN = "536-90-4399"


# --- without it ---------------------------------------------------------------------------------------------------


def test_a_filter_that_names_it_stops_the_start_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gateway.toml").write_text(CONFIG.replace("URL", "http://a/v1"))
    monkeypatch.setattr("fleet.gateway.config.find_spec", lambda _name: None)
    with pytest.raises(Malformed, match=r"presidio-analyzer is not installed: pip install 'shoal\[presidio\]'"):
        load(settings_of(tmp_path, environ={}, overrides={}))


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20), st.sampled_from(["a", "b"])), max_size=12))
def test_what_overlaps_becomes_one_find_and_nothing_found_is_lost(spans: list[tuple[int, int, str]]) -> None:
    found = [Found(start, start + size, kind) for start, size, kind in spans]
    out = joined(found)
    assert all(a.end <= b.start for a, b in pairwise(out))
    assert {i for f in out for i in range(f.start, f.end)} == {i for f in found for i in range(f.start, f.end)}
    assert joined(out) == out


# --- with it ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def presidio() -> Iterator[Presidio]:
    made = Presidio(PresidioConfig(), lambda _seconds: None)
    asyncio.run(made.start())
    yield made
    asyncio.run(made.close())


def found(presidio: Presidio, text: str) -> list[tuple[str, str]]:
    spans = asyncio.run(presidio.run(lambda: joined(presidio.find(text))))
    return [(text[one.start : one.end], one.kind) for one in spans]


@needs_presidio
def test_it_finds_what_the_built_in_set_does_not_and_calls_the_rest_as_that_does(presidio: Presidio) -> None:
    text = f"mail a@example.org, social security number {SSN}, wallet 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"
    assert found(presidio, text) == [
        ("a@example.org", "mail"),
        (SSN, "us-ssn"),
        ("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "crypto"),
    ]
    assert found(presidio, f"\ud800 \U0001f600 {SSN}") == [(SSN, "us-ssn")]  # half of a pair shifts nothing


@needs_presidio
@pytest.mark.parametrize("before", range(1100, 1520, 60))
def test_what_stands_where_a_long_text_is_cut_is_found_whole(presidio: Presidio, before: int) -> None:
    text = ("word " * 400)[:before] + f" social security number {SSN} " + "word " * 300
    assert found(presidio, text) == [(SSN, "us-ssn")]


@needs_presidio
@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_no_cut_of_a_stream_gets_it_through(presidio: Presidio, cuts: list[int]) -> None:
    """Attack: an answer whose pieces end in the middle of what is looked for."""
    whole = f"Write to anna@example.org, her social security number is {SSN}. " + "Then wait. " * 30
    rules, verdicts = Filter(name="f", personal="redact", personal_by="presidio", finder=presidio), Verdicts()
    ends = [end for end in accumulate(cuts * 600) if end < len(whole)]
    pieces = [whole[a:b] for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]

    def streamed() -> str:
        window = Window([rules], verdicts)
        events = [{"choices": [{"index": 0, "delta": {"content": p}, "finish_reason": None}]} for p in pieces]
        out = [e for event in events for e in window.feed(event)] + window.close()
        return "".join(e["choices"][0]["delta"]["content"] for e in out)

    text = asyncio.run(in_time(presidio, streamed))
    assert text == "Write to [mail], her social security number is [us-ssn]. " + "Then wait. " * 30
    assert verdicts.counts == {"f/personal mail redacted": 1, "f/personal us-ssn redacted": 1}


async def in_time(presidio: Presidio, act: Callable[[], str]) -> str:
    """Many looks in one: more than the time of one."""

    def acted() -> str:
        presidio._look.until = time.monotonic() + 60
        return act()

    return await presidio.run(acted)


@needs_presidio
def test_the_loop_goes_on_while_it_looks_and_it_is_told_how_long_that_took() -> None:
    """Accident: a prompt that takes it long."""
    took: list[float] = []

    async def run() -> list[float]:
        made, gaps = Presidio(PresidioConfig(timeout=60.0), took.append), []
        await made.start()
        try:
            asked = read(CHAT, json.dumps(body("m", f"a@example.org {SSN} " * 1000)).encode())
            rules = Filter(name="f", personal="redact", personal_by="presidio", finder=made)
            work = asyncio.create_task(made.run(lambda: check([rules], asked, Verdicts())))
            while not work.done():
                before = time.monotonic()
                await asyncio.sleep(0.005)
                gaps.append(time.monotonic() - before)
            await work
            assert "@" not in asked.texts[0].get()
        finally:
            await made.close()
        return gaps

    gaps = sorted(asyncio.run(run()))
    assert took[0] > 0.3
    assert len(gaps) > 20
    assert gaps[len(gaps) // 2] < took[0] / 4


@needs_presidio
def test_a_process_that_died_or_takes_too_long_lets_nothing_pass_and_another_one_follows() -> None:
    """Accidents: it is killed; and a text takes longer than it may. A new one takes longer to start than a look may."""
    before = set(psutil.Process().children())

    async def run() -> None:
        made = Presidio(PresidioConfig(timeout=0.5), lambda _seconds: None)
        await made.start()
        try:
            (child,) = set(psutil.Process().children()) - before
            child.send_signal(signal.SIGKILL)
            child.wait(10)
            with pytest.raises(NotJudged, match=r"could not look at the text within 0\.5 s") as error:
                await made.run(lambda: made.find(SSN))
            assert error.value.retry_after == 5.0
            assert await looks_again(made)
            with pytest.raises(NotJudged):
                await made.run(lambda: made.find(f"a@example.org {SSN} " * 4000))
            assert await looks_again(made)
        finally:
            await made.close()
        assert set(psutil.Process().children()) == before

    asyncio.run(run())


async def looks_again(presidio: Presidio) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            return [one.kind for one in await presidio.run(lambda: presidio.find(SSN))] == ["us-ssn"]
        except NotJudged:
            continue
    return False


@needs_presidio
def test_more_than_may_wait_is_refused_at_once_and_ends_no_process(presidio: Presidio) -> None:
    """Attack: more requests at once than it can look at."""
    before = set(psutil.Process().children())

    async def run() -> list[object]:
        looks = [presidio.run(lambda: presidio.find(f"{SSN} word " * 20)) for _ in range(WAITING + 30)]
        return await asyncio.gather(*looks, return_exceptions=True)

    outcomes = asyncio.run(run())
    refused = [one for one in outcomes if isinstance(one, NotJudged) and "wait for it" in str(one)]
    assert len(refused) == 29
    assert any(isinstance(one, list) for one in outcomes)
    assert set(psutil.Process().children()) == before


@needs_presidio
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"entities": ("PERSON",)}, "entities: 'PERSON': with no model .names and places take one: set model."),
        ({"model": "en_core_web_lg"}, "model: 'en_core_web_lg': there is no such package"),
        ({"language": "qq"}, "language: 'qq': spaCy does not know it"),
    ],
)
def test_a_setting_that_it_cannot_do_is_told_at_the_start(config: dict[str, Any], words: str) -> None:
    async def run() -> None:
        made = Presidio(PresidioConfig(**config), lambda _seconds: None)
        try:
            await made.start()
        finally:
            await made.close()

    with pytest.raises(Malformed, match=words):
        asyncio.run(run())


@pytest.fixture
def cloud() -> Iterator[CloudStub]:
    with cloud_stub() as stub:
        yield stub


@needs_presidio
def test_requests_answers_and_streams_pass_it_in_a_real_fleet(tmp_path: Path, cloud: CloudStub) -> None:
    """Attack: a number cut in two between the pieces of a stream."""
    data = tmp_path / "fleet"
    data.mkdir()
    (data / "gateway.toml").write_text(CONFIG.replace("URL", cloud.url))
    with FleetProcess(data) as fleet:
        headers = {"Authorization": f"Bearer {fleet.token}"}
        status, answer = fleet.request("POST", "/v1/chat/completions", body("ssn", f"I am {SSN}"), headers=headers)
        assert status == 200
        assert cloud.seen[0]["messages"][0]["content"] == "I am [us-ssn]"
        text = json.loads(answer)["choices"][0]["message"]["content"]
        assert text.startswith("Her social security number is [us-ssn]. She")
        status, stream = fleet.request(
            "POST", "/v1/chat/completions", {**body("ssn", "hello"), "stream": True}, headers=headers
        )
        assert (status, b"4399" in stream, b"[us-ssn]" in stream) == (200, False, True)
        assert stream.endswith(b"data: [DONE]\n\n")
        _, metrics = fleet.request("GET", "/api/v1/gateway/metrics", headers=headers)
        looks = next(
            ln for ln in metrics.decode().splitlines() if ln.startswith("shoal_gateway_personal_seconds_count")
        )
        assert looks.startswith('shoal_gateway_personal_seconds_count{finder="presidio"} ')
        assert int(looks.split()[-1]) >= 4
        assert SSN not in fleet.log
        imported = Path(f"/proc/{fleet.pid}/maps").read_text()
        assert "spacy" not in imported
        assert "numpy" not in imported


def body(model: str, text: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}
