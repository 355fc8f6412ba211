"""Commands through a real fleet and a real broker: they come once, survive a kill, and expire."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fleet_process import ApiError, FleetProcess, initialise_trust, until

from wire import topics
from wire.life import ModelTest
from wire.messages import Reply
from wire.orders import Command, Desired


def ask(device: Any, action: str = "report") -> Any:
    return device.fleet.api("POST", f"/api/v1/devices/{device.id}/commands", {"action": action})


def stored(fleet: FleetProcess, device: Any) -> str:
    """The envelope of the open command in the database."""
    with closing(sqlite3.connect(fleet.data / "fleet.db")) as database:
        ((envelope,),) = database.execute("SELECT command_envelope FROM device WHERE id = ?", (device.id,))
        return str(envelope)


def test_a_command_is_signed_comes_once_and_is_closed_by_its_reply(fleet: FleetProcess, new_device: Any) -> None:
    device = new_device("obedient")
    device.connect()
    asked = ask(device)
    command = device.next_command()
    assert (command.device, command.action, command.seq) == (device.id, "report", asked["seq"])
    assert command.expires == asked["expires"]
    device.reply(command)
    until(lambda: not stored(fleet, device), what="the end of the command")
    assert device.view()["security"] == []
    assert ask(device)["seq"] == command.seq + 1


def test_a_command_survives_a_killed_fleet_and_comes_again_when_the_device_is_born(
    tmp_path: Path, enrolling: Any
) -> None:
    """Accident: SIGKILL after the command was stored; the device was away when it was sent."""
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("away")
        asked = ask(device)
        fleet.kill()
        fleet.start()
        device.connect()
        command = device.next_command()
        assert command.seq == asked["seq"]
        device.disconnect()
        device.connect()
        assert device.next_command() == command, "it was not answered: it comes again"
        device.reply(command)
        until(lambda: not stored(fleet, device), what="the end of the command")
        device.disconnect()
        device.connect()
        assert topics.Command not in device.until_answer(device.report())


def test_a_command_that_expired_is_not_sent_any_more(tmp_path: Path, enrolling: Any) -> None:
    """Accident: the device is away for longer than the command lives."""
    settings = {"command_lifetime": "1 s"}
    with FleetProcess(tmp_path / "fleet", **settings) as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("late")
        ask(device)
        assert stored(fleet, device)
        until(lambda: not stored(fleet, device), what="the expiry")
        device.connect()
        assert topics.Command not in device.until_answer(device.report())


def test_a_forged_reply_a_reply_to_nothing_and_a_late_one_close_nothing(fleet: FleetProcess, new_device: Any) -> None:
    """Attack: somebody else answers, or the device answers what it was never told."""
    device, other = new_device("asked"), new_device("impostor")
    device.connect()
    ask(device)
    command = device.next_command()
    forged = Reply(device=device.id, epoch=command.epoch, seq=command.seq, outcome="done")
    device.say(topics.Reply(device.id), forged, signer=other.signer)
    until(lambda: len(device.view()["security"]) == 1, what="the forgery in the security events")
    device.say(topics.Reply(device.id), Reply(device=device.id, epoch=9, seq=9, outcome="done"))
    until(lambda: len(device.view()["security"]) == 2, what="the reply to nothing in the security events")
    assert "never given" in device.view()["security"][-1]["reason"]
    ask(device)
    newer = device.next_command()
    device.reply(command)
    device.answer_to(device.report())
    assert stored(fleet, device), "an answer to the command before does not close the newer one"
    device.reply(newer)
    until(lambda: not stored(fleet, device), what="the end of the command")


def test_what_a_device_answered_is_kept_with_the_command_also_when_it_came_late(new_device: Any) -> None:
    device = new_device("tested")
    device.connect()
    sent = ask(device, "self-test")
    command = device.next_command()
    newer = ask(device, "logs")
    test = ModelTest(model="kitchen", digest="sha256:" + "0" * 64, fault="0 of 3")
    reply = Reply(device=device.id, epoch=command.epoch, seq=command.seq, outcome="failed", reason="r", tests=(test,))
    path = f"/api/v1/devices/{device.id}/commands"
    assert device.fleet.api("GET", f"{path}/{sent['id']}")["state"] == "replaced"
    device.say(topics.Reply(device.id), reply)
    until(lambda: device.fleet.api("GET", f"{path}/{sent['id']}")["state"] == "failed", what="the late answer")
    kept = device.fleet.api("GET", f"{path}/{sent['id']}")
    assert (kept["reason"], kept["tests"][0]["fault"]) == ("r", "0 of 3")
    assert [one["id"] for one in device.fleet.api("GET", path)] == [newer["id"], sent["id"]]
    for unknown in ("9.9", "x", "1.1.1"):
        with pytest.raises(ApiError, match="there is none"):
            device.fleet.api("GET", f"{path}/{unknown}")


def test_a_device_that_retires_is_gone_when_it_says_that_it_wiped_itself(fleet: FleetProcess, new_device: Any) -> None:
    device = new_device("leaving")
    device.connect()
    fleet.api("POST", f"/api/v1/devices/{device.id}/retire", {})
    command = device.next_command()
    assert command.action == "wipe"
    with pytest.raises(ApiError, match="is retiring: only an enrolled device takes commands"):
        ask(device)
    device.reply(command, "failed")
    until(lambda: not stored(fleet, device), what="the end of the command")
    assert device.view()["status"] == "retiring"
    fleet.api("POST", f"/api/v1/devices/{device.id}/retire", {})
    again = device.next_command()
    assert (again.action, again.number > command.number) == ("wipe", True)
    open_one = stored(fleet, device)
    fleet.api("POST", f"/api/v1/devices/{device.id}/retire", {})
    assert stored(fleet, device) == open_one


def test_a_wipe_that_is_done_retires_the_device(fleet: FleetProcess, new_device: Any) -> None:
    device = new_device("wiped")
    device.connect()
    fleet.api("POST", f"/api/v1/devices/{device.id}/retire", {})
    command = device.next_command()
    assert command.action == "wipe"
    device.reply(command)
    until(lambda: device.view()["status"] == "retired", what="the end of the device")


def test_nobody_wipes_a_device_by_the_route_of_commands(new_device: Any) -> None:
    device = new_device("kept")
    with pytest.raises(ApiError) as error:
        ask(device, "wipe")
    assert error.value.status == 400


def test_after_a_restore_open_commands_and_desired_states_are_signed_in_the_new_epoch(
    tmp_path: Path, enrolling: Any
) -> None:
    """Accident: the fleet comes back from a backup; what it signed since then must not be in its way."""
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("restored")
        device.connect()
        desired = device.next_desired(seq=1)
        ask(device)
        first = device.next_command()
        fleet.stop()
        with closing(sqlite3.connect(fleet.data / "fleet.db")) as database:
            database.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('epoch', '2')")
            database.commit()
        fleet.start()
        newer: dict[Any, Any] = {}
        while len(newer) < 2:
            topic, payload = device.inbox.get(timeout=10)
            kind = {topics.Command: Command, topics.Desired: Desired}.get(type(topics.parse(topic)))
            if kind is not None and (order := device.verify(payload, kind)).epoch == 2:
                newer[kind] = order
        assert newer[Command].action == "report"
        assert newer[Command].number > first.number
        assert newer[Desired].number > desired.number
        assert newer[Desired].models == desired.models
        device.send(device.batch(1))
        ack = device.next_ack()
        assert (ack.epoch, ack.desired_epoch) == (2, 2)
