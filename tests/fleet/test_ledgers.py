"""Ledgers: what a device says of its telemetry is held against what is stored, and a merged window counts once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlmodel import Session, select

from fleet import device_views, ledgers, telemetry
from fleet.errors import Malformed
from fleet.health.status import Hearing
from fleet.seen import Seen
from fleet.store.database import Database
from fleet.store.evidence_tables import SeenRow
from fleet.store.tables import Device, DeviceStats
from wire.ledger import MAX_STREAMS, StreamLedger
from wire.life import DeviceEvent
from wire.messages import InferenceStats, TelemetryBatch, TelemetryRecord

DEAF = Hearing(datetime(2026, 11, 22, tzinfo=UTC), None, timedelta(0), timedelta(0))
"""A fleet without a line to its broker: of no interest here."""

TIME = "2026-11-22T08:00:00.000Z"
STATS = InferenceStats(model="kitchen", digest="sha256:" + "0" * 64, requests=4, errors=1)


@dataclass
class Teller:
    """A device that sends what a test makes it say."""

    session: Session
    memory: str = "m1"
    epoch: int = 1
    sent: int = 0

    def send(self, *records: TelemetryRecord, **counts: int) -> str:
        """Send records with a ledger of `inference`; what is flagged afterwards."""
        self.sent += 1
        ledger = StreamLedger(stream="inference", **counts)
        batch = TelemetryBatch(
            device="a", boot="b", starts=1, sent=self.sent, nonce="n", records=records, memory=self.memory,
            ledger=(ledger,),
        )  # fmt: skip
        device = self.session.get_one(Device, "a")
        telemetry.store(self.session, device, batch, datetime.now(UTC), self.epoch)
        self.session.flush()
        return str(self.row["fault"])

    @property
    def row(self) -> dict[str, Any]:
        return next(row for row in ledgers.view(self.session, "a") if row["stream"] == "inference")

    @property
    def stats(self) -> DeviceStats:
        return self.session.get_one(DeviceStats, "a", populate_existing=True)


def window(seq: int, first: int = 0, merged: int = 0) -> TelemetryRecord:
    return TelemetryRecord(
        seq=seq, first=first, merged=merged, start=TIME, end=TIME, stream="inference", inference=(STATS,)
    )


def health(seq: int, stream: str = "health") -> TelemetryRecord:
    return TelemetryRecord(seq=seq, start=TIME, end=TIME, stream=stream)


@pytest.fixture
def teller(tmp_path: Path) -> Iterator[Teller]:
    with closing(Database.in_folder(tmp_path)) as database, database.transaction() as session:
        session.add(Device(id="a", profile="x86-64", created="", token_hash="", token_expires="", state="enrolled"))
        session.flush()
        session.add(DeviceStats(device="a"))
        yield Teller(session)


def test_a_ledger_that_balances_is_not_flagged_and_is_shown(teller: Teller) -> None:
    assert teller.send(window(1), window(4, first=2, merged=2), produced=6, merged=2, waiting=4) == ""
    assert teller.send(window(5), produced=6, delivered=2, merged=2, dropped=1, waiting=1) == ""
    (shown,) = device_views.view(teller.session, teller.session.get_one(Device, "a"), DEAF)["ledger"]
    assert (shown["stored"], shown["delivered"], shown["dropped"], shown["fault"]) == (3, 2, 1, "")


def test_a_batch_whose_acknowledgement_was_lost_is_no_fault(teller: Teller) -> None:
    """Accident: stored, and not acknowledged: the device still counts it as waiting."""
    assert teller.send(window(1), window(2), produced=2, waiting=2) == ""
    assert teller.send(window(1), window(2), produced=3, waiting=3) == ""
    assert teller.send(window(3), produced=3, delivered=2, waiting=1) == ""
    assert (teller.row["stored"], teller.stats.duplicates) == (3, 2)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"produced": 9, "waiting": 1}, "8 of 9 records went nowhere"),
        ({"produced": 9, "delivered": 8, "waiting": 1}, "6 of 8 acknowledged records are not here"),
        ({"produced": 4, "dropped": 3, "waiting": 1}, "3 records are here, and the device knows of 0 delivered"),
        ({"produced": 5, "merged": 1, "delivered": 1, "dropped": 2, "waiting": 1}, "knows of 1 delivered"),
    ],
)
def test_a_ledger_that_does_not_balance_is_flagged(teller: Teller, counts: dict[str, int], words: str) -> None:
    """Attack or fault: a device that loses, invents or hides records."""
    teller.send(window(1), produced=1, waiting=1)
    teller.send(window(2), produced=2, delivered=1, waiting=1)
    found = teller.send(window(3), **counts)
    assert words in found
    assert "ledger" in [e["subject"] for e in device_views.view(teller.session, _device(teller), DEAF)["security"]]


def test_counts_that_go_back_are_flagged(teller: Teller) -> None:
    teller.send(window(1), produced=5, dropped=4, waiting=1)
    assert "2 records were made, and 5 before" in teller.send(window(2), produced=2, delivered=1, waiting=1)


def test_more_merged_into_records_than_the_device_says_is_flagged(teller: Teller) -> None:
    teller.send(window(1), produced=1, waiting=1)
    words = "3 records were merged into those here, and the device merged 1"
    assert words in teller.send(window(9, first=2, merged=3), produced=3, delivered=1, merged=1, waiting=1)


def test_a_merged_window_that_overlaps_what_is_stored_is_not_counted_twice(teller: Teller) -> None:
    """Attack or accident: what was sent is merged with what was not: an agent never does it."""
    teller.send(window(1), window(2), produced=2, waiting=2)
    for record in (window(3, first=2, merged=1), window(2, first=1, merged=1), window(9, first=1, merged=5)):
        teller.send(record, produced=2, waiting=2)
    assert (teller.stats.requests, teller.stats.records, teller.stats.duplicates) == (8, 2, 3)


def test_ranges_of_other_streams_between_do_not_overlap(teller: Teller) -> None:
    teller.send(TelemetryRecord(seq=5, start=TIME, end=TIME, stream="health"), produced=0)
    teller.send(window(9, first=1, merged=4), produced=5, merged=4, waiting=1)
    assert teller.stats.records == 2


def test_ranges_of_one_batch_that_overlap_are_refused(teller: Teller) -> None:
    """Attack: one window counted twice."""
    with pytest.raises(Malformed, match="it overlaps 5"):
        teller.send(window(5), window(6, first=5, merged=1), produced=2, waiting=2)
    assert teller.send(window(5), health(6), window(7), produced=2, waiting=2) == ""


def test_a_device_has_few_streams(teller: Teller) -> None:
    """Attack: every record in a stream of its own, each a row for ever."""
    for seq in range(1, MAX_STREAMS):
        teller.send(health(seq, f"stream-{seq}"))
    with pytest.raises(Malformed, match="one more than the 16"):
        teller.send(health(99, "one-more"))


def test_a_record_that_stands_for_all_is_held_against_one_row_and_not_against_all(teller: Teller) -> None:
    """Attack: records from 1 on, again and again, each of which would have every stored one read."""
    for seq in range(1, 100, 3):
        teller.send(window(seq, first=max(1, seq - 1), merged=min(1, seq - 1)), produced=0)
    queries: list[tuple[str, Any]] = []
    engine = teller.session.get_bind()
    event.listen(engine, "before_cursor_execute", lambda *said: queries.append((said[2], said[3])))
    teller.send(window(200, first=1, merged=1), health(201), produced=0)
    assert teller.stats.duplicates == 1
    read = [(words, values) for words, values in queries if "telemetry_seen" in words and words.startswith("SELECT")]
    ((query, values),) = read
    plan = teller.session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", values).all()
    assert any("SEARCH telemetry_seen USING INDEX" in step[-1] for step in plan), plan
    (row,) = teller.session.exec(select(SeenRow)).all()
    assert len(row.streams) < 400
    assert not [words for words, _ in queries if words.startswith("SELECT") and "FROM telemetry " in words]


def test_what_overlaps_is_found_between_what_is_stored(teller: Teller) -> None:
    for record in (window(4, first=2, merged=2), health(5), window(9, first=7, merged=2)):
        teller.send(record, produced=0)
    (row,) = teller.session.exec(select(SeenRow)).all()

    def known(record: TelemetryRecord) -> bool:
        return Seen.from_text(row.streams).holds(record.stream, record.begin, record.seq)

    assert [known(window(seq)) for seq in range(1, 11)] == [seq not in (1, 6, 10) for seq in range(1, 11)]
    assert not known(window(6, first=6))
    assert known(window(6, first=4, merged=2))
    assert known(window(8, first=5, merged=1))
    assert not known(window(12, first=10, merged=2))
    assert known(window(12, first=1, merged=2))
    assert known(health(9))
    assert not known(health(8))


def test_another_memory_begins_a_ledger_of_its_own_and_what_waited_is_told_as_lost(teller: Teller) -> None:
    """Accident: the device's memory was damaged, and began anew with 7 records waiting."""
    teller.send(window(1), window(2), produced=9, waiting=9)
    teller.memory = "m2"
    assert teller.send(window(11), produced=1, waiting=1) == ""
    assert teller.send(window(12), produced=2, delivered=1, waiting=1) == ""
    assert (teller.row["lost"], teller.row["stored"]) == (9, 4)
    assert "are not here" in teller.send(window(13), produced=9, delivered=8, waiting=1)


def test_after_a_restore_the_ledger_counts_on_from_what_the_backup_held(teller: Teller) -> None:
    """Accident: the fleet comes back from a backup without 40 records that it acknowledged; one that it held waits."""
    teller.send(window(1), window(2), produced=2, waiting=2)
    teller.epoch = 2
    assert teller.send(window(2), window(50), produced=50, delivered=41, dropped=7, waiting=2) == ""
    assert teller.send(window(51), produced=51, delivered=43, dropped=7, waiting=1) == ""
    assert "1 of 45" in teller.send(window(52), produced=53, delivered=45, dropped=7, waiting=1)


def test_a_batch_of_an_agent_without_a_ledger_is_stored_as_before(teller: Teller) -> None:
    record = TelemetryRecord(seq=1, start=TIME, end=TIME, inference=(STATS,))
    batch = TelemetryBatch(device="a", boot="b", starts=1, sent=1, nonce="n", records=(record,))
    telemetry.store(teller.session, _device(teller), batch, datetime.now(UTC), 1)
    assert (teller.row["stored"], teller.row["fault"]) == (1, "")


def test_events_of_a_device_are_shown_the_newest_last(teller: Teller) -> None:
    for seq in range(1, 26):
        event = DeviceEvent(at=TIME, kind="watchdog", text=f"{seq}")
        teller.send(TelemetryRecord(seq=seq, start=TIME, end=TIME, stream="event", events=(event,)), produced=0)
    shown = device_views.view(teller.session, _device(teller), DEAF)["events"]
    assert [event["text"] for event in shown] == [str(seq) for seq in range(6, 26)]


def _device(teller: Teller) -> Device:
    return teller.session.get_one(Device, "a")
