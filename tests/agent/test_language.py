"""A language model: its worker process, its turns, and the pure parts: choosing tokens, holding back text."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import TinyBundle
from tiny_language import answers, gguf_bundle, opened, write_gguf

from agent.errors import Busy, Incompatible, Malformed, TooLong, Unavailable
from agent.life.telemetry import WindowMeter
from agent.serving.generating import Generating
from agent.serving.generation import Asked, Message, Part
from agent.serving.language import LanguageModel
from agent.serving.language_words import Pieces, choose
from agent.serving.openai_requests import parse_embeddings, parse_generation
from agent.serving.selftest import self_test
from agent.serving.service import Served, Service
from wire.bundle import BundleManifest

CONTEXT = 2048


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    folder = tmp_path_factory.mktemp("language")
    return gguf_bundle(folder / "layout", write_gguf(folder / "tiny.gguf", context=CONTEXT), context=CONTEXT)


@pytest.fixture
def model(tiny: TinyBundle) -> Iterator[LanguageModel]:
    made = LanguageModel.load(opened(tiny), {})
    yield made
    made.close()


def said(model: LanguageModel, asked: Asked) -> str:
    parts: list[Part] = []
    model.generate(asked, lambda part: parts.append(part) is None)
    return "".join(part.text for part in parts)


def process(model: LanguageModel) -> psutil.Process:
    worker = model._worker._process
    assert worker is not None
    return psutil.Process(worker._popen.pid)


# --- the process ------------------------------------------------------------------------------------------------------


def test_a_model_goes_on_with_a_text_and_says_how_sure_it_was(model: LanguageModel) -> None:
    parts: list[Part] = []
    end = model.generate(Asked(prompt="hello", max_tokens=8, temperature=0), lambda part: parts.append(part) is None)
    assert (end.finish, end.prompt, end.answer) == ("length", 5, 8)
    assert len([t for part in parts for t in part.tokens]) == 8
    assert all(p <= 0 for part in parts for p in part.logprobs)
    assert all(m >= 0 for part in parts for m in part.margins)


def test_one_request_says_nothing_of_another(model: LanguageModel) -> None:
    """Attack: an app reads from the model what another app asked it."""
    asked = Asked(prompt="hello", max_tokens=8, temperature=0)
    before = said(model, asked)
    said(model, Asked(messages=(Message("user", "the secret of another app"),), max_tokens=8))
    assert said(model, asked) == before


def test_no_door_of_the_device_leads_to_the_runtime(model: LanguageModel) -> None:
    """llama.cpp's server listens: on a socket whose name is gone, and on no address of the network."""
    listening = [c for c in process(model).net_connections(kind="all") if c.status == psutil.CONN_LISTEN or c.laddr]
    assert all(isinstance(c.laddr, str) and not Path(c.laddr).exists() for c in listening)


def test_it_stops_where_nobody_wants_the_rest(model: LanguageModel) -> None:
    heard: list[Part] = []
    end = model.generate(
        Asked(prompt="hello", max_tokens=CONTEXT, temperature=0), lambda part: len(heard) < 3 and not heard.append(part)
    )
    assert end.finish == "stopped"
    assert end.answer < 100
    assert said(model, Asked(prompt="hello", max_tokens=2, temperature=0))


def test_a_prompt_without_room_for_an_answer_is_refused_and_the_next_one_answered(model: LanguageModel) -> None:
    for length in (CONTEXT, CONTEXT + 1, 2 * CONTEXT):
        with pytest.raises(TooLong, match=rf"has {length} tokens, the model takes {CONTEXT}"):
            said(model, Asked(prompt="x" * length))
    assert said(model, Asked(prompt="x" * (CONTEXT - 1)))


def test_a_runtime_that_dies_costs_one_answer(model: LanguageModel) -> None:
    def kill(_part: Part) -> bool:
        process(model).send_signal(signal.SIGKILL)
        return True

    with pytest.raises(Unavailable, match="SIGKILL"):
        model.generate(Asked(prompt="hello", max_tokens=CONTEXT), kill)
    model._worker._started -= 2  # the pause between two starts, without the wait
    assert said(model, Asked(prompt="hello", max_tokens=2))


def test_a_runtime_starts_again_after_its_folder_of_links_was_cleaned_away(model: LanguageModel) -> None:
    """Accident: the system removes temporary files that are old."""
    shutil.rmtree(model._folder.name)
    process(model).kill()
    with pytest.raises(Unavailable):
        said(model, Asked(prompt="hello", max_tokens=2))
    model._worker._started -= 2
    assert said(model, Asked(prompt="hello", max_tokens=2))


def test_a_model_without_a_chat_template_only_completes(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "plain.gguf", template=None)
    model = LanguageModel.load(opened(gguf_bundle(tmp_path / "layout", path, context=128, template=None)), {})
    try:
        with pytest.raises(Malformed, match="no chat template"):
            said(model, Asked(messages=(Message("user", "hello"),)))
        assert said(model, Asked(prompt="hello", max_tokens=2))
    finally:
        model.close()


def test_closing_leaves_neither_process_nor_folder(tiny: TinyBundle) -> None:
    model = LanguageModel.load(opened(tiny), {})
    worker, folder = process(model), Path(model._folder.name)
    model.close()
    assert not worker.is_running()
    assert not folder.exists()


def test_a_runtime_that_is_not_here_is_named_with_what_to_install(tiny: TinyBundle, tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match="gguf"):
        LanguageModel.load(opened(tiny), {"gguf": _python_without(tmp_path)})


def _python_without(folder: Path) -> str:
    """A Python with numpy and without the runtime."""
    import sys  # noqa: PLC0415

    path = folder / "python"
    hidden = "import sys; sys.modules['xllamacpp'] = None; sys.argv = sys.argv[1:]; import runpy"
    path.write_text(
        f"#!/bin/sh\nshift\nexec {sys.executable} -I -c \"{hidden}; runpy.run_path(sys.argv[0], run_name='__main__')\""
        ' "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def test_the_self_test_holds_and_says_what_memory_the_process_takes(tiny: TinyBundle) -> None:
    outcome = asyncio.run(self_test(tiny.layout / "blobs" / "sha256", tiny.digest, 60, {}))
    assert outcome.memory > 10_000_000
    assert outcome.p50_ms is not None


def test_the_self_test_refuses_another_models_weights(tiny: TinyBundle, tmp_path: Path) -> None:
    """Attack: the weights of a bundle are not those that its golden set was taken of."""
    other = write_gguf(tmp_path / "other.gguf", context=CONTEXT, seed=9)
    files = {f.role: f for f in tiny.manifest.files}
    swapped = gguf_bundle(tmp_path / "layout", other, context=CONTEXT)
    golden = swapped.blob(swapped.manifest.file("golden").digest)
    assert golden.read_bytes() != tiny.blob(files["golden"].digest).read_bytes()
    mixed = _with_golden(swapped, tiny)
    with pytest.raises(Incompatible, match="golden cases do not hold"):
        asyncio.run(self_test(mixed.layout / "blobs" / "sha256", mixed.digest, 60, {}))


def _with_golden(bundle: TinyBundle, other: TinyBundle) -> TinyBundle:
    from tiny_bundle import write_bundle  # noqa: PLC0415

    def data(of: TinyBundle, role: Any) -> tuple[Any, str, bytes]:
        file = of.manifest.file(role)
        return role, file.path, of.blob(file.digest).read_bytes()

    files = [data(bundle, "model"), data(bundle, "pipeline"), data(other, "golden")]
    return write_bundle(bundle.layout.parent / "mixed", files, runtime="gguf")


def test_a_golden_set_is_the_same_again(tiny: TinyBundle) -> None:
    assert answers(tiny) == answers(tiny)


# --- turns ------------------------------------------------------------------------------------------------------------

Story = Callable[[Generating, Service], Coroutine[Any, Any, None]]


def run(tiny: TinyBundle, story: Story, queue: int = 1) -> None:
    async def body() -> None:
        service = Service(WindowMeter())
        served = await asyncio.to_thread(Served.load, opened(tiny), {})
        service.place("assistant", served)
        try:
            await story(Generating(service, queue), service)
        finally:
            service.close()
            served._worker.shutdown(wait=True)

    asyncio.run(body())


LONG = Asked(prompt="a", max_tokens=CONTEXT, temperature=0)
SHORT = Asked(prompt="b", max_tokens=1, temperature=0)


async def whole(generating: Generating, asked: Asked) -> list[Part]:
    return [part async for part in generating.run("assistant", generating._service.answering("assistant"), asked)]


def test_beyond_the_queue_a_request_is_refused_at_once_and_who_leaves_gives_a_place_back(tiny: TinyBundle) -> None:
    async def story(generating: Generating, _service: Service) -> None:
        async with aclosing(generating.run("assistant", generating._service.answering("assistant"), LONG)) as first:
            await anext(first)
            waits = asyncio.create_task(whole(generating, SHORT))
            await asyncio.sleep(0)
            with pytest.raises(Busy, match="1 wait"):
                await whole(generating, SHORT)
            waits.cancel()
            await asyncio.wait([waits])
            waits = asyncio.create_task(whole(generating, SHORT))
            await asyncio.sleep(0)
        assert (await waits)[-1].end is not None

    run(tiny, story)


def test_an_answer_counts_by_its_tokens_and_one_that_was_left_with_those_that_came(tiny: TinyBundle) -> None:
    async def story(generating: Generating, service: Service) -> None:
        await whole(generating, SHORT)
        async with aclosing(generating.run("assistant", generating._service.answering("assistant"), LONG)) as left:
            await anext(left)
        assert service.requests == {"answered": 2, "failed": 0}

    run(tiny, story)


def test_a_prompt_that_is_too_long_is_nothing_against_the_model(tiny: TinyBundle) -> None:
    async def story(generating: Generating, service: Service) -> None:
        with pytest.raises(TooLong):
            await whole(generating, Asked(prompt="x" * CONTEXT))
        assert service.requests["failed"] == 0

    run(tiny, story)


# --- the pure parts of the program ------------------------------------------------------------------------------------


@given(st.lists(st.text("abc", max_size=4), max_size=8), st.lists(st.text("abc", min_size=1, max_size=3), max_size=2))
def test_what_is_told_is_the_text_up_to_the_first_stop_sequence(texts: list[str], stop: list[str]) -> None:
    pieces, told = Pieces(stop), ""
    for text in texts:
        told += pieces.more(text)
        if pieces.over:
            break
    told += pieces.rest()
    whole_text = "".join(texts)
    places = [at for at in (whole_text.find(s) for s in stop) if at >= 0]
    assert whole_text.startswith(told)
    assert pieces.over == bool(places)
    if not places:
        assert told == whole_text
    assert not any(s in told for s in stop)


def test_the_likeliest_token_is_taken_at_temperature_0() -> None:
    assert choose(np.log([0.2, 0.5, 0.3]), 0, 1.0, np.random.default_rng(1)) == 1


def test_top_p_draws_from_the_fewest_that_reach_it() -> None:
    random = np.random.default_rng(1)
    drawn = [choose(np.log([0.2, 0.5, 0.3]), 1.0, 0.6, random) for _ in range(200)]
    assert set(drawn) == {1, 2}
    assert {choose(np.log([0.2, 0.5, 0.3]), 1.0, 0.0, random) for _ in range(50)} == {1}


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=9), st.floats(0.1, 2), st.floats(0.01, 1), st.integers(0, 99))
def test_a_token_is_always_one_of_those_that_are_there(
    shares: list[float], temperature: float, top_p: float, seed: int
) -> None:
    chosen = choose(np.log(shares), temperature, top_p, np.random.default_rng(seed))
    assert 0 <= chosen < len(shares)


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": "a", "logprobs": 5}, "logprobs"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
        ({"prompt": "a", "top_p": -1}, "top_p"),
        ({"prompt": "a", "seed": 1.5}, "seed"),
        ({"prompt": "a", "stream_options": [1]}, "stream_options"),
    ],
)
def test_a_field_that_is_not_understood_is_named(value: dict[str, Any], named: str) -> None:
    with pytest.raises(Malformed, match=f"^{named}"):
        parse_generation(value, chat=False)


def test_a_field_that_asks_for_nothing_is_passed_over() -> None:
    value = {"prompt": "a", "n": 1, "user": "me", "presence_penalty": 0, "logit_bias": {}, "suffix": None}
    assert parse_generation(value, chat=False).asked == Asked(prompt="a", max_tokens=16)


@pytest.mark.parametrize("given_input", [[], [""] * 3000, 7, None, [1, 2], [[1]], ["a", 1]])
def test_embeddings_are_asked_of_texts(given_input: Any) -> None:
    with pytest.raises(Malformed, match="input"):
        parse_embeddings({"input": given_input})


def test_a_bundle_may_hold_files_that_its_runtime_finds_by_name(tiny: TinyBundle) -> None:
    again = BundleManifest.from_bytes(tiny.manifest_bytes)
    assert [f.role for f in again.loaded] == ["model"]
