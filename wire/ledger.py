"""The ledger of telemetry: where every record went that a device ever made.

    produced = delivered + merged + dropped + waiting        by stream, counted in records

A device writes it in the transaction of what it counts and sends it with every batch; the fleet holds it against what
it stored (`fault`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from wire.document import Document, check_counts, check_name
from wire.errors import Malformed

MAX_STREAMS: Final = 16
"""Streams of telemetry that one device may have."""


@dataclass(frozen=True, kw_only=True)
class StreamLedger(Document):
    """One stream since the device's memory began.

    `delivered` were acknowledged by the fleet, `merged` went into another record, `dropped` went by the stream's rule,
    `waiting` are on the device's disk. `doubtful` are those of the dropped that were sent and never answered: the fleet
    may hold them.
    """

    stream: str
    produced: int = 0
    delivered: int = 0
    merged: int = 0
    dropped: int = 0
    waiting: int = 0
    doubtful: int = 0

    def __post_init__(self) -> None:
        check_name(self.stream, "ledger.stream")
        check_counts(self, "produced", "delivered", "merged", "dropped", "waiting", "doubtful")

    @property
    def missing(self) -> int:
        """Records that went nowhere; below 0 when more went somewhere than were made. 0 when it balances."""
        return self.produced - self.delivered - self.merged - self.dropped - self.waiting


def check_streams(ledger: Sequence[StreamLedger], where: str) -> None:
    """Raises `Malformed` unless each stream stands there once, and they are few."""
    if len({one.stream for one in ledger}) != len(ledger) or len(ledger) > MAX_STREAMS:
        raise Malformed(f"{where}: expected a ledger for each of at most {MAX_STREAMS} streams")


def fault(ledger: StreamLedger, *, stored: int, merged: int, carried: int) -> str:
    """What does not balance, in words; "" when all does.

    `stored` are the records of this stream that the fleet holds, `merged` those that went into them, both since the
    same moment as the ledger's counts. `carried` of them came with the ledger, so the device still counts them as
    waiting, as it does others whose acknowledgement was lost.
    """
    if ledger.missing:
        return f"{ledger.stream}: {ledger.missing} of {ledger.produced} records went nowhere"
    if stored - carried < ledger.delivered:
        lost = ledger.delivered + carried - stored
        return f"{ledger.stream}: {lost} of {ledger.delivered} acknowledged records are not here"
    if stored > ledger.delivered + ledger.waiting + ledger.doubtful:
        return f"{ledger.stream}: {stored} records are here, and the device knows of {ledger.delivered} delivered"
    if merged > ledger.merged:
        return f"{ledger.stream}: {merged} records were merged into those here, and the device merged {ledger.merged}"
    return ""
