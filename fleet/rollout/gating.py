"""What rollouts ask of gates and of evidence, as interfaces: `fleet.gates` judges, `fleet.evidence` compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlmodel import Session

from fleet.gates.values import Comparison, Judgement
from wire.document import Document

BEFORE = timedelta(days=1)
"""How far back devices are held against themselves."""
CONTROLS = 500
"""Devices of a profile that were not reached yet and are compared with, at most: the last ones in the order."""
INSTALLS = "installs"
"""The limit on devices that refuse the release or go back by themselves, in percent."""


class Gates(Protocol):
    """What a rollout lets pass, read when it is made."""

    @property
    def limits(self) -> Mapping[str, float]:
        """Limits by the name of their gate; `installs` is in percent of devices."""

    @property
    def measuring(self) -> bool:
        """Whether evidence of the running model is asked for."""

    def shared_by(self, profiles: int) -> Any:
        """The same for a rollout over so many profiles: the chance of a false alarm is divided among them."""

    def to_value(self) -> dict[str, Any]:
        """JSON that reads back as the same gates."""


class Parse(Protocol):
    """Gates from the name of a preset or from limits. Raises `Malformed` that names the key."""

    def __call__(self, value: Mapping[str, Any] | str) -> Any:
        """`measured`, `install`, or limits by name."""


class Compare(Protocol):
    """What devices did with the candidate, and their peers without it, each before and since a moment."""

    def __call__(
        self,
        session: Session,
        *,
        profile: str,
        model: str,
        candidate_digest: str,
        candidates: Mapping[str, datetime],
        controls: Mapping[str, datetime],
        before: timedelta,
    ) -> list[Comparison]:
        """Of devices by the moment since when; `before` is how far back they are held against themselves."""


class Judge(Protocol):
    """What the gates of one profile say, and what they have to remember for the next time."""

    def __call__(
        self, gates: Any, profile: str, comparisons: Sequence[Comparison], history: Any, now: datetime
    ) -> tuple[Judgement, Document]:
        """One look."""


class Recall(Protocol):
    """The history from the text that it was kept as; "" is a new one."""

    def __call__(self, text: str) -> Any:
        """The inverse of `to_bytes`."""


@dataclass(frozen=True, kw_only=True)
class Gating:
    """The gates and the evidence that a rollout is judged by."""

    parse: Parse
    compare: Compare
    judge: Judge
    recall: Recall
