"""A transfer that somebody keeps slow: a device says so instead of staying on its old model for ever."""

from __future__ import annotations

import asyncio

from wire.messages import UpdateReport


def update_of(device) -> UpdateReport:
    (report,) = device.installer.updates()
    return report


def test_a_transfer_that_is_kept_slow_is_a_security_event_and_the_reason_of_the_update(
    new_device, sim, bundles
) -> None:
    """Attack: every chunk is held back on the way. Nothing is refused, and nothing ever comes."""

    async def story() -> None:
        device = new_device(slow_rate=1000, slow_after=0.3)
        sim.release(bundles["one"])
        sim.faults.lose = 1.0
        device.connect()
        await device.core.start()
        sim.desire(bundles["one"])
        device.hear_retained()
        await device.until(lambda: any("kept slow" in reason for _, reason in device.events))
        assert sim.faults.fired["lost"] > 0
        assert "kept slow: 0 B/s over the last 0 s" in update_of(device).reason
        assert update_of(device).phase == "fetching"
        sim.faults.lose = 0.0
        await device.until_phase("committed")
        assert update_of(device).reason == ""
        await device.stop()

    asyncio.run(story())


def test_a_transfer_without_a_line_is_not_called_slow(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = new_device(slow_rate=1000, slow_after=0.2)
        sim.release(bundles["one"])
        sim.faults.lose = 1.0
        device.connect()
        await device.core.start()
        sim.desire(bundles["one"])
        device.hear_retained()
        await device.until(lambda: sim.faults.fired.get("lost", 0) > 0)
        device.disconnect()
        device.events.clear()
        begun = device.clock.uptime()
        await device.until(lambda: device.clock.uptime() - begun > 1)
        assert not any("kept slow" in reason for _, reason in device.events)
        await device.stop()

    asyncio.run(story())
