from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from agent.trust.freshness import Freshness
from wire import topics
from wire.messages import Presence
from wire.units import instant

HELD, NAMED = (1, 5), (1, 7)


def connected() -> Freshness:
    freshness = Freshness(30)
    freshness.line_is_up(100)
    freshness.asked(100)
    return freshness


def test_a_device_that_is_answered_and_holds_the_newest_is_fresh_however_long_nothing_is_asked() -> None:
    freshness = connected()
    freshness.answered(101, named=HELD, held=HELD)
    assert freshness.heard == 101
    assert freshness.frozen(101 + 86400) is None


def test_silence_on_a_line_that_is_up_freezes_from_the_first_question_on_and_an_answer_ends_it() -> None:
    freshness = connected()
    freshness.asked(120)
    assert freshness.frozen(130) is None
    frozen = freshness.frozen(131)
    assert frozen is not None
    assert (frozen.since, "does not answer" in frozen.why) == (100, True)
    freshness.answered(132, named=HELD, held=HELD)
    assert freshness.frozen(1000) is None


def test_a_line_that_is_down_is_not_silence_and_one_that_is_cut_again_and_again_does_not_hide_it() -> None:
    """Attack: the line is let up for ten seconds at a time, without any answer."""
    freshness = connected()
    freshness.line_is_down(110)
    assert freshness.frozen(110 + 86400) is None
    for begin in (200, 300):
        freshness.line_is_up(begin)
        freshness.asked(begin)
        freshness.line_is_down(begin + 10)
    assert freshness.frozen(400) is None
    freshness.line_is_up(400)
    assert freshness.frozen(401) is not None


def test_a_newer_desired_state_that_does_not_come_freezes_until_it_does() -> None:
    """Attack: everything is let through but the newest desired state."""
    freshness = connected()
    freshness.answered(101, named=NAMED, held=HELD)
    freshness.answered(110, named=NAMED, held=HELD)
    assert (freshness.frozen(131), freshness.behind(131)) == (None, 30)
    frozen = freshness.frozen(132)
    assert frozen is not None
    assert (frozen.since, frozen.why) == (101, "desired state 1.7 does not come: it is kept from this device")
    freshness.holds((1, 6))
    assert freshness.frozen(132) is not None
    freshness.holds(NAMED)
    assert freshness.frozen(1000) is None


def test_metadata_that_expired_freezes_a_device_whose_line_is_up() -> None:
    freshness = connected()
    freshness.answered(101, named=HELD, held=HELD)
    assert freshness.frozen(129, expired_for=1000) is None  # it may be on its way
    frozen = freshness.frozen(131, expired_for=1000)
    assert frozen is not None
    assert (frozen.since, "metadata expired" in frozen.why) == (-869, True)


# --- a whole device ---------------------------------------------------------------------------------------------------


def test_a_withheld_desired_state_is_seen_shown_since_when_and_noted_once(new_device, sim, bundles) -> None:
    """Attack: a broker that delivers all but the newest desired state; asked again, it still holds it back."""

    async def story() -> None:
        device = new_device(freeze_after=0.4)
        await device.core.start()
        sim.release(bundles["one"])
        sim.faults.hold_desired = True
        device.connect()
        await device.until(lambda: device.clock.learnt)
        assert device.trust()["frozen_since"] is None
        sim.desire(bundles["one"])
        begun = datetime.now(UTC)
        device.core.reporter.soon()
        await device.until(lambda: device.trust()["frozen_since"] is not None)
        since = instant(device.trust()["frozen_since"])
        assert begun - timedelta(seconds=1) <= since <= begun + timedelta(seconds=5)
        assert "desired state 1.1" in device.trust()["why"]
        await device.until(lambda: [subject for subject, _ in device.events] == ["freshness"])
        device.core.look()
        assert len(device.events) == 1
        sim.faults.hold_desired = False
        sim.desire(bundles["one"])
        device.hear_retained()
        await device.until_phase("committed")
        assert (device.trust()["frozen_since"], device.trust()["why"]) == (None, "")
        await device.stop()

    asyncio.run(story())


def test_a_desired_state_that_the_broker_lost_on_the_way_is_asked_for_again(new_device, sim, bundles) -> None:
    """Accident: a broker under load drops the message, and holds it retained all the same."""

    async def story() -> None:
        device = new_device(freeze_after=1.0)
        await device.core.start()
        sim.release(bundles["one"])
        device.connect()
        await device.until(lambda: device.clock.learnt)
        sim.desire(bundles["one"])  # and nobody delivers it
        device.core.reporter.soon()
        await device.until_phase("committed")
        assert device.events == []
        await device.stop()

    asyncio.run(story())


def test_silence_is_seen_and_noted_and_reports_are_said_again_ever_more_slowly(new_device, sim) -> None:
    """Attack: everything that the device says is swallowed; the line looks fine."""

    async def story() -> None:
        device = new_device(freeze_after=0.4, ack_timeout=0.1)
        await device.core.start()
        sim.faults.mute = True
        device.connect()
        await device.until(lambda: device.trust()["frozen_since"] is not None)
        assert "does not answer" in device.trust()["why"]
        assert device.trust()["heard"] is None
        await device.until(lambda: [subject for subject, _ in device.events] == ["freshness"])
        await device.until(lambda: len(sim.reports) >= 4)
        assert [report.number for report in sim.reports] == [(1, n + 1) for n in range(len(sim.reports))]
        assert len({report.nonce for report in sim.reports}) == len(sim.reports)
        assert device.core.reporter._pause >= 0.8
        sim.faults.mute = False
        await device.until(lambda: device.trust()["frozen_since"] is None)
        assert instant(device.trust()["heard"]) > datetime.now(UTC) - timedelta(minutes=1)
        said = len(sim.reports)
        await asyncio.sleep(0.5)  # longer than several pauses: what was answered is not said again
        assert len(sim.reports) <= said + 1
        await device.stop()

    asyncio.run(story())


def test_a_fleet_that_says_that_it_is_away_is_shown_and_is_no_attack(new_device, sim) -> None:
    async def story() -> None:
        device = new_device(freeze_after=0.2)
        await device.core.start()
        sim.faults.mute = True
        device.connect()
        await device.until(lambda: device.outbox.open)
        device.hear(topics.FleetState(), Presence(session="f1", online=False).to_bytes())
        await device.until(lambda: device.trust()["frozen_since"] is not None)
        device.core.look()
        assert device.events == []
        await device.stop()

    asyncio.run(story())
