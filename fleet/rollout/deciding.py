"""What a look at a rollout comes to: who is reached now, what goes back, and whether the wave goes on. Pure.

    decision = decide(look)
    decision.admit, decision.back          # devices that get the release, and that go back to what they ran before

Each profile is judged by itself: first its installs, then its gates. `ABORT` brings back what was reached of that
profile, and the others go on. A wave goes on when as many are reached as may be, each of them has answered, every
profile says `PROCEED`, and the wave has stood for its soak. Whatever else there is, is `HOLD`, with its reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Literal

from fleet.gates.values import Judgement, Verdict
from fleet.rollout import table
from fleet.rollout.exposure import room
from fleet.rollout.gating import INSTALLS
from fleet.rollout.table import State
from fleet.rollout.terms import Terms
from fleet.rollout.windows import is_open, next_opening
from wire.units import show_instant, show_seconds

MemberState = Literal["sent", "committed", "failed", "returned", "stuck", "left"]
HOLDING: Final = frozenset({"sent", "committed", "failed"})
"""States of a device that was reached and not brought back: it counts as exposed."""
NAMED: Final = 5
_HOUR: Final = timedelta(hours=1)


@dataclass(frozen=True)
class Member:
    """A device that was reached, and how it goes."""

    device: str
    profile: str
    state: MemberState
    admitted: datetime
    reason: str = ""


@dataclass(frozen=True)
class Waiting:
    """A device that may be reached and was not yet."""

    device: str
    profile: str


@dataclass(frozen=True)
class Course:
    """Where a rollout stands. `settled`: since when all that this wave reached have answered. `aborted`: profiles."""

    id: str
    state: State
    wave: int
    wave_started: datetime
    settled: datetime | None = None
    aborted: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Judged:
    """What the gates said of a profile, and when."""

    judgement: Judgement
    at: datetime
    wave: int


@dataclass(frozen=True, kw_only=True)
class Look:
    """All that a look goes by. `waiting` stands in the order of the hash, without profiles that were aborted.

    `hinders` says why a device may not be reached now, or "". `judged` has the profiles whose gates were asked;
    `valid`: how long what they said holds. `settle_after`: how long devices have to answer before a failure aborts.
    """

    terms: Terms
    course: Course
    members: Sequence[Member]
    waiting: Sequence[Waiting]
    hinders: Callable[[str], str]
    judged: Mapping[str, Judged]
    now: datetime
    settle_after: timedelta
    valid: timedelta


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The rollout after a look. `finished`: profiles that are aborted from now on, with the reasons."""

    course: Course
    verdict: Verdict
    reasons: tuple[str, ...]
    admit: tuple[str, ...] = ()
    back: tuple[str, ...] = ()
    aborted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Word:
    """What one profile says of the wave."""

    verdict: Verdict
    reasons: tuple[str, ...]


def decide(look: Look) -> Decision:
    """One look at an open rollout. Raises nothing; a rollout that has ended is not to be looked at."""
    look = _expired(look)
    words = {profile: _word_of(look, profile) for profile in _profiles(look)}
    fallen = {profile: word.reasons for profile, word in words.items() if word.verdict == "ABORT"}
    if not fallen:
        return _go_on(look, words)
    back = tuple(m.device for m in look.members if m.profile in fallen and m.state in HOLDING)
    rest = _without(look, fallen)
    if not rest.waiting and not any(m.state in HOLDING for m in rest.members):
        ended = replace(rest.course, state=table.move(look.course.state, "abort", look.course.id))
        reasons = _of_profiles({p: _Word("ABORT", r) for p, r in fallen.items()}, "ABORT")
        return Decision(course=ended, verdict="ABORT", reasons=reasons, back=back, aborted=fallen)
    decision = _go_on(rest, {p: word for p, word in words.items() if p not in fallen})
    told = tuple(f"{profile} was aborted: {'; '.join(reasons)}" for profile, reasons in fallen.items())
    return replace(decision, back=back, aborted=fallen, reasons=(*decision.reasons, *told))


def judged_profiles(members: Iterable[Member]) -> set[str]:
    """Profiles in which a device has the release: gates may have something to look at."""
    return {m.profile for m in members if m.state == "committed"}


def _expired(look: Look) -> Look:
    deadline = look.terms.deadline
    if look.course.state != "running" or deadline is None or look.now < deadline:
        return look
    return replace(look, course=replace(look.course, state=table.move("running", "expire", look.course.id)))


def _profiles(look: Look) -> list[str]:
    return sorted({m.profile for m in look.members if m.state in HOLDING} - look.course.aborted)


def _without(look: Look, fallen: Mapping[str, object]) -> Look:
    course = replace(look.course, aborted=look.course.aborted | fallen.keys())
    return replace(
        look,
        course=course,
        # They stay among those that were reached within the hour.
        members=[
            replace(m, state="returned") if m.profile in fallen and m.state in HOLDING else m for m in look.members
        ],
        waiting=[w for w in look.waiting if w.profile not in fallen],
    )


# --- one profile --------------------------------------------------------------------------------------------------


def _word_of(look: Look, profile: str) -> _Word:
    """Installs first: what does not install has no evidence."""
    mine = [m for m in look.members if m.profile == profile and m.state in HOLDING]
    failed = [f"{m.device}: {m.reason}" for m in mine if m.state == "failed"]
    silent = [m for m in mine if m.state == "sent"]
    late = [m for m in silent if look.now - min(m.admitted, look.now) >= look.settle_after]
    if _too_many(look.terms, len(failed), len(mine)) and len(late) == len(silent):
        return _Word("ABORT", tuple(failed))
    judged = look.judged.get(profile) if judged_profiles(mine) and look.terms.gates.measuring else None
    if judged is not None and judged.judgement.verdict == "ABORT":
        return _Word("ABORT", judged.judgement.reasons)
    if silent:
        return _Word("HOLD", (*failed, _silence(look, silent, late)))
    return _of_gates(look, mine, judged, failed)


def _too_many(terms: Terms, failed: int, reached: int) -> bool:
    limit = terms.gates.limits.get(INSTALLS)
    return limit is not None and failed * 100 > limit * reached


def _of_gates(look: Look, mine: Sequence[Member], judged: Judged | None, failed: Sequence[str]) -> _Word:
    if not look.terms.gates.measuring:
        return _Word("PROCEED", tuple(failed))
    if not judged_profiles(mine):
        return _Word("PROCEED", (*failed, "no device has the release, so that is all there is to judge by"))
    if judged is None or judged.wave != look.course.wave or not _is_valid(look, judged):
        last = judged.judgement.reasons if judged is not None and judged.judgement.verdict == "HOLD" else ()
        return _Word("HOLD", (*failed, *(last or ("the gates are asked within a moment",))))
    return _Word(judged.judgement.verdict, (*failed, *judged.judgement.reasons))


def _is_valid(look: Look, judged: Judged) -> bool:
    """Said of this wave once it had settled, and a short while ago: an hour that a clock jumped is none."""
    return (look.course.settled or look.now) <= judged.at <= look.now <= judged.at + look.valid


def _silence(look: Look, silent: Sequence[Member], late: Sequence[Member]) -> str:
    wave = f"wave {look.course.wave + 1} of {len(look.terms.waves)}"
    limit = show_seconds(look.settle_after.total_seconds())
    advice = f" for longer than {limit}: look at the device, or abort" if late else ""
    return f"{wave}: no answer yet from {_named([m.device for m in late or silent])}{advice}"


# --- the wave ---------------------------------------------------------------------------------------------------------


def _go_on(look: Look, words: Mapping[str, _Word]) -> Decision:
    """Reach whom the wave may reach, and take the next one for as long as all holds: a wave may be empty."""
    course, admitted = look.course, list[Waiting]()
    waiting = list(look.waiting)
    while True:
        new, held = _admit(look, course, waiting, already=len(admitted))
        admitted += new
        reached = {w.device for w in new}
        waiting = [w for w in waiting if w.device not in reached] if new else waiting
        holds = [*held, *_holds(look, words, admitted)]
        course = _settle(look, course, through=not held and not _unanswered(look, admitted))
        holds += _soak(look, course)
        if holds or course.state in ("paused", "awaiting"):
            break
        last = course.wave == len(look.terms.waves) - 1
        if last:
            done = replace(course, state=table.move(course.state, "finish", course.id))
            return _decided(done, "PROCEED", _finished(look, words), admitted)
        if course.state != "running":
            holds = ["past its deadline: nothing new is reached; abort it, or roll out the rest anew"]
            break
        course = replace(course, wave=course.wave + 1, wave_started=look.now, settled=None)
        if look.terms.approval == "every-wave":
            course = replace(course, state=table.move("running", "await approval of", course.id))
    return _decided(course, "HOLD", (*_standing(look, course), *holds), admitted)


def _decided(course: Course, verdict: Verdict, reasons: tuple[str, ...], admitted: Sequence[Waiting]) -> Decision:
    return Decision(course=course, verdict=verdict, reasons=reasons, admit=tuple(w.device for w in admitted))


def _admit(
    look: Look, course: Course, waiting: Sequence[Waiting], already: int
) -> tuple[list[Waiting], tuple[str, ...]]:
    """Who is reached now, in the order of the hash, and what keeps the wave from reaching all that it may."""
    reached = sum(m.state in HOLDING for m in look.members) + already
    free = room(look.terms.waves, course.wave, reached=reached, waiting=len(waiting))
    if free == 0:
        return [], ()
    if course.state != "running":
        return [], (f"{free} more devices may be reached in this wave",)
    if not is_open(look.terms.windows, look.now):
        opens = next_opening(look.terms.windows, look.now)
        when = f"the next one opens at {show_instant(opens)}" if opens else "none opens in the next two weeks"
        return [], (f"outside the maintenance windows: {when}",)
    allowed = min(free, _rate_left(look, already))
    found, hindered = _first(look, waiting, allowed)
    held = ["; ".join(hindered)] if hindered and len(found) < allowed else []
    if allowed < free:
        held.append(f"{look.terms.per_hour} devices were reached within an hour, as many as may be")
    return found, tuple(held)


def _first(look: Look, waiting: Sequence[Waiting], count: int) -> tuple[list[Waiting], list[str]]:
    """The first that nothing hinders; and, in words, some of those that something does."""
    found: list[Waiting] = []
    hindered: list[str] = []
    more = 0
    for one in waiting:
        if len(found) == count:
            break
        why = look.hinders(one.device)
        if not why:
            found.append(one)
        elif len(hindered) < NAMED:
            hindered.append(f"{one.device} {why}")
        else:
            more += 1
    return found, hindered + ([f"and {more} more"] if more else [])


def _rate_left(look: Look, already: int) -> int:
    if look.terms.per_hour is None:
        return len(look.waiting)
    lately = sum(m.admitted > look.now - _HOUR for m in look.members)  # all, also what was brought back
    return max(0, look.terms.per_hour - lately - already)


def _unanswered(look: Look, admitted: Sequence[Waiting]) -> bool:
    return bool(admitted) or any(m.state == "sent" for m in look.members)


def _holds(look: Look, words: Mapping[str, _Word], admitted: Sequence[Waiting]) -> list[str]:
    holds = list(_of_profiles(words, "HOLD"))
    if admitted:
        wave = f"wave {look.course.wave + 1} of {len(look.terms.waves)}" if not holds else "and"
        holds.append(f"{wave}: no answer yet from {_named([w.device for w in admitted])}")
    return holds


def _settle(look: Look, course: Course, *, through: bool) -> Course:
    """The wave settles once; a device that joins later has to answer, and does not make it soak again."""
    if course.settled is None:
        return replace(course, settled=look.now) if through else course
    return replace(course, settled=min(course.settled, look.now))  # a clock that was put back


def _soak(look: Look, course: Course) -> list[str]:
    if course.settled is None or look.now - course.settled >= look.terms.soak:
        return []
    until, wave = show_instant(course.settled + look.terms.soak), f"wave {course.wave + 1} of {len(look.terms.waves)}"
    stands = show_seconds(look.terms.soak.total_seconds())
    return [f"{wave}: every device answered, and it stands for {stands}, until {until}"]


def _standing(look: Look, course: Course) -> tuple[str, ...]:
    wave = f"wave {course.wave + 1} of {len(look.terms.waves)}"
    match course.state:
        case "paused":
            return ("paused: nothing new is reached until it is resumed",)
        case "awaiting":
            return (f"{wave} waits for the approval of another person",)
        case "overdue":
            assert look.terms.deadline is not None
            return (f"overdue: its deadline was {show_instant(look.terms.deadline)}, and {wave} is not through",)
    return ()


def _finished(look: Look, words: Mapping[str, _Word]) -> tuple[str, ...]:
    count = len(look.terms.waves)
    some_failed = any(m.state == "failed" for m in look.members)
    told = "as many devices committed as the gates ask for" if some_failed else "every device committed"
    return (f"wave {count} of {count}: {told}", *_of_profiles(words, "PROCEED"))


def _of_profiles(words: Mapping[str, _Word], verdict: Verdict) -> tuple[str, ...]:
    """The reasons of the profiles with a verdict; with more than one profile each names its own."""
    prefix = {profile: f"{profile}: " if len(words) > 1 else "" for profile in words}
    chosen = {profile: word for profile, word in words.items() if word.verdict == verdict}
    return tuple(f"{prefix[p]}{reason}" for p, word in chosen.items() for reason in word.reasons)


def _named(devices: Sequence[str]) -> str:
    return ", ".join(devices[:NAMED]) + (f" and {len(devices) - NAMED} more" if len(devices) > NAMED else "")
