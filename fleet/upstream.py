"""The client of the cloud tier: one OpenAI-compatible endpoint."""

from __future__ import annotations

from pathlib import Path

import aiohttp

from fleet.errors import Unavailable, UpstreamDown, UpstreamSlow

_CONNECT_WITHIN = 5.0


class Upstream:
    """A client of the configured endpoint."""

    def __init__(self, url: str, key_file: Path | None, timeout: float) -> None:
        self._url, self._timeout = url, timeout
        self._headers = {"Authorization": f"Bearer {key_file.read_text().strip()}"} if key_file else {}
        self._session: aiohttp.ClientSession | None = None

    async def send(self, method: str, path: str, body: bytes | None) -> aiohttp.ClientResponse:
        """The upstream's answer, its body still to be read.

        Raises `Unavailable` when none is configured or it refuses our key, `UpstreamDown` and `UpstreamSlow`.
        """
        if not self._url:
            raise Unavailable(
                "cloud tier: none is configured: set upstream in fleet.toml to the address of an OpenAI-compatible "
                "endpoint, such as https://host/v1, and upstream_key_file if it needs a key"
            )
        if self._session is None:
            limits = aiohttp.ClientTimeout(total=None, connect=_CONNECT_WITHIN, sock_read=self._timeout)
            self._session = aiohttp.ClientSession(timeout=limits, headers=self._headers)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            answer = await self._session.request(
                method, self._url + path, data=body, headers=headers, allow_redirects=False
            )
        except TimeoutError as e:
            raise UpstreamSlow(
                f"cloud tier: {self._url} gave no answer in time: retry, or raise upstream_timeout"
            ) from e
        except aiohttp.ClientError as e:
            raise UpstreamDown(f"cloud tier: {self._url} cannot be reached: {e}: retry later") from e
        if answer.status in (401, 403):
            answer.release()
            raise UpstreamDown(f"cloud tier: {self._url} refuses the fleet's key: check upstream_key_file")
        if answer.status >= 300 and answer.content_type != "application/json":
            answer.release()
            raise UpstreamDown(
                f"cloud tier: {self._url}{path} answered {answer.status} {answer.reason}, and not in JSON: "
                "retry later, or check that the setting upstream is the address of an OpenAI-compatible endpoint"
            )
        return answer

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
