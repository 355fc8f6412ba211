"""What the local API refuses, and how it says so. Status codes are known here and to the server alone."""

from __future__ import annotations

from typing import Final

from agent.errors import AgentError, Busy, Malformed, NotFound, TooLong, Unavailable, Untrusted
from agent.serving.exchange import Reply
from agent.serving.routed import Withheld

__all__ = ["BadRequest", "Busy", "Forbidden", "HeadTooLarge", "TooLarge", "TooSlow", "Unauthorised", "refusal"]


class BadRequest(Malformed):
    """Not HTTP as this server speaks it."""


class TooLarge(AgentError):
    """A request body over the limit."""


class HeadTooLarge(AgentError):
    """More header fields than any client needs."""


class TooSlow(AgentError):
    """A request that does not come to its end."""


class Unauthorised(AgentError):
    """A request over TCP without this device's token."""


class Forbidden(AgentError):
    """A request that a page of the web made a browser send."""


_STATUS: Final[tuple[tuple[type[AgentError], int], ...]] = (
    (TooLarge, 413),
    (HeadTooLarge, 431),
    (TooSlow, 408),
    (Unauthorised, 401),
    (Forbidden, 403),
    (Withheld, 403),
    (NotFound, 404),
    (Malformed, 400),
    (Unavailable, 503),
    (Untrusted, 502),
)


def refusal(path: str, error: AgentError) -> Reply:
    """Under /v1 in OpenAI's form, so that its clients understand it."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    headers = {}
    if isinstance(error, Busy):
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, Unauthorised):
        headers["www-authenticate"] = "Bearer"
    if not path.startswith("/v1/"):
        return Reply.json(status, {"error": str(error)}, headers)
    kind = "context_length_exceeded" if isinstance(error, TooLong) else type(error).__name__.lower()
    said = {"message": str(error), "type": kind, "code": kind, "param": None}
    return Reply.json(status, {"error": said}, headers)
