"""Commands of the fleet: each is done at most once, in time, and answered.

    report    say the reported state now
    wipe      forget identity, keys, data and models, and stop

A command that comes again under the number that was acted on last is not done again, only answered again: the answer
was lost. Whether one is late is only known once the fleet has told the time; until then it waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Literal

from agent.clock import Clock
from agent.state import StateFile
from agent.voice import Voice
from wire import topics
from wire.admission import check_order
from wire.dsse import open_by_role
from wire.errors import OutOfStep, Untrusted
from wire.messages import Reply
from wire.orders import Command
from wire.trust import TrustedSet
from wire.units import instant

log = logging.getLogger("agent.commands")

Outcome = Literal["done", "refused"]


class Commands:
    """The receiving end of the command topic. `wipe` marks the device for wiping and asks the agent to stop."""

    def __init__(
        self,
        *,
        state: StateFile,
        voice: Voice,
        trusted: TrustedSet,
        clock: Clock,
        report: Callable[[], None],
        wipe: Callable[[], None],
    ) -> None:
        self._state = state
        self._voice = voice
        self._trusted = trusted
        self._clock = clock
        self._report = report
        self._wipe = wipe
        self._actions: Mapping[str, Callable[[Command], None]] = {"report": self._do_report, "wipe": self._do_wipe}

    def take(self, payload: bytes) -> None:
        """Do it and answer. Raises `Untrusted` for a forged or replayed one, `OutOfStep` while nobody told the time."""
        command = open_by_role(payload, Command, self._trusted.targets())
        number, outcome = self._state.last_command()
        if (command.device, command.number) == (self._voice.device, number):
            self._reply(command, "done" if outcome == "done" else "refused", "answered before")
            return
        check_order(command, device=self._voice.device, last=number, now=command.time)
        if command.time < self._state.enrolled():
            raise Untrusted(f"command {command.epoch}.{command.seq}: older than this device's enrolment: a replay")
        if not self._clock.learnt:
            raise OutOfStep(f"command {command.epoch}.{command.seq}: the fleet has not told the time yet")
        self._act(command)

    def _act(self, command: Command) -> None:
        if self._clock.now() >= instant(command.expires):
            self._refuse(command, f"it expired {command.expires}, and came later")
        elif command.action not in self._actions:
            self._refuse(command, f"this agent does not know the command {command.action}")
        else:
            log.info("the fleet commands: %s", command.action)
            self._actions[command.action](command)

    def _refuse(self, command: Command, reason: str) -> None:
        log.warning("command %s.%s is refused: %s", command.epoch, command.seq, reason)
        self._state.accept_command(command.number, "refused")
        self._reply(command, "refused", reason)

    def _do_report(self, command: Command) -> None:
        self._state.accept_command(command.number, "done")
        self._report()
        self._reply(command, "done")

    def _do_wipe(self, command: Command) -> None:
        # No number is kept: the mark is, and an agent that is killed before it hears the command again.
        self._wipe()
        self._reply(command, "done")

    def _reply(self, command: Command, outcome: Outcome, reason: str = "") -> None:
        reply = Reply(device=self._voice.device, epoch=command.epoch, seq=command.seq, outcome=outcome, reason=reason)
        self._voice.say(topics.Reply(self._voice.device), reply)
