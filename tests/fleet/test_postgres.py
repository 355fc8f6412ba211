"""The fleet on a real PostgreSQL: the same migrations, tables and words as on SQLite."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fleet_process import FleetProcess, initialise_trust
from postgres_cluster import postgres, program
from sqlalchemy import create_engine, text
from sqlmodel import SQLModel, select

from fleet import telemetry
from fleet.errors import Conflict, Unavailable
from fleet.evidence.comparing import comparisons
from fleet.evidence.keeping import Keeper
from fleet.evidence.recording import Recorder
from fleet.evidence.windows import DAY, FINE, HOUR
from fleet.store.backup import save
from fleet.store.database import Database, elsewhere, open_database
from fleet.store.evidence_tables import EvidenceWindow
from fleet.store.tables import Device, DeviceStats, TelemetryRow
from wire.messages import Health, InferenceStats, TelemetryBatch, TelemetryRecord
from wire.sketch import Sketch
from wire.units import show_instant

pytest.importorskip("psycopg")
pytestmark = pytest.mark.skipif(program("initdb") is None, reason="PostgreSQL is not installed: scripts/setup")
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    """An empty database for each test."""
    name = f"t{abs(hash(request.node.name))}"
    engine = create_engine(server.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.replace("/postgres?", f"/{name}?")


def test_the_migrations_make_exactly_the_tables_of_the_code(url: str) -> None:
    Database(url).close()
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []
    engine.dispose()


def test_two_fleets_that_start_at_once_migrate_once(url: str) -> None:
    """Accident: both find an empty database."""
    faults: list[BaseException] = []

    def start() -> None:
        try:
            Database(url).close()
        except BaseException as e:  # noqa: BLE001  asserted below, by the thread that can fail the test
            faults.append(e)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []


def test_telemetry_evidence_comparisons_and_keeping_do_the_same_there(url: str) -> None:
    recorder, now = Recorder(), NOON
    with closing(Database(url)) as database:
        with database.transaction() as session:
            session.add(Device(id="a", profile="pi", created="", token_hash="", token_expires=""))
            session.flush()
            session.add(DeviceStats(device="a"))
        for seq, (minute, digest) in enumerate([(-30, OLD), (-20, OLD), (10, NEW), (20, NEW)] * 2, 1):
            record = _record((seq - 1) % 4 + 1, NOON + timedelta(minutes=minute), digest)
            batch = TelemetryBatch(device="a", boot="b", starts=1, sent=seq, nonce="n", records=(record,))
            with database.transaction() as session:
                intake = telemetry.Intake(session, recorder, NOON + timedelta(hours=1))
                intake.take(session.get_one(Device, "a"), batch, 1)
                intake.store()
        with database.transaction() as session:
            sums = session.get_one(DeviceStats, "a")
            assert (sums.records, sums.duplicates, sums.requests) == (4, 4, 4 << 33)
        for hours in (0, 20, 24 * 20, 24 * 420):
            now = NOON + timedelta(hours=1 + hours)
            _keep(database, recorder, now)
            if hours == 0:
                (one,) = _compare(database)
                assert one.before is not None
                assert one.after is not None
                assert (one.before.requests, one.after.requests) == (2 << 33, 2 << 33)
                assert (one.after.latency_ms.count, one.after.memory) == (2, 80)
            expected = {0: {FINE}, 20: {FINE, HOUR}, 480: {DAY}, 24 * 420: set()}[hours]
            assert {row.span for row in _all(database, EvidenceWindow)} == expected
            assert len(_all(database, TelemetryRow)) == (4 if hours == 0 else 0)


def _record(seq: int, start: datetime, digest: str) -> TelemetryRecord:
    stats = InferenceStats(model="kitchen", digest=digest, requests=1 << 33, errors=1, latency_ms=Sketch.of([9.0]))
    health = Health(cpu_percent=5, memory_used=1, memory_total=2, agent_memory=80, disk_free=1, disk_total=2)
    end = show_instant(start + timedelta(minutes=1))
    return TelemetryRecord(seq=seq, start=show_instant(start), end=end, inference=(stats,), health=health)


def _keep(database: Database, recorder: Recorder, now: datetime) -> None:
    keeper = Keeper(database, recorder, timedelta(hours=2), timedelta(days=90), lambda: now)
    for _ in range(20):
        keeper.tick()


def _compare(database: Database) -> list[Any]:
    with database.transaction() as session:
        return comparisons(
            session,
            profile="pi",
            model="kitchen",
            candidate_digest=NEW,
            candidates={"a": NOON},
            controls={},
            before=timedelta(days=1),
        )


def _all(database: Database, table: Any) -> list[Any]:
    with database.transaction() as session:
        return list(session.exec(select(table)).all())


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="look whether PostgreSQL runs"):
        Database(f"postgresql://fleet@/postgres?host={tmp_path}")


def test_a_password_comes_from_its_file_and_a_backup_refuses_and_says_why(url: str, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("not asked for\n")
    open_database(tmp_path, url, secret).close()
    assert elsewhere(tmp_path) == (url, secret)
    with pytest.raises(Conflict, match="pg_dump"):
        save(tmp_path, tmp_path / "out", "a passphrase")
    open_database(tmp_path).close()
    assert elsewhere(tmp_path) is None


def test_a_whole_fleet_runs_on_it(server: str, url: str, tmp_path: Path, enrolling: Any) -> None:
    with FleetProcess(tmp_path / "fleet", database=url) as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("on-postgres")
        device.connect()
        device.send(device.batch(1, 2, nonce="first"))
        assert device.next_ack().stored == 2
        fleet.kill()
        fleet.start()
        assert device.view()["stats"]["records"] == 2
    assert not (tmp_path / "fleet" / "fleet.db").exists()
