"""Messages from devices: verified, stored, answered. Called on the serial thread, one message after the other.

What came while another thing was done shares a transaction, so its one write to the disk, and what is looked up for it.
When one of the messages is refused all are undone, and each is taken again in a savepoint of its own, so that it undoes
nothing but itself. Answers leave once the transaction is through.

A device is who its topic says: the broker's access list lets nobody else write there. What needs more than that,
reports, telemetry and replies, is signed by the key of the device's certificate. A forgery, a replay and a clone are
refused and noted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from sqlalchemy.exc import OperationalError
from sqlmodel import Session, col, select

from fleet import devices
from fleet.commands import Commands
from fleet.errors import FleetError, Unavailable, Untrusted
from fleet.evidence.recording import Recorder, note_golden
from fleet.health import history
from fleet.measuring import Measuring
from fleet.mqtt.limits import Gate
from fleet.mqtt.link import Message
from fleet.mqtt.meter import Meter
from fleet.mqtt.outbox import Outbox
from fleet.mqtt.security import SecurityLog
from fleet.mqtt.transfer import Transfer
from fleet.reports import judge_report
from fleet.rollout.reading import Owed
from fleet.rollout.service import Rollouts
from fleet.store import speakers
from fleet.store.database import Database
from fleet.store.speakers import Speaker
from fleet.store.tables import Device
from fleet.telemetry import Intake
from fleet.trust.acks import Acks
from fleet.trust.desired import DesiredStates
from fleet.trust.identity import LISTENED, open_statement
from wire.errors import WireError
from wire.messages import Presence, Reply, Reported, TelemetryBatch, Want
from wire.orders import Ack
from wire.topics import Reply as ReplyTopic
from wire.topics import Reported as ReportedTopic
from wire.topics import State as StateTopic
from wire.topics import Telemetry as TelemetryTopic
from wire.topics import Topic, parse
from wire.topics import Want as WantTopic
from wire.units import show_instant

GRANTED: Final = timedelta(seconds=10)
GRANTS: Final = 20_000
"""How many are held; others are looked up each time."""
_log = logging.getLogger(__name__)


_parsed = lru_cache(maxsize=50_000)(parse)


@dataclass(frozen=True)
class Answer:
    """What leaves for devices once the transaction of a message is through."""

    desired: Sequence[str] = ()
    commands: Sequence[str] = ()
    ack: Ack | None = None
    revoked: bool = False
    """Certificates stopped being good."""


@dataclass(frozen=True)
class _Known:
    """Of the devices that speak: their rows, which the session forgets if nobody holds them, and what they owe.

    `speakers` are those that only send telemetry.
    """

    rows: Sequence[object]
    speakers: Mapping[str, Speaker]
    owed: Mapping[str, Sequence[Owed]]


@dataclass(frozen=True, kw_only=True)
class Inbox:
    """One method per kind of message. `gate` is asked before a message comes here.

    `granted`: until when which device may wish for which blob without being looked up. `remembered`: who is online
    only by the broker's memory, and since when. `revoke` makes the broker heed certificates that stopped being good,
    `hold` shuts a device out for a moment.
    """

    database: Database
    outbox: Outbox
    desired: DesiredStates
    acks: Acks
    commands: Commands
    rollouts: Rollouts
    measuring: Measuring
    transfer: Transfer
    gate: Gate
    security: SecurityLog
    revoke: Callable[[], object]
    hold: Callable[[str], object]
    offline_after: timedelta
    clock: Callable[[], datetime]
    recorder: Recorder = field(default_factory=Recorder)
    meter: Meter = field(default_factory=Meter)
    remembered: dict[str, datetime] = field(default_factory=dict)
    granted: dict[tuple[str, str], datetime] = field(default_factory=dict)

    def take(self, messages: Sequence[Message]) -> None:
        """Handle messages in their order. Never raises for what a device sent."""
        refused: list[tuple[str, str]] = []
        try:
            try:
                answers = self._together(messages)
            except Exception as e:  # noqa: BLE001  whichever message it is of, and whatever it is: it is told there
                self.recorder.forget()
                _log.debug("%d messages are taken one by one: %s", len(messages), e)
                answers = self._one_by_one(messages, refused)
        except Unavailable as e:  # our own disk
            self.recorder.forget()
            named = ", ".join(sorted({message.topic for message in messages})[:3])
            _log.error("%d messages were not taken, among them of %s: %s", len(messages), named, e)
            return
        self.meter.count(messages, len(refused))
        self._send(answers)
        for topic, reason in refused:
            self.security.note(topic, reason)

    def _together(self, messages: Sequence[Message]) -> list[Answer]:
        """Without savepoints: they are a fifth of what a message costs."""
        with self.database.transaction() as session:
            known, intake = self._look_up(session, messages), self._intake(session)
            answers = [self._take(session, message, known, intake) for message in messages]
            intake.store()
            speakers.write(session, known.speakers.values())
            return answers

    def _intake(self, session: Session) -> Intake:
        return Intake(session, self.recorder, self.clock())

    def _one_by_one(self, messages: Sequence[Message], refused: list[tuple[str, str]]) -> list[Answer]:
        answers: list[Answer] = []
        with self.database.transaction() as session:
            for message in messages:
                try:
                    with session.begin_nested():
                        known, intake = self._look_up(session, [message]), self._intake(session)
                        answer = self._take(session, message, known, intake)
                        intake.store()
                        speakers.write(session, known.speakers.values())
                    answers.append(answer)
                    continue
                except Unavailable as e:  # ours: the device is not to blame, and sends it again
                    _log.error("a message on %s was not taken: %s", message.topic, e)
                except (WireError, FleetError) as e:
                    refused.append((message.topic, str(e)))
                except OperationalError:
                    raise
                except Exception:  # noqa: BLE001  a fault of ours is told in full, and costs the others nothing
                    _log.exception("a message on %s was not handled", message.topic)
                self.recorder.forget()
        return answers

    def _look_up(self, session: Session, messages: Sequence[Message]) -> _Known:
        """What the messages are about, in one query for all: one for each was half of what a message cost."""
        spoken: dict[type[Topic], set[str]] = {}
        for message in messages:
            with suppress(WireError):  # it is refused where it is taken
                topic = _parsed(message.topic)
                spoken.setdefault(type(topic), set()).add(getattr(topic, "device", ""))
        counting = spoken.pop(TelemetryTopic, set())
        others = set().union(*spoken.values())
        only = speakers.read(session, sorted(counting - others)) if counting - others else {}
        named = sorted((counting | others) - only.keys())
        rows = session.exec(select(Device).where(col(Device.id).in_(named))).all() if named else ()
        return _Known(rows, only, self.rollouts.owed(session, sorted(spoken.get(ReportedTopic, ()))))

    def tick(self) -> None:
        """Devices that the broker remembered as online and that said nothing since are offline; floods are noted."""
        now = self.clock()
        silent = [d for d, since in self.remembered.items() if now - since >= self.offline_after]
        with self.database.transaction() as session:
            for device in silent:
                del self.remembered[device]
                row = devices.find(session, device)
                devices.is_gone(row, now)
                session.add(row)
        for flood in self.gate.floods():
            dropped = f"{flood.dropped} messages over the limit were dropped unread"
            self.security.keep(flood.topic, f"flood: {dropped}: the device is shut out for a minute")
            self.hold(flood.device)

    def start(self) -> None:
        """A new process has seen nobody: those that were online say so again, or the broker remembers them."""
        with self.database.transaction() as session:
            for row in session.exec(select(Device).where(col(Device.online).is_(True))):
                row.online = False
                session.add(row)

    def _progress(self, topic: WantTopic, message: Message) -> bool:
        """Take a wish for a blob that this device was found to be assigned a moment ago.

        Devices say many times in a transfer how far they are: a transaction each would be what the transfer waits for.
        """
        want, now = Want.from_bytes(message.payload), self.clock()
        if self.granted.get((topic.device, want.digest), now) <= now:
            return False
        self.transfer.want(topic.device, want, message.came)
        return True

    def _grant(self, device: str, digest: str) -> None:
        now = self.clock()
        if len(self.granted) >= GRANTS:
            for old in [key for key, until in self.granted.items() if until <= now]:
                del self.granted[old]
        if len(self.granted) < GRANTS:
            self.granted[device, digest] = now + GRANTED

    def may_fetch(self, session: Session, row: Device, digest: str) -> bool:
        """Whether a blob is assigned to a device."""
        return self.desired.may_fetch(session, row, digest)

    def _take(self, session: Session, message: Message, known: _Known, intake: Intake) -> Answer:
        if not message.payload:
            return Answer()  # a retained message was cleared
        topic = _parsed(message.topic)
        if isinstance(topic, WantTopic) and self._progress(topic, message):
            return Answer()
        assert isinstance(topic, StateTopic | ReportedTopic | TelemetryTopic | WantTopic | ReplyTopic)
        row = known.speakers.get(topic.device) or devices.find(session, topic.device)
        if row.state not in LISTENED:
            _log.debug("%s is %s: what it says on %s is not heard", row.id, row.state, topic.topic)
            return Answer()
        answer = self._dispatch(session, row, topic, message, known, intake)
        if not message.retained:
            self.remembered.pop(row.id, None)
        # A fleet that fetches would keep the disk busy with it.
        if not message.retained and not isinstance(topic, WantTopic) and row.state in LISTENED:
            self._spoke(row, topic)
        return answer

    def _spoke(self, row: Device | Speaker, topic: Topic) -> None:
        """A live message is from a device that is there, whatever its silence before it said; a will is not its own."""
        if isinstance(topic, StateTopic) and not row.online:
            return
        devices.is_here(row)
        row.last_seen = show_instant(self.clock())

    def _dispatch(
        self, session: Session, row: Device | Speaker, topic: Topic, message: Message, known: _Known, intake: Intake
    ) -> Answer:
        payload, retained = message.payload, message.retained
        if isinstance(topic, TelemetryTopic):
            return self._telemetry(session, row, payload, intake)
        assert isinstance(row, Device)
        match topic:
            case StateTopic():
                return self._state(row, Presence.from_bytes(payload), retained=retained)
            case ReportedTopic():
                return self._reported(session, row, message, known)
            case ReplyTopic():
                return self._reply(session, row, payload)
            case WantTopic():
                return self._want(session, row, Want.from_bytes(payload), message.came)
        return Answer()

    def _state(self, row: Device, presence: Presence, *, retained: bool) -> Answer:
        devices.take_presence(row, presence, self.clock())
        if retained and presence.online:
            self.remembered.setdefault(row.id, self.clock())
        return Answer(commands=[row.id] if presence.online and row.command_envelope else [])

    def _reported(self, session: Session, row: Device, message: Message, known: _Known) -> Answer:
        reported, retained = open_statement(session, row, message.payload, Reported), message.retained
        last = devices.last_report(row)
        match judge_report(last, reported, retained=retained):
            case "stale":
                _log.debug("%s: the broker remembers an older report", row.id)
                return Answer()
            case "repeat":  # a device whose answer was lost asks again by itself
                return Answer() if retained else Answer(ack=self.acks.of_report(row, reported))
        history.take_report(session, row, last, reported, self.clock())
        row.reported = reported.to_bytes().decode()
        note_golden(session, {row.id: _held(reported)}, self.clock())
        sealed = self.desired.take_sealing_key(session, row, reported.sealing_key)
        changed = self.rollouts.take_report(session, reported, known.owed.get(row.id, ()))
        measured = self.measuring.take_report(session, row, reported)
        desired = sorted({*changed, *([row.id] if sealed or measured else [])})
        return Answer(desired=desired, ack=self.acks.of_report(row, reported))

    def _telemetry(self, session: Session, row: Device | Speaker, payload: bytes, intake: Intake) -> Answer:
        """It is stored with that of the others; the answer leaves after that."""
        batch = open_statement(session, row, payload, TelemetryBatch)
        intake.take(row, batch, self.acks.orders.epoch)
        return Answer(ack=self.acks.of_batch(row, batch))

    def _reply(self, session: Session, row: Device, payload: bytes) -> Answer:
        reply = open_statement(session, row, payload, Reply)
        if not self.commands.answer(session, row, reply):
            held = {test.digest: not test.fault for test in reply.tests}
            note_golden(session, {row.id: held}, self.clock())
            return Answer()
        devices.retired(session, row, self.clock())
        return Answer(desired=[row.id], revoked=True)

    def _want(self, session: Session, row: Device, want: Want, came: float | None) -> Answer:
        """Only what is assigned. Who has not reported the newest desired state yet may ask for the one before."""
        if self.may_fetch(session, row, want.digest):
            self.transfer.want(row.id, want, came)
            if want.count > 1:
                self._grant(row.id, want.digest)
            return Answer()
        last = devices.last_report(row)
        if last is not None and (last.desired_epoch, last.desired_seq) < (row.desired_epoch, row.desired_seq):
            _log.debug("%s asks for %s, which it was assigned before", row.id, want.digest)
            return Answer()
        raise Untrusted(f"wish for {want.digest}: this blob is not assigned to {row.id}")

    def _send(self, answers: Sequence[Answer]) -> None:
        self.outbox.desired(_once(device for answer in answers for device in answer.desired))
        self.outbox.commands(_once(device for answer in answers for device in answer.commands))
        for answer in answers:
            if answer.ack is not None:
                self.outbox.ack(answer.ack)
        if any(answer.revoked for answer in answers):
            self.revoke()


def _held(reported: Reported) -> dict[str, bool]:
    """Models whose golden set was run at an installation, and whether it held: nothing commits without."""
    return {
        update.digest: update.phase == "committed"
        for update in reported.updates
        if update.phase == "committed" or (update.phase == "failed" and update.reason.startswith("self-test"))
    }


def _once(devices: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(devices))
