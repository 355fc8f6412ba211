"""An install that is killed, or loses its power, at any operation on the disk: a sound model answers, and it comes
through. `tests/killed_install.py` does it, and checks after every fault; `scripts/bench soak` does all of them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import power_cut
import pytest

from agent.update import MAX_STARTS

PROGRAM = Path(__file__).parent.parent / "killed_install.py"
CHANGES = {"open", "pwrite", "fsync", "os.rename", "sql BEGIN", "sql COMMIT"}


def faults(folder: Path, how: str, first: int, step: int) -> list[dict[str, Any]]:
    """Every fault that fired, in order; the last install, which came through, is not among them."""
    command = [sys.executable, "-P", str(PROGRAM), str(folder), how, str(first), str(step)]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(PROGRAM.parent)}
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [f["fired"] for f in found] == [True] * (len(found) - 1) + [False]
    assert found[-1]["seen"] >= max(f["at"] for f in found[:-1])
    return found[:-1]


def test_an_install_killed_at_some_operations_on_the_disk_leaves_a_sound_model_and_comes_through(tmp_path) -> None:
    """Accident: SIGKILL; every 80th operation here."""
    assert len(faults(tmp_path, "kill", 45, 80)) >= 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_an_install_killed_at_every_operation_on_the_disk_leaves_a_sound_model_and_comes_through(
    tmp_path, first
) -> None:
    """The same, at every operation: four tests with a quarter of them each."""
    found = faults(tmp_path, "kill", first, 4)
    assert len(found) >= 15
    assert {f["found"] for f in found} == {"one", "two"}, "faults before and after the switch"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(power_cut.why_not() is not None, reason=f"no power to cut: {power_cut.why_not()}")
def test_an_install_that_loses_its_power_leaves_a_sound_model_and_comes_through(tmp_path) -> None:
    """Accident: what was not synced is gone; every 30th operation here."""
    assert len(faults(tmp_path, "cut", 3, 30)) >= 4


# --- what changes while an update is under way ------------------------------------------------------------------------

ON = "turn the light on"


async def with_one_model(new_device, sim, bundles, **settings: Any) -> Any:
    """A device that runs the first release."""
    device = new_device(**settings)
    sim.release(bundles["one"])
    sim.desire(bundles["one"], rollout="r1")
    device.connect()
    await device.until(lambda: device.active() == [bundles["one"].digest])
    return device


def test_a_clock_that_jumps_between_1970_and_2100_holds_up_no_update_and_no_answer(new_device, sim, bundles) -> None:
    """Accident: a clock without a battery, a wrong time server, and a person who corrects it, all at once."""
    jumps = itertools.cycle((datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC), datetime.now(UTC)))
    asked = 0

    def wall() -> datetime:
        nonlocal asked
        asked += 1
        return next(jumps)

    async def story() -> None:
        device = await with_one_model(new_device, sim, bundles, wall=wall)
        answers = asyncio.create_task(keep_asking(device))
        sim.release(bundles["two"], counter=2)
        sim.desire(bundles["two"], rollout="r2")
        device.hear_retained()
        await device.until(lambda: device.active() == [bundles["two"].digest])
        await device.stop()
        again = new_device(wall=wall)
        await again.core.start()
        assert (await again.service.infer("kitchen", (ON,))).digest == bundles["two"].digest
        await again.stop()
        assert await stopped(answers) > 0
        assert asked > 0, "the fault must fire"
        assert not [subject for subject, _ in again.events]

    asyncio.run(story())


async def keep_asking(device: Any) -> int:
    """Ask without a pause until cancelled; every question is answered."""
    answered = 0
    try:
        while device.service.names():
            assert (await device.service.infer("kitchen", (ON,))).results[0].labels[0] == "light-on"
            answered += 1
            await asyncio.sleep(0.005)
    except asyncio.CancelledError:
        pass
    return answered


async def stopped(task: asyncio.Task[int]) -> int:
    task.cancel()
    return await task


@pytest.mark.parametrize("place", ["staging", "switching"])
def test_a_step_that_hangs_ends_at_its_deadline_and_the_next_update_runs(
    new_device, sim, bundles, monkeypatch, place
) -> None:
    """Accident: a disk that hangs in a read, or a runtime in its loading."""
    target = {"staging": "agent.serving.bundles.Bundle.open", "switching": "agent.serving.service.Served.load"}[place]
    name, hung = {"staging": "stage_timeout", "switching": "switch_timeout"}[place], threading.Event()

    def hang(*_arguments: object) -> None:
        hung.set()
        assert release.wait(30)
        raise OSError("it came back much later")

    async def story() -> None:
        device = await with_one_model(new_device, sim, bundles, **{name: 0.2})
        monkeypatch.setattr(target, hang)
        sim.release(bundles["two"], counter=2)
        sim.desire(bundles["two"], rollout="r2")
        device.hear_retained()
        await device.until_phase("failed")
        assert hung.is_set()
        assert device.phases()["failed"] == f"{place}: not done within 0.2 s"
        assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
        monkeypatch.undo()
        release.set()
        sim.desire(bundles["two"], rollout="r3")
        device.hear_retained()
        await device.until(lambda: device.active() == [bundles["two"].digest])
        await device.stop()

    release = threading.Event()
    asyncio.run(story())


def test_waiting_for_the_line_is_no_fault_and_is_said(new_device, sim, bundles, monkeypatch) -> None:
    monkeypatch.setattr("agent.install.installer.STILL", 0.1)

    async def story() -> None:
        device = await with_one_model(new_device, sim, bundles)
        sim.faults.lose = 1.0
        sim.release(bundles["two"], counter=2)
        sim.desire(bundles["two"], rollout="r2")
        device.hear_retained()
        await device.until(lambda: "waiting: " in device.phases().get("fetching", ""))
        assert sim.faults.fired["lost"] > 0
        sim.faults.lose = 0.0
        await device.until(lambda: device.active() == [bundles["two"].digest])
        assert device.phases() == {"committed": ""}
        await device.stop()

    asyncio.run(story())


def test_four_restarts_within_one_probation_do_not_end_an_update(new_device, sim, bundles) -> None:
    """Accident: an operator restarts the device again and again; four starts were taken for four crashes."""

    async def story() -> None:
        device = await with_one_model(new_device, sim, bundles)
        sim.release(bundles["two"], counter=2)
        sim.desire(bundles["two"], rollout="r2")
        await device.stop()
        for _ in range(5):
            device = new_device(probation_time=60.0, probation_requests=1000)
            await device.core.start()
            device.connect()
            await device.until_phase("probation")
            await device.stop()
        device = new_device()
        await device.core.start()
        device.connect()
        await device.until(lambda: device.active() == [bundles["two"].digest])
        assert device.installer._models["kitchen"].update.starts == 0
        await device.stop()

    asyncio.run(story())


def test_four_crashes_within_one_probation_end_an_update(new_device, sim, bundles) -> None:
    """Accident: the new model is what kills the agent."""

    async def story() -> None:
        device = await with_one_model(new_device, sim, bundles)
        sim.release(bundles["two"], counter=2)
        sim.desire(bundles["two"], rollout="r2")
        await device.stop()
        crashes = 0
        while True:
            device = new_device(probation_time=60.0, probation_requests=1000)
            await device.core.start()
            device.connect()
            await device.until(lambda device=device: device.phases().keys() & {"probation", "failed"})
            if "failed" in device.phases():
                break
            device.disconnect()
            await device.core.stop(clean=False)
            device.state.close()
            crashes += 1
        assert crashes == MAX_STARTS
        assert "the agent stopped 4 times" in device.phases()["failed"]
        assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
        await device.stop()

    asyncio.run(story())
