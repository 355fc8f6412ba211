"""Messages of many devices in one transaction: each is taken or refused for itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlmodel import select

from fleet import devices
from fleet.mqtt.inbox import Inbox
from fleet.mqtt.link import Message
from fleet.mqtt.security import SecurityLog
from fleet.rollout.service import Rollouts
from fleet.store.database import Database
from fleet.store.tables import Device, SecurityRow
from wire.messages import Presence
from wire.topics import Reported, State

taken = devices.take_presence
NOW = datetime(2026, 11, 22, tzinfo=UTC)


class World:
    """Three devices, an inbox, and what it sent. `fault` is what handling a message of `d1` raises."""

    def __init__(self, folder: Path) -> None:
        self.database = Database.in_folder(folder)
        self.fault: Exception | None = None
        self.commands: list[str] = []
        nothing = cast(Any, None)
        outbox = SimpleNamespace(desired=lambda _devices: None, commands=self.commands.extend, ack=nothing)
        self.inbox = Inbox(
            database=self.database,
            outbox=cast(Any, outbox),
            desired=nothing,
            acks=nothing,
            commands=nothing,
            rollouts=Rollouts(nothing, nothing, timedelta(minutes=10), lambda: NOW, nothing),
            measuring=nothing,
            transfer=nothing,
            gate=nothing,
            security=SecurityLog(self.database, lambda: NOW),
            revoke=lambda: None,
            hold=lambda _device: None,
            offline_after=timedelta(minutes=1),
            clock=lambda: NOW,
        )
        with self.database.transaction() as session:
            for name in ("d0", "d1", "d2"):
                session.add(
                    Device(
                        id=name,
                        profile="x86-64",
                        created="",
                        token_hash="",
                        token_expires="",
                        state="enrolled",
                        command_envelope="an order",
                    )
                )

    def take_presence(self, row: Device, presence: Presence, now: datetime) -> None:
        taken(row, presence, now)
        if self.fault is not None and row.id == "d1":
            raise self.fault

    def online(self) -> list[str]:
        with self.database.transaction() as session:
            return [row.id for row in session.exec(select(Device).order_by(Device.id)) if row.online]

    def refused(self) -> list[str]:
        with self.database.transaction() as session:
            return [row.device for row in session.exec(select(SecurityRow))]


def birth(device: str) -> Message:
    return Message(State(device).topic, Presence(session="s1", online=True).to_bytes(), retained=False)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    monkeypatch.setattr("fleet.devices.take_presence", made.take_presence)
    yield made
    made.database.close()


def test_what_is_refused_in_the_middle_is_noted_and_the_others_are_taken(world: World) -> None:
    forged = Message(Reported("d1").topic, b"no report", retained=False)
    unknown = birth("nobody")
    cleared = Message(State("d1").topic, b"", retained=True)
    world.inbox.take([birth("d0"), forged, unknown, cleared, birth("d2"), birth("d0")])
    assert world.online() == ["d0", "d2"]
    assert world.refused() == ["d1"]
    assert world.commands == ["d0", "d2"]


def test_a_fault_of_ours_undoes_its_own_message_only(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.fault = ValueError("a fault")
    world.inbox.take([birth("d0"), birth("d1"), birth("d2")])
    assert world.online() == ["d0", "d2"]
    assert world.commands == ["d0", "d2"]
    assert "not handled" in caplog.text


def test_a_full_disk_takes_none_of_them_and_answers_none(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.fault = OperationalError("insert", {}, Exception("database or disk is full"))
    world.inbox.take([birth("d0"), birth("d1"), birth("d2")])
    assert world.online() == []
    assert world.commands == []
    assert "3 messages were not taken" in caplog.text


def test_messages_that_are_all_taken_need_no_savepoints_and_no_query_each(world: World) -> None:
    said: list[str] = []
    event.listen(world.database._engine, "before_cursor_execute", lambda *parts: said.append(str(parts[2])))
    world.inbox.take([birth("d0"), birth("d1"), birth("d2")] * 10)
    assert not [words for words in said if "SAVEPOINT" in words]
    assert len([words for words in said if words.startswith("SELECT")]) == 1
    assert world.online() == ["d0", "d1", "d2"]
