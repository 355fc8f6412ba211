"""The real asynchronous `openai` client against the gateway: whole answers, streams, and tasks that are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from cloud_stub import USAGE, CloudStub, cloud_stub
from fleet_process import FleetProcess, until

CONFIG = """
[upstreams.main]
url = "URL"
[routes.ok]
[[routes.ok.targets]]
upstream = "main"
[routes.hang]
[[routes.hang.targets]]
upstream = "main"
[routes.endless]
[[routes.endless.targets]]
upstream = "main"
[routes.mail]
[[routes.mail.targets]]
upstream = "main"
[limits.each]
filters = ["strict"]
[filters.strict]
deny = ["project nautilus"]
personal = "redact"
"""
SAID = "Hello there, friend."
HELLO: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def cloud() -> Iterator[CloudStub]:
    with cloud_stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def fleet(cloud: CloudStub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    data = tmp_path_factory.mktemp("async-client") / "fleet"
    data.mkdir()
    (data / "gateway.toml").write_text(CONFIG.replace("URL", cloud.url))
    with FleetProcess(data, http_rate=10000) as process:
        yield process


@pytest.fixture
def key(fleet: FleetProcess, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A key of the test's own."""
    name = request.node.name[5:60].strip("]").replace("_", "-").replace("[", "-")
    return dict(fleet.api("POST", "/api/v1/gateway/keys", {"name": name, "limits": {"tokens_per_day": 100_000}}))


@asynccontextmanager
async def client(fleet: FleetProcess, key: dict[str, Any]) -> AsyncIterator[openai.AsyncOpenAI]:
    inside = httpx.AsyncClient(verify=fleet.tls(), timeout=30)
    async with openai.AsyncOpenAI(
        base_url=f"{fleet.url}/v1", api_key=key["token"], http_client=inside, max_retries=0
    ) as gpt:
        yield gpt


def outcomes(fleet: FleetProcess, key: dict[str, Any], count: int) -> list[str]:
    """What the audit says of all requests of a key, once it says so many."""
    path = f"/api/v1/gateway/requests?who=token:{key['name']}"
    found = until(lambda: (r := fleet.api("GET", path)) and len(r) >= count and r, what=f"{count} records")
    return sorted(record["outcome"] for record in found)


def test_it_chats_streams_completes_and_embeds_many_at_once(fleet: FleetProcess, key: dict[str, Any]) -> None:
    async def streamed(gpt: openai.AsyncOpenAI, model: str) -> str:
        options: Any = {"include_usage": True}
        chunks = await gpt.chat.completions.create(model=model, messages=HELLO, stream=True, stream_options=options)
        got = [chunk async for chunk in chunks]
        assert got[-1].usage is not None
        assert got[-1].usage.total_tokens == USAGE["total_tokens"]
        return "".join(c.choices[0].delta.content or "" for c in got if c.choices)

    async def whole(gpt: openai.AsyncOpenAI) -> str | None:
        answer = await gpt.chat.completions.create(model="ok", messages=HELLO)
        return answer.choices[0].message.content

    async def all_of_them() -> None:
        async with client(fleet, key) as gpt:
            assert {model.id async for model in gpt.models.list()} >= {"ok", "mail"}
            assert await asyncio.gather(*(streamed(gpt, "ok") for _ in range(10))) == [SAID] * 10
            assert await asyncio.gather(*(whole(gpt) for _ in range(10))) == [SAID] * 10
            assert "Write to [mail] about it." in await streamed(gpt, "mail")
            assert (await gpt.completions.create(model="ok", prompt="Hi")).choices[0].text == SAID
            embedded = await gpt.embeddings.create(model="ok", input="Hi", encoding_format="float")
            assert embedded.data[0].embedding[0] == 0.5

    asyncio.run(all_of_them())
    assert outcomes(fleet, key, 23) == ["answered"] * 23


def test_refusals_are_its_own_errors(fleet: FleetProcess, key: dict[str, Any]) -> None:
    async def refused() -> None:
        async with client(fleet, key) as gpt:
            with pytest.raises(openai.NotFoundError, match="no route of that name"):
                await gpt.chat.completions.create(model="nothing", messages=HELLO, stream=True)
            with pytest.raises(openai.BadRequestError, match="deny"):
                await gpt.completions.create(model="ok", prompt="tell me of Project Nautilus")
            with pytest.raises(openai.RateLimitError, match="budget of tokens") as error:
                await gpt.chat.completions.create(model="ok", messages=HELLO, max_tokens=1_000_000)
            assert int(error.value.response.headers["Retry-After"]) > 0
        async with client(fleet, {**key, "token": "shoal_nobody"}) as gpt:
            with pytest.raises(openai.AuthenticationError):
                await gpt.models.list()

    asyncio.run(refused())
    assert outcomes(fleet, key, 3) == ["blocked", "refused", "refused"]


async def _after_some_chunks(gpt: openai.AsyncOpenAI) -> None:
    chunks = await gpt.chat.completions.create(model="endless", messages=HELLO, stream=True)
    got = 0
    async for _ in chunks:
        got += 1
        if got == 5:
            await chunks.close()
            return


async def _by_a_cancelled_task(gpt: openai.AsyncOpenAI) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await gpt.chat.completions.create(model="hang", messages=HELLO)


@pytest.mark.parametrize("leave", [_after_some_chunks, _by_a_cancelled_task])
def test_leaving_ends_the_work_upstream(
    fleet: FleetProcess, cloud: CloudStub, key: dict[str, Any], leave: Callable[[openai.AsyncOpenAI], Awaitable[None]]
) -> None:
    cloud.left.clear()

    async def left() -> None:
        async with client(fleet, key) as gpt:
            await leave(gpt)
            assert await asyncio.to_thread(cloud.left.wait, 10)

    asyncio.run(left())
    assert outcomes(fleet, key, 1) == ["client-left"]
