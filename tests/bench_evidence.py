"""`scripts/bench evidence`: a year of 10,000 devices in SQLite: its size, and how fast a page of it is.

The rows are made here and not by a year of messages, but what is in them was: minutes of an agent's statistics (60
requests, twelve labels, lengths, three languages), added up by the fleet's own code to ten minutes, hours and days,
and dealt out at random. All that a fleet holds of them after a year at the default settings is there: a model and the
health of every device in windows, a new version of the model every month, one event a day for 90 days, which records
came (a new boot every day), an hour of records as they came, and the windows of all devices together.

`year_gb`: the file, in 10^9 bytes. `page_device_ms`, `page_model_ms`: the slowest page of a day, of two weeks or of a
year, made from nothing: the disk's cache was emptied before each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
from ingest_load import HEALTH as SAID
from ingest_load import Job, stats_of

from fleet.evidence.pages import Span, device_page, model_page
from fleet.evidence.windows import DAY, FINE, HOUR, HealthSum, Kept, Window, begin
from fleet.seen import Seen
from fleet.store.database import Database
from fleet.store.evidence_tables import EvidenceSubject, EvidenceWindow, HealthWindow, SeenRow
from fleet.store.tables import Device, DeviceStats, TelemetryRow
from wire.messages import InferenceStats, TelemetryRecord
from wire.units import show_instant

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
PROFILES = ("raspberry-pi-4", "raspberry-pi-zero-2w", "jetson-nano", "x86-64")
LABELS = tuple(f"label-{n:02}" for n in range(12))
DAYS = 365
VERSIONS = 12
EVENT_DAYS = 90
RAW_MINUTES = 60
POOL = 24
SPANS = (timedelta(days=1), timedelta(days=14), timedelta(days=DAYS))


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="shoal-bench-", dir=options.folder) as name:
        folder = Path(name)
        Database.in_folder(folder).close()
        sizes = fill(folder / "fleet.db", options.devices)
        _tell(sizes, options.devices)
        figures = {"devices": options.devices, "year_gb": round(sum(sizes.values()) / 1e9, 2)}
        figures |= pages(folder, options.devices)
    sys.stdout.write(json.dumps(figures) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the database is made (default: the folder for such files)")
    return parser.parse_args()


def _tell(sizes: dict[str, int], devices: int) -> None:
    for name, size in sizes.items():
        sys.stdout.write(f"{name:<32} {size / 1e6:9.0f} MB {size / devices / 1e3:9.1f} kB a device\n")
    sys.stdout.flush()


# --- a year -----------------------------------------------------------------------------------------------------------


def fill(path: Path, devices: int) -> dict[str, int]:
    """Write all of it, and say what each part takes in the file, in bytes."""
    year = Year(devices)
    parts: list[tuple[str, Callable[[], Iterable[tuple[Any, Iterator[tuple[Any, ...]]]]]]] = [
        ("devices and their sums", lambda: [(Device, year.devices()), (DeviceStats, year.sums())]),
        (
            "models by 10 min, hour and day",
            lambda: [(EvidenceSubject, year.subjects()), (EvidenceWindow, year.models())],
        ),
        ("health by 10 min, hour and day", lambda: [(HealthWindow, year.health())]),
        ("which records came", lambda: [(SeenRow, year.seen())]),
        ("events", lambda: [(TelemetryRow, year.events())]),
        ("an hour of records as they came", lambda: [(TelemetryRow, year.raw())]),
    ]
    sizes = {}
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for words in ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA cache_size=-500000"):
            connection.execute(words)
        # Made again at the end: to keep them up row by row takes longer than everything else.
        indexes = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        kept = indexes.fetchall()
        for name, _ in kept:
            connection.execute(f"DROP INDEX {name}")
        before = _size(connection)
        for title, tables in parts:
            for table, rows in tables():
                _insert(connection, table, rows)
            sizes[title], before = _size(connection) - before, _size(connection)
        for _, words in kept:
            connection.execute(words)
        sizes["indexes"] = _size(connection) - before
        connection.execute("ANALYZE")
    return sizes


def _size(connection: sqlite3.Connection) -> int:
    return int(
        connection.execute("PRAGMA page_count").fetchone()[0] * connection.execute("PRAGMA page_size").fetchone()[0]
    )


def _insert(connection: sqlite3.Connection, table: Any, rows: Iterator[tuple[Any, ...]]) -> None:
    """The columns in the order of the class."""
    names = list(table.__table__.columns.keys())
    words = (
        f"INSERT INTO {table.__tablename__} ({', '.join(map(_quoted, names))}) VALUES ({', '.join('?' * len(names))})"
    )
    connection.execute("BEGIN")
    connection.executemany(words, rows)
    connection.execute("COMMIT")


def _quoted(name: str) -> str:
    return f'"{name}"'


@dataclass
class Year:
    """Rows of so many devices, in the order of their keys."""

    count: int
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    pools: dict[int, list[tuple[Any, ...]]] = field(default_factory=dict)
    minutes: list[InferenceStats] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.minutes = [_minute(self.chance) for _ in range(200)]
        for span, minutes in ((FINE, 10), (HOUR, 60), (DAY, 1440)):
            self.pools[span] = [self._window(minutes) for _ in range(POOL)]

    def _window(self, minutes: int) -> tuple[Any, ...]:
        """The columns after `ends`."""
        window = Window()
        for one in self.chance.choices(self.minutes, k=minutes):
            window.merge(Window.of(one, 0))
        columns = window.columns()
        return tuple(columns[name] for name in _names(EvidenceWindow)[4:])

    def devices(self) -> Iterator[tuple[Any, ...]]:
        for i in range(self.count):
            row = Device(
                id=_device(i),
                profile=PROFILES[i % len(PROFILES)],
                state="enrolled",
                created="",
                token_hash="0" * 64,
                token_expires="",
                reported="x" * 1500,
                desired_models="x" * 300,
            )
            yield _values(row)

    def sums(self) -> Iterator[tuple[Any, ...]]:
        latency = orjson.dumps(self.minutes[0].latency_ms.to_value()).decode()
        for i in range(self.count):
            yield _values(DeviceStats(device=_device(i), latency=latency, health="x" * 300))

    def subjects(self) -> Iterator[tuple[Any, ...]]:
        """Of each device its health and its models, then those of all devices of a profile."""
        number = 0
        for i in range(self.count + len(PROFILES)):
            profile = PROFILES[i % len(PROFILES)]
            device = _device(i) if i < self.count else ""
            if device:
                number += 1
                health = EvidenceSubject(
                    id=number, device=device, model="", digest="", profile="", shadow=False, newest=_now(), restarts=1
                )
                yield _values(health)
            for version, (_, end) in enumerate(_months()):
                number += 1
                model = EvidenceSubject(
                    id=number,
                    device=device,
                    model="kitchen",
                    digest=_digest(version, profile),
                    profile=profile,
                    shadow=False,
                    newest=min(end, _now()),
                )
                yield _values(model)

    def models(self) -> Iterator[tuple[Any, ...]]:
        number = 0
        for i in range(self.count + len(PROFILES)):
            number += i < self.count
            for version, (start, end) in enumerate(_months()):
                number += 1
                times = [(DAY, at) for at in _days() if start <= at < end]
                if version == VERSIONS - 1:
                    times += [(HOUR, at) for at in _hours()] + [(FINE, at) for at in _fine()]
                for span, at in sorted(times):
                    yield (number, span, at, at + span, *self.chance.choice(self.pools[span]))

    def health(self) -> Iterator[tuple[Any, ...]]:
        every = [(FINE, at) for at in _fine()] + [(HOUR, at) for at in _hours()] + [(DAY, at) for at in _days()]
        one = _values(HealthWindow(subject=0, span=0, begins=0, **HealthSum.of(SAID, 0, 0).columns()))[4:]
        for i in range(self.count):
            number = 1 + i * (1 + VERSIONS)
            for span, at in sorted(every):
                yield (number, span, at, at + span, *one)

    def seen(self) -> Iterator[tuple[Any, ...]]:
        """A boot of every day: an even run of records in three streams."""
        seen = Seen()
        for seq in range(1, 3 * 1440, 3):
            for n, stream in enumerate(("inference", "health", "event")):
                seen.add(stream, seq + n, seq + n)
        text, today = seen.to_text(), _now() // DAY
        for i in range(self.count):
            for boot, day in enumerate(range(today - DAYS, today)):
                yield (_device(i), _boot(boot), text, day)

    def events(self) -> Iterator[tuple[Any, ...]]:
        event = {"kind": "restart", "cause": "power", "at": show_instant(NOW), "text": "x" * 120}
        record = TelemetryRecord(seq=1, start=show_instant(NOW), end=show_instant(NOW), stream="event")
        text = orjson.dumps({**record.to_value(), "events": [event]}).decode()
        for n in range(EVENT_DAYS * self.count):
            day, i = divmod(n, self.count)
            at = show_instant(NOW - timedelta(days=EVENT_DAYS - day))
            yield (n + 1, _device(i), _boot(day), "event", 1, 1, at, text)

    def raw(self) -> Iterator[tuple[Any, ...]]:
        """A window and the health of every minute, in the order in which they come."""
        at, n = show_instant(NOW), EVENT_DAYS * self.count
        base = TelemetryRecord(seq=1000, start=at, end=at)
        windows = [
            orjson.dumps(replace(base, stream="inference", inference=(one,)).to_value()).decode()
            for one in self.minutes
        ]
        health = orjson.dumps(replace(base, stream="health", health=SAID).to_value()).decode()
        for minute in range(RAW_MINUTES):
            for i in range(self.count):
                seq = 1000 + 2 * minute
                yield (n + 1, _device(i), _boot(DAYS), "inference", seq, seq, at, self.chance.choice(windows))
                yield (n + 2, _device(i), _boot(DAYS), "health", seq + 1, seq + 1, at, health)
                n += 2


def _minute(chance: random.Random) -> InferenceStats:
    """As an agent says it: the load of `bench_ingest`, of a model with more labels."""
    job = Job(folder="", port=0, ca="", devices=[], start=0, digest=_digest(0, PROFILES[0]))
    labels: dict[str, int] = {}
    for name in chance.choices(LABELS, k=60):
        labels[name] = labels.get(name, 0) + 1
    return replace(stats_of(job, chance), labels=labels, languages={"en": 40, "de": 15, "fr": 5})


def _names(table: Any) -> list[str]:
    return list(table.__table__.columns.keys())


def _values(row: Any) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in _names(type(row)))


def _device(i: int) -> str:
    return f"device-{i:06}"


def _boot(n: int) -> str:
    return f"{n:032x}"


def _digest(version: int, profile: str) -> str:
    return f"sha256:{version:032x}{PROFILES.index(profile):032x}"


def _now() -> int:
    return int(NOW.timestamp())


def _days() -> range:
    return range(begin(_now() - DAYS * DAY, DAY), begin(_now() - int(Kept.hours), DAY), DAY)


def _hours() -> range:
    return range(_days().stop, begin(_now() - int(Kept.fine), HOUR), HOUR)


def _fine() -> range:
    return range(_hours().stop, _now(), FINE)


def _months() -> list[tuple[int, int]]:
    """Begin and end of the time of each version."""
    edges = [begin(_now() - DAYS * DAY, DAY) + n * (DAYS * DAY) // VERSIONS for n in range(VERSIONS)]
    return list(pairwise([*edges, _now() + DAY]))


# --- pages ------------------------------------------------------------------------------------------------------------


def pages(folder: Path, devices: int) -> dict[str, float]:
    """The slowest page of each kind, in milliseconds."""
    chance = random.Random(3)
    digests = {profile: _digest(VERSIONS - 1, profile) for profile in PROFILES}
    slowest = {"page_device_ms": 0.0, "page_model_ms": 0.0}
    with closing(Database.in_folder(folder)) as database:

        def timed(make: Callable[[Any], dict[str, Any]]) -> tuple[float, int]:
            _empty_cache(folder / "fleet.db")
            began = time.perf_counter()
            with database.transaction() as session:
                page = json.dumps(make(session))
            return 1000 * (time.perf_counter() - began), len(page)

        for length in SPANS:
            span = Span.of(NOW - length, NOW, None)
            for _ in range(5):
                name = _device(chance.randrange(devices))
                took, size = timed(lambda session, name=name, span=span: device_page(session, name, span))  # type: ignore[misc]
                slowest["page_device_ms"] = max(slowest["page_device_ms"], took)
            _tell_page(f"a device, {length.days} d", took, size)
            took, size = timed(lambda session, span=span: model_page(session, digests, span))  # type: ignore[misc]
            slowest["page_model_ms"] = max(slowest["page_model_ms"], took)
            _tell_page(f"a version, {length.days} d", took, size)
    return {name: round(value, 1) for name, value in slowest.items()}


def _tell_page(title: str, took: float, size: int) -> None:
    sys.stdout.write(f"page of {title:<24} {took:9.1f} ms {size / 1000:9.1f} kB\n")


def _empty_cache(path: Path) -> None:
    """Of this file, as far as the system does what it is asked."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
