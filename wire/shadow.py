"""A model in shadow: it runs beside the active model of its name on a share of the requests, and answers nobody.

It stands apart from the models of a desired state, so that an agent that does not know of shadows passes it over and
does not install it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from wire.bundle import split_target
from wire.document import Document, check_counts, check_digest
from wire.errors import Malformed

MAX_SHADOWS: Final = 4
"""Models in shadow that one device may have at a time: each is a process."""
MOST_MEMORY: Final = 1 << 50
HOTTEST: Final = 120.0


@dataclass(frozen=True, kw_only=True)
class ShadowModel(Document):
    """A release that a device should run in shadow of its active model, as far as the budget goes.

    `share`: percent of the requests. `cpu`: percent of one core over time. `memory`: bytes of its process, 0 for what
    the device has room for. Above `max_c` degrees Celsius, and while the clock is held down, it pauses.
    """

    target: str
    digest: str
    rollout: str | None = None
    share: int = 20
    cpu: int = 10
    memory: int = 0
    max_c: float = 70.0

    def __post_init__(self) -> None:
        split_target(self.target)
        check_digest(self.digest, f"digest of {self.target} in shadow")
        for name in ("share", "cpu"):
            if not 1 <= getattr(self, name) <= 100:
                raise Malformed(f"shadow.{name} of {self.target}: expected 1 to 100, got {getattr(self, name)}")
        if not 0 <= self.memory <= MOST_MEMORY:
            raise Malformed(f"shadow.memory of {self.target}: expected 0 to {MOST_MEMORY}, got {self.memory}")
        if not 0 < self.max_c <= HOTTEST:
            raise Malformed(f"shadow.max_c of {self.target}: expected up to {HOTTEST:.0f}, got {self.max_c}")

    @property
    def model(self) -> str:
        """The name of the model that it runs beside."""
        return split_target(self.target)[1]


ShadowPhase = Literal["waiting", "fetching", "self-test", "running", "paused", "failed", "refused"]


@dataclass(frozen=True, kw_only=True)
class ShadowReport(Document):
    """How a model in shadow goes. `waiting`, `paused`, `failed` and `refused` carry the reason.

    Before it ran once it waits, afterwards it pauses. `memory`: bytes that its process took at most, 0 before it ran.
    """

    target: str
    digest: str
    rollout: str | None = None
    phase: ShadowPhase = "waiting"
    reason: str = ""
    memory: int = 0

    def __post_init__(self) -> None:
        check_digest(self.digest, f"digest of {self.target[:200]} in shadow")
        check_counts(self, "memory")
