"""A model in shadow: brought as an update is, run beside the active model in a process of its own, and never heard."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from contextlib import asynccontextmanager, suppress

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import GOLDEN_TEXTS, make_layout

from agent import shadowing
from agent.install import shadows as installing
from agent.life.beside import Said, ShadowMeter
from agent.serving import shadow as serving
from agent.serving.comparing import agrees
from agent.shadowing import LOADED, MAX_STARTS, Budget, Conditions, Sampler, Shadow, hindrance
from wire.pipeline import EMBEDDING
from wire.processing import Result
from wire.profile import Limits
from wire.shadow import ShadowModel

pytestmark = pytest.mark.timeout(400)  # see `until_phase`
ON = "turn the light on"
MODEL = ShadowModel(target="models/intents/kitchen/2.0.0/x86-64", digest=f"sha256:{'0' * 64}")


@pytest.fixture(scope="session")
def contrary(tmp_path_factory):
    return make_layout(tmp_path_factory.mktemp("contrary"), version="9.0.0", contrary=True)


@asynccontextmanager
async def running(new_device, sim, bundles, shadow, *, budget=None, **settings):
    """A device with version one, and a model in shadow that is asked for and runs."""
    device = new_device(**settings)
    for bundle in (*bundles.values(), shadow):
        if bundle not in sim.bundles:
            sim.release(bundle)
    sim.desire(bundles["one"])
    device.connect()
    await device.until_phase("committed")
    sim.shadow(shadow, **(budget or {}))
    sim.desire(bundles["one"])
    device.hear_retained()
    try:
        yield device
    finally:
        await device.stop()


def report(device):
    return next(iter(device.installer.shadows.reports()), None)


def phase(device) -> str:
    found = report(device)
    return found.phase if found else ""


async def until_phase(device, wanted: str) -> None:
    """Its process has what the others leave of the machine, so this may take long beside other tests."""
    await device.until(lambda: phase(device) == wanted, 150)


def counts(device) -> dict[str, int]:
    return device.installer.shadows.view()[0]["requests"]


async def ask_until_compared(device, n: int) -> None:
    before = counts(device).get("compared", 0)
    while counts(device).get("compared", 0) < before + n:
        assert phase(device) == "running", report(device)
        for text in GOLDEN_TEXTS:
            await device.service.infer("kitchen", (text,))
        await asyncio.sleep(0.06)


def in_shadow(device) -> list[psutil.Process]:
    """The processes of models in shadow. One that has ended may not be waited for yet."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if "agent.serving.shadow_program" in process.cmdline():
                found.append(process)
    return found


def test_a_shadow_answers_nobody_and_says_how_often_it_agrees_and_is_promoted_without_a_download(
    new_device, sim, bundles
) -> None:
    async def story() -> None:
        async with running(new_device, sim, bundles, bundles["two"]) as device:
            await until_phase(device, "running")
            slots = {(slot.slot, slot.digest) for slot in device.installer.slots()}
            assert slots == {("active", bundles["one"].digest), ("candidate", bundles["two"].digest)}
            assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
            await ask_until_compared(device, 20)
            (process,) = in_shadow(device)
            assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
            device.core.life.close_window()
            (answered, beside) = device.meter_records()[-1]
            assert (answered.shadow, answered.digest) == (False, bundles["one"].digest)
            assert (beside.shadow, beside.digest, beside.errors) == (True, bundles["two"].digest, 0)
            assert beside.requests == beside.compared == beside.agreed == beside.latency_ms.count >= 20
            assert sum(beside.labels.values()) == beside.requests
            await device.until(lambda: sim.reports[-1].shadows[0].memory > 10_000_000)
            assert device.core.life.health().golden[bundles["two"].digest] is True

            wants, chunks = sim.wants, sim.sent_chunks
            sim.shadow(None)
            sim.desire(bundles["two"], rollout="r2")
            device.hear_retained()
            await device.until(lambda: device.active() == [bundles["two"].digest])
            assert (sim.wants, sim.sent_chunks) == (wants, chunks)
            assert (await device.service.infer("kitchen", (ON,))).digest == bundles["two"].digest
            assert report(device) is None
            await device.until(lambda: not in_shadow(device))

    asyncio.run(story())


def test_one_of_another_opinion_does_not_agree_and_goes_when_it_is_not_wanted_any_more(
    new_device, sim, bundles, contrary
) -> None:
    async def story() -> None:
        async with running(new_device, sim, bundles, contrary) as device:
            await until_phase(device, "running")
            await ask_until_compared(device, 5)
            assert counts(device).get("agreed", 0) == 0
            answer = await device.service.infer("kitchen", (ON,))
            assert answer.results[0].labels == ("light-on",)
            sim.shadow(None)
            sim.desire(bundles["one"])
            device.hear_retained()
            await device.until(lambda: not device.store.has(contrary.digest))
            assert report(device) is None
            assert device.store.has(bundles["one"].digest)

    asyncio.run(story())


def test_it_runs_again_after_a_restart_without_any_network(new_device, sim, bundles) -> None:
    async def story() -> None:
        async with running(new_device, sim, bundles, bundles["two"]) as device:
            await until_phase(device, "running")
        chunks = sim.sent_chunks
        device = new_device()
        await device.core.start()
        await until_phase(device, "running")
        assert device.store.has(bundles["two"].digest)
        await ask_until_compared(device, 5)
        assert sim.sent_chunks == chunks
        await device.stop()

    asyncio.run(story())


def test_a_process_that_is_killed_counts_as_an_error_and_again_and_again_it_has_failed(
    new_device, sim, bundles, monkeypatch
) -> None:
    """Accident: the runtime dies under the candidate, while it runs a request."""
    monkeypatch.setattr(installing, "LOOK", 0.05)

    async def story() -> None:
        async with running(new_device, sim, bundles, bundles["two"]) as device:
            for _ in range(installing.MAX_DEATHS):
                await device.until(lambda: phase(device) == "running" and "kitchen" in device.service.beside, 150)
                (process,) = in_shadow(device)
                process.send_signal(signal.SIGKILL)
                while "kitchen" in device.service.beside:
                    assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
                    await asyncio.sleep(0.02)
            await until_phase(device, "failed")
            assert "its process ended with -9" in report(device).reason
            device.core.life.close_window()
            assert sum(s.errors for record in device.meter_records() for s in record if s.shadow) == 3
            await device.until(lambda: not device.store.has(bundles["two"].digest))

    asyncio.run(story())


@pytest.mark.parametrize(
    ("which", "budget", "limits", "phase_", "reason"),
    [
        ("broken", {}, None, "failed", "golden cases do not hold"),
        ("two", {"memory": 1 << 20}, None, "refused", "its budget is 1.0 MiB"),
        ("two", {}, Limits(disk="1 GiB", store="1 GiB", memory="60 MiB"), "refused", "the profile gives to models"),
        ("two", {}, Limits(disk="1 GiB", store="500 KiB", memory="1 GiB"), "refused", "more disk"),
    ],
)
def test_what_does_not_hold_or_has_no_room_is_said_and_the_active_model_stays(
    new_device, sim, bundles, which, budget, limits, phase_, reason
) -> None:
    """Accident: a candidate that was broken, and devices too small for it beside what they have."""

    async def story() -> None:
        chunks = 0
        device = new_device()
        device.installer._rooms = device.installer.shadows._rooms = dataclasses.replace(
            device.installer._rooms, limits=limits
        )
        async with running(lambda: device, sim, bundles, bundles[which], budget=budget):
            chunks = sim.sent_chunks
            await until_phase(device, phase_)
            assert reason in report(device).reason
            assert {slot.slot for slot in device.installer.slots()} == {"active"}
            if phase_ == "refused":
                assert sim.sent_chunks <= chunks + 1  # the manifest
            assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest

    asyncio.run(story())


def test_an_update_has_the_machine_for_itself_and_heat_makes_it_pause(new_device, sim, bundles, monkeypatch) -> None:
    monkeypatch.setattr(installing, "LOOK", 0.05)
    warm = [40.0]

    async def story() -> None:
        async with running(new_device, sim, bundles, bundles["two"]) as device:
            device.installer.shadows._heat = lambda: (warm[0], None)
            await until_phase(device, "running")
            warm[0] = 81.0
            await until_phase(device, "paused")
            assert report(device).reason == "81 degrees Celsius, its limit is 70"
            await device.until(lambda: not in_shadow(device))
            warm[0] = 69.0  # not cool enough yet to go on
            await asyncio.sleep(0.2)
            assert phase(device) == "paused"
            warm[0] = 60.0
            await until_phase(device, "running")
            phases = set()
            device.core.installer._on_change = lambda: phases.add((device.active()[0], report(device).phase))
            sim.release(other := make_layout(device.settings.state / "layout", version="5.0.0"))
            sim.desire(other, rollout="r5")
            device.hear_retained()
            await device.until(lambda: device.active() == [other.digest])
            await until_phase(device, "running")
            assert (bundles["one"].digest, "paused") in phases

    asyncio.run(story())


def test_a_shadow_gives_its_room_on_the_disk_to_an_update(new_device, sim, bundles, monkeypatch) -> None:
    async def story() -> None:
        async with running(new_device, sim, bundles, bundles["two"]) as device:
            await until_phase(device, "running")
            sim.release(other := make_layout(device.settings.state / "layout", version="5.0.0"))
            rooms = device.installer._rooms
            held = sum(path.stat().st_size for path in device.store.folder.iterdir())

            def room(self):
                now = sum(path.stat().st_size for path in device.store.folder.iterdir())
                return dataclasses.replace(real(self), free=held + 100_000 - now)

            real = type(rooms).room
            monkeypatch.setattr(type(rooms), "room", room)
            sim.desire(other, rollout="r5")
            device.hear_retained()
            await device.until(lambda: device.active() == [other.digest])
            assert (phase(device), report(device).reason) == ("refused", "an update took its room on the disk")

    asyncio.run(story())


def test_what_is_not_listed_is_not_fetched(new_device, sim, bundles) -> None:
    """Attack: a fleet server in hostile hands has a device run what no release key signed, in shadow."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        chunks = sim.sent_chunks
        sim.shadow(bundles["two"])
        sim.desire(bundles["one"])
        device.hear_retained()
        await device.until(lambda: bool(report(device) and report(device).reason))
        assert phase(device) == "waiting"
        assert bundles["two"].target in report(device).reason
        forged = dataclasses.replace(bundles["one"], digest=bundles["two"].digest)
        sim.shadow(forged)
        sim.desire(bundles["one"])
        device.hear_retained()
        await until_phase(device, "refused")
        assert "the release role" in report(device).reason
        assert sim.sent_chunks == chunks
        await device.stop()

    asyncio.run(story())


# --- what is pure ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 100), st.integers(1, 12))
def test_a_sample_is_as_large_as_asked_for_over_every_part_of_the_requests(share: int, every: int) -> None:
    sampler = Sampler(share)
    taken = [sampler.takes() for _ in range(every * 500)]
    for first in range(every):
        part = taken[first::every]
        assert abs(sum(part) / len(part) - share / 100) < 0.02


@given(st.integers(1, 100), st.lists(st.tuples(st.floats(0, 3), st.floats(0, 0.5)), min_size=1, max_size=200))
def test_a_shadow_takes_no_more_than_its_budget_and_one_run(percent: int, runs: list[tuple[float, float]]) -> None:
    budget, now, spent = Budget.of(percent, 0.0), 0.0, 0.0
    for pause, cost in runs:
        now += pause
        if budget.allows(now, loaded=False):
            now += cost
            budget, spent = budget.spent(cost, now), spent + cost
        assert spent <= percent / 100 * (now + shadowing.SAVED) + 0.5


@given(st.lists(st.floats(0.0001, 0.5), min_size=2, max_size=50))
def test_under_load_it_takes_next_to_nothing_whatever_its_budget(costs: list[float]) -> None:
    budget, now, spent = Budget.of(100, 0.0), 0.0, 0.0
    for cost in costs:
        while not budget.allows(now, loaded=True):
            now += 0.05
        now += cost
        budget, spent = budget.spent(cost, now), spent + cost
    assert spent - costs[0] - costs[-1] <= LOADED * now + 1e-6 or len(costs) == 2


def test_a_machine_that_is_hot_held_down_or_short_of_memory_has_no_room_for_it() -> None:
    cool = Conditions(temperature_c=None, throttled=None, available=1 << 40)
    assert hindrance(MODEL, cool, running=True, needs=1) == ""
    assert "held down" in hindrance(MODEL, dataclasses.replace(cool, throttled=True), running=True, needs=1)
    warm = dataclasses.replace(cool, temperature_c=69.0)
    assert hindrance(MODEL, warm, running=True, needs=1) == ""
    assert "69 degrees" in hindrance(MODEL, warm, running=False, needs=1)
    short = dataclasses.replace(cool, available=shadowing.RESERVE + 50)
    assert hindrance(MODEL, short, running=True, needs=100) == ""
    assert "memory available" in hindrance(MODEL, short, running=False, needs=100)


def test_a_newer_desired_state_keeps_what_runs_ends_what_answers_and_tries_again_what_it_changed() -> None:
    running = shadowing.noted(Shadow(wanted=MODEL), "running", memory=5)
    assert shadowing.desire(running, MODEL, "other") == running
    more = dataclasses.replace(MODEL, share=50)
    assert shadowing.desire(running, more, "other") == dataclasses.replace(running, wanted=more)
    assert shadowing.desire(running, MODEL, MODEL.digest) is None
    assert shadowing.desire(running, None, "other") is None
    refused = shadowing.noted(Shadow(wanted=MODEL), "refused", "no room")
    assert shadowing.desire(refused, MODEL, "other") == refused
    assert shadowing.desire(refused, more, "other") == Shadow(wanted=more)


def test_one_beside_which_the_agent_ends_again_and_again_has_failed() -> None:
    """Accident: its load browns the board out; each start finds it as running."""
    shadow = Shadow(wanted=MODEL)

    def started_again(shadow: Shadow, *, killed: bool) -> Shadow:
        return shadowing.found_at_start(shadowing.noted(shadow, "running"), killed=killed)

    for _ in range(10):
        shadow = started_again(shadow, killed=False)
    for _ in range(MAX_STARTS - 1):
        shadow = started_again(shadow, killed=True)
    assert shadow.phase == "paused"
    assert shadowing.found_at_start(shadow, killed=True) == shadow  # it did not run then
    shadow = started_again(shadow, killed=True)
    assert (shadow.phase, shadow.reason) == ("failed", f"the agent ended {MAX_STARTS} times while it ran")


def test_labels_agree_word_by_word_vectors_by_angle_and_tensors_within_a_part_of_the_largest() -> None:
    words = Result({}, ("a", "b", "c"))
    assert [agrees(("a", "b", "x"), {}, words, turn) for turn in range(4)] == [True, True, False, True]
    assert not agrees(("a", "b"), {}, Result({}, ("a",)), 1)
    one, near, far = np.array([1.0, 0.0]), np.array([2.0, 0.1]), np.array([1.0, 1.0])
    assert agrees((), {EMBEDDING: one}, Result({EMBEDDING: near}), 0)
    assert not agrees((), {EMBEDDING: one}, Result({EMBEDDING: far}), 0)
    assert not agrees((), {EMBEDDING: one}, Result({EMBEDDING: np.ones(3)}), 0)
    assert agrees((), {"y": one}, Result({"y": np.array([1.04, -0.04])}), 0)
    assert not agrees((), {"y": one}, Result({"y": np.array([1.06, 0.0])}), 0)
    assert not agrees((), {"y": one}, Result({"y": np.array([np.nan, 0.0])}), 0)
    assert not agrees((), {"y": one}, Result({"z": one}), 0)


def test_a_window_adds_up_what_was_said_and_is_empty_afterwards() -> None:
    meter = ShadowMeter()
    meter.said("kitchen", MODEL.digest, [Said(1.0, agreed=True, labels=["on"], confidences=[0.9]), Said(0, "E")])
    meter.said("kitchen", MODEL.digest, [Said(2.0, labels=["off"], confidences=[0.4])])
    (stats,) = meter.close()
    assert (stats.requests, stats.errors, stats.compared, stats.agreed) == (3, 1, 2, 1)
    assert (stats.latency_ms.count, dict(stats.labels), stats.shadow) == (2, {"on": 1, "off": 1}, True)
    assert meter.close() == ()


def test_what_finds_no_room_is_dropped_and_counted() -> None:
    class Child:
        returncode = None

    async def story() -> None:
        wanted = dataclasses.replace(MODEL, share=100)
        runner = serving.Runner(Child(), wanted, lambda _said: None, 0)  # type: ignore[arg-type]
        runner._turning.cancel()
        result = Result({}, ("on",))
        for _ in range(serving.MOST + 5):
            runner.take((ON,), (result,))
        runner.take(("x" * serving.MOST_BYTES,), (result,))
        assert runner.counts["dropped"] == 6
        assert len(runner._waiting.samples) == serving.MOST

    asyncio.run(story())
