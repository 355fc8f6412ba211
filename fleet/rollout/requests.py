"""What an operator asks of a rollout, and the row that is made of it."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from sqlmodel import Session, col, select

from fleet import queries
from fleet.access import Caller
from fleet.errors import Conflict, Malformed
from fleet.registry import aliases
from fleet.rollout import reading
from fleet.rollout.terms import Terms
from fleet.store.tables import Device, RolloutRow
from fleet.tags import tags_of
from fleet.trust.repository import ListedRelease
from wire.units import show_instant

_ID: Final = re.compile(r"r-[0-9a-f]{12}")
EXCLUDED: Final = 1000
"""Devices that are left out of a plan and are named in it, at most."""


@dataclass(frozen=True, kw_only=True)
class RolloutRequest:
    """What an operator asks for. A repeated `key` gives the rollout of the first time; no `group` means every group.

    `version` may be an alias of the model, `@production`. `terms` is what `fleet.rollout.terms` reads. `plan`: the id
    of a plan, whose order it keeps.
    """

    family: str
    name: str
    version: str
    terms: Mapping[str, Any]
    group: str | None = None
    plan: str | None = None
    key: str | None = None


def new_id(request: RolloutRequest) -> str:
    """The id of a rollout or plan: that of the plan that is started. Raises `Malformed`."""
    if request.plan is None:
        return f"r-{secrets.token_hex(6)}"
    if not _ID.fullmatch(request.plan):
        raise Malformed(f"plan {request.plan[:40]!r}: expected the id of a plan, such as r-0123456789ab")
    return request.plan


def shared(terms: Terms, request: RolloutRequest, releases: Mapping[str, ListedRelease]) -> dict[str, Any]:
    """The terms as they are kept: the chance of a false alarm is shared by the profiles, unless somebody said so."""
    value, given = terms.to_value(), request.terms.get("gates")
    if not (isinstance(given, Mapping) and "profiles" in given):
        value["gates"] = terms.gates.shared_by(len(releases)).to_value()
    return value


def new_row(id_: str, request: RolloutRequest, terms: dict[str, Any], caller: Caller, now: datetime) -> RolloutRow:
    """The rollout as it is first kept; `terms` are those that `shared` gives."""
    stamp = show_instant(now)
    return RolloutRow(
        id=id_,
        request_key=request.key,
        group=request.group,
        family=request.family,
        name=request.name,
        version=request.version,
        waves=json.dumps(terms["waves"]),
        wave=0,
        state="running" if terms["approval"] == "none" else "awaiting",
        verdict="HOLD",
        reasons="[]",
        started=stamp,
        wave_started=stamp,
        terms=json.dumps(terms),
        created=stamp,
        created_by=caller.name,
    )


def meant(session: Session, request: RolloutRequest) -> RolloutRequest:
    """The request with the version that an alias stands for now. Raises `NotFound`."""
    return replace(request, version=aliases.resolve(session, f"{request.family}/{request.name}", request.version))


def words(row: RolloutRow) -> str:
    """What a rollout is of, and to whom, for its history."""
    target = json.loads(row.terms)["target"]
    return f"{row.family}/{row.name} {row.version} to {target}" + (f" of group {row.group}" if row.group else "")


def by_key(session: Session, key: str) -> RolloutRow | None:
    """The rollout that this idempotency key began."""
    return session.exec(select(RolloutRow).where(RolloutRow.request_key == key)).first()


def as_asked(request: RolloutRequest, terms: Terms) -> str:
    """A request as it was asked: what an alias means, and what is listed, may be another by the time it comes again."""
    asked = (request.family, request.name, request.version, request.group, request.plan, terms.to_value())
    return json.dumps(asked, sort_keys=True)


def repeated(row: RolloutRow, request: RolloutRequest, terms: Terms) -> RolloutRow:
    """The rollout of the first time. Raises `Conflict` when something else is asked under its key."""
    if as_asked(request, terms) != row.asked:
        raise Conflict(f"idempotency key {request.key!r}: was used for another rollout, {row.id}: use a new key")
    return row


def nobody(request: RolloutRequest, terms: Terms, releases: Mapping[str, ListedRelease]) -> str:
    """Why a rollout would reach no device."""
    of_group = f" of group {request.group}" if request.group else ""
    meant = "" if isinstance(terms.target, queries.Everything) else f" that is meant by {queries.show(terms.target)!r}"
    profiles = ", ".join(sorted(releases))
    return (
        f"rollout of {request.name} {request.version}: no enrolled device{of_group}{meant} has a profile it was "
        f"released for: {profiles}"
    )


def left_out(
    session: Session, request: RolloutRequest, terms: Terms, unfit: Sequence[reading.Enrolled]
) -> dict[str, str]:
    """Devices that are meant and would not be reached, with the reason; and those that are not in the fleet yet."""
    found = {d.id: f"{request.version} has no release for its profile, {d.profile}" for d in unfit[:EXCLUDED]}
    query = select(Device.id, Device.profile, Device.group, Device.state)
    others = query.where(col(Device.state).in_(("new", "pending", "retiring"))).order_by(col(Device.id))
    if request.group is not None:
        others = others.where(Device.group == request.group)
    matches, asked, none = queries.predicate(terms.target), queries.asked_tags(terms.target), frozenset[str]()
    tags = tags_of(session, only=asked) if asked is None or asked else {}
    for id_, profile, group, state in session.exec(others):
        standing = queries.Standing(id_, profile, group, tags.get(id_, none), "offline")
        if len(found) < 2 * EXCLUDED and matches(standing):
            found[id_] = f"it is {'enrolling' if state == 'new' else state}, and not in the fleet"
    return found
