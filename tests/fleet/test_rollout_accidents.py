"""Accidents of rollouts: what goes on at the same time as one, comes twice, or is in its way."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rollout_world import ALICE, BOB, NOW, OPERATOR, World
from sqlmodel import select

from fleet import inventory
from fleet.access import Caller
from fleet.errors import Conflict, Forbidden, Malformed
from fleet.inventory_csv import Line
from fleet.registry import aliases
from fleet.registry.aliases import AliasChange
from fleet.store.shadow_table import DeviceShadow
from fleet.store.tables import Device, MeasureRow, RolloutDevice
from fleet.trust.desired import DesiredStates, models_of
from fleet.trust.orders import Dates
from wire.orders import Desired
from wire.shadow import ShadowModel
from wire.units import show_instant


@pytest.fixture(scope="module")
def fleet() -> Iterator[World]:
    made = World()
    yield made
    made.database.close()


@pytest.fixture
def world(fleet: World) -> World:
    fleet.clear()
    fleet.release("1.0.0", "x86-64", "pi")
    fleet.release("2.0.0", "x86-64", "pi")
    return fleet


def run(world: World, version: str) -> None:
    """Everybody runs a version."""
    rollout = world.start(version, waves="100")
    world.answer_all(rollout)
    assert world.rollout(rollout).state == "done"


def real_desired(world: World) -> None:
    """Desired states as they are made, but for the signature and the keys of blobs."""
    times = Dates(show_instant(NOW), show_instant(NOW + timedelta(days=7)))
    orders: Any = SimpleNamespace(epoch=1, dates=lambda _: times, sign=lambda _: b"{}")
    no_keys: Any = SimpleNamespace(ring=lambda _: {}, of_offers=lambda _: {})
    world.desired = cast(Any, DesiredStates(orders, no_keys, timedelta(days=7)))
    world.begin()


# --- bringing back a device that has no room for it -------------------------------------------------------------------


def test_a_shadow_and_a_measuring_job_give_way_to_what_is_brought_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accident: both were added after the rollout had reached the device, and the desired state is full."""
    real_desired(world)
    world.join("a", "b")
    run(world, "1.0.0")
    rollout = world.start("2.0.0", waves="100")
    world.report("a")
    world.release("3.0.0")
    listed = world.repository.releases["models/intents/kitchen/3.0.0/x86-64"].release
    with world.session() as session:
        a = session.get_one(Device, "a")
        shadow = ShadowModel(target=listed.target, digest=listed.digest, share=20)
        session.add(DeviceShadow(device="a", model="kitchen", document=shadow.to_bytes().decode()))
        job = MeasureRow(
            id="m-1", device="a", target=listed.target, digest=listed.digest, rounds=20, who="ann", created="now"
        )
        session.add(job)
        session.flush()
        monkeypatch.setattr(Desired, "LIMIT", 400)
        with pytest.raises(Conflict, match=r"1 in shadow and 1 measuring jobs .* give it fewer"):
            world.rollouts.desired.assign(session, a, models_of(a))
    world.report("b", phase="failed")
    world.now += timedelta(hours=1)
    world.tick()
    assert world.rollout(rollout).state == "aborted"
    assert (world.versions(), set(world.members(rollout).values())) == ({"a": "1.0.0", "b": "1.0.0"}, {"returned"})
    with world.session() as session:
        job = session.exec(select(MeasureRow)).one()
        assert (job.state, f"what rollout {rollout} sent" in job.reason) == ("cancelled", True)
        assert session.exec(select(DeviceShadow)).all() == []


def test_a_device_that_cannot_be_brought_back_is_named_and_the_others_go_back(world: World) -> None:
    """Accident: even without what was added, its desired state has no room for what it ran before."""
    world.join("a", "b", "c")
    world.join("p", profile="pi")
    run(world, "1.0.0")
    rollout = world.start("2.0.0", waves="100")
    with world.session() as session:
        session.add(
            MeasureRow(id="m-2", device="a", target="t", digest="sha256:0", rounds=20, who="ann", created="now")
        )

    def full(device: str) -> None:
        if device == "a":
            raise Conflict("device a: give it fewer")

    world.desired.fault = full
    world.report("a", "b")
    world.report("c", phase="failed")
    world.tick()
    assert world.members(rollout) == {"a": "stuck", "b": "returned", "c": "returned", "p": "sent"}
    assert world.versions() == {"a": "2.0.0", "b": "1.0.0", "c": "1.0.0", "p": "2.0.0"}
    assert ("fleet", "stuck") in world.events(rollout, "a")
    with world.session() as session:
        assert session.get_one(RolloutDevice, (rollout, "a")).reason == "device a: give it fewer"
        job = session.exec(select(MeasureRow).where(MeasureRow.id == "m-2")).one()
        assert job.ended is None, "it gives way only where that helps"
    world.desired.fault = lambda _device: None
    world.tick()
    world.report("p")
    assert world.rollout(rollout).state == "done", "the other profile goes on"
    assert [what for _, what in world.events(rollout, "a")].count("stuck") == 1


# --- what comes twice -------------------------------------------------------------------------------------------------


def test_an_approval_that_comes_again_approves_no_other_wave(world: World) -> None:
    """Accident: the answer to the approval of wave 1 is lost; it is sent again when wave 2 waits."""
    world.join(*(f"d{n}" for n in range(4)))
    rollout = world.start(caller=ALICE, waves="25%,50%,100%", approval="every-wave")
    with pytest.raises(Conflict, match=r"wave 2 does not wait .* awaiting in wave 1"):
        approve(world, rollout, 1)
    assert len(approve(world, rollout, 0)) == 1
    assert approve(world, rollout, 0) == []
    world.answer_all(rollout)
    for _ in range(2):
        assert approve(world, rollout, 0) == []
        assert (world.rollout(rollout).state, world.rollout(rollout).wave) == ("awaiting", 1)
    carol = Caller("carol", frozenset({"approver"}), user="carol")
    with pytest.raises(Conflict, match="wave 1 does not wait"):
        approve(world, rollout, 0, carol)
    with pytest.raises(Forbidden, match="nobody approves their own"):
        approve(world, rollout, 1, ALICE)
    assert len(approve(world, rollout, 1, carol)) == 1
    with pytest.raises(Conflict, match=r"wave 3 does not wait .* running in wave 2"):
        approve(world, rollout, 2)


def test_a_request_is_known_again_whatever_is_listed_and_meant_by_then(world: World) -> None:
    """Accident: the answer is lost, and a release for one more profile is listed before it is sent again."""
    world.join("a")
    first = world.start(key="k1", gates="measured")
    world.release("1.0.0", "jetson")
    assert world.start(key="k1", gates="measured") == first
    world.repository.releases.clear()
    assert world.start(key="k1", gates="measured") == first
    with pytest.raises(Conflict, match="another rollout"):
        world.start(key="k1", gates="install")


def test_another_alias_is_another_request(world: World) -> None:
    world.join("a")
    with world.session() as session:
        for alias, version in (("one", "1.0.0"), ("two", "2.0.0")):
            moved = AliasChange(alias=alias, version=version)
            aliases.change(session, "intents/kitchen", moved, ALICE, NOW)
    first = world.start("@one", key="k1")
    assert world.start("@one", key="k1") == first
    for other in ("@two", "1.0.0"):
        with pytest.raises(Conflict, match="another rollout"):
            world.start(other, key="k1")


def approve(world: World, rollout: str, wave: int, caller: Caller = BOB) -> list[str]:
    with world.session() as session:
        return world.rollouts.approve(session, rollout, caller, wave)[1]


# --- who is left out of a plan ----------------------------------------------------------------------------------------


def test_a_plan_names_a_device_that_enrols_and_is_meant_by_its_tag(world: World) -> None:
    world.join("a", "new", tags=["kitchen"])
    world.join("other", "far", tags=["garage"])
    world.join("far", group="far", tags=["kitchen"])
    for name in ("new", "other", "far"):
        world.change(name, state="new")
    with world.session() as session:
        request = world.request(target="tag:kitchen", group="default")
        planned = world.rollouts.plan(session, request, OPERATOR)
    assert dict(planned.excluded) == {"new": "it is enrolling, and not in the fleet"}


# --- devices that change their group ----------------------------------------------------------------------------------


def test_a_device_in_a_rollout_to_its_group_stays_in_the_group(world: World) -> None:
    """Accident: moved half-way, two rollouts held it, and the second brought back what the first had taken away."""
    world.join("a", "b", group="a")
    world.join("x", group="b")
    run(world, "1.0.0")
    first = world.start("2.0.0", group="a", waves="1,100%")
    (held,) = world.members(first)
    (free,) = {"a", "b"} - {held}
    with pytest.raises(Conflict, match=f"stands in rollout {first} of kitchen 2.0.0 to group a, .* abort it"):
        regroup(world, held, "b")
    line = Line(held, "x86-64", "b", frozenset({"north"}), "")
    with (
        pytest.raises(Malformed, match=f"line 0: device {held}: stands in rollout {first}"),
        world.session() as session,
    ):
        inventory.take_lines(session, cast(Any, None), OPERATOR, [line], {}, NOW)
    regroup(world, free, "b")
    world.act("abort", first, "wrong labels")
    regroup(world, held, "b")
    assert world.versions() == {"a": "1.0.0", "b": "1.0.0", "x": "1.0.0"}
    second = world.start("2.0.0", group="b", waves="100")
    assert len(world.members(second)) == 3


def test_a_device_in_a_rollout_to_every_group_may_change_its_own(world: World) -> None:
    """No other rollout of the model can reach it: those to one group wait for those to all."""
    world.join("a", "b")
    rollout = world.start(waves="100")
    regroup(world, "a", "lab")
    world.answer_all(rollout)
    assert (world.rollout(rollout).state, len(world.members(rollout))) == ("done", 2)


def test_what_was_done_is_not_rolled_back_under_a_rollout_in_another_group(world: World) -> None:
    world.join("a", group="a")
    world.join("b", group="b")
    first = world.start("1.0.0", group="a", waves="100")
    world.answer_all(first)
    regroup(world, "a", "b")
    second = world.start("2.0.0", group="b", waves="100")
    with pytest.raises(Conflict, match=f"a stands in rollout {second}"):
        world.act("roll_back", first, "it was better before")
    world.act("abort", second, "it was better before")
    world.act("roll_back", first, "it was better before")
    assert world.versions() == {"a": "", "b": ""}


def regroup(world: World, device: str, group: str) -> None:
    with world.session() as session:
        inventory.change(session, session.get_one(Device, device), inventory.Change(group=group), OPERATOR, world.now)
