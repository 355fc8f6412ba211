"""Measuring jobs: a release is verified as any other, timed in a process of its own, reported and given back."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from agent import measuring
from agent.errors import Unavailable
from agent.install.measure import check_memory
from agent.life import power
from agent.measuring import KEPT, MAX_STARTS, Task
from agent.serving.timing import percentiles
from wire.messages import MachineState, MeasureReport
from wire.orders import MeasureJob

ON = "turn the light on"
AT = "2026-11-22T08:00:00.000Z"


def reports(device) -> dict[str, MeasureReport]:
    return {report.id: report for report in device.installer.measurer.reports()}


def phase(device, job: str) -> str:
    return reports(device)[job].phase if job in reports(device) else ""


async def until_ended(device, job: str) -> MeasureReport:
    await device.until(lambda: job in reports(device) and reports(device)[job].ended)
    return reports(device)[job]


async def with_model(new_device, sim, bundles, **settings):
    """A device that runs version one, and knows of the others."""
    device = new_device(**settings)
    for bundle in bundles.values():
        sim.release(bundle)
    sim.desire(bundles["one"])
    device.connect()
    await device.until_phase("committed")
    return device


def test_a_job_is_timed_reported_and_given_back_while_the_active_model_answers(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = await with_model(new_device, sim, bundles)
        sim.measure = {"m-1": bundles["two"]}
        sim.desire(bundles["one"])
        device.hear_retained()
        await device.until(lambda: phase(device, "m-1") == "running")
        assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
        report = await until_ended(device, "m-1")
        assert (report.phase, report.digest) == ("done", bundles["two"].digest)
        timing = report.timing
        assert (timing.rounds, timing.n) == (5, 25)
        assert 0 < timing.p50_low <= timing.p50_ms <= timing.p50_high <= timing.p99_ms
        assert timing.runtime.startswith("onnxruntime 1.")
        assert timing.memory > 0
        assert timing.before.at <= timing.after.at
        assert device.active() == [bundles["one"].digest]
        assert {slot.digest for slot in device.installer.slots()} == {bundles["one"].digest}
        await device.until(lambda: not device.store.has(bundles["two"].digest))
        shared = {f.digest for f in bundles["one"].manifest.files} & {f.digest for f in bundles["two"].manifest.files}
        assert shared
        assert all(device.store.has(digest) for digest in shared)
        assert (await device.service.infer("kitchen", (ON,))).digest == bundles["one"].digest
        await device.until(lambda: sim.reports[-1].measured == (report,))
        await device.stop()

    asyncio.run(story())


def test_a_job_is_done_once_over_restarts_and_newer_desired_states(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = await with_model(new_device, sim, bundles)
        sim.measure = {"m-1": bundles["two"]}
        sim.desire(bundles["one"])
        device.hear_retained()
        first = await until_ended(device, "m-1")
        await device.stop()
        device = new_device()
        await device.installer.restore()
        sent = sim.sent_chunks
        device.connect()
        assert reports(device) == {"m-1": first}
        sim.measure = {}
        sim.desire(bundles["one"])
        device.hear_retained()
        await device.until(lambda: reports(device) == {})
        sim.measure = {"m-1": bundles["two"]}
        sim.desire(bundles["one"])
        device.hear_retained()
        await device.until(lambda: reports(device) == {"m-1": first})
        assert sim.sent_chunks == sent
        await device.stop()

    asyncio.run(story())


def test_a_release_that_is_not_listed_is_not_fetched_and_one_with_another_digest_is_refused(
    new_device, sim, bundles
) -> None:
    """Attack: a fleet server in hostile hands names what no release key signed."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        forged = dataclasses.replace(bundles["one"], digest=bundles["two"].digest)
        sim.measure = {"m-1": bundles["two"], "m-2": forged}
        sim.desire()
        device.connect()
        report = await until_ended(device, "m-2")
        assert report.phase == "refused"
        assert "the release role" in report.reason
        waiting = reports(device)["m-1"]
        assert waiting.phase == "waiting"
        assert bundles["two"].target in waiting.reason
        assert sim.sent_chunks == 0
        await device.stop()

    asyncio.run(story())


def test_a_bundle_whose_golden_set_does_not_hold_is_not_timed(new_device, sim, bundles) -> None:
    """Accident: scrambled weights under a right signature."""

    async def story() -> None:
        device = await with_model(new_device, sim, bundles)
        sim.measure = {"m-1": bundles["broken"]}
        sim.desire(bundles["one"])
        device.hear_retained()
        report = await until_ended(device, "m-1")
        assert (report.phase, report.timing) == ("failed", None)
        assert "golden cases do not hold" in report.reason
        await device.until(lambda: not device.store.has(bundles["broken"].digest))
        await device.stop()

    asyncio.run(story())


def test_an_update_goes_first_and_the_job_begins_anew_after_it(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = await with_model(new_device, sim, bundles)
        sim.measure = {"m-1": bundles["one"]}
        sim.desire(bundles["one"])
        device.hear_retained()
        await device.until(lambda: phase(device, "m-1") == "running")
        sim.desire(bundles["two"], rollout="r2")
        device.hear_retained()
        await device.until(lambda: phase(device, "m-1") == "waiting")
        assert "update" in reports(device)["m-1"].reason
        await device.until(lambda: device.active() == [bundles["two"].digest])
        report = await until_ended(device, "m-1")
        assert report.phase == "done"
        assert device.state.measuring()["m-1"].starts == 1
        await device.stop()

    asyncio.run(story())


def test_a_job_that_ends_the_agent_again_and_again_fails(new_device, sim, bundles) -> None:
    """Accident: the job takes the machine down; each start finds it as begun."""

    async def story() -> None:
        device = await with_model(new_device, sim, bundles)
        job = MeasureJob(id="m-1", target=bundles["two"].target, digest=bundles["two"].digest, rounds=5)
        began = Task(job=job, phase="running", starts=MAX_STARTS)
        device.state.accept_desired(device.state.last_desired(), device.state.models(), "", {"m-1": began})
        await device.stop()
        device = new_device()
        await device.installer.restore()
        report = await until_ended(device, "m-1")
        assert report.phase == "failed"
        assert f"{MAX_STARTS} times" in report.reason
        await device.stop()

    asyncio.run(story())


def test_a_machine_without_the_memory_does_not_begin() -> None:
    with pytest.raises(Unavailable, match="memory available, measuring needs"):
        check_memory(1 << 50)


def test_jobs_that_ended_are_remembered_and_those_that_did_not_are_forgotten() -> None:
    job = MeasureJob(id="m-1", target="models/intents/kitchen/1.0.0/x86-64", digest=f"sha256:{'0' * 64}", rounds=1)
    done = {f"m-{i}": Task(job=dataclasses.replace(job, id=f"m-{i}"), phase="done") for i in range(KEPT + 5)}
    kept = measuring.desire({**done, "new": Task(job=dataclasses.replace(job, id="new"))}, [])
    assert list(kept) == [f"m-{i}" for i in range(5, KEPT + 5)]
    assert not any(task.listed for task in kept.values())
    assert measuring.desire(kept, [dataclasses.replace(job, id="m-9")])["m-9"].report().phase == "done"


def test_percentiles_are_times_that_were_seen_with_the_ranks_around_them() -> None:
    found = percentiles([float(i) for i in range(1, 101)])
    assert (found["n"], found["p50_ms"], found["p99_ms"]) == (100, 50.0, 99.0)
    assert (found["p50_low"], found["p50_high"]) == (40.0, 61.0)
    assert percentiles([3.0]) == {
        "n": 1,
        "confidence": 0.95,
        **dict.fromkeys(("p50_ms", "p50_low", "p50_high", "p99_ms", "p99_low", "p99_high"), 3.0),
    }


# --- heat and power -------------------------------------------------------------------------------------------------


def machine(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_raspberry_pi_says_what_its_firmware_does(tmp_path: Path) -> None:
    machine(
        tmp_path,
        sys__devices__system__cpu__cpu0__cpufreq__scaling_cur_freq="600000\n",
        sys__devices__system__cpu__cpu0__cpufreq__cpuinfo_max_freq="1500000\n",
        sys__devices__system__cpu__cpu0__cpufreq__scaling_governor="ondemand\n",
        sys__class__thermal__thermal_zone0__temp="81200\n",
        proc__loadavg="1.25 0.8 0.5 2/300 4711\n",
    )
    said = {("vcgencmd", "get_throttled"): "throttled=0x50005\n"}
    assert power.look(AT, tmp_path, lambda command: said.get(tuple(command), "")) == MachineState(
        at=AT,
        throttled=True,
        throttle_bits=0x50005,
        temperature_c=81.2,
        cpu_mhz=600.0,
        cpu_max_mhz=1500.0,
        governor="ondemand",
        load=1.25,
    )


def test_a_jetson_says_its_power_mode_and_a_laptop_its_battery_and_counters(tmp_path: Path) -> None:
    machine(
        tmp_path,
        sys__class__power_supply__BAT0__type="Battery\n",
        sys__class__power_supply__BAT0__status="Discharging\n",
        sys__class__power_supply__BAT0__capacity="41\n",
        sys__class__power_supply__BAT1__type="Battery\n",
        sys__class__power_supply__BAT1__capacity="-1\n",
        sys__class__power_supply__AC__type="Mains\n",
        sys__class__power_supply__AC__online="0\n",
        sys__class__thermal__cooling_device0__type="Processor\n",
        sys__class__thermal__cooling_device0__cur_state="0\n",
        sys__class__thermal__cooling_device1__type="pwm-fan\n",
        sys__class__thermal__cooling_device1__cur_state="3\n",
        sys__devices__system__cpu__cpu0__thermal_throttle__core_throttle_count="2\n",
        sys__devices__system__cpu__cpu1__thermal_throttle__core_throttle_count="5\n",
    )
    said = {("nvpmodel", "-q"): "NV Fan Mode:quiet\nNV Power Mode: 5W\n1\n"}
    state = power.look(AT, tmp_path, lambda command: said.get(tuple(command), ""))
    assert (state.power_mode, state.power, state.throttle_events, state.throttled) == ("5W", "battery", 7, False)
    assert state.battery_percent == 41.0


def test_a_machine_that_says_nothing_is_unknown(tmp_path: Path) -> None:
    assert power.look(AT, tmp_path, lambda _command: "") == MachineState(at=AT)
