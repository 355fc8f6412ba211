"""Random walks through rollouts: what people, devices, clocks, gates and two processes do, in any order.

Two services of one database act by turns, each with a clock of its own. After every step the database is held against
what must hold whatever happened: nobody is reached beyond the wave or outside the target, what has ended stays so, an
abort has brought everybody back, and whoever changed something held the lease.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rollout_world import ALICE, BOB, World
from sqlmodel import col, select

from fleet.errors import FleetError
from fleet.gates.thresholds import parse
from fleet.queries import Standing, predicate
from fleet.rollout.attempts import attempt_name
from fleet.rollout.deciding import HOLDING
from fleet.rollout.table import OPEN, TABLE
from fleet.rollout.terms import parse_terms
from fleet.rollout.waves import limit
from fleet.store.rollout_tables import LeaseRow, RolloutProfile
from fleet.store.tables import Device, RolloutDevice, RolloutRow

NAMES = [f"d{i}" for i in range(12)]
PROFILES = ["x86-64", "pi"]
GROUPS = ["a", "b"]
TERMS = st.fixed_dictionaries(
    {
        "waves": st.sampled_from(["100", "25,100", "1,50%,100%", "10,20,50,100"]),
        "target": st.sampled_from(["all", "group=a", "not profile=pi", "device:d[0-5]"]),
        "gates": st.sampled_from(["install", "measured", {"preset": "install", "installs": "50 %"}]),
        "soak": st.sampled_from(["0 s", "10 min"]),
        "per_hour": st.sampled_from([None, None, 3]),
        "approval": st.sampled_from(["none", "none", "start", "every-wave"]),
        "windows": st.sampled_from([[], [], ["08:00-12:00 UTC"]]),
    }
)


def reachable(state: str) -> set[str]:
    """What a state can become in one step, in which several things may happen."""
    found, new = set[str](), {state}
    while new - found:
        found |= new
        new = {after for (before, _), after in TABLE.items() if before in found}
    return found


class Walk(RuleBasedStateMachine):
    """`fresh`: devices that left or began anew since somebody looked; what they run is not yet known to a rollout."""

    base: ClassVar[World]

    @initialize(devices=st.integers(4, 12), terms=TERMS)
    def begin(self, devices: int, terms: dict[str, Any]) -> None:
        self.base.clear()
        self.one, self.two = self.base, World(self.base.database, holder="two")
        for version in ("1.0.0", "2.0.0"):
            self.one.release(version, *PROFILES)
        self.two.repository = self.one.repository
        self.two.begin()
        for i, name in enumerate(NAMES[:devices]):
            self.one.join(name, profile=PROFILES[i % 3 == 0], group=GROUPS[i % 2])
        self.states: dict[str, str] = {}
        self.holding: dict[str, set[str]] = {}
        self.assigned = {self.one: 0, self.two: 0}
        self.fresh: set[str] = set()
        self.start(terms, "1.0.0", second=False)

    def world(self, second: bool) -> World:
        return self.two if second else self.one

    def some(self, number: int) -> str:
        """A rollout; mostly the newest, which may be open."""
        with self.base.session() as session:
            ids = session.exec(select(RolloutRow.id).order_by(col(RolloutRow.created).desc())).all()
        return ids[number % min(len(ids), 2 if number % 5 else len(ids))] if ids else "r-0"

    def held(self, *states: str) -> list[str]:
        """Devices of rollouts in these states."""
        with self.base.session() as session:
            found = session.exec(select(RolloutDevice.device).where(col(RolloutDevice.state).in_(states))).all()
        return sorted(set(found))

    def attempt(self, second: bool, what: Any) -> None:
        """What is refused in words has changed nothing."""
        try:
            what(self.world(second))
        except FleetError:
            return

    # --- what people do

    @rule(terms=TERMS, version=st.sampled_from(["1.0.0", "2.0.0"]), second=st.booleans())
    def start(self, terms: dict[str, Any], version: str, second: bool) -> None:
        self.attempt(second, lambda w: w.start(version, caller=ALICE, **terms))

    @rule(
        act=st.sampled_from(["approve", "resume", "retry", "pause", "abort", "roll_back"]),
        number=st.integers(0, 20),
        second=st.booleans(),
    )
    def act(self, act: str, number: int, second: bool) -> None:
        words = ("a reason",) if act in ("pause", "abort", "roll_back") else ()
        self.attempt(second, lambda w: w.act(act, self.some(number), *words, caller=BOB))

    # --- what devices do

    @rule(device=st.sampled_from(NAMES), profile=st.sampled_from(PROFILES), group=st.sampled_from(GROUPS))
    def join(self, device: str, profile: str, group: str) -> None:
        self.one.join(device, profile=profile, group=group)
        self.fresh.add(device)

    @rule(number=st.integers(0, 11))
    def begin_anew(self, number: int) -> None:
        """Revoked and enrolled again before anybody looks."""
        if held := self.held(*HOLDING):
            device = held[number % len(held)]
            with self.base.session() as session:
                row = session.get_one(Device, device)
            self.join(device, row.profile, row.group)

    @rule(device=st.sampled_from(NAMES), group=st.sampled_from(GROUPS))
    def regroup(self, device: str, group: str) -> None:
        if device in self.one.versions():
            self.one.change(device, group=group)

    @rule(device=st.sampled_from(NAMES))
    def leave(self, device: str) -> None:
        if device in self.one.versions():
            self.one.leave(device)
            self.fresh.add(device)

    @rule(number=st.integers(0, 11), phase=st.sampled_from(["committed", "failed", "fetching"]), second=st.booleans())
    def report(self, number: int, phase: str, second: bool) -> None:
        if owing := self.held("sent"):
            self.world(second).report(owing[number % len(owing)], phase=phase)

    @rule(device=st.sampled_from(NAMES))
    def report_again(self, device: str) -> None:
        if device in self.one.versions():
            self.one.report(device)

    @rule(second=st.booleans())
    def everybody_commits(self, second: bool) -> None:
        self.world(second).report(*self.one.versions())

    # --- what time, gates and accidents do

    @rule(second=st.booleans())
    def tick(self, second: bool) -> None:
        self.world(second).tick()

    @rule(minutes=st.sampled_from([1, 11, 61, 600, -5, -300]), whose=st.sampled_from(["both", "one", "two"]))
    def clock(self, minutes: int, whose: str) -> None:
        for name, world in (("one", self.one), ("two", self.two)):
            if whose in (name, "both"):
                world.now += timedelta(minutes=minutes)

    @rule(profile=st.sampled_from(PROFILES), verdict=st.sampled_from(["PROCEED", "PROCEED", "HOLD", "ABORT"]))
    def say(self, profile: str, verdict: Any) -> None:
        self.one.says[profile] = self.two.says[profile] = verdict

    @rule(second=st.booleans())
    def restart(self, second: bool) -> None:
        self.world(second).begin()

    @precondition(lambda self: self.states)
    @rule()
    def catch_up(self) -> None:
        """Both look, the one that leads with success: nothing is unknown to the rollouts any more."""
        self.two.now = self.one.now = max(self.one.now, self.two.now) + timedelta(minutes=1)
        self.one.tick()
        self.two.tick()
        self.fresh.clear()

    def teardown(self) -> None:
        """Whatever is open is aborted in the end, and what is done is rolled back: everybody is where they were."""
        if hasattr(self, "states"):
            self.two.now = self.one.now = max(self.one.now, self.two.now) + timedelta(hours=1)
            for rollout, state in sorted(self.states.items()):
                if state in OPEN:
                    self.one.act("abort", rollout, "the end")
                    self.whatever_happened_it_holds()
            for rollout, state in sorted(self.states.items()):
                if state == "done":
                    self.one.act("roll_back", rollout, "the end")
                    self.whatever_happened_it_holds()

    # --- what holds

    @invariant()
    def whatever_happened_it_holds(self) -> None:
        if not hasattr(self, "states"):
            return
        self.check_lease()
        with self.base.session() as session:
            devices = {d.id: d for d in session.exec(select(Device))}
            members = session.exec(select(RolloutDevice)).all()
            aborted = {(p.rollout, p.profile) for p in session.exec(select(RolloutProfile)) if p.state == "aborted"}
            for row in session.exec(select(RolloutRow)):
                mine = [m for m in members if m.rollout == row.id]
                self.check_states(row)
                self.check_exposure(row, mine, devices, aborted)
                self.check_desired(row, mine, devices)

    def check_lease(self) -> None:
        """Whoever assigned something in this step holds the lease."""
        acted = [w for w, seen in self.assigned.items() if len(w.desired.assigned) > seen]
        with self.base.session() as session:
            holder = session.get_one(LeaseRow, "rollouts").holder
        self.assigned = {w: len(w.desired.assigned) for w in self.assigned}
        if len(acted) == 1:  # in `catch_up` one may act after the other
            assert acted[0].lease is not None
            assert acted[0].lease.holder == holder

    def check_states(self, row: RolloutRow) -> None:
        was = self.states.get(row.id)
        if was is not None:
            assert row.state in reachable(was), f"{was} became {row.state}"
        self.states[row.id] = row.state

    def check_exposure(
        self, row: RolloutRow, mine: list[RolloutDevice], devices: dict[str, Device], aborted: set[tuple[str, str]]
    ) -> None:
        holding = {m.device for m in mine if m.state in HOLDING}
        new = holding - self.holding.get(row.id, set())
        self.holding[row.id] = holding
        if not new:
            return
        terms = parse_terms(json.loads(row.terms), parse)
        meant = predicate(terms.target)
        returned = {m.device for m in mine if m.state == "returned"}
        fits = {
            d.id
            for d in devices.values()
            if d.state == "enrolled"
            and meant(Standing(d.id, d.profile, d.group))
            and (row.id, d.profile) not in aborted
            and d.id not in returned
        }
        assert new <= fits, "outside the target"
        assert len(holding) <= limit(terms.waves, row.wave, len(fits | holding)), "beyond the wave"

    def check_desired(self, row: RolloutRow, mine: list[RolloutDevice], devices: dict[str, Device]) -> None:
        for member in mine:
            device = devices[member.device]
            has = f'"{attempt_name(row.id, member.attempt)}"' in device.desired_models
            if member.state in ("returned", "left"):
                assert not has, f"{member.device} is {member.state}"
            elif row.state in OPEN and device.id not in self.fresh:
                assert has, f"{member.device} is {member.state}"
        if row.state in ("aborted", "rolled-back"):
            assert not any(m.state in HOLDING for m in mine)
            assert not any(f'"{row.id}' in d.desired_models for d in devices.values()), "not everybody is back"


@pytest.fixture(autouse=True, scope="module")
def _base() -> Any:
    Walk.base = World(holder="one")
    yield
    Walk.base.database.close()


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
