"""Rollouts in the database: the pure table of `fleet.rollouts` between what was stored and what is sent.

The new state of a rollout and the desired states that follow from it are one transaction; publishing comes after it and
can be repeated. So a fleet that is killed anywhere goes on where it was.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

from sqlmodel import Session, col, func, select

from fleet import rollouts
from fleet.access import Caller
from fleet.errors import Conflict, Forbidden, NotFound
from fleet.rollouts import AbortAsked, Committed, Event, Failed, Left, Member, MemberState, Rollout, Step, Tick, Verdict
from fleet.store.tables import Device, RolloutDevice, RolloutRow
from fleet.trust.desired import DesiredStates, models_of
from fleet.trust.identity import LISTENED
from fleet.trust.repository import Repository
from wire.messages import Reported, UpdateReport
from wire.orders import DesiredModel
from wire.units import instant, show_instant

Owed = tuple[RolloutRow, RolloutDevice]
"""A running rollout and the place in it of a device that was sent a release and has not answered."""
MANY = 500
"""Devices of a rollout from which on it is not read as a whole at every tick."""


@dataclass(frozen=True, kw_only=True)
class RolloutRequest:
    """What an operator asks for. A repeated `key` gives the rollout of the first time; no `group` means every group."""

    family: str
    name: str
    version: str
    waves: Sequence[int]
    group: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Rollouts:
    """Starts, moves and ends rollouts. The commit, and publishing what it changed, are left to the caller."""

    repository: Repository
    desired: DesiredStates
    settle_after: timedelta
    clock: Callable[[], datetime]
    next_look: dict[str, datetime] = field(default_factory=dict)
    """When a tick looks at a rollout again: to read thousands of devices takes a while."""
    ready: Callable[[Session, Device, RolloutDevice], bool] = lambda _session, _device, _member: True
    """Whether a release may be sent to a device now; while not, a later tick asks again."""

    def start(self, session: Session, request: RolloutRequest, caller: Caller) -> tuple[RolloutRow, list[str]]:
        """A new rollout with its first wave, and the devices whose desired state changed.

        Raises `Malformed` for bad waves, `Forbidden` for a group that the caller is not given, `NotFound` for a version
        without releases, and `Conflict` when no enrolled device can run it or another rollout of the model is running.
        """
        rollouts.check_waves(request.waves)
        check_scope(caller, request.group)
        if request.key is not None and (known := _by_key(session, request.key)) is not None:
            return _repeated(known, request), []
        releases = self.repository.of_version(request.family, request.name, request.version)
        _check_free(session, request)
        eligible = {d.id: releases[d.profile] for d in _enrolled(session, request.group) if d.profile in releases}
        if not eligible:
            what = f"rollout of {request.name} {request.version}"
            of_group = f" of group {request.group}" if request.group else ""
            profiles = ", ".join(sorted(releases))
            raise Conflict(f"{what}: no enrolled device{of_group} has a profile it was released for: {profiles}")
        now = self.clock()
        step = rollouts.start(f"r-{secrets.token_hex(6)}", eligible, request.waves, now)
        row = _new_row(step.rollout, request, now)
        session.add(row)
        session.flush()
        for member in step.rollout.members:
            release = eligible[member.device].release
            session.add(_new_member(row.id, member, release.target, release.digest))
        session.flush()
        return row, self._store(session, row, step, _members(session, row.id))

    def abort(self, session: Session, id_: str, reason: str, caller: Caller) -> tuple[RolloutRow, list[str]]:
        """End a rollout and bring back what it touched; the same again changes nothing.

        Raises `NotFound`, `Forbidden` for a rollout of another group, or `Conflict` when it has ended in another way.
        """
        row = find(session, id_)
        check_scope(caller, row.group)
        if row.state == "aborted" and json.loads(row.reasons) == [reason]:
            return row, []
        if row.state != "running":
            raise Conflict(f"rollout {id_}: is {row.state} already: nothing to abort")
        return row, self._apply(session, row, AbortAsked(reason))

    def owed(self, session: Session, devices: Sequence[str]) -> dict[str, list[Owed]]:
        """What devices were sent a release of and have not answered, in running rollouts."""
        owed: dict[str, list[Owed]] = {}
        for row, member in _asked(session, devices) if devices else ():
            owed.setdefault(member.device, []).append((row, member))
        return owed

    def take_report(self, session: Session, reported: Reported, owed: Sequence[Owed]) -> list[str]:
        """What a device's verified report means for the rollouts that it owed an answer (`Rollouts.owed`)."""
        changed: list[str] = []
        for row, member in owed:
            event = _answer(member, reported)
            if event is None or row.state != "running" or member.state != "sent":
                continue
            if _others_owe(session, member):  # then the verdict is HOLD, or the next tick's: not all have to be read
                member.state, member.reason = _state_of(event)
                session.add(member)
            else:
                changed += self._apply(session, row, event)
        return changed

    def tick(self, session: Session) -> list[str]:
        """Time has passed: look at every running rollout."""
        changed: list[str] = []
        for row in _running(session):
            now = self.clock()
            if now < self.next_look.get(row.id, now):
                continue
            events: list[Event] = [*map(Left, _left(session, row.id)), Tick()]
            for event in events:
                changed += self._apply(session, row, event)
            changed += self._send_all(session, row, _held(session, row.id))
            looked = self.clock() - now  # on a busy machine it takes several times as long
            self.next_look[row.id] = now + max(_pause(session, row.id), 10 * looked)
        return changed

    def _apply(self, session: Session, row: RolloutRow, event: Event) -> list[str]:
        members = _members(session, row.id)
        step = rollouts.advance(_rollout(row, members), event, self.clock(), self.settle_after)
        return self._store(session, row, step, members)

    def _store(self, session: Session, row: RolloutRow, step: Step, members: Sequence[RolloutDevice]) -> list[str]:
        _save(session, row, step.rollout, members)
        for device in step.back:
            self._bring_back(session, session.get_one(RolloutDevice, (row.id, device)))
        return [*step.back, *self._send_all(session, row, step.send)]

    def _send_all(self, session: Session, row: RolloutRow, devices: Sequence[str]) -> list[str]:
        changed, failed = [], []
        for device in devices:
            try:
                if self._send(session, session.get_one(RolloutDevice, (row.id, device))):
                    changed.append(device)
            except Conflict as e:  # its desired state would grow too large: the device is at fault, not the tick
                failed.append(Failed(device, str(e)))
        for event in failed:
            changed += self._apply(session, row, event)
        return changed

    def _send(self, session: Session, member: RolloutDevice) -> bool:
        """Whether the release is in the device's desired state now."""
        device = session.get_one(Device, member.device)
        if device.state != "enrolled":
            return False  # it left: the next tick says so
        new = DesiredModel(target=member.target, digest=member.digest, rollout=member.rollout)
        before = [m for m in models_of(device) if m.model == new.model]
        member.before = before[0].to_bytes().decode() if before else ""
        session.add(member)
        if not self.ready(session, device, member):
            return False
        self.desired.assign(session, device, [*(m for m in models_of(device) if m.model != new.model), new])
        member.sent_seq = device.desired_seq
        session.add(member)
        return True

    def _bring_back(self, session: Session, member: RolloutDevice) -> None:
        device = session.get_one(Device, member.device)
        if device.state not in LISTENED:
            return
        model = DesiredModel(target=member.target, digest=member.digest).model
        before = [DesiredModel.from_bytes(member.before.encode())] if member.before else []
        self.desired.assign(session, device, [*(m for m in models_of(device) if m.model != model), *before])


def find(session: Session, id_: str) -> RolloutRow:
    """A rollout. Raises `NotFound`."""
    row = session.get(RolloutRow, id_)
    if row is None:
        raise NotFound(f"rollout {id_[:40]!r}: there is none of that id: `shoal rollout list` shows those there are")
    return row


def check_scope(caller: Caller, group: str | None) -> None:
    """Raises `Forbidden` unless the caller may act on a rollout to this group; None is every group."""
    if group is not None:
        caller.check_group(group)
    elif caller.groups:
        mine = ", ".join(sorted(caller.groups))
        raise Forbidden(f"{caller.name}: a rollout to every group is not yours, only to {mine}: name one of them")


def all_rollouts(session: Session) -> Sequence[RolloutRow]:
    """Every rollout, the newest first."""
    return session.exec(select(RolloutRow).order_by(col(RolloutRow.started).desc(), col(RolloutRow.id))).all()


def view(session: Session, row: RolloutRow) -> dict[str, Any]:
    """A rollout as the API shows it."""
    return {
        "rollout": row.id,
        "family": row.family,
        "name": row.name,
        "version": row.version,
        "group": row.group,
        "waves": json.loads(row.waves),
        "wave": row.wave,
        "state": row.state,
        "verdict": row.verdict,
        "reasons": json.loads(row.reasons),
        "started": row.started,
        "devices": [
            {"device": m.device, "target": m.target, "wave": m.wave, "state": m.state, "reason": m.reason}
            for m in _members(session, row.id)
        ],
    }


def _answer(member: RolloutDevice, reported: Reported) -> Committed | Failed | None:
    """What a report says of a device that was sent the release: it runs it, refused it, or nothing yet."""
    update = next((u for u in reported.updates if _is_of(u, member)), None)
    if update is not None:
        if update.phase == "committed":
            return Committed(member.device)
        if update.phase in ("failed", "refused"):
            return Failed(member.device, f"{update.phase}: {update.reason or 'no reason given'}")
        return None
    active = any(s.slot == "active" and s.digest == member.digest for s in reported.slots)
    return Committed(member.device) if active and reported.desired_seq >= member.sent_seq else None


def _state_of(event: Committed | Failed) -> tuple[MemberState, str]:
    """What `rollouts.advance` makes of a device that was sent the release."""
    return ("committed", "") if isinstance(event, Committed) else ("failed", event.reason)


def _others_owe(session: Session, member: RolloutDevice) -> bool:
    """Whether another device of the rollout has been sent the release and has not answered."""
    query = select(RolloutDevice.device).where(RolloutDevice.rollout == member.rollout, RolloutDevice.state == "sent")
    return session.exec(query.where(RolloutDevice.device != member.device).limit(1)).first() is not None


def _pause(session: Session, rollout: str) -> timedelta:
    """None for a small rollout; a second for each thousand devices of a large one, a tenth of which one look takes."""
    count = session.exec(select(func.count()).select_from(RolloutDevice).where(RolloutDevice.rollout == rollout)).one()
    return timedelta(milliseconds=count) if count >= MANY else timedelta(0)


def _is_of(update: UpdateReport, member: RolloutDevice) -> bool:
    return update.rollout == member.rollout and update.digest == member.digest


def _rollout(row: RolloutRow, members: Sequence[RolloutDevice]) -> Rollout:
    return Rollout(
        id=row.id,
        waves=tuple(json.loads(row.waves)),
        members=tuple(Member(m.device, m.wave, cast(MemberState, m.state), m.reason) for m in members),
        wave=row.wave,
        wave_started=instant(row.wave_started),
        state=cast(Any, row.state),
        verdict=cast(Verdict, row.verdict),
        reasons=tuple(json.loads(row.reasons)),
    )


def _save(session: Session, row: RolloutRow, rollout: Rollout, members: Sequence[RolloutDevice]) -> None:
    row.wave, row.wave_started = rollout.wave, show_instant(rollout.wave_started)
    row.state, row.verdict, row.reasons = rollout.state, rollout.verdict, json.dumps(rollout.reasons)
    session.add(row)
    stored = {m.device: m for m in members}
    for member in rollout.members:
        known = stored[member.device]
        if (known.state, known.reason) != (member.state, member.reason):
            known.state, known.reason = member.state, member.reason
            session.add(known)


def _new_row(rollout: Rollout, request: RolloutRequest, now: datetime) -> RolloutRow:
    return RolloutRow(
        id=rollout.id,
        request_key=request.key,
        group=request.group,
        family=request.family,
        name=request.name,
        version=request.version,
        waves=json.dumps(list(request.waves)),
        wave=rollout.wave,
        state=rollout.state,
        verdict=rollout.verdict,
        reasons=json.dumps(rollout.reasons),
        started=show_instant(now),
        wave_started=show_instant(rollout.wave_started),
    )


def _new_member(rollout: str, member: Member, target: str, digest: str) -> RolloutDevice:
    return RolloutDevice(
        rollout=rollout, device=member.device, target=target, digest=digest, wave=member.wave, state=member.state
    )


def _members(session: Session, rollout: str) -> Sequence[RolloutDevice]:
    query = select(RolloutDevice).where(RolloutDevice.rollout == rollout)
    return session.exec(query.order_by(col(RolloutDevice.wave), col(RolloutDevice.device))).all()


def _running(session: Session) -> Iterator[RolloutRow]:
    yield from session.exec(select(RolloutRow).where(RolloutRow.state == "running")).all()


def _asked(session: Session, devices: Sequence[str]) -> Sequence[Owed]:
    both = select(RolloutRow, RolloutDevice).join(RolloutDevice, col(RolloutDevice.rollout) == col(RolloutRow.id))
    owed = both.where(RolloutRow.state == "running", RolloutDevice.state == "sent")
    return session.exec(owed.where(col(RolloutDevice.device).in_(devices))).all()


def _enrolled(session: Session, group: str | None) -> Sequence[Device]:
    query = select(Device).where(Device.state == "enrolled")
    return session.exec(query if group is None else query.where(Device.group == group)).all()


def _held(session: Session, rollout: str) -> Sequence[str]:
    """Devices whose turn it is and that were not sent the release yet."""
    turn = select(RolloutDevice.device).where(RolloutDevice.rollout == rollout, RolloutDevice.state == "sent")
    return session.exec(turn.where(RolloutDevice.sent_seq == 0).order_by(col(RolloutDevice.device))).all()


def _left(session: Session, rollout: str) -> Sequence[str]:
    """Devices that have not answered and are no longer enrolled."""
    query = select(RolloutDevice.device).join(Device).where(RolloutDevice.rollout == rollout)
    unanswered = col(RolloutDevice.state).in_(("waiting", "sent"))
    return session.exec(query.where(unanswered, Device.state != "enrolled")).all()


def _by_key(session: Session, key: str) -> RolloutRow | None:
    return session.exec(select(RolloutRow).where(RolloutRow.request_key == key)).first()


def _repeated(row: RolloutRow, request: RolloutRequest) -> RolloutRow:
    asked = (request.family, request.name, request.version, list(request.waves), request.group)
    if asked != (row.family, row.name, row.version, json.loads(row.waves), row.group):
        raise Conflict(f"idempotency key {request.key!r}: was used for another rollout, {row.id}: use a new key")
    return row


def _check_free(session: Session, request: RolloutRequest) -> None:
    for row in _running(session):
        # Two groups share no device.
        if row.name == request.name and (None in (row.group, request.group) or row.group == request.group):
            raise Conflict(f"rollout {row.id} of {row.name} {row.version} is running: wait for it or abort it first")
