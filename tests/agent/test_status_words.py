"""`shoal-agent status`: what a technician with a terminal and no network can learn."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from agent.main import _in_words
from wire import topics


def test_a_technician_reads_what_is_wrong_since_when_and_what_to_do(new_device, sim) -> None:
    at = 1000.0

    async def story() -> None:
        nonlocal at
        device = new_device(monotonic=lambda: at)
        assert "line to the fleet: down since the start: models go on answering" in _in_words(device.core.status())
        device.connect()
        await device.until(lambda: device.outbox.open and device.clock.learnt)
        up = device.core.status()
        assert f"line to the fleet: up since {up['link']['since']}\n" in _in_words(up)
        device.hear(topics.Ack("kitchen-1"), sim.ack("made-up", device.core.boot))
        device.inbox._judge()
        at += 3600
        device.disconnect()
        device.link.fault = "the broker refused this device: Not authorized: is it enrolled, and not revoked?"
        at += 60
        status = device.core.status()
        words = _in_words({**status, "disk": "agent.db: cannot be opened: make room"})
        assert abs(sim.now() + timedelta(hours=1) - device.now()) < timedelta(minutes=2)
        assert f"down since {status['link']['since']} ({device.link.fault}): models go on" in words
        assert "disk: NOTHING IS KEPT: agent.db: cannot be opened: make room" in words
        assert "acknowledgement: ack 1." in words
        assert status["link"]["since"] > up["link"]["since"]
        await device.stop()

    asyncio.run(story())
