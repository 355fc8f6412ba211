"""Watches for drift: when a window has ended, every model is judged, alarms are opened and closed.

    drift = Drift(database, serial, clock, tags)
    async with drift.running(): ...
    drift.catch_up(now)                  # all at once, for tests and tools
    views.open_alarms(session)           # what people should know of now
    views.drifting(session)              # the same for rules of alerts

A window is read in short transactions, judged on another thread, and written in short transactions: devices and people
do not wait for it. It is judged once: a fleet that stops in between begins it anew, and what is written is the same.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, delete, func, select

from fleet.drift import windows
from fleet.drift.bias import judge_bias
from fleet.drift.control import OVER, step
from fleet.drift.judging import Model, judge, strata, total
from fleet.drift.looks import KINDS, WINDOW, Look
from fleet.drift.values import Alarm, Key, Member, Score
from fleet.drift.windows import DAYS, GAP, Read, Tags, shifted
from fleet.errors import FleetError
from fleet.lease import Leads, alone
from fleet.serial import Serial
from fleet.store.database import Database
from fleet.store.drift_tables import DriftAlarm, DriftDay, DriftPast
from fleet.store.tables import MetaRow
from wire.document import dump_json
from wire.errors import WireError
from wire.units import instant

GRACE: Final = timedelta(minutes=90)
"""What a window's last hour may take to arrive."""
LOOK_EVERY: Final = 300.0
"""Seconds between two looks whether a window has ended."""
ALARMS_KEPT: Final = timedelta(days=365)
JUDGED: Final = "drift"
"""Names the newest window that was judged, in the table of what the fleet knows of itself."""
_log = logging.getLogger(__name__)


def no_tags(_session: Session, _devices: Sequence[str]) -> Mapping[str, Iterable[str]]:
    """For a fleet whose devices have none."""
    return {}


@dataclass(frozen=True)
class Judged:
    """What came of one model in one window: its totals by stratum, the devices in each, and all scores."""

    digest: str
    model: str
    totals: Mapping[str, tuple[int, Look]]
    scores: tuple[Score, ...]


class Drift:
    """See the module."""

    def __init__(
        self,
        database: Database,
        serial: Serial,
        clock: Callable[[], datetime],
        tags: Tags = no_tags,
        leads: Leads = alone,
    ) -> None:
        self._database, self._serial = database, serial
        self._clock, self._tags, self._leads = clock, tags, leads

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Judge every window that ends meanwhile."""
        task = asyncio.create_task(self._for_ever(), name="drift")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _for_ever(self) -> None:
        while True:
            try:
                while (window := await self._serial.run(self._due, self._clock())) is not None:
                    await self._judge(window)
            except (FleetError, WireError, SQLAlchemyError):
                _log.exception("drift is not looked at now: it is tried again")
            await asyncio.sleep(LOOK_EVERY)

    async def _judge(self, window: str) -> None:
        judged = []
        for digest in await self._serial.run(self._digests, window):
            read = await self._serial.run(self._read, window, digest)
            judged.append(await asyncio.to_thread(judge_one, read))
        await self._serial.run(self._write, window, judged)
        while await self._serial.run(self._fold, window):
            pass

    def catch_up(self, now: datetime) -> list[str]:
        """Judge every window that has ended by now, on this thread; which ones."""
        done = []
        while (window := self._due(now)) is not None:
            judged = [judge_one(self._read(window, digest)) for digest in self._digests(window)]
            self._write(window, judged)
            while self._fold(window):
                pass
            done.append(window)
        return done

    def _due(self, now: datetime) -> str | None:
        """The oldest window that has ended, and was not judged; None where another process leads."""
        with self._database.transaction() as session:
            if not self._leads(session):
                return None
            window = windows.following(session, _judged(session))
        return window if window is not None and instant(window) + WINDOW + GRACE <= now else None

    def _digests(self, window: str) -> list[str]:
        with self._database.transaction() as session:
            return windows.digests(session, window)

    def _read(self, window: str, digest: str) -> Read:
        with self._database.transaction() as session:
            return windows.read(session, window, digest, self._tags)

    def _write(self, window: str, judged: Sequence[Judged]) -> None:
        with self._database.transaction() as session:
            if not self._leads(session) or _judged(session) >= window:  # another process was faster
                return
            rows = _unfinished(session)
            before = {key: _alarm(row) for key, row in rows.items()}
            after = step(before, [score for one in judged for score in one.scores], window)
            after = _without_void({key: _settled(session, alarm, window) for key, alarm in after.items()})
            models = {one.digest: one.model for one in judged}
            for key in before.keys() - after.keys():
                session.delete(rows[key])
            for key, alarm in after.items():
                if before.get(key) != alarm:
                    row = rows.get(key) or DriftAlarm(**asdict(key), model=models[key.digest])
                    session.add(_filled(row, alarm))
            for one in judged:
                _write_days(session, window, one, calm=not any(_disturbs(a, one.digest) for a in after.values()))
            for alarm in after.values():
                if before.get(alarm.key) != alarm:
                    _write_past(session, alarm)
            windows.forget(session, window)
            oldest = str(shifted(window, -ALARMS_KEPT // WINDOW))
            session.exec(delete(DriftAlarm).where(col(DriftAlarm.state).in_(OVER), col(DriftAlarm.ended) < oldest))
            session.merge(MetaRow(key=JUDGED, value=window))

    def _fold(self, window: str) -> int:
        with self._database.transaction() as session:
            return self._leads(session) and windows.fold(session, window)


def _judged(session: Session) -> str:
    """The newest window that was judged; "" before the first."""
    row = session.get(MetaRow, JUDGED)
    return row.value if row else ""


def judge_one(read: Read) -> Judged:
    """Judge one model in one window. Pure."""
    members = [
        Member(
            device=one.device,
            strata=one.strata,
            today=Look.parse(one.today),
            past=Look.parse(one.past),
            recent=_sum([Look.parse(text) for text in one.recent]),
        )
        for one in read.told
    ]
    reference, known = windows.reference_of(read.evidence) or (None, 0)
    days = {name: [Look.parse(text) for text in texts] for name, texts in read.days.items()}
    model = Model(read.digest, members, reference, known, days)
    totals = {name: (len(these), _total(these)) for name, these in strata(members).items()}
    return Judged(read.digest, read.model, totals, (*judge(model), *judge_bias(read.digest, members)))


def _sum(looks: Sequence[Look]) -> Look:
    found = Look()
    for look in looks:
        found = found.plus(look)
    return found


def _total(members: Sequence[Member]) -> Look:
    tables: dict[str, Any] = {kind: total([m.today.table(kind) for m in members]) for kind in KINDS}
    feedback, correct = (sum(getattr(m.today, name) for m in members) for name in ("feedback", "correct"))
    return Look(**tables, feedback=feedback, correct=correct)


def _unfinished(session: Session) -> dict[Key, DriftAlarm]:
    rows = session.exec(select(DriftAlarm).where(col(DriftAlarm.state).not_in(OVER)))
    return {_key(row): row for row in rows}


def _key(row: DriftAlarm) -> Key:
    return Key(row.digest, row.stratum, row.subject, row.against)  # type: ignore[arg-type]  # written from one


def _alarm(row: DriftAlarm) -> Alarm:
    key = _key(row)
    score = Score(key=key, **json.loads(row.score))
    return Alarm(key, row.state, row.signs, row.first, row.last, row.ended, score)  # type: ignore[arg-type]  # as above


def _filled(row: DriftAlarm, alarm: Alarm) -> DriftAlarm:
    for name in ("state", "signs", "first", "last", "ended"):
        setattr(row, name, getattr(alarm, name))
    row.score = _score_text(alarm.score)
    return row


def _score_text(score: Score) -> str:
    return dump_json({k: v for k, v in vars(score).items() if k != "key"}).decode()


def _settled(session: Session, alarm: Alarm, window: str) -> Alarm:
    """Where the past is too long ago to be held against, or nobody is left to be, there is nothing to wait for."""
    over = alarm.state == "open" and alarm.key.against == "past" and alarm.first < shifted(window, -DAYS)
    if not over and alarm.last < shifted(window, -GAP):
        mine = (DriftDay.digest == alarm.key.digest, DriftDay.stratum == alarm.key.stratum)
        newest = session.exec(select(func.max(DriftDay.window)).where(*mine)).one()
        over = newest is None or newest < shifted(window, -GAP)
    return replace(alarm, state="settled", ended=window) if over else alarm


def _without_void(alarms: Mapping[Key, Alarm]) -> dict[Key, Alarm]:
    """Where one alarm settled, what else was suspected of that past is void."""
    settled = {(a.key.digest, a.key.against) for a in alarms.values() if a.state == "settled"}
    void = [k for k, a in alarms.items() if a.state == "suspected" and (k.digest, k.against) in settled]
    return {key: alarm for key, alarm in alarms.items() if key not in void}


def _disturbs(alarm: Alarm, digest: str) -> bool:
    return alarm.state == "open" and alarm.key.against == "past" and alarm.key.digest == digest


def _write_days(session: Session, window: str, one: Judged, *, calm: bool) -> None:
    for stratum, (devices, look) in one.totals.items():
        scores = [json.loads(_score_text(s)) | asdict(s.key) for s in one.scores if s.key.stratum == stratum]
        session.merge(
            DriftDay(
                digest=one.digest,
                stratum=stratum,
                window=window,
                model=one.model,
                devices=devices,
                calm=calm,
                look=look.text(),
                scores=dump_json(scores).decode(),
            )
        )


def _write_past(session: Session, alarm: Alarm) -> None:
    """What an alarm means for the past: what came since its first sign is none; where it settled a new one begins."""
    if alarm.key.against != "past":
        return
    mine = select(DriftDay).where(DriftDay.digest == alarm.key.digest)
    if alarm.state == "open":
        for day in session.exec(mine.where(DriftDay.window >= alarm.first)):
            day.calm = False
            session.add(day)
    elif alarm.state == "settled":
        session.exec(delete(DriftPast).where(col(DriftPast.digest) == alarm.key.digest))
        for day in session.exec(mine):
            day.calm = False
            session.add(day)
