"""The clients of the upstreams: a pool of connections each, a bounded queue before it, and a look at its health.

    await upstream.take(until)
    answer = await upstream.post("/chat/completions", body)     # then `whole`, or its pieces
    upstream.give_back()

Every way in which an upstream fails comes out as `Failed`, which says whether another one may do better.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import aiohttp
from yarl import URL

from fleet.errors import FleetError, TooMany, UpstreamDown, UpstreamSlow
from fleet.gateway.breaker import Breaker
from fleet.gateway.config import UpstreamConfig
from fleet.gateway.routes import BROKEN, ELSEWHERE
from fleet.gateway.silence import Reading

_CONNECT_WITHIN: Final = 5.0
_LARGEST: Final = 64 * 1024 * 1024
"""Bytes of an answer that is no stream."""
_SOON: Final = 1.0
"""Seconds until a client that found the queue full may ask again."""
_HEALTH_WITHIN: Final = 5.0
_log = logging.getLogger(__name__)


class Failed(Exception):
    """A try that came to nothing: the error for the client, and whether it counts against the upstream."""

    def __init__(self, why: str, error: FleetError, *, broken: bool = True, again: bool = True) -> None:
        super().__init__(str(error))
        self.why, self.error, self.broken, self.again = why, error, broken, again
        self.sent = False
        """Whether the upstream may have worked on it."""


class Busy(Failed):
    """So many wait for this upstream that one more is not taken."""


class Said(Failed):
    """The upstream answered, in JSON, with an error of its own."""

    def __init__(self, why: str, error: FleetError, answer: tuple[int, bytes, str], *, broken: bool) -> None:
        super().__init__(why, error, broken=broken)
        self.answer = answer
        """Status, body, Retry-After."""


class Upstream:
    """One endpoint. Made and used on one event loop."""

    def __init__(self, config: UpstreamConfig, tick: Callable[[], float] = time.monotonic) -> None:
        self.config, self._tick = config, tick
        self.breaker = Breaker(config.failures, config.pause)
        self.answered = 0
        """Requests that it answered so far."""
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if config.key_file is not None:
            self._headers["Authorization"] = f"Bearer {config.key_file.read_text().strip()}"
        self._urls: dict[str, URL] = {}
        self._session: aiohttp.ClientSession | None = None
        self._free = config.at_once
        self._turns: deque[asyncio.Future[None]] = deque()

    # --- the queue ----------------------------------------------------------------------------------------------

    async def take(self, until: float) -> None:
        """One of `at_once` places, which `give_back` ends, or a wait for one until the monotonic time `until`.

        Raises `Busy` at once when too many wait, and when none came free.
        """
        if self._free > 0:
            self._free -= 1
            return
        if len(self._turns) >= self.config.waiting:
            raise self._busy()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        try:
            async with asyncio.timeout(max(until - self._tick(), 0)):
                await turn
        except TimeoutError as e:
            self._lost(turn)
            raise self._busy() from e
        except asyncio.CancelledError:
            self._lost(turn)
            raise

    def give_back(self) -> None:
        """The next one that waits has the place."""
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._turns)

    def _lost(self, turn: asyncio.Future[None]) -> None:
        """Whoever waited went away; a place that came in the same moment goes on to the next."""
        if turn in self._turns:
            self._turns.remove(turn)
        elif turn.done() and not turn.cancelled():
            self.give_back()

    def _busy(self) -> Busy:
        c = self.config
        message = (
            f"upstream {c.name}: {c.at_once} requests are under way and {c.waiting} wait: try again in {_SOON:.0f} s"
        )
        return Busy("busy", TooMany(message, _SOON), broken=False)

    # --- requests -----------------------------------------------------------------------------------------------

    async def post(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        """The head of an answer that is good; its body is still to be read. Raises `Failed`."""
        return await self._request("POST", path, body)

    async def get(self, path: str) -> bytes:
        """The body of a GET. Raises `Failed`."""
        answer = await self._request("GET", path, None)
        return await self.whole(answer)

    async def whole(self, answer: aiohttp.ClientResponse) -> bytes:
        """The whole body. Raises `Failed` when it breaks off or is too large."""
        try:
            if (answer.content_length or 0) > _LARGEST:
                raise self._down("too-large", f"its answer is over {_LARGEST} bytes")
            # Most are there with their heads already.
            body = await answer.read() if answer.content.is_eof() else await self._read(answer)
        except TimeoutError as e:
            raise self._slow("silent in the middle of its answer") from e
        except (aiohttp.ClientError, ConnectionError) as e:
            raise self._down("broke-off", f"the upstream broke off: {e}") from e
        finally:
            answer.release()
        return body

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        pieces, size = [], 0
        reading = self.reading(answer)
        try:
            while piece := await reading.piece():
                pieces.append(piece)
                size += len(piece)
                if size > _LARGEST:
                    raise self._down("too-large", f"its answer is over {_LARGEST} bytes")
        finally:
            reading.close()
            if not answer.content.at_eof():
                answer.close()
        return b"".join(pieces)

    def reading(self, answer: aiohttp.ClientResponse) -> Reading:
        """The body of an answer, piece by piece, as long as it is not silent for too long."""
        return Reading(answer.content, self.config.timeout)

    async def _request(self, method: str, path: str, body: bytes | None) -> aiohttp.ClientResponse:
        try:
            async with asyncio.timeout(self.config.timeout):
                answer = await self._client().request(
                    method, self._url(path), data=body, headers=self._headers, allow_redirects=False
                )
        except aiohttp.ConnectionTimeoutError as e:
            raise self._slow("no connection in time", sent=False) from e
        except TimeoutError as e:
            raise self._slow("no answer in time") from e
        except aiohttp.ClientConnectorError as e:
            raise self._down("unreachable", f"cannot be reached: {e}") from e
        except (aiohttp.ClientError, ConnectionError) as e:
            raise self._down("broke-off", f"hung up: {e}", sent=True) from e
        if answer.status >= 300:
            raise await self._refusal(answer, path)
        return answer

    async def _refusal(self, answer: aiohttp.ClientResponse, path: str) -> Failed:
        status, at = answer.status, self.config.url
        if status in (401, 403):
            answer.release()
            where = "upstream_key_file, or key_file in gateway.toml"
            return self._down("key-refused", f"refuses the fleet's key: check {where}")
        if answer.content_type != "application/json":
            answer.release()
            what = f"answered {status} {_plain(answer.reason or '')}, and not in JSON: retry later, or check that"
            what = f"{what} the setting upstream is the address of an OpenAI-compatible endpoint"
            failed = self._down(f"status-{status}", what)
            failed.broken = status in BROKEN or status < 400
            return failed
        body, retry_after = await self.whole(answer), answer.headers.get("Retry-After", "")
        error = UpstreamDown(f"cloud tier: {at}{path} answered {status}")
        said = Said(f"status-{status}", error, (status, body, retry_after), broken=status in BROKEN)
        said.again = status in ELSEWHERE
        return said

    def _slow(self, what: str, *, sent: bool = True) -> Failed:
        name = f"{self.config.url} ({self.config.name})"
        failed = Failed("slow", UpstreamSlow(f"cloud tier: {name}: {what}: retry, or raise its timeout"))
        failed.sent = sent
        return failed

    def _down(self, why: str, what: str, *, sent: bool = False) -> Failed:
        failed = Failed(why, UpstreamDown(f"cloud tier: {self.config.url} ({self.config.name}): {what}"))
        failed.sent = sent
        return failed

    def _url(self, path: str) -> URL:
        if path not in self._urls:
            self._urls[path] = URL(self.config.url + path)
        return self._urls[path]

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits = aiohttp.ClientTimeout(total=None, connect=_CONNECT_WITHIN)  # of its silence: `Reading`
            self._session = aiohttp.ClientSession(
                timeout=limits,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent",),
                auto_decompress=False,
            )
        return self._session

    def well(self) -> None:
        """It answered a request."""
        self.answered += 1
        self.breaker.succeeded()

    # --- health -------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Ask for its health for ever, if it is asked for. One good answer closes the breaker, failures open it."""
        while self.config.health:
            try:
                async with asyncio.timeout(_HEALTH_WITHIN):
                    await self.get(self.config.health)
                self.breaker.succeeded()
            except TimeoutError:
                self._ill("no answer in time")
            except Failed as e:
                self._ill(str(e))
            await asyncio.sleep(self.config.health_every)

    def _ill(self, why: str) -> None:
        _log.warning("upstream %s: not well: %s", self.config.name, why)
        self.breaker.failed(self._tick())

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            with suppress(aiohttp.ClientError):
                await self._session.close()


def _plain(text: str) -> str:
    """Words of an upstream that a log and a database take."""
    return "".join(c if c.isprintable() else "?" for c in text[:100])
