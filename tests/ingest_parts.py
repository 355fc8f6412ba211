"""Where the time of a report goes: the fleet's inbox alone, without broker and load, in parts (`bench_ingest --parts`).

Microseconds of this thread's CPU, each part without the parts inside it. Between two transactions a fixed piece of work
is timed, 50 checks of a signature, so that runs on a busy machine can be told from each other: `check_us`.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast
from unittest.mock import patch

import ingest_load
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from fleet import telemetry
from fleet.drift import windows
from fleet.evidence.recording import Sheet
from fleet.ledgers import Ledgers
from fleet.mqtt.inbox import Inbox
from fleet.mqtt.link import Message
from fleet.mqtt.outbox import Outbox
from fleet.mqtt.security import SecurityLog
from fleet.rollout.service import Rollouts
from fleet.store import speakers
from fleet.store.database import Database
from fleet.telemetry import Intake
from fleet.trust import identity
from fleet.trust.acks import Acks
from fleet.trust.keys import OnlineKeys
from fleet.trust.orders import OrderSigner
from wire import topics
from wire.messages import TelemetryBatch

TOGETHER: Final = 250
PARTS: Final[tuple[tuple[Any, str, str], ...]] = (
    (identity._DeviceKey, "verify_signature", "check of the signature"),
    (identity, "open_by_key", "envelope"),
    (TelemetryBatch, "from_bytes", "reading the batch"),
    (Intake, "_fresh", "seen before? and the record as it is kept"),
    (Sheet, "add", "windows of evidence"),
    (Sheet, "write", "windows of evidence, stored"),
    (windows, "add", "drift"),
    (Ledgers, "hold_against", "ledger"),
    (Ledgers, "write", "ledger, stored"),
    (telemetry, "_add_up", "sums"),
    (telemetry, "note_golden", "golden sets"),
    (Intake, "_write", "records, seen and sums, stored"),
    (speakers, "read", "the device, read"),
    (speakers, "write", "the device, stored"),
    (Acks, "_next", "answer"),
    (Outbox, "ack", "answer, signed"),
    (Intake, "store", "the rest of the intake"),
    (Inbox, "take", "the rest"),
)


def now() -> datetime:
    return datetime.now(UTC)


def made(database: Database, folder: Path, out: list[bytes]) -> Inbox:
    """An inbox whose answers are collected."""
    nothing = cast(Any, None)
    orders = OrderSigner.open(database, OnlineKeys.open(folder / "keys"), now)
    link = cast(Any, SimpleNamespace(publish=lambda _topic, data: out.append(data)))
    return Inbox(
        database=database,
        outbox=Outbox(link, database, nothing, orders),
        desired=nothing,
        acks=Acks(orders, timedelta(minutes=5)),
        commands=nothing,
        rollouts=Rollouts(nothing, nothing, timedelta(minutes=10), now, nothing),
        measuring=nothing,
        transfer=nothing,
        gate=nothing,
        security=SecurityLog(database, now),
        revoke=lambda: None,
        hold=lambda _device: None,
        offline_after=timedelta(minutes=1),
        clock=now,
    )


def rounds(folder: Path, names: list[str], digest: str, count: int, together: int) -> list[list[Message]]:
    """What every device sends, in another order each time."""
    job = ingest_load.Job(str(folder), 0, "", names, time.time() - 900, digest)
    chance, said = random.Random(7), list[list[Message]]()
    some = [ingest_load.stats_of(job, chance) for _ in range(50)]
    for name in names:
        device = cast(Any, SimpleNamespace(name=name, waiting=[], sent=0, minutes=0))
        signer = CryptoSigner(load_pem_private_key((folder / f"{name}.key").read_bytes(), None))
        ingest_load.messages(job, device, signer, chance.choice(some), count, together)
        topic = topics.Telemetry(name).topic
        said.append([Message(topic, data[data.index(b'{"payload"') :], False) for _, data in device.waiting])
    turns = [list(turn) for turn in zip(*said, strict=True)]
    for turn in turns:
        chance.shuffle(turn)
    return turns


@contextmanager
def measured(found: Counter[str]) -> Iterator[None]:
    """Each of `PARTS` counts its own time."""
    inside: list[int] = []

    def timed(work: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time_ns()
            inside.append(0)
            try:
                return work(*args, **kwargs)
            finally:
                took = time.thread_time_ns() - began
                found[name] += took - inside.pop()
                if inside:
                    inside[-1] += took

        return run

    patches = [patch.object(owner, name, timed(getattr(owner, name), label)) for owner, name, label in PARTS]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in reversed(patches):
            one.stop()


def check_us() -> float:
    """CPU of one check of a signature, now."""
    key, how = ec.generate_private_key(ec.SECP256R1()), ec.ECDSA(SHA256())
    public, signature, began = key.public_key(), key.sign(b"x" * 1500, how), time.thread_time()
    for _ in range(50):
        public.verify(signature, b"x" * 1500, how)
    return 1e6 * (time.thread_time() - began) / 50


def parts(folder: Path, url: str, names: list[str], digest: str, together: int, count: int = 6) -> dict[str, float]:
    """Microseconds of a report by part, `together` of them in a message; the table goes to the output.

    The devices of the database are enrolled.
    """
    out: list[bytes] = []
    found: Counter[str] = Counter()
    checks = [check_us()]
    with closing(Database(url) if url else Database.in_folder(folder)) as database:
        inbox = made(database, folder, out)
        first, *turns = rounds(folder, names, digest, count + 1, together)
        inbox.take(first)  # every device has its rows
        gc.collect()  # as `fleet.up` does
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)
        with measured(found):
            for turn in turns:
                for at in range(0, len(turn), TOGETHER):
                    inbox.take(turn[at : at + TOGETHER])
                checks.append(check_us())
    assert len(out) == len(names) * (count + 1), "not every message was acknowledged"
    n = len(names) * count * together
    shown = {label: round(found[label] / 1000 / n, 1) for _, _, label in PARTS}
    sys.stdout.write(f"{together} in a message\n")
    for label, us in shown.items():
        sys.stdout.write(f"{label:<44}{us:8.1f} us\n")
    total, check = sum(shown.values()), sorted(checks)[len(checks) // 2]
    sys.stdout.write(f"{'in all':<44}{total:8.1f} us; one check of a signature took {check:.0f} us beside it\n")
    return {**shown, "in all": round(total, 1), "check_us": round(check, 1)}
