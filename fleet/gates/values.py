"""What gates look at: how devices behaved with a model, before and after. Values only; no database, no clock.

The unit is the device. A device that got the candidate is compared with itself before; how devices of the same profile
that did not get it changed over the same time is taken off, so that a busy hour is not blamed on the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from wire.sketch import Sketch

Verdict = Literal["PROCEED", "HOLD", "ABORT"]
Arm = Literal["candidate", "control"]
"""A device that runs the candidate, or one that was not updated yet."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What one device did with one model in a stretch of time, added up over its windows.

    `requests`, `errors`, `feedback_*`, `compared` and `agreed` are counts; `latency_ms` is a sketch. `compared` and
    `agreed` are answers in shadow, held against the incumbent. `memory` is what the agent used at most, in bytes,
    `temperature_c` the highest, `restarts` those that nobody asked for. None: the device does not say.
    """

    digest: str
    begins: datetime
    ends: datetime
    requests: int = 0
    errors: int = 0
    latency_ms: Sketch = field(default_factory=Sketch)
    feedback_total: int = 0
    feedback_correct: int = 0
    compared: int = 0
    agreed: int = 0
    memory: int | None = None
    temperature_c: float | None = None
    restarts: int = 0
    golden: bool | None = None
    """Whether the golden set held when it was run last."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One device of one profile, before and after the moment `since`.

    For a candidate `since` is when it committed; for a control it is when the wave began. None: nothing is known.
    `incumbent`: another model was there before. With one, `before` of None is missing evidence; without, there is none.
    """

    device: str
    profile: str
    arm: Arm
    since: datetime
    before: Behaviour | None
    after: Behaviour | None
    incumbent: bool = True


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the gates of one profile say. `reasons` are sentences with numbers; `numbers` are the same for programs."""

    profile: str
    verdict: Verdict
    reasons: tuple[str, ...]
    numbers: dict[str, float] = field(default_factory=dict)
