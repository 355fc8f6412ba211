"""The queue of builds in the database: asked for, taken in order, followed, ended.

    row = queue.submit(session, request, who, key)      # queued
    row = queue.take()                                  # running, or None
    queue.end(row.id, "failed", "out of memory: ...")

Runs on the serial thread. A build that was running when the fleet stopped is not run again: it may be what took the
machine down, and what it had made is in the cache, so that asking again is cheap.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from sqlmodel import Session, col, func, select

from fleet import profiles
from fleet.builds import datasets, sources
from fleet.errors import Conflict, NotFound
from fleet.store.database import Database
from fleet.store.tables import BuildRow, DatasetRow
from wire.build import BuildJob, Data
from wire.profile import Minimise
from wire.units import show_instant

STOPPED: Final = "the fleet was stopped while it ran: submit it again; what was made so far is in the cache"
ENDED: Final = frozenset({"succeeded", "failed", "infeasible", "cancelled"})
MOST_QUEUED: Final = 100
_LISTED: Final = 200


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What a build is asked for; words as in `wire.build.BuildJob`. `source`, `test`, `calibration` are digests."""

    family: str
    name: str
    version: str
    source: str
    test: str
    calibration: str | None = None
    describe: str | None = None
    """The text of a description, in TOML."""
    profiles: tuple[str, ...]
    max_drop: float = 1.0
    max_ms: float = 0.0
    max_mb: float = 0.0
    minimise: Minimise | None = None
    confidence: float = 0.95
    recipes: tuple[str, ...] = ()

    def job(
        self,
        *,
        source: str,
        describe: str | None,
        test: Data,
        calibration: Data | None,
        output: str,
        cache: str,
        memory: str,
    ) -> BuildJob:
        """The job for a compiler, with paths of its own. Raises wire's `Malformed`, `NotFound` for a profile."""
        return BuildJob(
            family=self.family,
            name=self.name,
            version=self.version,
            source=source,
            describe=describe,
            test=test,
            calibration=calibration,
            output=output,
            cache=cache,
            profiles=tuple(profiles.load(name) for name in self.profiles),
            max_drop=self.max_drop,
            max_ms=self.max_ms,
            max_mb=self.max_mb,
            minimise=self.minimise,
            confidence=self.confidence,
            recipes=self.recipes,
            memory=memory,
            safe=True,
        )

    @classmethod
    def of(cls, row: BuildRow) -> BuildRequest:
        """What a stored build was asked for."""
        value = json.loads(row.request)
        return cls(**{**value, "profiles": tuple(value["profiles"]), "recipes": tuple(value["recipes"])})


@dataclass(frozen=True)
class Queue:
    """Every build of a fleet."""

    database: Database
    clock: Callable[[], datetime]

    def submit(self, session: Session, request: BuildRequest, who: str, key: str | None) -> BuildRow:
        """Put a build at the end; the same key again gives the same build.

        Raises `Conflict`, `NotFound` for a source, data set or profile, and wire's `Malformed`.
        """
        request = _checked(session, request)
        text = json.dumps(asdict(request))
        known = session.exec(select(BuildRow).where(BuildRow.request_key == key)).first() if key else None
        if known is not None:
            if known.request != text:
                raise Conflict(f"idempotency key {key!r}: was used for another build, {known.id}: use a new key")
            return known
        if len(self._in_state(session, "queued")) >= MOST_QUEUED:
            raise Conflict(f"{MOST_QUEUED} builds wait already: let some end, or cancel them")
        row = BuildRow(
            id=secrets.token_hex(6),
            request_key=key,
            request=text,
            source=request.source,
            who=who,
            created=show_instant(self.clock()),
        )
        session.add(row)
        session.flush()
        return row

    def take(self) -> BuildRow | None:
        """The next one that waits, now running; None when there is none."""
        with self.database.transaction() as session:
            row = next(iter(self._in_state(session, "queued")), None)
            if row is not None:
                row.state, row.started = "running", show_instant(self.clock())
                session.add(row)
            return row

    def note(self, build: str, progress: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
        """The newest progress of a build."""
        with self.database.transaction() as session:
            row = find(session, build)
            row.progress, row.results = json.dumps(progress), json.dumps(list(results))
            session.add(row)

    def end(self, build: str, state: str, reason: str, artifacts: Sequence[Mapping[str, Any]] = ()) -> None:
        """A build is over."""
        with self.database.transaction() as session:
            row = find(session, build)
            row.state, row.reason, row.ended = state, reason, show_instant(self.clock())
            row.artifacts = json.dumps(list(artifacts))
            session.add(row)

    def recover(self) -> list[str]:
        """After a start: those that ran when the fleet was stopped have failed. Gives their ids."""
        with self.database.transaction() as session:
            rows = self._in_state(session, "running")
            for row in rows:
                row.state, row.reason, row.ended = "failed", STOPPED, show_instant(self.clock())
                session.add(row)
            return [row.id for row in rows]

    def cancel(self, session: Session, build: str) -> BuildRow:
        """Take one that waits out of the queue; one that runs is the runner's. Raises `Conflict` for one that ended."""
        row = find(session, build)
        if row.state == "queued":
            row.state, row.reason, row.ended = "cancelled", "cancelled before it began", show_instant(self.clock())
            session.add(row)
        elif row.state in ENDED and row.state != "cancelled":
            raise Conflict(f"build {row.id}: has ended already, {row.state}: nothing is left to cancel")
        return row

    def _in_state(self, session: Session, state: str) -> Sequence[BuildRow]:
        return session.exec(select(BuildRow).where(BuildRow.state == state).order_by(col(BuildRow.number))).all()


def find(session: Session, build: str) -> BuildRow:
    """A build. Raises `NotFound`."""
    row = session.exec(select(BuildRow).where(BuildRow.id == build)).first()
    if row is None:
        raise NotFound(f"build {build[:64]!r}: there is none: see GET /api/v1/builds")
    return row


def newest(session: Session) -> Sequence[BuildRow]:
    """The newest builds first."""
    return session.exec(select(BuildRow).order_by(col(BuildRow.number).desc()).limit(_LISTED)).all()


def view(session: Session, row: BuildRow) -> dict[str, Any]:
    """What is told of a build."""
    lines = json.loads(row.results)
    return {
        "build": row.id,
        "state": row.state,
        "reason": row.reason,
        **json.loads(row.request),
        "who": row.who,
        "created": row.created,
        "started": row.started,
        "ended": row.ended,
        "waits_behind": _before(session, row) if row.state == "queued" else 0,
        "progress": json.loads(row.progress) if row.progress else None,
        "bundles": [line for line in lines if line["event"] == "variant"],
        "notes": [line["message"] for line in lines if line["event"] == "note"],
    }


def _before(session: Session, row: BuildRow) -> int:
    earlier = select(func.count()).where(BuildRow.state == "queued", col(BuildRow.number) < row.number)
    return int(session.exec(earlier).one())


def _checked(session: Session, request: BuildRequest) -> BuildRequest:
    """The request with digests in place of names, and everything that it names found."""
    sources.find(session, request.source)
    test = _dataset(session, request.test, "test")
    calibration = _dataset(session, request.calibration, "calibration", "train") if request.calibration else None
    found = BuildRequest(
        **{**asdict(request), "test": test.digest, "calibration": calibration.digest if calibration else None}
    )
    # A job of its own checks names and numbers before anything waits for hours.
    test_file, paths = Data(path="test"), {"source": "source", "output": "output", "cache": "cache"}
    found.job(**paths, describe=None, test=test_file, calibration=None, memory="1 GiB")
    return found


def _dataset(session: Session, reference: str, *uses: str) -> DatasetRow:
    row = datasets.find(session, reference)
    if row.use not in uses:
        raise Conflict(f"data set {row.name}: is registered for {row.use}, and asked for as {uses[0]}: name another")
    return row
