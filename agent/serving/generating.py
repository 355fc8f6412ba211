"""Language models that generate: one request at a time each, a few that wait, the next one refused at once.

generating = Generating(service, queue=4)
async with aclosing(generating.run("assistant", served, asked)) as parts:
    async for part in parts: ...          # leaving the block stops the model
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from agent.errors import Busy, Malformed
from agent.serving.generation import Asked, End, Part
from agent.serving.service import Served, Service
from wire.language import language_of

if TYPE_CHECKING:
    from agent.serving.bundles import Loaded
    from wire.processing import Result

QUEUE: Final = 4


class Generating:
    """The turns of all language models. `queue`: requests that may wait for one while it answers another."""

    def __init__(self, service: Service, queue: int = QUEUE) -> None:
        self._service = service
        self._queue = queue
        self._under_way: Counter[str] = Counter()
        """By the digest of the model."""

    async def run(self, name: str, served: Served, asked: Asked) -> AsyncGenerator[Part, None]:
        """The parts of an answer as they come, the last with its end. Closed early, the model stops.

        `served` is the model that the request was read for: another may answer under its name by now.

        What is counted as the latency of such an answer are milliseconds for each of its tokens: the whole depends on
        what was asked. One that nobody waited for counts with the tokens that came, or not at all. Raises `Busy` when
        the queue is full, `Malformed` for a model that generates no text, and as `LanguageModel.generate` does.
        """
        if served.pipeline.language is None:
            raise Malformed(f"model {name}: it is for {served.pipeline.task}, and generates no text")
        started, tokens, end = time.perf_counter(), 0, None
        try:
            async with aclosing(self._turn(name, served, asked)) as parts:
                async for part in parts:
                    tokens += len(part.tokens)
                    end = part.end or end
                    yield part
        except Busy:
            served.tally.outcomes["busy"] += 1
            raise
        except Exception as e:  # whatever it is, it counts, and goes on to the caller
            tokens = 0
            self._service.generated_nothing(name, served, started, e)
            raise
        finally:
            if tokens:
                self._service.generated(name, served, time.perf_counter() - started, tokens, _prompt(asked, end))

    async def _turn(self, name: str, served: Served, asked: Asked) -> AsyncGenerator[Part, None]:
        waiting = self._under_way[served.digest]
        if waiting > self._queue:
            raise Busy(f"model {name}: it answers another request, and {waiting - 1} wait: ask again in a moment")
        self._under_way[served.digest] += 1
        loop, parts, left = asyncio.get_running_loop(), asyncio.Queue[Part | None](), threading.Event()

        def hear(part: Part) -> bool:
            loop.call_soon_threadsafe(parts.put_nowait, part)
            return not left.is_set()

        def work(model: Loaded) -> End:
            from agent.serving.language import LanguageModel  # noqa: PLC0415  it came with the model

            assert isinstance(model, LanguageModel)
            return model.generate(asked, hear)

        def ended(_end: asyncio.Future[End]) -> None:
            self._under_way[served.digest] -= 1
            parts.put_nowait(None)

        end = asyncio.wrap_future(served.submit(work))
        end.add_done_callback(ended)
        try:
            while (part := await parts.get()) is not None:
                yield part
            yield Part(end=await end)
        finally:
            left.set()
            if not end.cancel():  # one that still waits gives its place back at once
                end.exception()  # seen, whoever left before


def _prompt(asked: Asked, end: End | None) -> Result:
    """What is counted of a prompt: the language of what was said last, and its tokens if the model told them."""
    from wire.processing import Result  # noqa: PLC0415  numpy came with the model, not with the agent

    text = asked.messages[-1].content if asked.messages else asked.prompt
    return Result({}, length=end.prompt if end is not None else None, language=language_of(text))
