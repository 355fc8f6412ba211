"""One look at a rollout: read how it stands, decide (`fleet.rollout.deciding`), and do it, in one transaction.

A fleet that is killed anywhere goes on where it was: the new state of a rollout and the desired states that follow from
it are one transaction; publishing comes after it and can be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import cast

from sqlmodel import Session

from fleet.errors import Conflict, NotFound
from fleet.gates.values import Judgement, Verdict
from fleet.rollout import reading
from fleet.rollout.deciding import (
    HOLDING,
    Course,
    Decision,
    Judged,
    Look,
    Member,
    MemberState,
    Waiting,
    decide,
    judged_profiles,
)
from fleet.rollout.exposure import order
from fleet.rollout.gating import BEFORE, CONTROLS, Gating
from fleet.rollout.history import note
from fleet.rollout.reading import Enrolled, Reached, States
from fleet.rollout.sending import Sender, has_release
from fleet.rollout.table import OPEN, State
from fleet.rollout.terms import Terms, parse_terms
from fleet.store.rollout_tables import RolloutProfile
from fleet.store.tables import RolloutDevice, RolloutRow
from fleet.trust.repository import ListedRelease, Repository
from wire.units import instant, show_instant


@dataclass(frozen=True)
class Scene:
    """What was read for a look; `queue` stands in the order of the hash."""

    terms: Terms
    releases: Mapping[str, ListedRelease]
    reached: Sequence[Reached]
    queue: Sequence[Enrolled]
    profiles: Mapping[str, RolloutProfile]
    now: datetime


@dataclass(frozen=True, kw_only=True)
class Looker:
    """Looks at open rollouts. `judge_every` is how often the gates are asked while nothing else changes."""

    repository: Repository
    sender: Sender
    gating: Gating
    settle_after: timedelta
    judge_every: timedelta
    clock: Callable[[], datetime]
    states: States | None = None

    def look(self, session: Session, row: RolloutRow) -> list[str]:
        """Do what is due in a rollout; gives the devices whose desired state changed."""
        changed: list[str] = []
        while row.state in OPEN:
            scene = self.read(session, row)
            decision = decide(self._look(session, row, scene))
            changed += self._do(session, row, scene, decision)
            sent, failed = self._send_all(session, row, scene.now)
            changed += sent
            if not failed:
                break
        return changed

    def read(self, session: Session, row: RolloutRow) -> Scene:
        """How a rollout stands. Devices that left it meanwhile are noted on the way."""
        now, terms = self.clock(), self.terms(row)
        try:
            releases = self.repository.of_version(row.family, row.name, row.version)
        except NotFound:  # withdrawn: nobody gets it any more
            releases = {}
        reached = [self._noticed(session, one, now) for one in reading.reached(session, row.id)]
        profiles = reading.profiles(session, row.id)
        known = releases.keys() | {p.profile for p in profiles.values() if p.state == "open"}
        closed = {p.profile for p in profiles.values() if p.state == "aborted"}
        holding = {one.member.device for one in reached if one.member.state in (*HOLDING, "returned", "stuck")}
        found = reading.meant(session, row.group, terms.target, self.states)
        waiting = {d.id: d for d in found if d.profile in known and d.profile not in closed and d.id not in holding}
        return Scene(terms, releases, reached, [waiting[d] for d in order(row.id, waiting)], profiles, now)

    def terms(self, row: RolloutRow) -> Terms:
        """What a rollout keeps to."""
        return parse_terms(json.loads(row.terms), self.gating.parse)

    def _noticed(self, session: Session, one: Reached, now: datetime) -> Reached:
        """A device that left the fleet, or began anew in it, waits for its turn again, if it is there."""
        member, why = one.member, ""
        if member.state not in HOLDING:
            return one
        if one.state != "enrolled":
            why = "it left the fleet"
        elif one.profile != member.profile:
            why = f"its profile is {one.profile} now"
        elif member.sent_seq and not has_release(one.desired_models, member):
            why = "it began anew, without the release"
        if why:
            member.state, member.reason = "left", why
            session.add(member)
            note(session, member.rollout, now, "left", device=member.device, profile=member.profile, reason=why)
        return one

    # --- deciding -----------------------------------------------------------------------------------------------

    def _look(self, session: Session, row: RolloutRow, scene: Scene) -> Look:
        members = [_member(one.member) for one in scene.reached]
        conditions = scene.terms.conditions
        online = {d.id: d.online for d in scene.queue}
        health = reading.health_of(session, list(online)) if conditions.ask_health and online else {}
        withdrawn = {d.id for d in scene.queue if d.profile not in scene.releases}

        def hinders(device: str) -> str:
            if device in withdrawn:
                return "has a profile whose release was withdrawn"
            return conditions.hinders(online=online[device], health=health.get(device), now=scene.now)

        return Look(
            terms=scene.terms,
            course=_course(row, scene.profiles),
            members=members,
            waiting=[Waiting(d.id, d.profile) for d in scene.queue],
            hinders=hinders,
            judged=self._judged(session, row, scene, members),
            now=scene.now,
            settle_after=self.settle_after,
            valid=2 * self.judge_every,
        )

    def _judged(self, session: Session, row: RolloutRow, scene: Scene, members: Sequence[Member]) -> dict[str, Judged]:
        if not scene.terms.gates.measuring:
            return {}
        judged = {}
        for profile in judged_profiles(members):
            kept = scene.profiles.get(profile) or RolloutProfile(rollout=row.id, profile=profile)
            if kept.state != "aborted":
                judged[profile] = (
                    self._ask(session, row, scene, kept) if self._is_due(row, kept, scene) else _kept(kept)
                )
        return judged

    def _is_due(self, row: RolloutRow, kept: RolloutProfile, scene: Scene) -> bool:
        """Once in a while; and at once when the wave has settled, or the last answer came."""
        if not kept.judged or kept.wave != row.wave or (row.settled is not None and kept.judged < row.settled):
            return True
        members = [one.member for one in scene.reached]
        answered = not any(m.state == "sent" for m in members)
        if answered and any(m.committed is not None and m.committed > kept.judged for m in members):
            return True
        return not timedelta() <= scene.now - instant(kept.judged) < self.judge_every

    def _ask(self, session: Session, row: RolloutRow, scene: Scene, kept: RolloutProfile) -> Judged:
        """Compare the devices of a profile that have the release with themselves before and with those that wait."""
        mine = [one.member for one in scene.reached if one.member.profile == kept.profile]
        candidates = {m.device: instant(m.committed) for m in mine if m.state == "committed" and m.committed}
        # What ran the very same release before has nothing else to be held against.
        first = {m.device for m in mine if not m.before or m.digest in m.before}
        digest = next(m.digest for m in reversed(mine) if m.device in candidates)
        peers = [
            d.id for d in scene.queue if d.profile == kept.profile and reading.incumbent(d.desired_models, row.name)
        ]
        comparisons = self.gating.compare(
            session,
            profile=kept.profile,
            model=row.name,
            candidate_digest=digest,
            candidates=candidates,
            controls=dict.fromkeys(peers[-CONTROLS:], instant(row.wave_started)),
            before=BEFORE,
        )
        comparisons = [replace(c, incumbent=c.arm == "control" or c.device not in first) for c in comparisons]
        history = self.gating.recall(kept.history)
        judgement, history = self.gating.judge(scene.terms.gates, kept.profile, comparisons, history, scene.now)
        kept.verdict, kept.reasons = judgement.verdict, json.dumps(judgement.reasons)
        kept.numbers, kept.history = json.dumps(judgement.numbers), history.to_bytes().decode()
        kept.judged, kept.wave = show_instant(scene.now), row.wave
        session.add(kept)
        return Judged(judgement, scene.now, row.wave)

    # --- doing --------------------------------------------------------------------------------------------------

    def _do(self, session: Session, row: RolloutRow, scene: Scene, decision: Decision) -> list[str]:
        changed = []
        for profile, reasons in decision.aborted.items():
            kept = session.get(RolloutProfile, (row.id, profile)) or RolloutProfile(rollout=row.id, profile=profile)
            kept.state, kept.verdict, kept.reasons = "aborted", "ABORT", json.dumps(reasons)
            session.add(kept)
            note(session, row.id, scene.now, "aborted", profile=profile, reason="; ".join(reasons))
        members = {one.member.device: one.member for one in scene.reached}
        for device in decision.back:
            why = "; ".join(decision.aborted.get(members[device].profile, decision.reasons))
            changed += self.bring_back(session, members[device], why, scene.now)
        self._reach(session, row, scene, decision, members)
        _save(session, row, scene, decision)
        return changed

    def _reach(
        self,
        session: Session,
        row: RolloutRow,
        scene: Scene,
        decision: Decision,
        known: Mapping[str, RolloutDevice],
    ) -> None:
        wave, told = decision.course.wave, f"wave {decision.course.wave + 1} of {len(scene.terms.waves)}"
        for id_, device in reading.devices(session, decision.admit).items():
            member = known.get(id_) or RolloutDevice(
                rollout=row.id, device=id_, target="", digest="", wave=wave, state="sent", attempt=0
            )
            member.wave = wave
            self.sender.reach(session, member, device, scene.releases[device.profile], scene.now)
            note(session, row.id, scene.now, "sent", device=id_, profile=device.profile, reason=told)

    def bring_back(
        self, session: Session, member: RolloutDevice, why: str, now: datetime, *, who: str = "fleet"
    ) -> list[str]:
        """A device goes back to what it ran before, whether it is there or not: that is what it finds.

        One that cannot take it is named, and keeps none of the others from going back.
        """
        changed, state = False, "returned"
        try:
            changed = self.sender.bring_back(session, member, now)
        except Conflict as e:
            state, member.reason, why = "stuck", str(e), f"{why}; {e}"
        member.state = state
        session.add(member)
        note(
            session,
            member.rollout,
            now,
            member.state,
            who=who,
            device=member.device,
            profile=member.profile,
            reason=why,
        )
        return [member.device] if changed else []

    def _send_all(self, session: Session, row: RolloutRow, now: datetime) -> tuple[list[str], bool]:
        """Send the release to all whose turn it is and who lack it; and whether one of them cannot take it."""
        session.flush()
        sent: list[str] = []
        failed = False
        if row.state not in OPEN:
            return sent, failed
        unsent = reading.unsent(session, row.id)
        known = reading.devices(session, [m.device for m in unsent])
        for member in unsent:
            try:
                if self.sender.send(session, member, known[member.device]):
                    sent.append(member.device)
            except Conflict as e:  # its desired state would grow too large: the device is at fault, not the rollout
                failed, member.state, member.reason = True, "failed", str(e)
                session.add(member)
                note(session, row.id, now, "failed", device=member.device, profile=member.profile, reason=str(e))
        session.flush()
        return sent, failed


def _save(session: Session, row: RolloutRow, scene: Scene, decision: Decision) -> None:
    course, before = decision.course, (row.state, row.wave)
    row.state, row.wave, row.wave_started = course.state, course.wave, show_instant(course.wave_started)
    row.settled = None if course.settled is None else show_instant(course.settled)
    row.verdict, row.reasons = decision.verdict, json.dumps(decision.reasons)
    closed = course.aborted | decision.aborted.keys()
    holding = sum(m.member.state in HOLDING for m in scene.reached)
    row.eligible = holding + sum(d.profile not in closed for d in scene.queue)
    session.add(row)
    if before[1] != row.wave:
        note(session, row.id, scene.now, "wave", reason=f"wave {row.wave + 1} of {len(scene.terms.waves)}")
    if before[0] != row.state:
        note(session, row.id, scene.now, row.state, reason="; ".join(decision.reasons))


def _member(row: RolloutDevice) -> Member:
    state = cast(MemberState, row.state)
    return Member(row.device, row.profile, state, instant(row.admitted), row.reason)


def _course(row: RolloutRow, profiles: Mapping[str, RolloutProfile]) -> Course:
    return Course(
        id=row.id,
        state=cast(State, row.state),
        wave=row.wave,
        wave_started=instant(row.wave_started),
        settled=None if row.settled is None else instant(row.settled),
        aborted=frozenset(p.profile for p in profiles.values() if p.state == "aborted"),
    )


def _kept(kept: RolloutProfile) -> Judged:
    judgement = Judgement(
        profile=kept.profile,
        verdict=cast(Verdict, kept.verdict),
        reasons=tuple(json.loads(kept.reasons)),
        numbers=json.loads(kept.numbers),
    )
    return Judged(judgement, instant(kept.judged), kept.wave)
