"""Which devices there are: found by query, page by page; put into groups, tagged and noted, one or thousands at once.

page = find(session, Asked(where="tag:kitchen and late", limit=100), caller, hearing)
change(session, row, Change(add=("kitchen",)), caller, now)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Final

import sqlalchemy
from sqlmodel import Session, col, select

from fleet import devices, queries
from fleet.access import Caller
from fleet.errors import Conflict, FleetError, Malformed
from fleet.health import history
from fleet.health.status import Hearing
from fleet.inventory_csv import MOST_TAGS, Line, check_note, raise_faults
from fleet.queries import Standing
from fleet.rollout.reading import standing_in
from fleet.store.tables import Device
from fleet.tags import set_tags, tags_of
from fleet.trust.enrolment import Enrolment, KitRequest
from fleet.trust.identity import OUT
from wire.document import check_name
from wire.errors import WireError
from wire.kit import EnrolmentKit

PAGE: Final = 500
LARGEST: Final = 1_000
_TOGETHER: Final = 500


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Devices by id, behind `after`, at most `limit`. `where` is a query of `fleet.queries`."""

    status: str | None = None
    group: str | None = None
    where: str | None = None
    after: str = ""
    limit: int = PAGE


@dataclass(frozen=True, kw_only=True)
class Change:
    """What people say of a device; None leaves it as it is. A tag in both is taken away."""

    group: str | None = None
    add: Sequence[str] = ()
    remove: Sequence[str] = ()
    note: str | None = None


def find(session: Session, asked: Asked, caller: Caller, hearing: Hearing) -> list[Device]:
    """A page of those that the caller may act on; one that is not full is the last. Raises `Malformed`."""
    if not 1 <= asked.limit <= LARGEST:
        raise Malformed(f"limit: expected 1 to {LARGEST}, got {asked.limit}")
    found = _ids(session, asked, caller, hearing)[: asked.limit]
    groups = (found[i : i + _TOGETHER] for i in range(0, len(found), _TOGETHER))
    rows = (d for g in groups for d in session.exec(select(Device).where(col(Device.id).in_(g))))
    return sorted(rows, key=attrgetter("id"))


def meant(
    session: Session, where: str | None, group: str | None, words: Mapping[str, str], caller: Caller | None = None
) -> list[Standing]:
    """Every device of a query and a group, by id. `words`: the status of the enrolled. Raises `Malformed`."""
    matches = queries.predicate(queries.parse(where)) if where else lambda _standing: True
    columns = (col(Device.id), col(Device.profile), col(Device.group), col(Device.state))
    query = sqlalchemy.select(*columns)
    if group is not None:
        query = query.where(col(Device.group) == group)
    if caller is not None and caller.groups:
        query = query.where(col(Device.group).in_(sorted(caller.groups)))
    tags, none = tags_of(session), frozenset[str]()
    standings = (
        Standing(id_, profile, of, tags.get(id_, none), words.get(id_, "enrolling" if state == "new" else state))
        for id_, profile, of, state in session.connection().execute(query)
    )
    # Sorted here: PostgreSQL sorts by a language, which puts a-c behind ab, and a page after ab would lack it.
    return sorted((one for one in standings if matches(one)), key=attrgetter("device"))


def _ids(session: Session, asked: Asked, caller: Caller, hearing: Hearing) -> list[str]:
    session.flush()
    standings = meant(session, asked.where, asked.group, devices.statuses(session, hearing), caller)
    return [s.device for s in standings if s.device > asked.after and asked.status in (None, s.state)]


def change(session: Session, row: Device, change: Change, caller: Caller, now: datetime) -> None:
    """Change what people say of a device, and note it in its history.

    Raises `Malformed`, `Forbidden`, and `Conflict` for another group while a rollout to the group of before is open.
    """
    if change.group is not None and change.group != row.group:
        caller.check_group(check_name(change.group, "group"))
        _check_stays(session, row)
        history.note(session, row.id, now, "group", before=row.group, after=change.group, who=caller.name)
        row.group = change.group
    there = tags_of(session, [row.id]).get(row.id, frozenset())
    _set_tags(session, row, (there | set(change.add)) - set(change.remove), caller, now)
    if change.note is not None and change.note != row.note:
        history.note(session, row.id, now, "note", before=row.note, after=check_note(change.note), who=caller.name)
        row.note = change.note
    session.add(row)


def _check_stays(session: Session, row: Device) -> None:
    """Rollouts to two groups run side by side because they share no device, and each brings back what it touched."""
    for rollout, _ in standing_in(session, [row.id]):
        if rollout.group is not None:
            raise Conflict(
                f"device {row.id}: stands in rollout {rollout.id} of {rollout.name} {rollout.version} to group "
                f"{rollout.group}, which is {rollout.state}: wait for it or abort it, then change the group"
            )


def _set_tags(session: Session, row: Device, wanted: Iterable[str], caller: Caller, now: datetime) -> None:
    there, tags = tags_of(session, [row.id]).get(row.id, frozenset()), frozenset(wanted)
    if tags == there:
        return
    if len(tags) > MOST_TAGS:
        raise Malformed(f"device {row.id}: {len(tags)} tags: at most {MOST_TAGS}")
    set_tags(session, row.id, tags)
    before, after = (" ".join(sorted(some)) for some in (there, tags))
    history.note(session, row.id, now, "tags", before=before, after=after, who=caller.name)


# --- many at once -----------------------------------------------------------------------------------------------------


def lines(session: Session, caller: Caller, where: str | None, hearing: Hearing) -> list[Line]:
    """Every device that is not out, as a line of a file."""
    found = meant(session, where, None, devices.statuses(session, hearing), caller)
    kept = [s for s in found if s.state not in OUT]
    notes = dict(session.exec(select(Device.id, Device.note).where(col(Device.note) != "")).all())
    return [Line(s.device, s.profile, s.group, s.tags, notes.get(s.device, "")) for s in kept]


@dataclass(frozen=True)
class Imported:
    """What a file did: kits of the devices that are new, ids of those that changed, how many it left as they are."""

    kits: tuple[EnrolmentKit, ...]
    changed: tuple[str, ...]
    same: int


def take_lines(
    session: Session,
    enrolment: Enrolment,
    caller: Caller,
    found: Sequence[Line],
    trust: Mapping[str, str],
    now: datetime,
) -> Imported:
    """Make kits for those that are new and change those that are there, all or, by an error, none.

    Raises `Malformed` that names each line at fault: an unknown profile, a group of others, another profile than a
    device has. The caller's transaction undoes what went before it.
    """
    kits, changed, faults = list[EnrolmentKit](), list[str](), list[str]()
    for line in found:
        try:
            kit, is_changed = _take_line(session, enrolment, caller, line, trust, now)
        except (FleetError, WireError) as e:
            faults.append(f"line {line.number}: {e}")
            continue
        kits.extend([kit] if kit else ())
        changed.extend([line.id] if is_changed and not kit else ())
    raise_faults(faults)
    return Imported(tuple(kits), tuple(changed), len(found) - len(kits) - len(changed))


def _take_line(
    session: Session, enrolment: Enrolment, caller: Caller, line: Line, trust: Mapping[str, str], now: datetime
) -> tuple[EnrolmentKit | None, bool]:
    row, kit = session.get(Device, line.id), None
    caller.check_group(line.group)
    if row is not None:
        caller.check_group(row.group)
    if row is None or row.state in OUT:
        asked = KitRequest(device=line.id, profile=line.profile, group=line.group)
        kit = enrolment.kit(session, asked, trust)
        row = session.get_one(Device, line.id)
    elif row.profile != line.profile:
        raise Malformed(f"{line.id}: its profile is {row.profile}: revoke it and make a new kit to change that")
    there = tags_of(session, [row.id]).get(row.id, frozenset())
    if (row.group, there, row.note) == (line.group, line.tags, line.note):
        return kit, False
    asked_for = Change(group=line.group, add=tuple(line.tags), remove=tuple(there - line.tags), note=line.note)
    change(session, row, asked_for, caller, now)
    return kit, True
