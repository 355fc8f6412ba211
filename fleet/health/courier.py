"""Messages on their way: each stands in a table until its channel took it, so that no restart loses or forgets one.

    async with courier.running(): ...

One task a channel: a channel that does not answer holds up no other, and nothing that the fleet does. A message is sent
at least once: a fleet that is killed between the sending and the note of it sends it again, under the same id.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, delete, func, select

from fleet.errors import FleetError, Unavailable
from fleet.health.alerting import Message
from fleet.health.channels import send
from fleet.health.messages import document
from fleet.health.rules import Channel, Rules
from fleet.lease import Leads, alone
from fleet.serial import Serial
from fleet.store.database import Database
from fleet.store.health_tables import AlertMessage
from wire.units import instant, show_instant

LONGEST_WAIT: Final = 900.0
"""Seconds between two tries, at most."""
GIVEN_UP: Final = timedelta(days=3)
KEPT: Final = timedelta(days=7)
"""How long it is known what was sent."""
_LOOK: Final = 0.5
_log = logging.getLogger(__name__)


class Courier:
    """Sends what waits. `rules` gives the channels of now, `fleet` is how messages call this fleet."""

    def __init__(
        self,
        database: Database,
        serial: Serial,
        rules: Callable[[], Rules],
        clock: Callable[[], datetime],
        fleet: str,
        leads: Leads = alone,
    ) -> None:
        self._database, self._serial, self._rules, self._clock, self._fleet = database, serial, rules, clock, fleet
        self._leads = leads

    def keep(self, session: Session, messages: Iterable[Message]) -> None:
        """Note messages, in the transaction that knows that they were told."""
        for message in messages:
            at = show_instant(message.at)
            text = json.dumps(document(message, self._fleet))
            session.merge(AlertMessage(id=message.id, channel=message.channel, created=at, due=at, document=text))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send until the block ends. What is on its way then is sent again by the next process."""
        tasks: dict[str, asyncio.Task[None]] = {}
        task = asyncio.create_task(self._watch(tasks), name="alert channels")
        try:
            yield
        finally:
            for one in (task, *tasks.values()):
                one.cancel()
            await asyncio.gather(task, *tasks.values(), return_exceptions=True)

    async def _watch(self, tasks: dict[str, asyncio.Task[None]]) -> None:
        """A task for each channel that there is; channels come and go with the file."""
        while True:
            channels = self._rules().channels
            for name in tasks.keys() - channels.keys():
                tasks.pop(name).cancel()
            for name in channels:
                if name not in tasks or tasks[name].done():
                    tasks[name] = asyncio.create_task(self._serve(name), name=f"alert channel {name}")
            await asyncio.sleep(_LOOK)

    async def _serve(self, name: str) -> None:
        while True:
            sent = False
            with suppress(KeyError):  # the channel went: this task ends soon
                try:
                    sent = await self._send_next(self._rules().channels[name])
                except (FleetError, SQLAlchemyError):
                    _log.exception("channel %s: its messages wait", name)
            if not sent:
                await asyncio.sleep(_LOOK)

    async def _send_next(self, channel: Channel) -> bool:
        """Send the oldest that is due. False when there is none, or it did not arrive."""
        row = await self._serial.run(self._next, channel.name)
        if row is None:
            return False
        fault = await _sent(channel, json.loads(row.document))
        if fault:
            _log.warning("message %s: %s", row.id, fault)
        await self._serial.run(self._note, row.id, channel, fault)
        return not fault

    def _next(self, channel: str) -> AlertMessage | None:
        m = AlertMessage
        mine = select(m).where(m.channel == channel, m.state == "waiting", col(m.due) <= show_instant(self._clock()))
        with self._database.transaction() as session:
            if not self._leads(session):
                return None
            return session.exec(mine.order_by(col(m.created), col(m.id)).limit(1)).first()

    def _note(self, id_: str, channel: Channel, fault: str) -> None:
        now = self._clock()
        with self._database.transaction() as session:
            row = session.get(AlertMessage, id_)
            if row is None:
                return
            row.attempts, row.fault = row.attempts + 1, fault[:500]
            if not fault:
                row.state, row.ended = "sent", show_instant(now)
            elif now - instant(row.created) > GIVEN_UP:
                row.state, row.ended = "failed", show_instant(now)
            else:
                row.due = show_instant(now + timedelta(seconds=backoff(channel.retry, row.attempts)))
            session.add(row)

    def tidy(self, session: Session) -> None:
        """Forget what was sent long ago, and give up what waits for a channel that is no more."""
        m, now = AlertMessage, self._clock()
        session.exec(delete(m).where(col(m.state) != "waiting", col(m.created) < show_instant(now - KEPT)))
        there = sorted(self._rules().channels)
        for row in session.exec(select(m).where(m.state == "waiting", col(m.channel).not_in(there)).limit(1000)):
            row.state, row.ended = "failed", show_instant(now)
            row.fault = f"there is no channel {row.channel} any more"
            session.add(row)


def counts(session: Session) -> Mapping[tuple[str, str], int]:
    """Messages by channel and state."""
    query = select(AlertMessage.channel, AlertMessage.state, func.count())
    found = session.exec(query.group_by(col(AlertMessage.channel), col(AlertMessage.state)))
    return {(channel, state): n for channel, state, n in found}


def backoff(first: float, attempts: int) -> float:
    """Seconds until the next try."""
    return min(LONGEST_WAIT, first * 2.0 ** min(attempts - 1, 20))


async def _sent(channel: Channel, value: dict[str, Any]) -> str:
    """What went wrong; empty when it arrived. A server that answers a byte at a time is given up with the rest."""
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def work() -> None:
        try:
            send(channel, value, time.time())
            fault = ""
        except Unavailable as e:
            fault = str(e)
        except Exception as e:  # noqa: BLE001  the edge of a thread: whatever it is, it is told, and tried again
            fault = f"channel {channel.name}: {e!r}"
        with suppress(RuntimeError):  # the fleet ended meanwhile
            loop.call_soon_threadsafe(_set, done, fault)

    # A thread that nobody waits for: the end of the fleet is not held up by a mail server.
    threading.Thread(target=work, name=f"alert channel {channel.name}", daemon=True).start()
    try:
        return await asyncio.wait_for(done, 3 * channel.timeout)
    except TimeoutError:
        return f"channel {channel.name}: no answer within {3 * channel.timeout:g} s"


def _set(done: asyncio.Future[str], fault: str) -> None:
    if not done.done():
        done.set_result(fault)
