"""The update machine: one table, (state, event) -> (next state, action). Pure; `agent.install.installer` does the acts.

    state, action = step(state, Event.DONE)

Laws, each tested: an unfinished update always has a next action; whatever happens, the active model stays until a
candidate that answered well takes its place; what the table does not know rolls back; a newer desired state
supersedes in every state; an update that keeps being killed ends as `failed` after `MAX_STARTS` starts. A start after a
clean stop does not count: an operator may restart a device as often as needed.

    verifying -> fetching -> staging -> self-test -> switching -> probation -> committed
       any of them -> refused (not to be trusted) | failed (does not work here)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final, Literal, get_args

from agent.shadowing import Shadow
from wire.document import Document
from wire.messages import Phase, SlotReport, UpdateReport
from wire.orders import DesiredModel

MAX_STARTS: Final = 4
"""Starts of the agent that one update may see from its self-test on: the update itself may be what kills the agent."""


LONGEST_REASON: Final = 500
"""Characters of a reason: a runtime may print pages, and a report has to fit in its topic."""


class Event(StrEnum):
    """What came of an action, or happened beside it."""

    DONE = "done"
    FAULT = "fault"
    UNTRUSTED = "untrusted"
    KEYLESS = "keyless"
    """A key that the fetch needs is not here: waiting for it is part of verifying, and holds up nobody."""
    KILLED = "killed"
    """The agent ended without being asked to: a crash, a power cut, or the update itself."""
    STOPPED = "stopped"
    """The agent was asked to end, and did."""


class Action(StrEnum):
    """What to do next. The state that asks for it is on disk before it begins."""

    VERIFY = "verify"
    FETCH = "fetch"
    STAGE = "stage"
    SELF_TEST = "self-test"
    SWITCH = "switch"
    WATCH = "watch"
    COMMIT = "commit"
    DROP = "drop"
    """Nothing of the candidate answers yet: forget its files."""
    ROLL_BACK = "roll-back"
    """The candidate answers: let the active model answer again, then forget the candidate's files."""


State = Literal[
    "verifying", "fetching", "staging", "self-test", "switching", "probation", "committed", "failed", "refused"
]
STATES: Final[tuple[State, ...]] = get_args(State)
ENDED: Final = frozenset({"committed", "failed", "refused"})
LIVE: Final = frozenset({"switching", "probation"})
"""States in which the candidate may be answering."""

_PATH: Final[tuple[tuple[State, Action], ...]] = (
    ("verifying", Action.VERIFY),
    ("fetching", Action.FETCH),
    ("staging", Action.STAGE),
    ("self-test", Action.SELF_TEST),
    ("switching", Action.SWITCH),
    ("probation", Action.WATCH),
    ("committed", Action.COMMIT),
)


def _table() -> dict[tuple[str, Event], tuple[State, Action]]:
    table: dict[tuple[str, Event], tuple[State, Action]] = {}
    for (state, action), following in pairwise(_PATH):
        back = Action.ROLL_BACK if state in LIVE else Action.DROP
        table[state, Event.DONE] = following
        table[state, Event.FAULT] = ("failed", back)
        table[state, Event.UNTRUSTED] = ("refused", back)
        table[state, Event.KILLED] = table[state, Event.STOPPED] = (state, action)
    # What was trusted before a restart is asked again before more is fetched; verified chunks stay.
    for state in ("fetching", "staging"):
        table[state, Event.KILLED] = table[state, Event.STOPPED] = ("verifying", Action.VERIFY)
    table["fetching", Event.KEYLESS] = ("verifying", Action.VERIFY)
    # A candidate on probation is not loaded any more after a restart: it goes in again before it is watched.
    table["probation", Event.KILLED] = table["probation", Event.STOPPED] = ("switching", Action.SWITCH)
    return table


TABLE: Final[Mapping[tuple[str, Event], tuple[State, Action]]] = _table()
UNKNOWN: Final[tuple[State, Action]] = ("failed", Action.ROLL_BACK)


@dataclass(frozen=True, kw_only=True)
class Placed(Document):
    """A release in a slot: its target and the digest of its manifest.

    `memory`: bytes that it took when it was loaded in its self-test; 0 where an older agent did not measure it.
    """

    target: str
    digest: str
    memory: int = 0


@dataclass(frozen=True, kw_only=True)
class Update(Document):
    """One update under way or ended. `starts` counts those of the agent since its self-test began, clean ones not.

    `memory`: bytes that the self-test measured, 0 before it.
    """

    target: str
    digest: str
    state: str
    rollout: str | None = None
    reason: str = ""
    starts: int = 0
    memory: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelState(Document):
    """Everything that is on disk of one model name: who stands in which slot, and the newest update.

    `rank`: its place in the desired state, which decides who gets the room when not all fit.
    """

    rank: int = 0

    active: Placed | None = None
    candidate: Placed | None = None
    previous: Placed | None = None
    update: Update | None = None
    shadow: Shadow | None = None
    """What runs beside the active model and answers nobody. An update of the model goes first."""

    @property
    def busy(self) -> bool:
        """Whether its update has not ended."""
        return self.update is not None and self.update.state not in ENDED

    @property
    def digests(self) -> frozenset[str]:
        """Manifests whose files must stay: those in a slot or in shadow, and the one under way."""
        held = {p.digest for p in (self.active, self.candidate, self.previous) if p}
        if self.shadow is not None and not self.shadow.over:
            held.add(self.shadow.wanted.digest)
        return frozenset(held | ({self.update.digest} if self.update and self.busy else set()))


def step(model: ModelState, event: Event, reason: str = "") -> tuple[ModelState, Action]:
    """What an event makes of a model with an update, and what to do then."""
    update = model.update
    assert update is not None
    state, action = TABLE.get((update.state, event), UNKNOWN)
    starts = update.starts
    if event is Event.KILLED and state in ("self-test", *LIVE):
        starts += 1
        if starts >= MAX_STARTS:
            (state, action), reason = UNKNOWN, f"the agent stopped {starts} times in {update.state}"
    if (state, action) == UNKNOWN and not reason:
        reason = f"{event} in state {update.state[:40]!r} is not in the update table"
    update = dataclasses.replace(update, state=state, reason=reason[:LONGEST_REASON], starts=starts)
    return dataclasses.replace(_slots_after(model, action), update=update), action


def _slots_after(model: ModelState, action: Action) -> ModelState:
    assert model.update is not None
    if action is Action.SWITCH:
        update = model.update
        return dataclasses.replace(
            model, candidate=Placed(target=update.target, digest=update.digest, memory=update.memory)
        )
    if action is Action.COMMIT:
        return dataclasses.replace(model, active=model.candidate, previous=model.active, candidate=None)
    if action in (Action.DROP, Action.ROLL_BACK):
        return dataclasses.replace(model, candidate=None)
    return model


def desire(model: ModelState, wanted: DesiredModel) -> tuple[ModelState, tuple[Action, ...]]:
    """What a newer desired state makes of a model, and what to do. Nothing to do: no actions.

    A release that failed or was refused is tried again only for another rollout.
    """
    update = model.update
    if update and (update.digest, update.rollout) == (wanted.digest, wanted.rollout) and _stands(model, update):
        return model, ()
    back = _give_up(model)
    free = dataclasses.replace(model, candidate=None)
    if model.active and model.active.digest == wanted.digest:
        done = Update(target=wanted.target, digest=wanted.digest, rollout=wanted.rollout, state="committed")
        return dataclasses.replace(free, update=done), back
    new = Update(target=wanted.target, digest=wanted.digest, rollout=wanted.rollout, state="verifying")
    return dataclasses.replace(free, update=new), (*back, Action.VERIFY)


def _stands(model: ModelState, update: Update) -> bool:
    """Whether an update is still the last word on its release: under way, refused, failed, or active."""
    return update.state != "committed" or (model.active is not None and model.active.digest == update.digest)


def _give_up(model: ModelState) -> tuple[Action, ...]:
    if not model.busy:
        return ()
    assert model.update is not None
    return (Action.ROLL_BACK,) if model.update.state in LIVE else (Action.DROP,)


def waiting(model: ModelState, reason: str) -> ModelState:
    """The same, and what its update waits for in words; "" when it goes on."""
    assert model.update is not None
    said = f"waiting: {reason}"[:LONGEST_REASON] if reason else ""
    return dataclasses.replace(model, update=dataclasses.replace(model.update, reason=said))


def wanted_again(model: ModelState) -> ModelState:
    """The update that brought the active model begins anew: the fleet has no reason to say again what it wants."""
    last = model.update
    if last is None or last.state != "committed" or model.active is None or last.digest != model.active.digest:
        return model
    return dataclasses.replace(model, update=dataclasses.replace(last, state="verifying", reason="", starts=0))


def measured(model: ModelState, memory: int) -> ModelState:
    """The same, with what the self-test saw the candidate take of memory."""
    assert model.update is not None
    return dataclasses.replace(model, update=dataclasses.replace(model.update, memory=memory))


def report(model: ModelState, chunks_done: int, chunks_total: int) -> UpdateReport | None:
    """The newest update in the words of the wire."""
    update = model.update
    if update is None:
        return None
    phases: dict[str, Phase] = {
        "verifying": "fetching",
        "fetching": "fetching",
        "staging": "fetching",
        "self-test": "self-test",
        "switching": "self-test",
        "probation": "probation",
        "committed": "committed",
        "refused": "refused",
    }
    return UpdateReport(
        target=update.target,
        digest=update.digest,
        rollout=update.rollout,
        phase=phases.get(update.state, "failed"),
        reason=update.reason,
        chunks_done=chunks_done,
        chunks_total=chunks_total,
    )


def slots(name: str, model: ModelState) -> list[SlotReport]:
    """Who stands in which slot, in the words of the wire. A model in shadow is a candidate that does not answer."""
    standing: tuple[tuple[Literal["active", "candidate", "previous"], Placed | None], ...] = (
        ("active", model.active),
        ("candidate", model.candidate or _in_shadow(model.shadow)),
        ("previous", model.previous),
    )
    return [SlotReport(model=name, slot=slot, target=p.target, digest=p.digest) for slot, p in standing if p]


def _in_shadow(shadow: Shadow | None) -> Placed | None:
    if shadow is None or not shadow.here:
        return None
    return Placed(target=shadow.wanted.target, digest=shadow.wanted.digest, memory=shadow.memory)
