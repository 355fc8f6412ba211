"""What gates look at: how devices did before and after a moment, from windows of evidence.

    comparisons(session, profile="raspberry-pi-4", model="kitchen", candidate_digest=digest,
                candidates={"kitchen-1": committed}, controls={"kitchen-2": wave_began}, before=timedelta(days=1))

What is told of after the moment begins after it, and what is told of before it ended before it: a window that lies on
the moment counts for neither. So that no more than `FINE` seconds are lost on either side, however long a rollout is,
the hours of the moments that were asked for keep their fine windows (`HoldRow`): what is told of after only grows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import func, select
from sqlmodel import Session, col

from fleet.evidence.packing import Total, sketch_of
from fleet.evidence.rows import parts
from fleet.evidence.windows import DAY, FINE, HOUR, NUMBERS, SPANS, begin
from fleet.gates.values import Arm, Behaviour, Comparison
from fleet.store.evidence_tables import EvidenceSubject, EvidenceWindow, GoldenRow, HealthWindow, HoldRow
from fleet.store.upsert import upsert

_Moments = Mapping[str, datetime]
_COMPARED: Final = NUMBERS.index("compared")
FURTHEST: Final = timedelta(days=14)
"""How far back a device is looked at that did nothing in the time that was asked for, and a candidate in shadow."""


def comparisons(
    session: Session,
    *,
    profile: str,
    model: str,
    candidate_digest: str,
    candidates: Mapping[str, datetime],
    controls: Mapping[str, datetime],
    before: timedelta,
) -> list[Comparison]:
    """Each device before and after its moment, with the model that it had and the one that it has.

    A candidate runs `candidate_digest` after it; before, the version of `model` that it ran last. What was compared
    while it ran `candidate_digest` in shadow, from 14 days before on, stands with what it did after. A control is
    looked at with the version that it ran last on both sides. Of a device that did nothing in the time `before`, the
    last 14 days are told instead; None stands where nothing is known.
    """
    asked = {
        device: _Asked(device, arm, since)
        for arm, devices in _arms(candidates, controls)
        for device, since in devices.items()
    }
    subjects = _subjects(session, asked, profile, model)
    _hold(session, asked, subjects)
    active = {number: found for number, found in subjects.items() if not found[2]}
    _read_models(session, active, candidate_digest, before.total_seconds())
    # A shadow ends when the candidate is committed: what it said was said before.
    shadows = {number: found for number, found in subjects.items() if found[2] and found[1] == candidate_digest}
    _read_models(session, shadows, candidate_digest, FURTHEST.total_seconds())
    _read_health(session, asked, before.total_seconds())
    _look_further(session, asked, active, candidate_digest)
    _read_golden(session, asked)
    return [_comparison(one, profile, candidate_digest) for one in asked.values()]


def _arms(candidates: _Moments, controls: _Moments) -> tuple[tuple[Arm, _Moments], ...]:
    return (("candidate", candidates), ("control", controls))


@dataclass
class _Side:
    """What was added up of one digest, on one side of the moment. `latency`: packed sketches, in hexadecimal digits."""

    begins: int
    ends: int
    numbers: Sequence[int]
    latency: str = ""


@dataclass
class _Health:
    memory: int | None = None
    temperature: float | None = None
    restarts: int = 0


@dataclass
class _Asked:
    """A device that is asked about."""

    device: str
    arm: Arm
    since: datetime
    health_subject: int | None = None
    before: dict[str, _Side] = field(default_factory=dict)
    after: dict[str, _Side] = field(default_factory=dict)
    shadow: Sequence[int] = (0, 0)
    health: tuple[_Health, _Health] = field(default_factory=lambda: (_Health(), _Health()))
    golden: dict[str, bool] = field(default_factory=dict)

    @property
    def at(self) -> float:
        """Its moment in seconds since 1970."""
        return self.since.timestamp()


_Subjects = Mapping[int, tuple[_Asked, str, bool]]
"""A device, a digest and whether in shadow, by number."""


def _subjects(session: Session, asked: Mapping[str, _Asked], profile: str, model: str) -> _Subjects:
    s = EvidenceSubject
    columns: list[Any] = [s.id, s.device, s.digest, s.shadow]
    query = select(*columns).where(col(s.profile).in_((profile, "")), col(s.model).in_((model, "")))
    found: dict[int, tuple[_Asked, str, bool]] = {}
    for some in parts(list(asked)):
        for number, device, digest, shadow in session.connection().execute(query.where(col(s.device).in_(some))):
            if digest:
                found[number] = (asked[device], digest, shadow)
            else:
                asked[device].health_subject = number
    return found


def _hold(session: Session, asked: Mapping[str, _Asked], subjects: _Subjects) -> None:
    """Keep the hours of the moments as fine as they are."""
    wanted = {(number, begin(one.at, HOUR)) for number, (one, _, _) in subjects.items()}
    wanted |= {(one.health_subject, begin(one.at, HOUR)) for one in asked.values() if one.health_subject is not None}
    # Of the database and not of the clock: whoever asks has none.
    newest = session.connection().execute(select(func.max(col(EvidenceSubject.newest)))).scalar() or 0
    h, day, held = HoldRow, newest // DAY, set()
    for some in parts(sorted({number for number, _ in wanted})):
        query = select(col(h.subject), col(h.begins)).where(col(h.subject).in_(some), col(h.day) >= day)
        held |= {tuple(row) for row in session.connection().execute(query)}
    missing = wanted - held
    upsert(session, h, [{"subject": number, "begins": begins, "day": day} for number, begins in sorted(missing)])


def _look_further(session: Session, asked: Mapping[str, _Asked], subjects: _Subjects, candidate: str) -> None:
    """Devices that nobody asked anything in the time before: an idle weekend is no reason to know nothing of them."""
    idle = {device: one for device, one in asked.items() if not one.before.keys() - {candidate}}
    if idle:
        theirs = {number: found for number, found in subjects.items() if found[0].device in idle}
        _read_models(session, theirs, candidate, FURTHEST.total_seconds())
        _read_health(session, idle, FURTHEST.total_seconds())


def _read_models(session: Session, subjects: _Subjects, candidate: str, back: float) -> None:
    """The database adds up: to take every row of it here would take a second for a thousand devices."""
    w = EvidenceWindow
    sums = [_joined(session, col(w.latency)), *(func.sum(col(getattr(w, name))) for name in NUMBERS)]
    columns = [col(w.subject), func.min(col(w.begins)), func.max(col(w.ends)), *sums]
    of = {number: one for number, (one, _, _) in subjects.items()}
    for after, (subject, begins, ends, latency, *numbers) in _added_up(session, w, columns, of, back):
        one, digest, shadow = subjects[subject]
        side = _Side(begins, ends, [int(n) for n in numbers], latency)
        if not shadow:
            (one.after if after else one.before)[digest] = side
        elif digest == candidate:
            one.shadow = [a + b for a, b in zip(one.shadow, side.numbers[_COMPARED:], strict=True)]


def _read_health(session: Session, asked: Mapping[str, _Asked], back: float) -> None:
    h = HealthWindow
    of = {one.health_subject: one for one in asked.values() if one.health_subject is not None}
    sums = (func.max(col(h.memory)), func.max(col(h.temperature)), func.sum(col(h.restarts)))
    for after, (subject, memory, temperature, restarts) in _added_up(session, h, [col(h.subject), *sums], of, back):
        found = of[subject].health[after]
        found.memory, found.temperature, found.restarts = memory, temperature, int(restarts)


def _added_up(
    session: Session, table: Any, columns: Sequence[Any], subjects: Mapping[int, _Asked], back: float
) -> Iterator[tuple[bool, Any]]:
    """Whether after the moment, and the sums of a subject. Moments within one fine window are asked for together."""
    together: dict[float, list[int]] = {}
    for number, one in subjects.items():
        together.setdefault(one.at // FINE, []).append(number)
    query = select(*columns).where(col(table.span).in_(SPANS)).group_by(col(table.subject))
    for slot, numbers in together.items():
        end = int(slot) * FINE
        start = end if all(subjects[number].at == end for number in numbers) else end + FINE
        before = (col(table.begins) >= end - back, col(table.begins) < end, col(table.ends) <= end)
        for after, where in ((False, before), (True, (col(table.begins) >= start,))):
            for some in parts(numbers):
                for row in session.connection().execute(query.where(col(table.subject).in_(some), *where)):
                    yield after, row


def _joined(session: Session, column: Any) -> Any:
    """Bytes of many rows one behind the other, as hexadecimal digits: an aggregate that both databases have."""
    if session.connection().dialect.name == "postgresql":
        return func.string_agg(func.encode(column, "hex"), "")
    return func.group_concat(func.hex(column), "")


def _read_golden(session: Session, asked: Mapping[str, _Asked]) -> None:
    g = GoldenRow
    for some in parts(list(asked)):
        query = select(col(g.device), col(g.digest), col(g.held)).where(col(g.device).in_(some))
        for device, digest, held in session.connection().execute(query):
            asked[device].golden[digest] = held


def _comparison(one: _Asked, profile: str, candidate: str) -> Comparison:
    incumbents = {digest: side for digest, side in one.before.items() if digest != candidate}
    ran = max(incumbents, key=lambda digest: incumbents[digest].ends, default=None)
    if one.arm == "candidate":
        runs: str | None = candidate
        after = _with_shadow(one.after.get(candidate), one.shadow)
    else:
        theirs = {digest: side for digest, side in one.after.items() if digest != candidate}
        runs = ran if ran in theirs else max(theirs, key=lambda digest: theirs[digest].ends, default=None)
        after = theirs[runs] if runs is not None else None
    return Comparison(
        device=one.device,
        profile=profile,
        arm=one.arm,
        since=one.since,
        before=_behaviour(ran, incumbents.get(ran or ""), one.health[0], one.golden),
        after=_behaviour(runs, after, one.health[1], one.golden),
    )


def _with_shadow(active: _Side | None, shadow: Sequence[int]) -> _Side | None:
    """What a candidate did; the answers that were compared come from its time in shadow, which answered nobody."""
    return replace(active, numbers=[*active.numbers[:_COMPARED], *shadow]) if active is not None else None


def _behaviour(digest: str | None, side: _Side | None, health: _Health, golden: Mapping[str, bool]) -> Behaviour | None:
    if digest is None or side is None:
        return None
    latency = Total()
    latency.add(bytes.fromhex(side.latency))
    return Behaviour(
        digest=digest,
        begins=datetime.fromtimestamp(side.begins, UTC),
        ends=datetime.fromtimestamp(side.ends, UTC),
        **dict(zip(NUMBERS, side.numbers, strict=True)),
        latency_ms=sketch_of(latency.buckets()),
        memory=health.memory,
        temperature_c=health.temperature,
        restarts=health.restarts,
        golden=golden.get(digest),
    )
