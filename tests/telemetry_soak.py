"""Days away from the fleet, with power cuts, and a queue that is too small for them: what is left must add up.

    found = soak(folder, home, days=10, cuts=50, queue=16 * MIB)   # raises AssertionError for what does not hold
    found = soak(disk.folder, home, ..., disk=disk)                # real cuts, on ext4 (tests/power_cut.py)

The clock is simulated, one window a minute; queue, recorder, ledger and the fleet's store are the real ones. Each life
of the agent is a process that ends in the middle of a transaction, by SIGKILL or by the power cut. What it had kept it
told its parent before, so the count here does not come from the ledger that is checked.
"""

from __future__ import annotations

import os
import random
import signal
import uuid
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from power_cut import Disk

from agent.errors import Unavailable
from agent.life.telemetry import Recorder, WindowMeter
from agent.store.state import StateFile
from agent.store.streams import EVENT, INFERENCE, SAMPLES
from fleet import ledgers, telemetry
from fleet.store.database import Database
from fleet.store.tables import Device, DeviceStats
from wire.messages import Health, TelemetryBatch, TelemetryRecord

MIB = 1024 * 1024
START = datetime(2026, 11, 1, tzinfo=UTC)
WINDOW = timedelta(minutes=1)
MOST_REQUESTS = 80
MODELS = ("kitchen", "hall", "garden", "cellar")
DIGEST = "sha256:" + "1" * 64
EVENT_EVERY = 20
"""Windows."""
EVENT_WORD = b"!"


@dataclass(frozen=True)
class Found:
    """Counts over all streams but `requests`, which the models answered. `cuts` are those that fired."""

    produced: int
    delivered: int
    merged: int
    dropped: int
    events: int
    requests: int
    cuts: int
    bytes: int
    stored_again: int


def soak(
    folder: Path, home: Path, *, days: float, cuts: int, queue: int, seed: int = 1, disk: Disk | None = None
) -> Found:
    """Live through it, then come home: deliver everything to a real store, a tenth of the acknowledgements lost.

    `folder` holds the agent's file, `home` the fleet's.
    """
    path, chance = folder / "agent.db", random.Random(seed)
    windows = int(timedelta(days=days) / WINDOW)
    share, told = windows // cuts, Told()
    for life in range(cuts):
        told.add(_life(path, Life(life, life * share, share, queue, seed + life), disk))
    home.mkdir(exist_ok=True)
    with closing(StateFile.open(path)) as state, closing(Database.in_folder(home)) as fleet:
        waiting = _check_before(state, told, queue, cuts)
        again = _come_home(state, fleet, chance)
        return _check_after(state, fleet, waiting, told.cuts, again)


# --- away -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Life:
    """One run of the agent: which windows it closes."""

    number: int
    first: int
    windows: int
    queue: int
    seed: int


@dataclass
class Told:
    """What processes said that they had kept; `late_` is what they said after the power went, which nobody is owed."""

    windows: int = 0
    requests: int = 0
    events: int = 0
    cuts: int = 0
    late_requests: int = 0
    late_events: int = 0

    def add(self, other: Told) -> None:
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)

    def hear(self, word: bytes, *, late: bool) -> None:
        """A word of `_live`: the requests of a window, or an event."""
        event, prefix = word == EVENT_WORD, "late_" if late else ""
        name = prefix + ("events" if event else "requests")
        setattr(self, name, getattr(self, name) + (1 if event else word[0]))
        self.windows += not event and not late


def _life(path: Path, life: Life, disk: Disk | None) -> Told:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            _live(path, life, writing, end=None if disk else random.Random(life.seed).randrange(1, 9))
        except Unavailable:
            pass  # the power is gone
        finally:
            os._exit(0)
    os.close(writing)
    told = Told()
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while (word := pipe.read(1)) != b"":
            # A sync that was under way when the disk went may return as if all were well: here nobody else lost power.
            told.hear(word, late=told.cuts > 0)
            if disk is not None and told.windows == life.windows and not told.cuts:
                disk.cut()  # while it works on
                told.cuts += 1
    os.kill(child, signal.SIGKILL)
    told.cuts += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL and disk is None
    if disk is not None:
        disk.unmount()
        disk.mount()
    return told


def _live(path: Path, life: Life, pipe: int, *, end: int | None) -> None:
    """Close windows and say so; after the last one die at the statement `end` of the next, or go on until the cut."""
    chance, state, meter = random.Random(life.seed), StateFile.open(path), WindowMeter()
    window = life.first
    recorder = Recorder(
        *(state, meter),
        boot=f"boot-{life.number}",
        limit=life.queue,
        now=lambda: START + window * WINDOW,
        health=lambda: Health(
            cpu_percent=chance.random(), memory_used=1, memory_total=2, agent_memory=1, disk_free=1, disk_total=2
        ),
    )
    while True:
        window += 1
        if end is not None and window == life.first + life.windows + 1:
            _die_at(state, end)
        requests = _requests(meter, chance)
        recorder.close_window()
        os.write(pipe, bytes([requests]))
        if window % EVENT_EVERY == 0:
            recorder.event("security", f"event {window}: " + "x" * chance.randrange(200))
            os.write(pipe, EVENT_WORD)


def _requests(meter: WindowMeter, chance: random.Random) -> int:
    """Not 33, which is the sign of an event."""
    requests = chance.randrange(MOST_REQUESTS) & ~1
    for _ in range(requests):
        meter.answered(chance.choice(MODELS), DIGEST, chance.lognormvariate(1, 1), ())
    return requests


def _die_at(state: StateFile, statement: int) -> None:
    left = statement

    def count(_sql: str) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    state._db.set_trace_callback(count)


# --- and back ---------------------------------------------------------------------------------------------------------


def _check_before(state: StateFile, told: Told, queue: int, cuts: int) -> int:
    """Everything is there that was said to be kept; the number of requests that wait."""
    assert told.cuts == cuts, f"{told.cuts} of {cuts} cuts fired"
    streams = {ledger.stream: ledger for ledger in state.ledger()}
    assert all(ledger.missing == 0 for ledger in streams.values()), streams
    assert streams[EVENT].dropped == 0, "an alarm was dropped"
    assert told.events <= streams[EVENT].waiting <= told.events + told.late_events + cuts
    assert streams[INFERENCE].merged > 0, "the queue was never full"
    assert streams[INFERENCE].dropped == 0, streams
    size = sum(row[0] for row in state._rows("SELECT LENGTH(record) FROM telemetry"))
    assert size <= queue
    records = [TelemetryRecord.from_bytes(row[0]) for row in state._rows("SELECT record FROM telemetry")]
    requests = sum(one.requests for record in records for one in record.inference)
    # A window that was kept and could not be told any more is one for each cut at most.
    most = told.requests + told.late_requests + cuts * MOST_REQUESTS
    assert told.requests <= requests <= most, f"{requests} requests are here, {told}"
    return requests


def _come_home(state: StateFile, fleet: Database, chance: random.Random) -> int:
    """Send batch after batch; a lost acknowledgement means the same records again. How many batches came twice."""
    with fleet.transaction() as session:
        session.add(Device(id="a", profile="x86-64", created="", token_hash="", token_expires="", state="enrolled"))
        session.flush()
        session.add(DeviceStats(device="a"))
    sent, again, samples_seen = 0, 0, False
    while queued := state.next_batch():
        sent += 1
        records = tuple(TelemetryRecord.from_bytes(one.record) for one in queued)
        samples_seen = samples_seen or any(one.stream in SAMPLES for one in queued)
        assert not (samples_seen and any(one.stream == EVENT for one in queued)), "a sample was sent before an alarm"
        batch = TelemetryBatch(
            device="a",
            boot=queued[0].boot,
            starts=1,
            sent=sent,
            nonce=uuid.uuid4().hex,
            records=records,
            memory=state.memory(),
            ledger=state.ledger(),
        )
        with fleet.transaction() as session:
            telemetry.store(session, session.get_one(Device, "a"), batch, START, epoch=1)
            faults = [row["fault"] for row in ledgers.view(session, "a")]
        assert not any(faults), faults
        if chance.random() < 0.1:
            again += 1
            continue
        state.acknowledged(batch.boot, [record.seq for record in records])
    return again


def _check_after(state: StateFile, fleet: Database, requests: int, cuts: int, again: int) -> Found:
    totals, size = state.telemetry(), state._path.stat().st_size
    assert totals["waiting"] == 0
    assert totals["produced"] == totals["delivered"] + totals["merged"] + totals["dropped"]
    with fleet.transaction() as session:
        stats = session.get_one(DeviceStats, "a")
        assert stats.requests == requests, "a window was lost or counted twice"
        assert stats.records == totals["delivered"]
        rows = {row["stream"]: row for row in ledgers.view(session, "a")}
        return Found(
            produced=totals["produced"],
            delivered=totals["delivered"],
            merged=totals["merged"],
            dropped=totals["dropped"],
            events=rows[EVENT]["stored"],
            requests=stats.requests,
            cuts=cuts,
            bytes=size,
            stored_again=again,
        )
