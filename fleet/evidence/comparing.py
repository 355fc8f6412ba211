"""What gates look at: how devices did before and after a moment, from windows of evidence.

    comparisons(session, profile="raspberry-pi-4", model="kitchen", candidate_digest=digest,
                candidates={"kitchen-1": committed}, controls={"kitchen-2": wave_began}, before=timedelta(days=1))

What is told of after the moment begins after it, and what is told of before it ended before it: a window that lies on
the moment counts for neither. So that no more than `FINE` seconds are lost, however long a rollout takes, the hours of
the moments that were asked for keep their fine windows (`HoldRow`): what a device did since a moment only ever grows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import func, select
from sqlmodel import Session, col

from fleet.evidence.packing import Buckets, add_to, sketch_of
from fleet.evidence.rows import parts
from fleet.evidence.windows import DAY, HOUR, NUMBERS, SPANS, begin
from fleet.gates.values import Arm, Behaviour, Comparison
from fleet.store.evidence_tables import EvidenceSubject, EvidenceWindow, GoldenRow, HealthWindow, HoldRow
from fleet.store.upsert import upsert

_COMPARED: Final = NUMBERS.index("compared")


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

    A candidate runs `candidate_digest` after it, in shadow if nowhere else; before, the version of `model` that it ran
    last. A control is looked at with that one on both sides. None stands where nothing is known.
    """
    asked = {
        device: _Asked(device, arm, since, since.timestamp(), (since - before).timestamp())
        for arm, devices in (("candidate", candidates), ("control", controls))
        for device, since in devices.items()
    }
    subjects = _subjects(session, asked, profile, model)
    _hold(session, asked, subjects)
    _read_models(session, asked, subjects, candidate_digest)
    _read_health(session, asked)
    _read_golden(session, asked)
    return [_comparison(one, profile, candidate_digest) for one in asked.values()]


@dataclass
class _Side:
    """What was added up of one digest, on one side of the moment."""

    begins: int = 1 << 62
    ends: int = 0
    numbers: list[int] = field(default_factory=lambda: [0] * len(NUMBERS))
    latency: Buckets = field(default_factory=dict)

    def add(self, begins: int, ends: int, numbers: Sequence[int], latency: bytes) -> None:
        self.begins = min(self.begins, begins)
        self.ends = max(self.ends, ends)
        mine = self.numbers
        for i, n in enumerate(numbers):
            if n:
                mine[i] += n
        add_to(self.latency, latency)


@dataclass
class _Health:
    memory: int | None = None
    temperature: float | None = None
    restarts: int = 0

    def add(self, memory: int, temperature: float | None, restarts: int) -> None:
        self.memory = max(self.memory or 0, memory)
        if temperature is not None:
            self.temperature = max(temperature, temperature if self.temperature is None else self.temperature)
        self.restarts += restarts


@dataclass
class _Asked:
    """A device that is asked about; `at` and `low` are its moment, and how far back, in seconds since 1970."""

    device: str
    arm: Arm
    since: datetime
    at: float
    low: float
    health_subject: int | None = None
    before: dict[str, _Side] = field(default_factory=dict)
    after: dict[str, _Side] = field(default_factory=dict)
    shadow: _Side | None = None
    health: tuple[_Health, _Health] = field(default_factory=lambda: (_Health(), _Health()))
    golden: dict[str, bool] = field(default_factory=dict)


_Subjects = Mapping[int, tuple[_Asked, str, bool]]
"""A device, a digest and whether in shadow, by number."""


def _subjects(session: Session, asked: Mapping[str, _Asked], profile: str, model: str) -> _Subjects:
    s = EvidenceSubject
    query = select(col(s.id), col(s.device), col(s.digest), col(s.shadow)).where(
        col(s.profile).in_((profile, "")), col(s.model).in_((model, ""))
    )
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


def _read_models(session: Session, asked: Mapping[str, _Asked], subjects: _Subjects, candidate: str) -> None:
    w = EvidenceWindow
    columns = [col(getattr(w, name)) for name in ("subject", "begins", "ends", *NUMBERS, "latency")]
    for subject, begins, ends, *numbers, latency in _rows(session, w, columns, asked, list(subjects)):
        one, digest, shadow = subjects[subject]
        if begins >= one.at:
            if not shadow:
                one.after.setdefault(digest, _Side()).add(begins, ends, numbers, latency)
            elif digest == candidate:
                one.shadow = one.shadow or _Side()
                one.shadow.add(begins, ends, numbers, latency)
        elif not shadow and ends <= one.at and begins >= one.low:
            one.before.setdefault(digest, _Side()).add(begins, ends, numbers, latency)


def _read_health(session: Session, asked: Mapping[str, _Asked]) -> None:
    h = HealthWindow
    owners = {one.health_subject: one for one in asked.values() if one.health_subject is not None}
    columns = [col(getattr(h, n)) for n in ("subject", "begins", "ends", "memory", "temperature", "restarts")]
    for subject, begins, ends, *values in _rows(session, h, columns, asked, list(owners)):
        one = owners[subject]
        if begins >= one.at:
            one.health[1].add(*values)
        elif ends <= one.at and begins >= one.low:
            one.health[0].add(*values)


def _rows(
    session: Session, table: Any, columns: Sequence[Any], asked: Mapping[str, _Asked], subjects: Sequence[int]
) -> Iterator[Any]:
    low = int(min((one.low for one in asked.values()), default=0))
    query = select(*columns).where(col(table.span).in_(SPANS), col(table.begins) >= low)
    for some in parts(subjects):
        yield from session.connection().execute(query.where(col(table.subject).in_(some)))


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


def _with_shadow(active: _Side | None, shadow: _Side | None) -> _Side | None:
    """What a candidate did; the answers that were compared come from its time in shadow."""
    if active is None or shadow is None:
        return active or shadow
    for i in (_COMPARED, _COMPARED + 1):
        active.numbers[i] += shadow.numbers[i]
    return active


def _behaviour(digest: str | None, side: _Side | None, health: _Health, golden: Mapping[str, bool]) -> Behaviour | None:
    if digest is None or side is None:
        return None
    return Behaviour(
        digest=digest,
        begins=datetime.fromtimestamp(side.begins, UTC),
        ends=datetime.fromtimestamp(side.ends, UTC),
        **dict(zip(NUMBERS, side.numbers, strict=True)),
        latency_ms=sketch_of(side.latency),
        memory=health.memory,
        temperature_c=health.temperature,
        restarts=health.restarts,
        golden=golden.get(digest),
    )
