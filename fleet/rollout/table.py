"""The states of a rollout, and what every event makes of them: one table. Pure.

    move("running", "pause", "rollout r-1")      # "paused"
    move("done", "pause", "rollout r-1")         # raises Conflict: in words

awaiting: a person other than its author has to approve it, before it starts or before a wave. overdue: past its
deadline nothing new is reached; it stands until it is through, or somebody aborts it. done, aborted and rolled-back
have ended, and stay so; only what is done can still be rolled back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from fleet.errors import Conflict

State = Literal["awaiting", "running", "paused", "overdue", "done", "aborted", "rolled-back"]
Event = Literal["approve", "await approval of", "pause", "resume", "retry", "expire", "finish", "abort", "roll back"]
OPEN: Final[tuple[State, ...]] = ("awaiting", "running", "paused", "overdue")
"""Those of a rollout that has not ended."""
STATES: Final[tuple[State, ...]] = (*OPEN, "done", "aborted", "rolled-back")

TABLE: Final[Mapping[tuple[State, Event], State]] = {
    ("awaiting", "approve"): "running",
    ("awaiting", "abort"): "aborted",
    ("running", "await approval of"): "awaiting",
    ("running", "pause"): "paused",
    ("running", "retry"): "running",
    ("running", "expire"): "overdue",
    ("running", "finish"): "done",
    ("running", "abort"): "aborted",
    ("paused", "resume"): "running",
    ("paused", "retry"): "paused",
    ("paused", "abort"): "aborted",
    ("overdue", "retry"): "overdue",
    ("overdue", "finish"): "done",
    ("overdue", "abort"): "aborted",
    ("done", "roll back"): "rolled-back",
}
_INSTEAD: Final[Mapping[Event, str]] = {
    "approve": "only one that waits for approval can be approved",
    "pause": "only a running one can be paused",
    "resume": "only a paused one can be resumed",
    "retry": "only one that has not ended can try devices again",
    "abort": "there is nothing to abort; a rollout that is done can be rolled back",
    "roll back": "only one that is done can be rolled back; abort one that is not",
}


def move(state: State, event: Event, what: str) -> State:
    """The state after an event. Raises `Conflict` for one that the state does not take."""
    following = TABLE.get((state, event))
    if following is None:
        raise Conflict(f"{what}: is {state}, so that does not go ({event}): {_INSTEAD.get(event, 'look at it again')}")
    return following
