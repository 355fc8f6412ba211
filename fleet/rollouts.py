"""A rollout as a value, and what every event makes of it. No clock, database or network in here.

    step = start("r1", ["a", "b", "c", "d"], waves=(25, 100), now=now)
    step = advance(step.rollout, Committed("c"), now, settle_after)
    step.send, step.back          # devices that get the release, and that go back to what they ran before

A wave settles when each of its devices has committed or failed. Then any failure is `ABORT`, and everything touched
goes back; none is `PROCEED`. A device that has not answered is `HOLD`, with its name: missing evidence never goes on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Literal

from fleet.errors import Malformed
from wire.units import show_seconds

MemberState = Literal["waiting", "sent", "committed", "failed", "returned", "left"]
Verdict = Literal["PROCEED", "HOLD", "ABORT"]
_NAMED = 5


@dataclass(frozen=True)
class Member:
    """A device in a rollout, the wave it belongs to, and how it goes."""

    device: str
    wave: int
    state: MemberState = "waiting"
    reason: str = ""


@dataclass(frozen=True)
class Rollout:
    """`waves` are rising percentages of `members`; `wave` is the index of the current one."""

    id: str
    waves: tuple[int, ...]
    members: tuple[Member, ...]
    wave: int
    wave_started: datetime
    state: Literal["running", "done", "aborted"] = "running"
    verdict: Verdict = "HOLD"
    reasons: tuple[str, ...] = ()

    def touched(self) -> tuple[Member, ...]:
        """The devices that were sent the release and are still there."""
        return tuple(m for m in self.members if m.state not in ("waiting", "left"))


@dataclass(frozen=True)
class Committed:
    """A device runs the release for good."""

    device: str


@dataclass(frozen=True)
class Failed:
    """A device refused the release or went back by itself."""

    device: str
    reason: str


@dataclass(frozen=True)
class Left:
    """A device that had not answered is no device of the fleet any more: revoked or retired."""

    device: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class AbortAsked:
    """A person wants it to end."""

    reason: str


Event = Committed | Failed | Left | Tick | AbortAsked


@dataclass(frozen=True)
class Step:
    """The rollout after an event, and which devices to send the release or to bring back."""

    rollout: Rollout
    send: tuple[str, ...] = ()
    back: tuple[str, ...] = ()


def check_waves(waves: Sequence[int]) -> tuple[int, ...]:
    """Raises `Malformed` unless they are rising percentages that end at 100."""
    rising = all(a < b for a, b in pairwise(waves))
    if not waves or waves[0] < 1 or waves[-1] != 100 or not rising:
        raise Malformed(f"waves {list(waves)}: expected rising percentages that end at 100, such as [25, 100]")
    return tuple(waves)


def exposed(share: int, eligible: int) -> int:
    """How many of the eligible devices a wave of `share` percent may reach: the share, rounded up."""
    return math.ceil(share * eligible / 100)


def members(rollout: str, devices: Iterable[str], waves: Sequence[int]) -> tuple[Member, ...]:
    """Devices, each in its wave, in the order of a hash of rollout and device id: no device is always the first."""
    order = sorted(devices, key=lambda d: hashlib.sha256(f"{rollout}\n{d}".encode()).digest())
    limits = [exposed(share, len(order)) for share in waves]
    return tuple(Member(d, next(w for w, n in enumerate(limits) if i < n)) for i, d in enumerate(order))


def start(id_: str, devices: Iterable[str], waves: Sequence[int], now: datetime) -> Step:
    """A new rollout and its first wave. Raises `Malformed` for bad waves."""
    checked = check_waves(waves)
    rollout = Rollout(id_, checked, members(id_, devices, checked), wave=0, wave_started=now)
    return _settle(*_send_wave(rollout, now), now, timedelta.max)


def advance(rollout: Rollout, event: Event, now: datetime, settle_after: timedelta) -> Step:
    """What an event makes of a rollout. One that has ended stays as it is."""
    if rollout.state != "running":
        return Step(rollout)
    match event:
        case AbortAsked(reason):
            return _abort(rollout, (reason,))
        case Committed(device):
            rollout = _changed(rollout, device, ("sent",), "committed", "")
        case Failed(device, reason):
            rollout = _changed(rollout, device, ("sent",), "failed", reason)
        case Left(device):
            rollout = _changed(rollout, device, ("waiting", "sent"), "left", "it left the fleet")
        case Tick():
            pass
    return _settle(rollout, (), now, settle_after)


def judge(rollout: Rollout, now: datetime, settle_after: timedelta) -> tuple[Verdict, tuple[str, ...]]:
    """The gate of the current wave: a verdict and its reasons in words."""
    failed = [f"{m.device}: {m.reason}" for m in rollout.touched() if m.state == "failed"]
    silent = [m.device for m in rollout.touched() if m.state == "sent"]
    overdue = now - rollout.wave_started >= settle_after
    if failed and (overdue or not silent):
        return "ABORT", tuple(failed)
    if silent:
        return "HOLD", (*failed, _waiting(rollout, silent, overdue=overdue, settle_after=settle_after))
    return "PROCEED", (f"wave {rollout.wave + 1} of {len(rollout.waves)}: every device committed",)


def _settle(rollout: Rollout, sent: tuple[str, ...], now: datetime, settle_after: timedelta) -> Step:
    """Judge, and go on for as long as the verdict says so: a wave may be empty in a small fleet."""
    while True:
        verdict, reasons = judge(rollout, now, settle_after)
        if verdict == "ABORT":
            return _abort(rollout, reasons)
        rollout = replace(rollout, verdict=verdict, reasons=reasons)
        if verdict == "HOLD":
            return Step(rollout, send=sent)
        if rollout.wave == len(rollout.waves) - 1:
            return Step(replace(rollout, state="done"), send=sent)
        rollout, more = _send_wave(replace(rollout, wave=rollout.wave + 1, wave_started=now), now)
        sent += more


def _send_wave(rollout: Rollout, now: datetime) -> tuple[Rollout, tuple[str, ...]]:
    due = tuple(m.device for m in rollout.members if _is_due(m, rollout.wave))
    changed = tuple(replace(m, state="sent") if _is_due(m, rollout.wave) else m for m in rollout.members)
    return replace(rollout, members=changed, wave_started=now), due


def _is_due(member: Member, wave: int) -> bool:
    return member.wave <= wave and member.state == "waiting"


def _changed(rollout: Rollout, device: str, known: Sequence[str], state: MemberState, reason: str) -> Rollout:
    """A device in one of the states `known` goes on to `state`: only one that was sent the release can answer."""
    changed = (
        replace(m, state=state, reason=reason) if m.device == device and m.state in known else m
        for m in rollout.members
    )
    return replace(rollout, members=tuple(changed))


def _abort(rollout: Rollout, reasons: tuple[str, ...]) -> Step:
    back = tuple(m.device for m in rollout.touched())
    known = frozenset(back)
    changed = tuple(replace(m, state="returned") if m.device in known else m for m in rollout.members)
    ended = replace(rollout, members=changed, state="aborted", verdict="ABORT", reasons=reasons)
    return Step(ended, back=back)


def _waiting(rollout: Rollout, silent: Sequence[str], *, overdue: bool, settle_after: timedelta) -> str:
    names = ", ".join(silent[:_NAMED]) + (f" and {len(silent) - _NAMED} more" if len(silent) > _NAMED else "")
    limit = show_seconds(settle_after.total_seconds())
    late = f" for longer than {limit}: look at the device, or abort" if overdue else ""
    return f"wave {rollout.wave + 1} of {len(rollout.waves)}: no answer yet from {names}{late}"
