"""A text classifier asked over HTTP: the local API of an agent, on its Unix socket or an address. OIP v2.

    verdicts = await classifier.look(texts, verdicts, filter_name)      # raises Blocked, NotJudged

What it cannot judge in time is refused or let through, as `on_failure` says, and either stands in the audit. A server
that has no room is asked once more. The prompt stays on the agent that is asked, whatever that agent's own routing
says.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

import aiohttp

from fleet.errors import Malformed, NotJudged
from fleet.gateway import injection
from fleet.gateway.config import ClassifierConfig
from fleet.gateway.filters import NOTED, REFUSED, Verdicts

_MOST: Final = 256
"""Texts in one question."""
_AGAIN: Final = 5.0
"""Seconds after which a client may ask again, when the server names none."""
_NO_ROOM: Final = (429, 503)


class _Full(Exception):
    """The server has no room for now."""

    def __init__(self, status: int, retry_after: float) -> None:
        super().__init__(f"it answered {status}")
        self.retry_after = retry_after


class Classifier:
    """One model of one server. Made and used on one event loop."""

    def __init__(self, config: ClassifierConfig) -> None:
        self._config = config
        self._session: aiohttp.ClientSession | None = None
        # An agent that is unsure may ask the cloud: by way of this gateway, with a prompt that was not let through yet.
        self._headers = {"Content-Type": "application/json", "Shoal-Data": "private"}
        if config.token_file is not None:
            self._headers["Authorization"] = f"Bearer {config.token_file.read_text().strip()}"

    async def look(self, texts: Sequence[str], verdicts: Verdicts, filter_name: str) -> None:
        """Raises `Blocked` for a text that it calls by the label that is not wanted, `NotJudged` when it could not."""
        rule, parts = (
            f"classifier {self._config.name}",
            [part for text in texts for part in parts_of(injection.plain(text), self._config.part)],
        )
        if not parts:
            return
        try:
            async with asyncio.timeout(self._config.timeout):
                answers = [await self._asked(parts[i : i + _MOST]) for i in range(0, len(parts), _MOST)]
            suspect = any(is_unwanted(answer, self._config) for answer in answers)
        except (TimeoutError, aiohttp.ClientError, OSError, Malformed, _Full) as e:
            if self._config.on_failure == "pass":
                verdicts.note(filter_name, f"{rule} not-judged", NOTED)
                return
            verdicts.note(filter_name, f"{rule} not-judged", REFUSED)
            raise self._not_judged(e) from e
        if suspect and self._config.action == "block":
            raise verdicts.block(filter_name, rule, "the request")
        if suspect:
            verdicts.note(filter_name, rule, NOTED)

    def _not_judged(self, error: Exception) -> NotJudged:
        wait = error.retry_after if isinstance(error, _Full) else _AGAIN
        why = "it took too long" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        return NotJudged(
            f"classifier {self._config.name}: it could not judge the request within {self._config.timeout:g} s: {why}: "
            f"try again in {wait:g} s",
            wait,
        )

    async def _asked(self, texts: Sequence[str]) -> object:
        """An answer at the second try when there was no room at the first. Raises as `_ask`."""
        try:
            return await self._ask(texts)
        except _Full as e:
            # Its own wish where that leaves time for an answer; a queue of short questions is often gone sooner.
            await asyncio.sleep(min(e.retry_after, self._config.timeout / 4))
            return await self._ask(texts)

    async def _ask(self, texts: Sequence[str]) -> object:
        tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
        path = f"{self._config.url or 'http://agent'}/v2/models/{self._config.model}/infer"
        data = json.dumps({"inputs": [tensor]})
        async with self._client().post(path, data=data, headers=self._headers) as answer:
            body = await answer.read()
            if answer.status in _NO_ROOM:
                raise _Full(answer.status, _seconds(answer.headers.get("Retry-After")))
            if answer.status != 200:
                raise Malformed(f"it answered {answer.status}")
            try:
                return json.loads(body)
            except ValueError as e:
                raise Malformed("its answer is not JSON") from e

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: aiohttp.BaseConnector = aiohttp.TCPConnector(limit=16)
            if self._config.socket:
                connector = aiohttp.UnixConnector(self._config.socket, limit=16)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()


def _seconds(value: str | None) -> float:
    """Of a `Retry-After`; a date is not read."""
    return float(min(int(value), 60)) if value and value.isascii() and value.isdigit() else _AGAIN


def parts_of(text: str, longest: int) -> list[str]:
    """A text in parts that the model reads whole, each beginning with the last quarter of the one before."""
    if len(text) <= longest:
        return [text] if text.strip() else []
    overlap = longest // 4
    return [text[at : at + longest] for at in range(0, len(text) - overlap, longest - overlap)]


def is_unwanted(answer: object, config: ClassifierConfig) -> bool:
    """Whether any text of an answer has the label that is not wanted, surely enough. Raises `Malformed`."""
    outputs = answer.get("outputs") if isinstance(answer, dict) else None
    found: dict[str, Any] = {}
    for output in outputs if isinstance(outputs, list) else []:
        if isinstance(output, dict) and isinstance(output.get("data"), list):
            found[str(output.get("name"))] = output["data"]
    labels, scores = found.get("label"), found.get("score")
    if labels is None or scores is None or len(labels) != len(scores):
        raise Malformed("expected the outputs label and score of a text classifier")
    return any(
        label == config.label and isinstance(score, int | float) and score >= config.threshold
        for label, score in zip(labels, scores, strict=True)
    )
