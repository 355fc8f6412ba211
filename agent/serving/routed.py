"""What is routed, what becomes of it, and how a refusal says why: values, for `agent.serving.router`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from agent.errors import AgentError, Busy, Unavailable
from agent.routing import Features, Reason
from agent.serving.exchange import Reply
from agent.serving.service import Answer, Served


class Offline(Unavailable):
    """Only the cloud could answer, and it cannot be reached."""


class Withheld(AgentError):
    """Policy keeps the request on this device, and no model here can answer it."""


@dataclass(frozen=True)
class Routed:
    """The answer that is given, and that of the device: the same unless the request went up."""

    answer: Answer
    local: Answer
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Admitted:
    """A request to a classifier that is not refused before the device has answered. `text` may go up."""

    served: Served
    text: str | None
    features: Features
    started: float


@dataclass(frozen=True)
class Said:
    """What a language model of this device answers: the whole, or a stream that has begun.

    `probabilities` of the tokens that it is judged by. `drop` ends a stream that nobody wants.
    """

    reply: Reply
    probabilities: Sequence[float]
    drop: Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class LocalChat:
    """A language model on this device for one request, and how to ask it; None where it `lacks` something for that.

    `answer(judged)` keeps of a stream what it is judged by, if it is. It raises `TooLong`, found by the model alone,
    and `Busy` at once.
    """

    model: str
    digest: str
    answer: Callable[[bool], Awaitable[Said]] | None
    lacks: AgentError | None = None


def refused(reason: Reason, f: Features, lacks: AgentError | None) -> AgentError:
    """The refusal of a request for that reason; `lacks` says what is missing here, where the app could do without."""
    if lacks is not None and reason in ("asked", "no-cloud", "busy"):
        return lacks
    queued = f", and did not come back within {f.wish.queue_s:g} s" if f.wish.queue_s else ""
    told: dict[str, AgentError] = {
        "private": Withheld("the data of this request stay on this device, and no model here can answer it"),
        "asked": Withheld("the request asks for an answer of this device, and no model here can give it"),
        "no-cloud": Unavailable("no model of the cloud is set for this: set cloud_model, or ask for local"),
        "offline": Offline(
            f"this device is offline{queued}, and the model runs in the cloud: try again when it is back, "
            "or ask to wait with Shoal-Queue: SECONDS"
        ),
        "busy": Busy("as many requests wait for the model here as may: ask again in a moment"),
        "deadline": Unavailable(f"the cloud takes about {f.cloud_ms:.0f} ms, and the request has less time"),
        "budget": Unavailable("as many requests went up from this device as may: try again later, or send less"),
    }
    return told[reason]
