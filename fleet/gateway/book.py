"""The records that wait for the database, and how they get there: together with the budgets, off the path of requests.

    book.keep(record)
    await book.write()          # twice a second, and at the end

What waits while the disk is at fault is not lost. One record that no database takes costs the others nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from fleet.errors import FleetError
from fleet.gateway.budgets import Budgets, SpendRow
from fleet.gateway.records import MOST, Record
from fleet.gateway.store import GatewayStore
from fleet.serial import Serial

_log = logging.getLogger(__name__)


class Book:
    """What waits, on one event loop."""

    def __init__(self, store: GatewayStore, serial: Serial, budgets: Budgets) -> None:
        self._store, self._serial, self._budgets = store, serial, budgets
        self._waiting: list[Record] = []

    @property
    def waiting(self) -> int:
        """Records that are not on the disk yet."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether a request that comes now could not be recorded."""
        return len(self._waiting) >= MOST

    def keep(self, record: Record) -> None:
        """Write it with the next ones."""
        self._waiting.append(record)

    async def write(self) -> bool:
        """Write what waits; whether the database took it."""
        records, self._waiting = self._waiting, []
        spent = self._budgets.changed()
        if not records and not spent:
            return True
        try:
            await asyncio.shield(self._serial.run(self._store.write, records, spent))
        except FleetError as e:
            _log.error("gateway: %d records could not be written, and wait: %s", len(records), e)
            self._waiting = records + self._waiting
            self._budgets.not_stored(spent)
            return False
        except Exception as e:  # noqa: BLE001  whatever the database does not like of one must not cost the others
            _log.error("gateway: %d records could not be written together: %s", len(records), type(e).__name__)
            return await asyncio.shield(self._write_apart(records, spent))
        return True

    async def _write_apart(self, records: list[Record], spent: list[SpendRow]) -> bool:
        """Write the budgets, then the records in halves, down to those that fail alone.

        Those are dropped. A database that takes nothing at all is at fault itself: then everything waits.
        """
        taken = await self._takes([], spent)
        if not taken:
            self._budgets.not_stored(spent)
        some, parts, failed = taken and bool(spent), [records] if records else [], list[Record]()
        while parts:
            part = parts.pop()
            if await self._takes(part, []):
                some = True
            elif len(part) > 1:
                parts += [part[len(part) // 2 :], part[: len(part) // 2]]
            else:
                failed += part
        if not some:
            self._waiting = failed + self._waiting
        for record in failed if some else ():
            _log.error("gateway: the record of a request of %s at %s is lost: look at it", record.who, record.at)
        return taken and not failed

    async def _takes(self, records: list[Record], spent: Sequence[SpendRow]) -> bool:
        """Whether the database takes them, or waits for its disk, and they with it."""
        try:
            await self._serial.run(self._store.write, records, spent)
        except FleetError:
            self._waiting = records + self._waiting
            self._budgets.not_stored(spent)
        except Exception as e:  # noqa: BLE001  as above; the text of the error may hold that of a request
            _log.error("gateway: the database does not take %d records: %s", len(records), type(e).__name__)
            return False
        return True
