"""Commands of the fleet: each is done at most once, in time, and answered.

    report       say the reported state now, and the telemetry of the open window
    self-test    run the golden sets of the active models; the answer says what came of each
    logs         the newest lines of the log
    restart      end, and begin again
    wipe         forget identity, keys, data and models, and stop

A command that comes again under the number that was acted on last is not done again, only answered again: the answer
was lost. Whether one is late is only known once the fleet has told the time; until then it waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, Literal

from agent.errors import Unavailable
from agent.line.voice import Voice
from agent.store.state import StateFile
from agent.trust.clock import Clock
from wire import topics
from wire.admission import check_order
from wire.dsse import open_by_role
from wire.errors import OutOfStep, Untrusted
from wire.life import ModelTest
from wire.messages import Reply
from wire.orders import Command
from wire.trust import TrustedSet
from wire.units import instant

log = logging.getLogger("agent.line.commands")

Outcome = Literal["done", "refused", "failed"]
BEGUN: Final = "begun"
"""Of a command that takes its time; whoever finds it after a start knows that it was not done."""


class Commands:
    """The receiving end of the command topic. `wipe` marks the device for wiping and asks the agent to stop."""

    def __init__(
        self,
        *,
        state: StateFile,
        voice: Voice,
        trusted: TrustedSet,
        clock: Clock,
        report: Iterable[Callable[[], None]],
        wipe: Callable[[], None],
        restart: Callable[[], None],
        logs: Callable[[], Sequence[str]],
        self_test: Callable[[], Awaitable[tuple[ModelTest, ...]]],
    ) -> None:
        self._state = state
        self._voice = voice
        self._trusted = trusted
        self._clock = clock
        self._report, self._wipe, self._restart = report, wipe, restart
        self._logs, self._self_test = logs, self_test
        self._running: asyncio.Task[None] | None = None
        self._answer: Reply | None = None
        self._actions: Mapping[str, Callable[[Command], None]] = {
            "report": self._do_report,
            "self-test": self._do_self_test,
            "logs": self._do_logs,
            "restart": self._do_restart,
            "wipe": self._do_wipe,
        }

    async def stop(self) -> None:
        """The agent ends: what it was doing is not done."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def take(self, payload: bytes) -> None:
        """Do it and answer. Raises `Untrusted` for a forged or replayed one, `OutOfStep` while nobody told the time."""
        command = open_by_role(payload, Command, self._trusted.targets())
        number, outcome = self._state.last_command()
        if (command.device, command.number) == (self._voice.device, number):
            self._answer_again(command, outcome)
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

    def _answer_again(self, command: Command, outcome: str) -> None:
        if self._running is not None and not self._running.done():
            return  # its answer comes
        if self._answer is not None and (self._answer.epoch, self._answer.seq) == command.number:
            self._say(self._answer)
        elif outcome == BEGUN:
            self._reply(command, "failed", "the agent ended while it did it")
        else:
            self._reply(command, "done" if outcome == "done" else "refused", "answered before")

    def _refuse(self, command: Command, reason: str) -> None:
        log.warning("command %s.%s is refused: %s", command.epoch, command.seq, reason)
        self._state.accept_command(command.number, "refused")
        self._reply(command, "refused", reason)

    def _do_report(self, command: Command) -> None:
        self._state.accept_command(command.number, "done")
        for say in self._report:
            say()
        self._reply(command, "done")

    def _do_logs(self, command: Command) -> None:
        lines = tuple(self._logs())
        self._state.accept_command(command.number, "done")
        self._reply(command, "done", log=lines)

    def _do_restart(self, command: Command) -> None:
        self._state.accept_command(command.number, "done")
        self._reply(command, "done")
        self._restart()

    def _do_wipe(self, command: Command) -> None:
        # No number is kept: the mark is, and an agent that is killed before it hears the command again.
        self._wipe()
        self._reply(command, "done")

    def _do_self_test(self, command: Command) -> None:
        self._state.accept_command(command.number, BEGUN)
        before = self._running
        self._running = asyncio.create_task(self._run_self_test(command, before), name="self-test on command")

    async def _run_self_test(self, command: Command, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        outcome, words, tests = await self._tested()
        try:
            if self._state.last_command()[0] == command.number:
                self._state.accept_command(command.number, "done")
        except Unavailable as e:
            log.error("a self-test is answered, and may be asked for again: %s", e)  # noqa: TRY400  a full disk
        self._reply(command, outcome, words, tests=tests)

    async def _tested(self) -> tuple[Outcome, str, tuple[ModelTest, ...]]:
        try:
            tests = await self._self_test()
        except Exception as e:
            # The edge of a task: whatever it is, the fleet waits for an answer.
            log.exception("the self-test did not come to its end")
            return "failed", f"{type(e).__name__}: the log of the agent says more", ()
        bad = [test.model for test in tests if test.fault]
        if bad:
            return "failed", f"{', '.join(bad)}: the golden set does not hold", tests
        return "done", "" if tests else "no model is active", tests

    def _reply(
        self,
        command: Command,
        outcome: Outcome,
        reason: str = "",
        *,
        tests: tuple[ModelTest, ...] = (),
        log: tuple[str, ...] = (),
    ) -> None:
        self._answer = Reply(
            device=self._voice.device,
            epoch=command.epoch,
            seq=command.seq,
            outcome=outcome,
            reason=reason,
            tests=tests,
            log=log,
        )
        self._say(self._answer)

    def _say(self, reply: Reply) -> None:
        self._voice.say(topics.Reply(self._voice.device), reply)
