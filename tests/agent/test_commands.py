from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from trust_repository import new_signer

from wire import topics
from wire.units import show_instant

COMMAND = topics.Command("kitchen-1")


async def ready(new_device, **settings):
    device = new_device(**settings)
    device.connect()
    await device.until(lambda: device.clock.learnt)
    return device


def outcomes(sim) -> list[tuple[int, str]]:
    return [(reply.seq, reply.outcome) for reply in sim.replies]


def test_a_command_to_report_is_done_and_answered(new_device, sim) -> None:
    async def story() -> None:
        device = await ready(new_device)
        said = len(sim.reports)
        device.hear(COMMAND, sim.command("report"))
        assert outcomes(sim) == [(1, "done")]
        await device.until(lambda: len(sim.reports) > said)
        assert device.events == []
        await device.stop()

    asyncio.run(story())


def test_a_command_to_wipe_is_marked_before_it_is_answered(new_device, sim) -> None:
    async def story() -> None:
        device = await ready(new_device)
        order: list[str] = []
        device.core.commands._wipe = lambda: order.append("marked")
        publish = device.link.publish
        device.link.publish = lambda topic, *rest, **more: (order.append(topic.topic), publish(topic, *rest, **more))
        device.hear(COMMAND, sim.command("wipe"))
        assert order == ["marked", "shoal/1/d/kitchen-1/reply"]
        assert outcomes(sim) == [(1, "done")]
        await device.stop()

    asyncio.run(story())


def test_a_command_that_this_agent_does_not_know_is_refused_in_words(new_device, sim) -> None:
    async def story() -> None:
        device = await ready(new_device)
        device.hear(COMMAND, sim.command("dance"))
        assert outcomes(sim) == [(1, "refused")]
        assert "does not know the command dance" in sim.replies[0].reason
        await device.stop()

    asyncio.run(story())


def test_a_replayed_command_is_a_security_event_and_is_not_done(new_device, sim) -> None:
    """Attack: an earlier command, rightly signed, is sent again; then again after a restart."""

    async def story() -> None:
        device = await ready(new_device)
        old = sim.command("wipe")
        device.hear(COMMAND, sim.command("report"))
        device.hear(COMMAND, old)
        await device.until(lambda: [subject for subject, _ in device.events] == ["command"])
        assert "not above 1.2" in device.events[0][1]
        assert device.wiped == 0
        await device.stop()
        again = await ready(new_device)
        again.hear(COMMAND, old)
        await again.until(lambda: [subject for subject, _ in again.events] == ["command"])
        assert again.wiped == 0
        await again.stop()

    asyncio.run(story())


def test_a_command_whose_answer_was_lost_is_answered_again_and_not_done_again(new_device, sim) -> None:
    """Accident: the line goes down between the command and its answer; the fleet sends it again at the next birth."""

    async def story() -> None:
        device = await ready(new_device)
        command = sim.command("dance")
        device.link.up = False
        device.hear(COMMAND, command)
        assert sim.replies == []
        await device.stop()
        again = await ready(new_device)
        again.hear(COMMAND, command)
        again.hear(COMMAND, command)
        assert outcomes(sim) == [(1, "refused"), (1, "refused")]
        assert again.events == []
        await again.stop()

    asyncio.run(story())


def test_a_command_that_comes_late_is_refused_and_not_done(new_device, sim) -> None:
    """Attack: a command to wipe is kept back until nobody means it any more."""

    async def story() -> None:
        device = await ready(new_device)
        expired = show_instant(sim.now() - timedelta(minutes=1))
        issued = show_instant(sim.now() - timedelta(minutes=11))
        device.hear(COMMAND, sim.command("wipe", issued=issued, expires=expired))
        assert outcomes(sim) == [(1, "refused")]
        assert "expired" in sim.replies[0].reason
        assert device.wiped == 0
        await device.stop()

    asyncio.run(story())


def test_a_command_from_before_the_enrolment_is_refused(new_device, sim) -> None:
    """Attack: the command that wiped this device last year is sent to it again after it was enrolled anew."""

    async def story() -> None:
        old = sim.command("wipe", issued=show_instant(sim.now() - timedelta(days=1)))
        device = await ready(new_device)
        device.state.note_enrolment(sim.now() - timedelta(hours=1))
        device.hear(COMMAND, old)
        await device.until(lambda: [subject for subject, _ in device.events] == ["command"])
        assert "older than this device's enrolment" in device.events[0][1]
        assert (device.wiped, sim.replies) == (0, [])
        await device.stop()

    asyncio.run(story())


def test_a_command_waits_until_the_fleet_has_told_the_time(new_device, sim) -> None:
    """Whether it is late cannot be known before: a clock at 1970 would take one of last year."""

    async def story() -> None:
        device = new_device()
        sim.faults.mute = True
        device.connect()
        await device.until(lambda: "targets" in device.keeper.trusted.versions())
        command = sim.command("report")
        device.hear(COMMAND, command)
        device.hear(COMMAND, command)
        await device.until(lambda: device.inbox._judge_due is None)
        assert (sim.replies, device.events) == ([], [])
        sim.faults.mute = False
        await device.until(lambda: outcomes(sim) == [(1, "done")])
        await device.stop()

    asyncio.run(story())


def test_a_forged_command_or_one_for_another_device_is_a_security_event(new_device, sim) -> None:
    """Attack: a stranger signs a command to wipe; then the fleet's command for another device is sent here."""

    async def story() -> None:
        device = await ready(new_device)
        fleet, sim.repo.keys["fleet"] = sim.repo.keys["fleet"], [new_signer()]
        forged = sim.command("wipe")
        sim.repo.keys["fleet"] = fleet
        device.hear(COMMAND, forged)
        device.hear(COMMAND, sim.command("wipe", device="other"))
        await device.until(lambda: len(device.events) == 2)
        assert [subject for subject, _ in device.events] == ["command", "command"]
        assert (device.wiped, sim.replies) == (0, [])
        await device.stop()

    asyncio.run(story())


async def serving(new_device, sim, bundle, **settings):
    """A device with one committed model."""
    sim.release(bundle)
    device = await ready(new_device, **settings)
    sim.desire(bundle)
    device.hear_retained()
    await device.until(lambda: device.active() == [bundle.digest])
    await device.until_phase("committed")
    return device


def test_a_self_test_runs_the_golden_set_of_the_active_model_and_answers_with_what_came_of_it(
    new_device, sim, bundles
) -> None:
    async def story() -> None:
        device = await serving(new_device, sim, bundles["one"])
        command = sim.command("self-test")
        device.hear(COMMAND, command)
        device.hear(COMMAND, command)  # again while it runs: one answer comes
        await device.until(lambda: bool(sim.replies))
        (reply,) = sim.replies
        (test,) = reply.tests
        assert (reply.outcome, reply.reason, test.model, test.fault) == ("done", "", "kitchen", "")
        assert test.digest == bundles["one"].digest
        assert test.p50_ms is not None
        assert test.p50_ms > 0
        device.hear(COMMAND, command)
        assert sim.replies[1] == reply, "a lost answer is given again, and nothing is done again"
        await device.stop()

    asyncio.run(story())


def test_a_self_test_that_does_not_hold_says_why_and_the_model_goes_on_answering(new_device, sim, bundles) -> None:
    """Accident: the card changed a byte of the model that is in memory."""

    async def story() -> None:
        device = await serving(new_device, sim, bundles["one"])
        for path in device.store.folder.iterdir():
            path.chmod(0o600)
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        device.hear(COMMAND, sim.command("self-test"))
        await device.until(lambda: bool(sim.replies))
        (reply,) = sim.replies
        assert reply.outcome == "failed"
        assert "kitchen: the golden set does not hold" in reply.reason
        assert reply.tests[0].fault
        assert device.active() == [bundles["one"].digest]
        await device.stop()

    asyncio.run(story())


def test_a_self_test_that_breaks_off_is_answered_as_failed(new_device, sim) -> None:
    """Accident: something that nobody thought of; the fleet would wait for its answer until the command expires."""

    async def breaks_off() -> None:
        raise LookupError("a secret")

    async def story() -> None:
        device = await ready(new_device)
        device.core.commands._self_test = breaks_off
        device.hear(COMMAND, sim.command("self-test"))
        await device.until(lambda: bool(sim.replies))
        (reply,) = sim.replies
        assert (reply.outcome, reply.reason) == ("failed", "LookupError: the log of the agent says more")
        await device.stop()

    asyncio.run(story())


def test_a_self_test_that_a_restart_cut_off_is_answered_as_failed(new_device, sim, bundles) -> None:
    """Accident: the agent is killed while the golden set runs, and the command comes again at its next birth."""

    async def story() -> None:
        device = await serving(new_device, sim, bundles["one"])
        command = sim.command("self-test")
        device.hear(COMMAND, command)
        await device.stop()
        assert sim.replies == []
        again = await ready(new_device)
        again.hear(COMMAND, command)
        assert outcomes(sim) == [(1, "failed")]
        assert "the agent ended while it did it" in sim.replies[0].reason
        await again.stop()

    asyncio.run(story())


def test_a_log_that_could_not_be_read_is_sent_when_the_command_comes_again(new_device, sim) -> None:
    def breaks_off() -> tuple[str, ...]:
        raise RuntimeError

    async def story() -> None:
        device = await ready(new_device)
        command = sim.command("logs")
        device.core.commands._logs = breaks_off
        with pytest.raises(RuntimeError):
            device.hear(COMMAND, command)
        device.core.commands._logs = lambda: ("one",)
        device.hear(COMMAND, command)
        assert [reply.log for reply in sim.replies] == [("one",)]
        await device.stop()

    asyncio.run(story())


def test_the_log_is_answered_bounded_and_a_restart_is_answered_before_it_is_done(new_device, sim) -> None:
    async def story() -> None:
        device = await ready(new_device)
        order: list[str] = []
        device.core.commands._logs = lambda: ("one", "two")
        device.core.commands._restart = lambda: order.append(f"restart after {len(sim.replies)} answers")
        device.hear(COMMAND, sim.command("logs"))
        assert sim.replies[0].log == ("one", "two")
        restart = sim.command("restart")
        device.hear(COMMAND, restart)
        device.hear(COMMAND, restart)
        assert order == ["restart after 2 answers"], "done once"
        assert outcomes(sim) == [(1, "done"), (2, "done"), (2, "done")]
        await device.stop()
        again = await ready(new_device)
        again.core.commands._restart = lambda: order.append("again")
        again.hear(COMMAND, restart)
        assert len(order) == 1, "nor after the restart"
        await again.stop()

    asyncio.run(story())
