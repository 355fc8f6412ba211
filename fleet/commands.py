"""Commands: something that a device does once, signed, kept until the device answered or the command expired.

    commands.send(session, device, "report")     # then outbox.commands([device.id]) once the transaction is through

A device has one open command at a time. It goes out at once, and again whenever the device is born.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, cast

from securesystemslib.dsse import Envelope
from sqlmodel import Session, col, select

from fleet.errors import Conflict, NotFound, Untrusted
from fleet.store.tables import CommandRow, Device
from fleet.trust.orders import OrderSigner
from wire.messages import Reply
from wire.orders import Command
from wire.units import show_instant

Action = Literal["report", "self-test", "logs", "restart", "wipe"]
WIPE: Final = "wipe"
WAITING: Final = "waiting"
KEPT: Final = 20
"""Commands that are remembered of each device, with what came of them."""
_NUMBER = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Commands:
    """Signs commands and takes the answers. `wipe_lifetime` is how long a device that is away may find a wipe."""

    orders: OrderSigner
    lifetime: timedelta
    wipe_lifetime: timedelta

    def send(self, session: Session, device: Device, action: Action) -> Command:
        """The next command of a device; it takes the place of one that was not answered.

        Raises `Conflict` for a device that is not enrolled; one that retires takes a wipe.
        """
        if not self._may(device, action):
            raise Conflict(f"device {device.id}: it is {device.state}: only an enrolled device takes commands")
        dates = self.orders.dates(self.wipe_lifetime if action == WIPE else self.lifetime)
        command = Command(
            device=device.id,
            epoch=self.orders.epoch,
            seq=device.command_seq + 1,
            issued=dates.issued,
            expires=dates.expires,
            action=action,
        )
        self._end(session, device, "replaced")
        session.add(_row(command))
        device.command_seq, device.command_expires = command.seq, command.expires
        device.command_envelope = self.orders.sign(command).decode()
        session.add(device)
        session.flush()
        _forget_old(session, device.id)
        return command

    def answer(self, session: Session, device: Device, reply: Reply) -> bool:
        """Take a verified reply. True when the device says that it wiped itself. Raises `Untrusted`."""
        number = reply.epoch, reply.seq
        if number > (self.orders.epoch, device.command_seq):
            raise Untrusted(f"reply of {device.id} to command {reply.epoch}.{reply.seq}: it was never given")
        _note(session, device.id, reply, show_instant(self.orders.clock()))
        command = open_command(device)
        if command is None or number != command.number:
            _log.debug("%s answers command %d.%d again, or late", device.id, *number)
            return False
        _log.info("%s: command %s %d.%d: %s %s", device.id, command.action, *number, reply.outcome, reply.reason)
        forget(session, device)
        return command.action == WIPE and reply.outcome == "done"

    def refresh(self, session: Session) -> list[str]:
        """What time or a change of ours does to open commands: the devices whose command was signed again.

        One that expired is forgotten. One of an epoch before a restore, or of a fleet key that was rotated out, would
        not be believed any more: it is signed anew.
        """
        now, signed = show_instant(self.orders.clock()), []
        for device in session.exec(select(Device).where(col(Device.command_envelope) != "")).all():
            command = open_command(device)
            if command is None or command.expires <= now or not self._may(device, command.action):
                _log.warning("%s: its command expired without an answer", device.id)
                self._end(session, device, "expired")
                forget(session, device)
            elif command.epoch < self.orders.epoch or not self.orders.signed(device.command_envelope):
                self.send(session, device, cast(Action, command.action))
                signed.append(device.id)
        return signed

    def _end(self, session: Session, device: Device, state: str) -> None:
        """The open command, if there is one, ends without an answer."""
        command = open_command(device)
        row = session.get(CommandRow, (device.id, *command.number)) if command else None
        if row is not None and row.state == WAITING:
            row.state, row.ended = state, show_instant(self.orders.clock())
            session.add(row)

    def _may(self, device: Device, action: str) -> bool:
        return device.state == "enrolled" or (action == WIPE and device.state == "retiring")


def view(row: CommandRow) -> dict[str, Any]:
    """A command as the API shows it, with what the device answered."""
    reply = Reply.from_bytes(row.reply.encode()).to_value() if row.reply else {}
    return {
        "device": row.device,
        "id": f"{row.epoch}.{row.seq}",
        "seq": row.seq,
        "action": row.action,
        "issued": row.issued,
        "expires": row.expires,
        "state": row.state,
        "ended": row.ended,
        **{name: reply.get(name, empty) for name, empty in (("reason", ""), ("tests", []), ("log", []))},
    }


def find(session: Session, device: str, id_: str) -> CommandRow:
    """A command of a device by its id, as `1.7`. Raises `NotFound`."""
    epoch, _, seq = id_.partition(".")
    number = (int(epoch), int(seq)) if _NUMBER.fullmatch(id_) else (0, 0)
    row = session.get(CommandRow, (device, *number))
    if row is None:
        raise NotFound(f"command {id_[:40]!r} of {device}: there is none, or it is among the old ones")
    return row


def newest(session: Session, device: str) -> list[CommandRow]:
    """The commands of a device that are remembered, the newest first."""
    mine = select(CommandRow).where(CommandRow.device == device)
    return list(session.exec(mine.order_by(col(CommandRow.epoch).desc(), col(CommandRow.seq).desc())))


def _row(command: Command) -> CommandRow:
    return CommandRow(
        device=command.device,
        epoch=command.epoch,
        seq=command.seq,
        action=command.action,
        issued=command.issued,
        expires=command.expires,
    )


def _note(session: Session, device: str, reply: Reply, now: str) -> None:
    """Keep what a device answered: once, and also when it comes late."""
    row = session.get(CommandRow, (device, reply.epoch, reply.seq))
    if row is not None and not row.reply:
        row.state, row.ended, row.reply = reply.outcome, now, reply.to_bytes().decode()
        session.add(row)


def _forget_old(session: Session, device: str) -> None:
    for row in newest(session, device)[KEPT:]:
        session.delete(row)


def open_command(device: Device) -> Command | None:
    """The command that the device has not answered yet."""
    if not device.command_envelope:
        return None
    return Command.from_bytes(Envelope.from_dict(json.loads(device.command_envelope)).payload)


def forget(session: Session, device: Device) -> None:
    """There is no open command any more."""
    device.command_envelope = device.command_expires = ""
    session.add(device)
