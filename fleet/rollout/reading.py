"""What a look at a rollout reads from the database, and how little of each device it takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import sqlalchemy
from sqlmodel import Session, col, select

from fleet import queries
from fleet.errors import NotFound
from fleet.queries import Query, Standing
from fleet.rollout.deciding import HOLDING
from fleet.rollout.table import OPEN
from fleet.store.rollout_tables import RolloutProfile
from fleet.store.tables import Device, DeviceStats, RolloutDevice, RolloutRow
from fleet.tags import tags_of
from wire.bundle import split_target
from wire.orders import DesiredModel

Owed = tuple[RolloutRow, RolloutDevice]
"""An open rollout and the place in it of a device that was sent a release and has not answered."""
States = Callable[[Session, Collection[str]], Mapping[str, str]]
"""Devices by one of the words of `fleet.queries.STATES`."""
_TOGETHER: Final = 500


class Enrolled(NamedTuple):
    """What a rollout asks of a device that it may reach."""

    id: str
    profile: str
    group: str
    online: bool
    desired_models: str


class Reached(NamedTuple):
    """A device of a rollout, and how it stands in the fleet now."""

    member: RolloutDevice
    state: str
    profile: str
    desired_models: str


def find(session: Session, id_: str) -> RolloutRow:
    """A rollout. Raises `NotFound`."""
    row = session.get(RolloutRow, id_)
    if row is None:
        raise NotFound(f"rollout {id_[:40]!r}: there is none of that id: `shoal rollout list` shows those there are")
    return row


def open_rollouts(session: Session) -> Sequence[RolloutRow]:
    """Those that have not ended."""
    return session.exec(select(RolloutRow).where(col(RolloutRow.state).in_(OPEN)).order_by(col(RolloutRow.id))).all()


def all_rollouts(session: Session) -> Sequence[RolloutRow]:
    """Every rollout, the newest first."""
    return session.exec(select(RolloutRow).order_by(col(RolloutRow.started).desc(), col(RolloutRow.id))).all()


def members(session: Session, rollout: str) -> Sequence[RolloutDevice]:
    """The devices that a rollout reached, by wave and name."""
    query = select(RolloutDevice).where(RolloutDevice.rollout == rollout)
    return session.exec(query.order_by(col(RolloutDevice.wave), col(RolloutDevice.device))).all()


def reached(session: Session, rollout: str) -> list[Reached]:
    """The same, with how each stands in the fleet now."""
    query = select(RolloutDevice, Device.state, Device.profile, Device.desired_models)
    fresh = {"populate_existing": True}  # an answer in a savepoint that was undone stays in no memory
    found = session.exec(query.join(Device).where(RolloutDevice.rollout == rollout), execution_options=fresh).all()
    return sorted((Reached(*row) for row in found), key=lambda r: (r.member.wave, r.member.device))


def profiles(session: Session, rollout: str) -> dict[str, RolloutProfile]:
    """What is kept of each profile of a rollout."""
    found = session.exec(select(RolloutProfile).where(RolloutProfile.rollout == rollout)).all()
    return {row.profile: row for row in sorted(found, key=lambda row: row.profile)}


def meant(session: Session, group: str | None, target: Query, states: States | None) -> list[Enrolled]:
    """The enrolled devices that a target means; of one group, if one is named."""
    columns = (col(Device.id), col(Device.profile), col(Device.group), col(Device.online), col(Device.desired_models))
    query = sqlalchemy.select(*columns).where(col(Device.state) == "enrolled")
    if group is not None:
        query = query.where(col(Device.group) == group)
    session.flush()
    found = list(map(Enrolled._make, session.connection().execute(query).fetchall()))
    if isinstance(target, queries.Everything):
        return found
    asked = queries.asked_tags(target)
    tags = tags_of(session, only=asked) if asked is None or asked else {}
    said = states(session, [d.id for d in found]) if states is not None and queries.asks_for(target, "state") else {}
    matches, none = queries.predicate(target), frozenset[str]()

    def standing(d: Enrolled) -> Standing:
        state = said.get(d.id) or ("online" if d.online else "offline")
        return Standing(d.id, d.profile, d.group, tags.get(d.id, none), state)

    return [d for d in found if matches(standing(d))]


def health_of(session: Session, devices: Collection[str]) -> Mapping[str, Mapping[str, Any]]:
    """What devices said last of their machines; all are read where many are meant."""
    query = select(DeviceStats.device, DeviceStats.health).where(DeviceStats.health != "")
    if len(devices) <= _TOGETHER:
        query = query.where(col(DeviceStats.device).in_(devices))
    return {device: json.loads(health) for device, health in session.exec(query).all()}


@lru_cache(4096)
def version_there(desired_models: str, model: str) -> str:
    """The version of a model that a device should run now, or ""."""
    before = incumbent(desired_models, model)
    return split_target(before.target)[2] if before is not None else ""


@lru_cache(4096)
def incumbent(desired_models: str, model: str) -> DesiredModel | None:
    """What a device should run of a model now. Many devices have the same text, so it is read once."""
    if model not in desired_models:
        return None
    found = (DesiredModel.from_value(value) for value in json.loads(desired_models))
    return next((one for one in found if one.model == model), None)


def owed(session: Session, devices: Sequence[str]) -> dict[str, list[Owed]]:
    """What devices were sent a release of and have not answered, in open rollouts."""
    both = select(RolloutRow, RolloutDevice).join(RolloutDevice, col(RolloutDevice.rollout) == col(RolloutRow.id))
    query = both.where(col(RolloutRow.state).in_(OPEN), RolloutDevice.state == "sent")
    found: dict[str, list[Owed]] = {}
    for row, member in session.exec(query.where(col(RolloutDevice.device).in_(devices))).all() if devices else ():
        found.setdefault(member.device, []).append((row, member))
    return found


def others_owe(session: Session, member: RolloutDevice) -> bool:
    """Whether another device of the rollout has been sent the release and has not answered."""
    query = select(RolloutDevice.device).where(RolloutDevice.rollout == member.rollout, RolloutDevice.state == "sent")
    return session.exec(query.where(RolloutDevice.device != member.device).limit(1)).first() is not None


def standing_in(session: Session, devices: Collection[str]) -> Sequence[tuple[RolloutRow, RolloutDevice]]:
    """Open rollouts that reached some of these devices and may still bring them back, with those devices."""
    both = select(RolloutRow, RolloutDevice).join(RolloutDevice, col(RolloutDevice.rollout) == col(RolloutRow.id))
    held = both.where(col(RolloutRow.state).in_(OPEN), col(RolloutDevice.state).in_(HOLDING))
    named = list(devices)
    groups = (named[i : i + _TOGETHER] for i in range(0, len(named), _TOGETHER))
    return [row for g in groups for row in session.exec(held.where(col(RolloutDevice.device).in_(g))).all()]


def unsent(session: Session, rollout: str) -> Sequence[RolloutDevice]:
    """Devices whose turn it is and that were not sent the release yet."""
    query = select(RolloutDevice).where(RolloutDevice.rollout == rollout, RolloutDevice.state == "sent")
    return session.exec(query.where(RolloutDevice.sent_seq == 0).order_by(col(RolloutDevice.device))).all()


def devices(session: Session, ids: Collection[str]) -> dict[str, Device]:
    """Rows of devices, in a few queries: one for each was half of what a wave cost."""
    named = list(ids)
    groups = (named[i : i + _TOGETHER] for i in range(0, len(named), _TOGETHER))
    return {d.id: d for g in groups for d in session.exec(select(Device).where(col(Device.id).in_(g))).all()}
