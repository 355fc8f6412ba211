"""Whether a request is answered on this device or in the cloud. Pure: times come in as arguments.

    decide(features)                       # the table, row by row: where, and for which reason
    wish(headers, private=False)           # what a request asks for
    lowest(token_probabilities)            # how sure a language model is of an answer

The order: data class (private stays here), reachability, deadline, budget, capability and context length, a full queue,
confidence.
A request goes up for its answer's confidence only after the device has answered; `decide` is asked again then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from agent.errors import Malformed

Asked = Literal["auto", "local", "cloud"]
Where = Literal["local", "cloud", "wait", "refuse"]
Reason = Literal[
    "private",  # its data stay here
    "asked",  # the request says where
    "no-cloud",  # no model of the cloud is set to stand in
    "offline",
    "deadline",  # the cloud would not answer in time
    "budget",  # as many went up as may
    "capability",  # no model here can answer
    "context",  # it is too long for the model here
    "busy",  # as many requests wait for the model here as may
    "unknown",  # nothing says how sure the answer is, or it was not given yet
    "sure",
    "unsure",
    "late",  # it went up for being unsure, and the cloud did not answer in time
    "failed",  # nor at all
    "unclear",  # its answer is none of the labels
]
DATA, ROUTE, DEADLINE, QUEUE = "shoal-data", "shoal-route", "shoal-deadline-ms", "shoal-queue"
LONGEST_DEADLINE: Final = 3_600_000.0
QUANTILE: Final = 0.1
"""Of the probabilities of an answer's tokens. The product of all falls with the length of the answer, and a mean hides
the one word that was a guess (Gupta et al. 2024, arXiv 2404.10136)."""
HALF_LIFE: Final = 60.0
"""Seconds after which half of what is known of the cloud's time is believed: one slow answer must not last for ever."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a request asks for: where, until when (ms from its arrival), how long it waits for the line (seconds)."""

    private: bool = False
    route: Asked = "auto"
    deadline_ms: float | None = None
    queue_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Features:
    """What is decided by; nothing of it is the input.

    `here`: a model on this device takes such a request; `tokens` of it against the most that the model takes, 0 where
    that does not matter; `busy`: it has no room for one more now. `target`: the cloud has a model for it. `cloud_ms` is
    how long the cloud takes, 0 while nobody knows. `budget`: one more may go up by the device's own will. `confidence`
    below `threshold` is not believed; None before there is an answer, or where nothing was calibrated.
    """

    wish: Wish = Wish()
    here: bool = True
    target: bool = False
    online: bool = False
    cloud_ms: float = 0.0
    left_ms: float | None = None
    budget: bool = True
    tokens: int = 0
    context: int = 0
    busy: bool = False
    confidence: float | None = None
    threshold: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether the device can answer."""
        return self.here and not (self.context and self.tokens > self.context)


@dataclass(frozen=True)
class Decision:
    """Where a request is answered, and why; `late`, `failed` and `unclear` are what came of one that went up."""

    where: Where
    reason: Reason


def decide(f: Features) -> Decision:
    """The policy. `local` is never said where the device cannot answer, nor to a request that asks for the cloud."""
    stays = _stays(f)
    if stays is not None:
        if not f.fits or f.wish.route == "cloud":
            return Decision(_without(stays, f), stays)
        return Decision("refuse", "busy") if f.busy else Decision("local", stays)
    if f.wish.route == "cloud":
        return Decision("cloud", "asked")
    if not f.fits or f.busy:
        return Decision("cloud", "busy" if f.fits else "context" if f.here else "capability")
    if f.confidence is None:
        return Decision("local", "unknown")
    return Decision("cloud", "unsure") if f.confidence < f.threshold else Decision("local", "sure")


def _stays(f: Features) -> Reason | None:
    """Why a request cannot go up, whatever it is; None when it can."""
    rows: tuple[tuple[bool, Reason], ...] = (
        (f.wish.private, "private"),
        (f.wish.route == "local", "asked"),
        (not f.target, "no-cloud"),
        (not f.online, "offline"),
        (f.left_ms is not None and f.cloud_ms >= f.left_ms, "deadline"),
        # Where no model here takes such a request, or the app says where, nobody's text forces anything.
        (not f.budget and f.here and f.wish.route == "auto", "budget"),
    )
    return next((reason for holds, reason in rows if holds), None)


def _without(stays: Reason, f: Features) -> Where:
    return "wait" if stays == "offline" and f.wish.queue_s > 0 else "refuse"


def wish(headers: Mapping[str, str], *, private: bool = False, longest_queue: float = 600.0) -> Wish:
    """What the headers (by lower-case name) ask for; the device may hold every request to be `private`.

    Raises `Malformed` for a value that is none: a misspelt `private` must not go up.
    """
    data, asked = headers.get(DATA, "open").strip().lower(), headers.get(ROUTE, "auto").strip().lower()
    route = next((known for known in get_args(Asked) if known == asked), None)
    if data not in ("private", "open"):
        raise Malformed(f"{DATA}: expected private or open, got {data[:40]!r}")
    if route is None:
        raise Malformed(f"{ROUTE}: expected auto, local or cloud, got {asked[:40]!r}")
    if (private or data == "private") and route == "cloud":
        raise Malformed(f"{ROUTE}: private data stay on this device: ask without it, or with local")
    return Wish(
        private=private or data == "private",
        route=route,
        deadline_ms=_number(headers, DEADLINE, LONGEST_DEADLINE),
        queue_s=_number(headers, QUEUE, longest_queue) or 0.0,
    )


def _number(headers: Mapping[str, str], name: str, most: float) -> float | None:
    if name not in headers:
        return None
    try:
        value = float(headers[name])
    except ValueError:
        value = math.nan
    if not 0 < value <= most:  # NaN compares false
        raise Malformed(f"{name}: expected a number above 0, at most {most:g}, got {headers[name][:40]!r}")
    return value


def lowest(probabilities: Sequence[float], quantile: float = QUANTILE) -> float | None:
    """How sure a language model is of an answer: a low quantile of the probabilities of its tokens; None of none."""
    if not probabilities:
        return None
    ordered = sorted(probabilities)
    return ordered[math.ceil(quantile * len(ordered)) - 1 if quantile > 0 else 0]


@dataclass(frozen=True)
class Bucket:
    """A token bucket: `rate` tokens per second, never more than `most`; `left` of them at the time `at`.

    Whoever can choose the inputs can make every answer unsure (arXiv 2601.21380): what goes up has a cap per device.
    """

    rate: float
    most: float
    left: float
    at: float

    def filled(self, now: float) -> Bucket:
        """The same later. A clock that went back gives nothing."""
        return Bucket(self.rate, self.most, min(self.most, self.left + self.rate * max(0.0, now - self.at)), now)

    def has(self, now: float) -> bool:
        """Whether a whole token is there."""
        return self.filled(now).left >= 1

    def take(self, now: float) -> Bucket:
        """One token less. Ask `has` first."""
        full = self.filled(now)
        return Bucket(full.rate, full.most, full.left - 1, now)


@dataclass(frozen=True)
class Pace:
    """How long the cloud takes, in ms: an exponentially weighted mean of what was seen; 0: unknown. `at` in seconds."""

    ms: float = 0.0
    at: float = 0.0

    def seen(self, ms: float, now: float) -> Pace:
        """One more answer, or none after that time."""
        return Pace(ms if self.ms == 0 else 0.7 * self.expected(now) + 0.3 * ms, now)

    def expected(self, now: float) -> float:
        """What is believed now."""
        return float(self.ms * 0.5 ** (max(0.0, now - self.at) / HALF_LIFE))
