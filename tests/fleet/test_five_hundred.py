"""Five hundred devices and the whole fleet under one clock (`fleet_world`): a bad candidate, and then a good one.

A model answers on all of them through a quiet Sunday. On Monday morning a candidate comes: 1.3 times slower on one
profile, 2 points less accurate on another, equal on two; later its repaired successor goes to those that lack it. A
first wave of a tenth is some 12 devices of a profile, with nine peers for each: twice what a verdict takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fleet_devices import Kind, Worse
from fleet_world import World, whole_fleet

from wire.bundle import split_target
from wire.messages import Reported

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SLOW, INACCURATE = "raspberry-pi-4", "jetson-orin-nano"
FLEET = {
    SLOW: (130, Kind(ms=35, hourly=120)),
    INACCURATE: (110, Kind(ms=12, hourly=1000, labelled=True)),
    "raspberry-pi-zero-2w": (130, Kind(ms=120, hourly=120)),
    "x86-64": (130, Kind(ms=6, hourly=120)),
}
"""How many devices of each profile."""
SUNDAY = datetime(2026, 11, 22, 6, tzinfo=UTC)
STEP = timedelta(minutes=13)
"""No part of an hour, nor of the windows of evidence."""
BAD, REPAIRED = "r-00000000bad2", "r-000000009001"
"""Plans: the order of devices is a hash of it, and the same whenever this runs; here all profiles come early."""


@dataclass
class Course:
    """What was seen of a rollout, from its start to its end: at each look its view, and the hours since the start."""

    looks: list[tuple[float, dict[str, Any]]]

    @property
    def end(self) -> dict[str, Any]:
        return self.looks[-1][1]

    def aborted(self, profile: str) -> tuple[float, int, dict[str, Any]]:
        """Hours until a profile was aborted, how often the gates had been asked of it, and what they said."""
        asked = dict.fromkeys(p["judged"] for _, view in self.looks if (p := _of(view, profile)) and p["judged"])
        hours, view = next((h, v) for h, v in self.looks if _of(v, profile).get("state") == "aborted")
        return hours, len(asked), view


@dataclass
class Story:
    """The world as it stands at the end, the devices by profile, and how both rollouts went."""

    world: World
    bad: Course
    released: dict[str, tuple[str, str]]
    """What each device should run and ran when the bad one had ended: versions."""
    repaired: Course


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Two days of a fleet."""
    with whole_fleet(tmp_path_factory.mktemp("five-hundred"), SUNDAY, timedelta(hours=12)) as world:
        world.join({f"{p}-{i}": (p, kind) for p, (count, kind) in FLEET.items() for i in range(count)}, seed=7)
        assert len(world.devices) == 500
        world.release("1.0.0", *FLEET)
        first = world.start("1.0.0", "r-000000000001", gates="install", waves="100%")
        world.pass_time(hours=0.8, step=STEP)
        assert world.view(first)["state"] == "done"
        world.pass_time(hours=24, step=timedelta(minutes=61))

        world.send_every(timedelta(hours=1))
        world.release("2.0.0", *FLEET)
        world.worse = {
            ("2.0.0", SLOW): Worse(slower=1.3),
            ("2.0.0", INACCURATE): Worse(less_accurate=2.0),
        }
        bad = _roll_out(world, "2.0.0", BAD)
        world.pass_time(hours=0.7, step=STEP)
        now = {name: (wanted(world, name), reported(world, name)) for name in world.devices}
        world.send_every(timedelta(hours=6), *(FLEET.keys() - {SLOW, INACCURATE}))  # it is of no interest any more
        world.release("2.1.0", SLOW, INACCURATE)
        yield Story(world, bad, now, _roll_out(world, "2.1.0", REPAIRED))


def _roll_out(world: World, version: str, plan: str) -> Course:
    """By the default gates, until it has ended."""
    id_, began, looks = world.start(version, plan, waves="10%,100%", soak="1 h"), world.now, []
    while world.now - began < timedelta(hours=30):
        world.pass_time(hours=STEP / timedelta(hours=1), step=STEP)
        looks.append(((world.now - began) / timedelta(hours=1), world.view(id_)))
        if looks[-1][1]["state"] != "running":
            break
    return Course(looks)


def _of(view: dict[str, Any], profile: str) -> dict[str, Any]:
    return next((p for p in view["profiles"] if p["profile"] == profile), {})


def wanted(world: World, device: str) -> str:
    """The version that the fleet signed for a device."""
    (model,) = world.desired(device).models
    return split_target(model.target)[2]


def reported(world: World, device: str) -> str:
    """The version that it said it runs."""
    (slot,) = Reported.from_bytes(world.reported(device)).slots
    return split_target(slot.target)[2]


def test_a_candidate_slower_on_one_profile_is_aborted_there_in_the_first_wave(story: Story) -> None:
    hours, looks, view = story.bad.aborted(SLOW)
    (reason, *_), counts = _of(view, SLOW)["reasons"], _of(view, SLOW)["counts"]
    print(f"\n1.3 times slower: after {hours:.1f} h and {looks} looks, {counts}: {reason}")
    assert {d["wave"] for d in view["devices"] if d["profile"] == SLOW} == {0}, "the first wave alone had it"
    assert reason.startswith("latency 1.")
    assert "worse, evidence 1 in" in reason


def test_a_candidate_two_points_less_accurate_is_caught_before_the_second_wave(story: Story) -> None:
    hours, looks, view = story.bad.aborted(INACCURATE)
    shown = _of(view, INACCURATE)
    samples = shown["numbers"]["labels"]
    print(
        f"\n2 points less accurate: after {hours:.1f} h, {looks} looks and {samples:,.0f} labels: {shown['reasons'][0]}"
    )
    assert {d["wave"] for d in view["devices"] if d["profile"] == INACCURATE} == {0}, "the first wave alone had it"
    assert shown["reasons"][0].startswith("accuracy +")
    assert 1000 < samples < 200_000


def test_every_touched_device_of_these_profiles_is_back_and_the_others_finish(story: Story) -> None:
    end, devices = story.bad.end, story.world.devices
    assert end["state"] == "done"
    touched = {d["device"]: d["state"] for d in end["devices"]}
    for name, device in devices.items():
        if device.profile in (SLOW, INACCURATE):
            assert touched.get(name, "returned") == "returned"
            assert story.released[name] == ("1.0.0", "1.0.0")
        else:
            assert touched[name] == "committed"
            assert story.released[name] == ("2.0.0", "2.0.0")
    for profile in (SLOW, INACCURATE):
        was = sum(devices[name].profile == profile for name in touched)
        assert 5 < was < FLEET[profile][0] / 2, f"{was} devices of {profile} had it"


def test_the_same_candidate_without_its_faults_finishes_there(story: Story) -> None:
    """Control: the same devices, gates and busy hours stop nothing that is not worse."""
    hours, end = story.repaired.looks[-1]
    print(f"\nrepaired: {end['state']} after {hours:.1f} h")
    assert (end["state"], end["verdict"]) == ("done", "PROCEED")
    assert {d["state"] for d in end["devices"]} == {"committed"}
    assert {p["state"] for p in end["profiles"]} == {"open"}
    mine = [name for name, device in story.world.devices.items() if device.profile in (SLOW, INACCURATE)]
    assert len(end["devices"]) == len(mine)
    assert {(wanted(story.world, name), reported(story.world, name)) for name in mine} == {("2.1.0", "2.1.0")}


def test_no_message_of_any_device_was_refused_and_no_record_counted_twice_or_lost(story: Story) -> None:
    """Else a rollout could end well on what was never said."""
    world = story.world
    assert world.refusals() == []
    produced = {name: device.produced() for name, device in world.devices.items()}
    assert world.stored() == produced
    assert min(produced.values()) >= 10
