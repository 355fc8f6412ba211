"""Telemetry that waits on disk, and its ledger. Each function works in a transaction of `agent.store.state`.

    add(db, records, limit)        # what gives way when it is full: `agent.store.streams`
    next_batch(db)                 # alarms before samples, the oldest first
    forget(db, boot, seqs)         # the fleet holds them
    ledger(db)                     # produced = delivered + merged + dropped + waiting

The fleet stores each record once although a batch may come twice, because what may have been sent never changes: a
batch is the oldest records of one boot, at most `BATCH_BYTES` of them, so no rule touches that many at the old end of
any stream. Only when nothing else is left to give way are they dropped, and then counted as doubtful.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from agent.store.streams import (
    BATCH_BYTES,
    EVENT,
    INFERENCE,
    LARGEST_MERGED,
    RULES,
    SAMPLES,
    Row,
    merged_record,
    pairs_to_merge,
    to_thin_out,
)
from wire.errors import WireError
from wire.ledger import StreamLedger
from wire.messages import TelemetryRecord
from wire.units import show_instant

SCHEMA: Final = """
ALTER TABLE telemetry ADD COLUMN stream TEXT NOT NULL DEFAULT 'inference';
ALTER TABLE telemetry ADD COLUMN merged INTEGER NOT NULL DEFAULT 0;
ALTER TABLE telemetry ADD COLUMN ended TEXT NOT NULL DEFAULT '';
CREATE INDEX telemetry_stream ON telemetry (stream, id);
CREATE TABLE ledger (stream TEXT PRIMARY KEY, produced INTEGER NOT NULL, delivered INTEGER NOT NULL,
                     merged INTEGER NOT NULL, dropped INTEGER NOT NULL, doubtful INTEGER NOT NULL,
                     bytes INTEGER NOT NULL) STRICT;
INSERT INTO ledger VALUES ('event', 0, 0, 0, 0, 0, 0), ('health', 0, 0, 0, 0, 0, 0);
INSERT INTO ledger SELECT 'inference',
    IFNULL((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'produced'), 0),
    IFNULL((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'acknowledged'), 0), 0,
    IFNULL((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'dropped'), 0), 0,
    IFNULL((SELECT SUM(LENGTH(record)) FROM telemetry), 0);
DELETE FROM meta WHERE key IN ('produced', 'acknowledged', 'dropped');
INSERT INTO meta VALUES ('memory', lower(hex(randomblob(16))));
"""
"""From the queue that only knew one stream. `memory` names what is counted: another one when the file was lost."""
MOST_RECORDS: Final = 256
"""Records in one batch."""
MERGED_AT_ONCE: Final = 32
"""Pairs: some seconds of a small board would be too long for one transaction."""
LOOKED_AT: Final = 2048
"""Old records that a rule chooses from."""


@dataclass(frozen=True)
class Queued:
    """A telemetry record that waits, as its document's bytes. `ended` is the end of its window."""

    boot: str
    seq: int
    record: bytes
    stream: str = INFERENCE
    ended: str = ""


def add(
    db: sqlite3.Connection,
    new: Iterable[Queued],
    limit: int,
    *,
    lost: Mapping[str, int] | None = None,
    now: datetime | None = None,
) -> None:
    """Add records and have others give way while all of them take more than `limit` bytes.

    `lost` were produced, by stream, and could not be kept in memory until the disk took them. `now`: only where the
    time is known for sure does anything expire.
    """
    for one in new:
        db.execute(
            "INSERT INTO telemetry (boot, seq, record, stream, ended) VALUES (?, ?, ?, ?, ?)",
            (one.boot, one.seq, one.record, one.stream, one.ended),
        )
        _count(db, one.stream, produced=1, bytes=len(one.record))
    for stream, n in (lost or {}).items():
        _count(db, stream, produced=n, dropped=n)
    if now is not None:
        _expire(db, now)
    while _bytes(db) > limit and _give_way(db):
        pass


def next_batch(db: sqlite3.Connection, limit: int = BATCH_BYTES) -> list[Queued]:
    """The oldest alarms of one boot, or samples when none waits, by rising seq: at least one when any is there."""
    for which in ("stream = ?", "stream <> ?"):
        rows = db.execute(
            f"SELECT boot, seq, record, stream, ended FROM telemetry WHERE {which} AND boot ="  # noqa: S608  ours
            f" (SELECT boot FROM telemetry WHERE {which} ORDER BY id LIMIT 1) ORDER BY id LIMIT {MOST_RECORDS}",
            (EVENT, EVENT),
        )
        batch: list[Queued] = []
        for queued in (Queued(*row) for row in rows):
            limit -= len(queued.record)
            if batch and limit < 0:
                break
            batch.append(queued)
        if batch:
            return sorted(batch, key=lambda queued: queued.seq)
    return []


def forget(db: sqlite3.Connection, boot: str, seqs: Iterable[int]) -> None:
    """The fleet holds these."""
    for seq in seqs:
        for row, stream in _named(db, boot, seq):
            _remove(db, stream, [row], delivered=1)


def lose(db: sqlite3.Connection, boot: str, seq: int) -> None:
    """One that cannot be read any more is dropped."""
    for row, stream in _named(db, boot, seq):
        _remove(db, stream, [row], dropped=1)


def ledger(db: sqlite3.Connection) -> tuple[StreamLedger, ...]:
    """One for each stream. What waits is counted on the table itself: the sum is a check, not a definition."""
    columns = ("stream", "produced", "delivered", "merged", "dropped", "doubtful")
    waiting = dict(db.execute("SELECT stream, COUNT(*) FROM telemetry GROUP BY stream"))
    rows = db.execute(f"SELECT {', '.join(columns)} FROM ledger ORDER BY stream")  # noqa: S608  ours
    return tuple(StreamLedger(**dict(zip(columns, row, strict=True)), waiting=waiting.get(row[0], 0)) for row in rows)


# --- what gives way ---------------------------------------------------------------------------------------------------


def _give_way(db: sqlite3.Connection) -> bool:
    """Make some room by the rules: of the samples that take the most first. False when nothing is left."""
    by_size = [row[0] for row in db.execute("SELECT stream FROM ledger ORDER BY bytes DESC") if row[0] in SAMPLES]
    for stream in by_size:
        rows = _older_half(db, stream)
        if _merge(db, stream, rows) if RULES[stream].over == "merge" else _thin_out(db, stream, rows):
            return True
    order = [*SAMPLES[::-1], EVENT]
    return any(_drop(db, stream, doubtful=False) for stream in order[:-1]) or any(
        _drop(db, stream, doubtful=True) for stream in order
    )


def _merge(db: sqlite3.Connection, stream: str, rows: Sequence[Row]) -> bool:
    done = [_merge_pair(db, stream, a, b) for a, b in pairs_to_merge(rows, MERGED_AT_ONCE)]
    return any(done)


def _merge_pair(db: sqlite3.Connection, stream: str, earlier: Row, later: Row) -> bool:
    """The later one takes the place of the earlier one. False when they do not become smaller."""
    read = "SELECT seq, ended, record FROM telemetry WHERE id = ?"
    (_, _, first), (seq, ended, second) = (db.execute(read, (row.id,)).fetchone() for row in (earlier, later))
    try:
        merged = merged_record(TelemetryRecord.from_bytes(first), TelemetryRecord.from_bytes(second))
    except WireError:
        return False  # the disk changed one: it is given up when its turn comes to be sent
    record = merged.to_bytes()
    if len(record) > LARGEST_MERGED or len(record) >= earlier.size + later.size:
        return False
    _remove(db, stream, [later], merged=1)
    _count(db, stream, bytes=len(record) - earlier.size)
    values = seq, ended, record, merged.merged, earlier.id
    db.execute("UPDATE telemetry SET seq = ?, ended = ?, record = ?, merged = ? WHERE id = ?", values)
    return True


def _thin_out(db: sqlite3.Connection, stream: str, rows: Sequence[Row]) -> bool:
    gone = to_thin_out(rows)
    _remove(db, stream, gone, dropped=len(gone))
    return bool(gone)


def _drop(db: sqlite3.Connection, stream: str, *, doubtful: bool) -> bool:
    """The oldest ones, a batch of them at most; those that may have been sent only if `doubtful`."""
    found = "SELECT id, boot, merged, LENGTH(record) FROM telemetry WHERE stream = ? AND id > ? ORDER BY id LIMIT 16"
    rows = [Row(*row) for row in db.execute(found, (stream, 0 if doubtful else _untouched(db, stream)))]
    if doubtful:
        rows = rows[:1]
    _remove(db, stream, rows, dropped=len(rows), doubtful=len(rows) if doubtful else 0)
    return bool(rows)


def _expire(db: sqlite3.Connection, now: datetime) -> None:
    oldest = "SELECT id, boot, merged, LENGTH(record), ended FROM telemetry WHERE stream = ? AND id > ? ORDER BY id"
    for stream, lasts in ((name, rule.lasts) for name, rule in RULES.items() if rule.lasts is not None):
        before = show_instant(now - lasts)
        gone: list[Row] = []
        for *row, ended in db.execute(oldest, (stream, _untouched(db, stream))):
            if ended >= before or len(gone) == LOOKED_AT:
                break
            gone.append(Row(*row))
        _remove(db, stream, gone, dropped=len(gone))


def _older_half(db: sqlite3.Connection, stream: str) -> list[Row]:
    """The older half of a stream without what may have been sent, at most `LOOKED_AT` records."""
    after = _untouched(db, stream)
    (count,) = db.execute("SELECT COUNT(*) FROM telemetry WHERE stream = ? AND id > ?", (stream, after)).fetchone()
    rows = db.execute(
        "SELECT id, boot, merged, LENGTH(record) FROM telemetry WHERE stream = ? AND id > ? ORDER BY id LIMIT ?",
        (stream, after, min((count + 1) // 2, LOOKED_AT)),
    )
    return [Row(*row) for row in rows]


def _untouched(db: sqlite3.Connection, stream: str) -> int:
    """The last id of the oldest records that may be in a batch that was sent; 0 in an empty stream."""
    room, last = BATCH_BYTES, 0
    sizes = "SELECT id, LENGTH(record) FROM telemetry WHERE stream = ? ORDER BY id LIMIT ?"
    for row, size in db.execute(sizes, (stream, MOST_RECORDS)):
        room -= size
        if last and room < 0:
            break
        last = row
    return int(last)


# --- counting ---------------------------------------------------------------------------------------------------------


def _named(db: sqlite3.Connection, boot: str, seq: int) -> list[tuple[Row, str]]:
    found = "SELECT id, boot, merged, LENGTH(record), stream FROM telemetry WHERE boot = ? AND seq = ?"
    return [(Row(*row), stream) for *row, stream in db.execute(found, (boot, seq)).fetchall()]


def _remove(db: sqlite3.Connection, stream: str, rows: Sequence[Row], **counts: int) -> None:
    db.executemany("DELETE FROM telemetry WHERE id = ?", [(row.id,) for row in rows])
    if rows:
        _count(db, stream, bytes=-sum(row.size for row in rows), **counts)


def _count(db: sqlite3.Connection, stream: str, **more: int) -> None:
    changes = ", ".join(f"{name} = {name} + ?" for name in more)
    done = db.execute(f"UPDATE ledger SET {changes} WHERE stream = ?", (*more.values(), stream))  # noqa: S608  ours
    if not done.rowcount:
        db.execute("INSERT INTO ledger VALUES (?, 0, 0, 0, 0, 0, 0)", (stream,))
        _count(db, stream, **more)


def _bytes(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT SUM(bytes) FROM ledger").fetchone()[0] or 0)
