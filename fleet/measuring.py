"""Measuring jobs: a device of the fleet times a release that it does not run, and what it says becomes evidence.

    row = measuring.start(session, MeasureRequest(target=..., device=..., rounds=100), caller)
    measuring.take_report(session, device, reported)    # True: its desired state is another one now

A figure is `measured` only on hardware of the profile that the release was made for; on any other machine it is
`emulated`. What was taken while the clock was held down is kept and marked, and is no evidence.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlmodel import Session, col, select

from fleet import devices
from fleet.access import Caller
from fleet.errors import Conflict, NotFound
from fleet.store.tables import Device, MeasureRow
from fleet.trust.desired import DesiredStates, jobs_of, models_of
from fleet.trust.identity import LISTENED
from fleet.trust.repository import Repository
from wire.evidence import Kind, Measurement
from wire.messages import MeasureReport, Reported, Timing
from wire.orders import MAX_JOBS, MeasureJob
from wire.units import show_instant


@dataclass(frozen=True, kw_only=True)
class MeasureRequest:
    """What an operator asks for: one release on one device."""

    target: str
    device: str
    rounds: int


@dataclass(frozen=True)
class Measuring:
    """Starts and ends measuring jobs. The commit, and publishing desired states, are left to the caller."""

    repository: Repository
    desired: DesiredStates
    clock: Callable[[], datetime]

    def start(self, session: Session, request: MeasureRequest, caller: Caller) -> MeasureRow:
        """A new job, and a new desired state of its device.

        Raises wire's `Malformed` for a bad target or number of rounds, `NotFound` for a device or release that is not
        there, `Forbidden` for a device of another group, and `Conflict` for one that cannot or need not do it.
        """
        device = devices.find(session, request.device)
        caller.check_group(device.group)
        listed = self.repository.releases.get(request.target)
        if listed is None:
            raise NotFound(
                f"{request.target[:200]}: no such release is listed: `shoal model list` shows those there are"
            )
        what = f"measuring {request.target} on {device.id}"
        if device.state != "enrolled":
            raise Conflict(f"{what}: it is {device.state}: only an enrolled device measures")
        if device.profile != listed.manifest.profile:
            raise Conflict(f"{what}: the release is for {listed.manifest.profile}, the device is a {device.profile}")
        job = MeasureJob(
            id=f"m-{secrets.token_hex(6)}", target=request.target, digest=listed.release.digest, rounds=request.rounds
        )
        self._check_free(session, device, job)
        row = MeasureRow(
            id=job.id,
            device=device.id,
            target=job.target,
            digest=job.digest,
            rounds=job.rounds,
            who=caller.name,
            created=show_instant(self.clock()),
        )
        session.add(row)
        session.flush()
        self.desired.assign(session, device, models_of(device))
        return row

    def cancel(self, session: Session, id_: str, caller: Caller) -> MeasureRow:
        """Take a job back; the same again changes nothing.

        Raises `NotFound`, `Forbidden`, and `Conflict` when it has ended.
        """
        row = find(session, id_)
        device = devices.find(session, row.device)
        caller.check_group(device.group)
        if row.state == "cancelled":
            return row
        if row.ended is not None:
            raise Conflict(f"measuring job {id_}: is {row.state} already: nothing to cancel")
        self._end(session, row, "cancelled", f"by {caller.name}")
        if device.state in LISTENED:
            self.desired.assign(session, device, models_of(device))
        return row

    def take_report(self, session: Session, device: Device, reported: Reported) -> bool:
        """What a device's verified report says of its jobs. True when one ended, so that its desired state is new."""
        ended = False
        for report in reported.measured:
            row = session.exec(select(MeasureRow).where(MeasureRow.id == report.id)).first()
            if row is None or row.ended is not None or (row.device, row.digest) != (device.id, report.digest):
                continue
            row.state, row.reason = report.phase, report.reason[:1000]
            session.add(row)
            if report.ended:
                self._take_outcome(session, row, device, report, reported)
                ended = True
        if ended:
            self.desired.assign(session, device, models_of(device))
        return ended

    def tick(self, session: Session) -> None:
        """Jobs of devices that left end."""
        lost = select(MeasureRow).join(Device, col(Device.id) == col(MeasureRow.device))
        for row in session.exec(lost.where(col(MeasureRow.ended).is_(None), Device.state != "enrolled")).all():
            self._end(session, row, "cancelled", "the device left the fleet")

    def _take_outcome(
        self, session: Session, row: MeasureRow, device: Device, report: MeasureReport, reported: Reported
    ) -> None:
        row.profile, row.hardware, row.emulated = reported.profile[:64], reported.hardware[:200], reported.emulated
        if report.timing is not None:
            listed = self.repository.releases.get(row.target)
            profiles = {reported.profile, device.profile, listed.manifest.profile if listed else ""}
            of_profile = len(profiles) == 1 and not reported.emulated
            found = measurements(report.timing, f"{row.hardware} ({row.device})", of_profile=of_profile)
            row.timing = report.timing.to_bytes().decode()
            row.measurements = json.dumps([m.to_value() for m in found])
        self._end(session, row, report.phase, report.reason)

    def _end(self, session: Session, row: MeasureRow, state: str, reason: str) -> None:
        _end(session, row, state, reason, self.clock())

    def _check_free(self, session: Session, device: Device, job: MeasureJob) -> None:
        jobs = jobs_of(session, device)
        if len(jobs) >= MAX_JOBS:
            raise Conflict(f"device {device.id}: has {len(jobs)} measuring jobs already: wait, or cancel one")
        same = next((other.id for other in jobs if other.digest == job.digest), None)
        if same is not None:
            raise Conflict(f"device {device.id}: measures {job.target} already, as {same}: wait for it, or cancel it")


def measurements(timing: Timing, device: str, *, of_profile: bool) -> tuple[Measurement, ...]:
    """The evidence in a timing; none when the clock was held down. `of_profile`: taken on hardware of the profile."""
    if timing.throttled:
        return ()
    kind: Kind = "measured" if of_profile else "emulated"
    return tuple(
        Measurement(
            metric=metric,
            value=value,
            unit=unit,
            n=n,
            low=low,
            high=high,
            kind=kind,
            device=device,
            runtime=timing.runtime,
        )
        for metric, value, unit, n, low, high in (
            ("latency_p50", timing.p50_ms, "ms", timing.n, timing.p50_low, timing.p50_high),
            ("latency_p99", timing.p99_ms, "ms", timing.n, timing.p99_low, timing.p99_high),
            ("load", timing.load_ms, "ms", 1, None, None),
            ("memory", float(timing.memory), "byte", 1, None, None),
        )
    )


def end_all(session: Session, device: Device, reason: str, now: datetime) -> None:
    """Cancel every job of a device that has not ended. Its next desired state is the caller's."""
    mine = select(MeasureRow).where(MeasureRow.device == device.id, col(MeasureRow.ended).is_(None))
    for row in session.exec(mine).all():
        _end(session, row, "cancelled", reason, now)


def _end(session: Session, row: MeasureRow, state: str, reason: str, now: datetime) -> None:
    row.state, row.reason, row.ended = state, reason[:1000], show_instant(now)
    session.add(row)
    session.flush()


def find(session: Session, id_: str) -> MeasureRow:
    """A job. Raises `NotFound`."""
    row = session.exec(select(MeasureRow).where(MeasureRow.id == id_)).first()
    if row is None:
        raise NotFound(
            f"measuring job {id_[:40]!r}: there is none of that id: `shoal measure list` shows those there are"
        )
    return row


def all_jobs(session: Session, caller: Caller) -> Sequence[MeasureRow]:
    """Every job on a device that the caller may act on, the newest first."""
    query = select(MeasureRow).order_by(col(MeasureRow.number).desc())
    if caller.groups:
        mine = select(Device.id).where(col(Device.group).in_(sorted(caller.groups)))
        query = query.where(col(MeasureRow.device).in_(mine))
    return session.exec(query).all()


def by_digest(session: Session, caller: Caller) -> dict[str, list[dict[str, Any]]]:
    """The jobs that brought a timing, by the digest of the bundle, the newest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in all_jobs(session, caller):
        if row.timing:
            found.setdefault(row.digest, []).append(view(row))
    return found


def view(row: MeasureRow) -> dict[str, Any]:
    """A job as the API shows it. `throttled`: None as long as nothing is known."""
    timing = Timing.from_bytes(row.timing.encode()) if row.timing else None
    return {
        "job": row.id,
        "device": row.device,
        "target": row.target,
        "digest": row.digest,
        "rounds": row.rounds,
        "who": row.who,
        "state": row.state,
        "reason": row.reason,
        "created": row.created,
        "ended": row.ended,
        "profile": row.profile,
        "hardware": row.hardware,
        "emulated": row.emulated,
        "throttled": timing.throttled if timing else None,
        "timing": timing.to_value() if timing else None,
        "measurements": json.loads(row.measurements),
    }
