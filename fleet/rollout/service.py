"""Rollouts: what people ask of them, what devices report, and what time brings.

Whatever acts asks for the lease first (`fleet.lease`), in the transaction in which it acts. The commit, and publishing
what it changed, are left to the caller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Final, cast

from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col, update

from fleet.access import Caller
from fleet.errors import Conflict, Forbidden, Unavailable
from fleet.lease import Lease
from fleet.rollout import history, reading, requests, table
from fleet.rollout.attempts import attempt_name
from fleet.rollout.deciding import HOLDING
from fleet.rollout.gating import Gating
from fleet.rollout.history import note
from fleet.rollout.looking import Looker
from fleet.rollout.planning import Candidate, Plan, make_plan
from fleet.rollout.reading import Owed, States, find
from fleet.rollout.requests import RolloutRequest
from fleet.rollout.sending import Ready, Sender, has_release
from fleet.rollout.table import State
from fleet.rollout.terms import Terms, parse_terms
from fleet.store.rollout_tables import RolloutProfile
from fleet.store.tables import RolloutDevice, RolloutRow
from fleet.trust.desired import DesiredStates
from fleet.trust.repository import ListedRelease, Repository
from wire.messages import Reported, UpdateReport
from wire.orders import DesiredModel
from wire.units import show_instant

MANY: Final = 500
"""Devices of a rollout from which on it is not read as a whole at every tick."""


@dataclass(frozen=True)
class Planned:
    """A plan with its id, the releases by profile, and who is left out and why."""

    id: str
    plan: Plan
    releases: Mapping[str, ListedRelease]
    excluded: Mapping[str, str]


@dataclass(frozen=True)
class Rollouts:
    """Starts, moves and ends rollouts. Without a `lease` it is the only one that acts."""

    repository: Repository
    desired: DesiredStates
    settle_after: timedelta
    clock: Callable[[], datetime]
    gating: Gating
    lease: Lease | None = None
    judge_every: timedelta = timedelta(seconds=30)
    ready: Ready = lambda _session, _device, _member: True
    states: States | None = None
    next_look: dict[str, tuple[datetime, datetime]] = field(default_factory=dict)
    """When a rollout was looked at, and when a tick does again: to read thousands of devices takes a while."""

    # --- what people ask ----------------------------------------------------------------------------------------

    def plan(self, session: Session, request: RolloutRequest, caller: Caller) -> Planned:
        """What the same request would start, and nothing more. Raises as `start` does, but for running rollouts."""
        terms = parse_terms(request.terms, self.gating.parse)
        check_scope(caller, request.group)
        request = requests.meant(session, request)
        releases = self.repository.of_version(request.family, request.name, request.version)
        id_, now = requests.new_id(request), self.clock()
        found = reading.meant(session, request.group, terms.target, self.states)
        mine = [d for d in found if d.profile in releases]
        hindered = self._hindered(session, terms, mine, now)
        candidates = [
            Candidate(d.id, d.profile, reading.version_there(d.desired_models, request.name), hindered.get(d.id, ""))
            for d in mine
        ]
        sizes = {profile: listed.release.size or listed.manifest.size for profile, listed in releases.items()}
        excluded = requests.left_out(session, request, terms, [d for d in found if d.profile not in releases])
        return Planned(id_, make_plan(id_, terms, candidates, sizes, now), releases, excluded)

    def start(self, session: Session, request: RolloutRequest, caller: Caller) -> tuple[RolloutRow, list[str]]:
        """A new rollout with whom its first wave reaches now, and the devices whose desired state changed.

        Raises `Malformed` for terms that cannot be read, `Forbidden` for a group that the caller is not given,
        `NotFound` for a version without releases, and `Conflict` when no enrolled device can run it or another rollout
        of the model has not ended.
        """
        terms = parse_terms(request.terms, self.gating.parse)
        check_scope(caller, request.group)
        self._lead(session)
        if request.key is not None and (known := requests.by_key(session, request.key)) is not None:
            return requests.repeated(known, request, terms), []
        asked, request = requests.as_asked(request, terms), requests.meant(session, request)
        releases = self.repository.of_version(request.family, request.name, request.version)
        _check_free(session, request.name, request.group)
        found = reading.meant(session, request.group, terms.target, self.states)
        if not any(d.profile in releases for d in found):
            raise Conflict(requests.nobody(request, terms, releases))
        row = requests.new_row(
            requests.new_id(request), request, requests.shared(terms, request, releases), caller, self.clock()
        )
        row.asked = asked
        if session.get(RolloutRow, row.id) is not None:
            raise Conflict(f"plan {row.id}: was started already: make a new plan")
        session.add(row)
        session.flush()
        session.add_all(RolloutProfile(rollout=row.id, profile=profile) for profile in releases)
        note(session, row.id, self.clock(), "created", who=caller.name, reason=requests.words(row))
        return row, self.looker.look(session, row)

    def knows(self, session: Session, key: str | None) -> bool:
        """Whether a rollout was started with a key: `start` gives that one."""
        return key is not None and requests.by_key(session, key) is not None

    def is_open(self, session: Session, id_: str) -> bool:
        """Whether there is such a rollout that has not ended."""
        row = session.get(RolloutRow, id_)
        return row is not None and row.state in table.OPEN

    def approve(
        self, session: Session, id_: str, caller: Caller, wave: int | None = None
    ) -> tuple[RolloutRow, list[str]]:
        """Let a rollout start, or go on to its next wave: a person does, and not the one who made it.

        `wave`: the one that was looked at, from 0; None: whichever waits. Raises `Forbidden` for its author and for a
        program, `Conflict` for a rollout that waits for no approval, or for that of another wave. The same again
        changes nothing.
        """
        row = self._mine(session, id_, caller)
        if not caller.user:
            raise Forbidden(f"{caller.name}: a program cannot approve: a person with the role approver can")
        if caller.user == row.created_by.partition(":")[0]:
            raise Forbidden(
                f"rollout {id_}: {caller.user} made it, and nobody approves their own: ask another approver"
            )
        if wave is None and row.state == "running" and row.approved_by == caller.user:
            return row, []  # the answer was lost
        if wave is not None and (row.state, row.wave) != ("awaiting", wave):
            before = history.who(session, id_, "approved", _wave(wave))
            if caller.user in {name.partition(":")[0] for name in before}:
                return row, []  # the answer was lost, and the rollout may have gone on since
            raise Conflict(
                f"rollout {id_}: {_wave(wave)} does not wait for an approval: the rollout is {row.state} in "
                f"{_wave(row.wave)}: look at it, and approve what waits"
            )
        row.approved_by = caller.user
        row.wave_started = show_instant(self.clock())
        return self._moved(session, row, "approve", "approved", caller, _wave(row.wave))

    def pause(self, session: Session, id_: str, reason: str, caller: Caller) -> tuple[RolloutRow, list[str]]:
        """Reach nobody new until it is resumed. What the gates abort is brought back meanwhile."""
        row = self._mine(session, id_, caller)
        return (row, []) if row.state == "paused" else self._moved(session, row, "pause", "paused", caller, reason)

    def resume(self, session: Session, id_: str, caller: Caller) -> tuple[RolloutRow, list[str]]:
        """Go on. Raises `Conflict` for a rollout that was not paused."""
        row = self._mine(session, id_, caller)
        return (row, []) if row.state == "running" else self._moved(session, row, "resume", "resumed", caller)

    def retry(self, session: Session, id_: str, caller: Caller) -> tuple[RolloutRow, list[str]]:
        """Have the devices that failed try again. Raises `Conflict` when none has, or the rollout has ended."""
        row = self._mine(session, id_, caller)
        now, failed = self.clock(), [m for m in reading.members(session, id_) if m.state == "failed"]
        table.move(cast(State, row.state), "retry", f"rollout {id_}")
        if not failed:
            raise Conflict(f"rollout {id_}: no device has failed: there is nothing to try again")
        for member in failed:
            why, member.reason = member.reason, ""
            member.state, member.attempt, member.sent_seq = "sent", member.attempt + 1, 0
            member.admitted = show_instant(now)
            session.add(member)
            note(
                session, id_, now, "retried", who=caller.name, device=member.device, profile=member.profile, reason=why
            )
        return self._moved(session, row, "retry", "", caller)

    def abort(self, session: Session, id_: str, reason: str, caller: Caller) -> tuple[RolloutRow, list[str]]:
        """End a rollout and bring back what it touched; the same again changes nothing.

        Raises `NotFound`, `Forbidden` for a rollout of another group, or `Conflict` when it has ended in another way.
        """
        row = self._mine(session, id_, caller)
        if row.state == "aborted" and json.loads(row.reasons) == [reason]:
            return row, []
        return self._end(session, row, "abort", reason, caller)

    def roll_back(self, session: Session, id_: str, reason: str, caller: Caller) -> tuple[RolloutRow, list[str]]:
        """Bring back what each device ran before a rollout that is done; the same again changes nothing.

        Raises `Conflict` when another rollout of the model runs, or what ran before is not listed any more.
        """
        row = self._mine(session, id_, caller)
        if row.state == "rolled-back" and json.loads(row.reasons) == [reason]:
            return row, []
        table.move(cast(State, row.state), "roll back", f"rollout {id_}")
        _check_free(session, row.name, row.group)
        _check_not_in_another(session, row)
        self._check_listed(session, id_)
        return self._end(session, row, "roll back", reason, caller)

    # --- what devices report, and what time brings ----------------------------------------------------------------

    def owed(self, session: Session, devices: Sequence[str]) -> dict[str, list[Owed]]:
        """What devices were sent a release of and have not answered, in open rollouts."""
        return reading.owed(session, devices)

    def take_report(self, session: Session, reported: Reported, owed: Sequence[Owed]) -> list[str]:
        """What a device's verified report means for the rollouts that it owed an answer (`Rollouts.owed`)."""
        changed: list[str] = []
        for row, member in owed:
            answer = _answer(member, reported)
            if answer is None or not self._keep(session, member, *answer):
                continue
            # While others owe an answer nothing can go on, and not all has to be read.
            if not reading.others_owe(session, member) and self._leads(session):
                changed += self._look(session, row)
        return changed

    def tick(self, session: Session) -> list[str]:
        """Time has passed: look at every open rollout whose turn it is."""
        due = [row for row in reading.open_rollouts(session) if self._is_due(row)]
        if not due or not self._leads(session):
            return []
        return [device for row in due for device in self._look(session, row)]

    @cached_property
    def looker(self) -> Looker:
        """Looks at one rollout."""
        return Looker(
            repository=self.repository,
            sender=Sender(self.desired, self.ready),
            gating=self.gating,
            settle_after=self.settle_after,
            judge_every=self.judge_every,
            clock=self.clock,
            states=self.states,
        )

    def _is_due(self, row: RolloutRow) -> bool:
        """A clock that was put back makes it due: what was planned by it says nothing any more."""
        now = self.clock()
        looked, following = self.next_look.get(row.id, (now, now))
        return not looked <= now < following

    def _look(self, session: Session, row: RolloutRow) -> list[str]:
        began = self.clock()
        changed = self.looker.look(session, row)
        looked = self.clock() - began  # on a busy machine it takes several times as long
        pause = timedelta(milliseconds=row.eligible) if row.eligible >= MANY else timedelta()
        self.next_look[row.id] = began, began + max(pause, 10 * looked)
        return changed

    def _keep(self, session: Session, member: RolloutDevice, state: str, reason: str) -> bool:
        """Keep an answer; False when the device was brought back, or tries again, meanwhile."""
        now = self.clock()
        values = {"state": state, "reason": reason, "committed": show_instant(now) if state == "committed" else None}
        mine = (
            col(RolloutDevice.rollout) == member.rollout,
            col(RolloutDevice.device) == member.device,
            col(RolloutDevice.attempt) == member.attempt,
            col(RolloutDevice.state) == "sent",
        )
        session.flush()
        changed = session.connection().execute(update(RolloutDevice).where(*mine).values(**values))
        if changed.rowcount != 1:
            return False
        for name, value in values.items():
            set_committed_value(member, name, value)
        who, profile = member.device, member.profile
        note(session, member.rollout, now, state, who=who, device=member.device, profile=profile, reason=reason)
        return True

    # --- the lease, and ends ----------------------------------------------------------------------------------------

    def _leads(self, session: Session) -> bool:
        return self.lease is None or self.lease.held(session)

    def _lead(self, session: Session) -> None:
        if not self._leads(session):
            raise Unavailable("another process of this fleet leads its rollouts: ask again, it or in a moment here")

    def _mine(self, session: Session, id_: str, caller: Caller) -> RolloutRow:
        row = find(session, id_)
        check_scope(caller, row.group)
        self._lead(session)
        return row

    def _moved(
        self, session: Session, row: RolloutRow, event: table.Event, what: str, caller: Caller, reason: str = ""
    ) -> tuple[RolloutRow, list[str]]:
        row.state = table.move(cast(State, row.state), event, f"rollout {row.id}")
        session.add(row)
        if what:
            note(session, row.id, self.clock(), what, who=caller.name, reason=reason)
        return row, self._look(session, row)

    def _end(
        self, session: Session, row: RolloutRow, event: table.Event, reason: str, caller: Caller
    ) -> tuple[RolloutRow, list[str]]:
        state, now = table.move(cast(State, row.state), event, f"rollout {row.id}"), self.clock()
        changed: list[str] = []
        for member in reading.members(session, row.id):
            if member.state in HOLDING:
                changed += self.looker.bring_back(session, member, reason, now, who=caller.name)
        row.state, row.verdict, row.reasons = state, "ABORT", json.dumps([reason])
        session.add(row)
        note(session, row.id, now, state, who=caller.name, reason=reason)
        session.flush()
        return row, changed

    def _check_listed(self, session: Session, id_: str) -> None:
        """A device installs nothing that the release role does not list: then it would keep what it runs."""
        for one in reading.reached(session, id_):
            before = one.member.before and DesiredModel.from_bytes(one.member.before.encode())
            if not before or one.member.state not in HOLDING or not has_release(one.desired_models, one.member):
                continue
            listed = self.repository.releases.get(before.target)
            if listed is None or listed.release.digest != before.digest:
                raise Conflict(
                    f"rollout {id_}: {before.target}, which {one.member.device} ran before, is not listed any more: "
                    "start a rollout of a version that is"
                )

    def _hindered(
        self, session: Session, terms: Terms, devices: Sequence[reading.Enrolled], now: datetime
    ) -> dict[str, str]:
        """Devices whose state keeps them from being reached now, and why."""
        conditions = terms.conditions
        if not conditions.online and not conditions.ask_health:
            return {}
        health = reading.health_of(session, [d.id for d in devices]) if conditions.ask_health else {}
        return {d.id: conditions.hinders(online=d.online, health=health.get(d.id), now=now) for d in devices}


def check_scope(caller: Caller, group: str | None) -> None:
    """Raises `Forbidden` unless the caller may act on a rollout to this group; None is every group."""
    if group is not None:
        caller.check_group(group)
    elif caller.groups:
        mine = ", ".join(sorted(caller.groups))
        raise Forbidden(f"{caller.name}: a rollout to every group is not yours, only to {mine}: name one of them")


def _answer(member: RolloutDevice, reported: Reported) -> tuple[str, str] | None:
    """What a report says of a device that was sent the release: it runs it, refused it, or nothing yet."""
    update = next((u for u in reported.updates if _is_of(u, member)), None)
    if update is not None:
        if update.phase == "committed":
            return "committed", ""
        if update.phase in ("failed", "refused"):
            return "failed", f"{update.phase}: {update.reason or 'no reason given'}"
        return None
    if not member.sent_seq or reported.desired_seq < member.sent_seq:
        return None
    active = any(s.slot == "active" and s.digest == member.digest for s in reported.slots)
    return ("committed", "") if active else None


def _is_of(update: UpdateReport, member: RolloutDevice) -> bool:
    return update.rollout == attempt_name(member.rollout, member.attempt) and update.digest == member.digest


def _wave(number: int) -> str:
    return f"wave {number + 1}"


def _check_free(session: Session, name: str, group: str | None) -> None:
    for row in reading.open_rollouts(session):
        # Two groups share no device, and `fleet.inventory` keeps it so; two targets may come to.
        if row.name == name and (None in (row.group, group) or row.group == group):
            raise Conflict(
                f"rollout {row.id} of {row.name} {row.version} is {row.state}: wait for it or abort it first"
            )


def _check_not_in_another(session: Session, row: RolloutRow) -> None:
    """A device that changed its group since may be in a rollout there, which would bring back what goes here."""
    mine = [m.device for m in reading.members(session, row.id) if m.state in HOLDING]
    for other, member in reading.standing_in(session, mine):
        if other.name == row.name:
            raise Conflict(
                f"rollout {row.id}: {member.device} stands in rollout {other.id} of {other.name} {other.version}, "
                f"which is {other.state}: wait for it or abort it first"
            )
