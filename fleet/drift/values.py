"""What is said of drift: scores of one window, and alarms. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fleet.drift.looks import Kind, Look

Against = Literal["reference", "past", "rest"]
"""The compiler's reference, the devices' own earlier weeks, or (bias) the devices that do not have the tag."""
Subject = Literal[Kind, "accuracy", "sureness"]
"""What is looked at; the last two are those of bias: how often answers are right, and how sure they are."""
ALL = "all"
"""The stratum of all devices that run a model."""


@dataclass(frozen=True)
class Member:
    """A device that runs the model in this window: what it saw, and what it saw in earlier weeks."""

    device: str
    strata: frozenset[str]
    """`profile:...`, `group:...`, `tag:...`"""
    today: Look
    past: Look = field(default_factory=Look)
    recent: Look = field(default_factory=Look)
    """Of the windows between: not yet part of its past."""


@dataclass(frozen=True)
class Key:
    """What an alarm is about."""

    digest: str
    stratum: str
    subject: Subject
    against: Against


@dataclass(frozen=True)
class Score:
    """One comparison in one window. `effect` is a PSI, or for bias the difference of the two means (0 to 1).

    It is a sign of drift where `effect` reaches `limit` and `p` passes the control over all scores of the window.
    """

    key: Key
    devices: int
    n: float
    effect: float
    limit: float
    p: float
    words: str
    """What moved, in words and numbers."""


@dataclass(frozen=True)
class Alarm:
    """`signs`: one letter for each of the last windows that said something, `1` for a sign; the newest last.

    `state`: suspected until enough windows agree; settled when the past that it was held against is too long ago. Times
    are beginnings of windows, `ended` of the one that ended it.
    """

    key: Key
    state: Literal["suspected", "open", "recovered", "settled"]
    signs: str
    first: str
    last: str
    ended: str | None
    score: Score
