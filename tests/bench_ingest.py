"""`scripts/bench ingest`: telemetry of a thousand devices at one fleet process, on SQLite and on PostgreSQL.

Each device has an MQTT connection of its own over mutual TLS (`tests/ingest_load.py`, a process beside the fleet) and
sends as an agent does: one signed message, then it waits for the signed acknowledgement, then the next. A report is
one such message: a minute of one model (60 requests with their latencies, feedback on two) and the device's health,
with the ledger of both; in one of sixty, as in an agent's hour, what inputs and answers looked like. The fleet verifies
it, stores it and acknowledges it, exactly as always; devices are enrolled by the fleet's own code before it starts. The
messages are signed before the clock starts; the load shares this machine.

`reports_per_s_*`: reports acknowledged by the seconds from the first sent to the last acknowledged.
`caught_up_per_s_*`: the same, of devices that were away for `--together` minutes and tell of all in one message.
`cpu_us_per_report_*`: CPU of the fleet process (not of broker and database) for each. `lost`: reports that were
acknowledged and are not in the database, and those that were never acknowledged. `rss_mb_*`: the fleet's memory before
the load, in its middle and after it.

`floor_per_s`, `floor_cpu_us`: the same load at the same broker, right after it, taken by `plain_intake.py`: paho, a
signature checked and an answer signed, and nothing stored. Broker and load share the machine with it as with the fleet,
and may be what bounds it: see its CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fleet_process import FleetProcess, initialise_trust, listens, until
from sqlmodel import func, select

from fleet.mqtt.broker import CONFIG, find_program
from fleet.store.database import Database
from fleet.store.tables import DeviceStats
from fleet.trust.ca import Authority
from fleet.trust.certificates import Certificates
from fleet.trust.enrolment import new_row
from wire.units import show_instant

DIGEST = "sha256:" + "0" * 64
MEBI = 1024 * 1024
LATE = 2
"""Messages of each device that was away."""


def main() -> None:
    options = _options()
    if options.parts:
        figures = {"parts_us": parts(1), f"parts_us_of_{options.together}": parts(options.together)}
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    figures = {"devices": options.devices, "together": options.together}
    lost = 0
    for name in options.databases:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-")))
            url = ""
            if name == "postgres":
                cluster = import_module("postgres_cluster")
                url = stack.enter_context(cluster.postgres())
            found = measure(folder, url, options)
        lost += found.pop("lost")
        figures |= {key if key.startswith("floor") else f"{key}_{name}": value for key, value in found.items()}
    figures["lost"] = lost
    figures["cpu_us_per_report"] = figures.get(f"cpu_us_per_report_{options.databases[0]}")
    if not options.no_plan:
        figures["plan_100k_s"] = plan_speed()
    sys.stdout.write(json.dumps(figures) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1000, help="connections (default 1000)")
    parser.add_argument("--reports", type=int, default=40, help="reports of each device (default 40)")
    parser.add_argument("--together", type=int, default=10, help="minutes in a message of who was away (default 10)")
    parser.add_argument("--databases", nargs="+", choices=("sqlite", "postgres"), default=["sqlite", "postgres"])
    parser.add_argument("--no-plan", action="store_true", help="leave the planning of a rollout out")
    parser.add_argument("--parts", action="store_true", help="only what the parts of a report cost, without a broker")
    return parser.parse_args()


def parts(together: int) -> dict[str, float]:
    """See `tests/ingest_parts.py`: 250 devices on SQLite, messages of so many minutes."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder, names = Path(name), [f"bench-{n:05}" for n in range(250)]
        enrol(folder, "", folder, names)
        found: dict[str, float] = import_module("ingest_parts").parts(folder, "", names, DIGEST, together)
        return found


def measure(folder: Path, url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Reports per second and what they cost, on one database."""
    settings = {"mqtt_rate": 10_000, **({"database": url} if url else {})}
    names = [f"bench-{n:05}" for n in range(options.devices)]
    with FleetProcess(folder / "fleet", **settings) as fleet:
        initialise_trust(fleet)
        fleet.stop()
        enrol(folder / "fleet", url, folder, names)
        fleet.start()
        with load(folder, fleet, names) as rounds:
            rounds(2)  # every device has its rows
            watched = psutil.Process(fleet.pid)
            memory, cpu = [watched.memory_info().rss], sum(watched.cpu_times()[:2])
            half = options.reports // 2
            parts = []
            for _ in range(2):
                parts.append(rounds(half))
                memory.append(watched.memory_info().rss)
            cpu = sum(watched.cpu_times()[:2]) - cpu
            late = rounds(LATE, options.together)
        sent = options.devices * (half * 2 + LATE)
        seconds = sum(part["seconds"] for part in parts)
        acknowledged = sum(part["acknowledged"] for part in parts)
        fleet.stop()
        plain = {} if url else floor(folder, fleet, names, options)
    stored = stored_records(folder / "fleet", url)
    expected = 2 * (2 * options.devices + acknowledged + late["acknowledged"] * options.together)
    found = {
        "reports_per_s": round(acknowledged / seconds),
        "cpu_us_per_report": round(1e6 * cpu / max(1, acknowledged)),
        "rss_mb": [round(one / MEBI, 1) for one in memory],
        "caught_up_per_s": round(late["acknowledged"] * options.together / late["seconds"]),
        "lost": sent - acknowledged - late["acknowledged"] + max(0, expected - stored) // 2,
    }
    load_us = 1e6 * sum(part["cpu"] for part in parts) / max(1, acknowledged)
    again = sum(part["again"] for part in (*parts, late))
    sys.stdout.write(
        f"{'PostgreSQL' if url else 'SQLite':<12} {acknowledged} reports of {options.devices} connections in "
        f"{seconds:.1f} s: {found['reports_per_s']}/s, {found['cpu_us_per_report']} us of CPU each; "
        f"{options.together} in a message: {found['caught_up_per_s']}/s; {again} sent again; "
        f"lost {found['lost']}, fleet {found['rss_mb']} MB; the load itself {load_us:.0f} us; "
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
    )
    return found | plain


def floor(folder: Path, fleet: FleetProcess, names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The load before `plain_intake.py`, at the broker of the fleet, which has ended."""
    host, _, port = fleet.broker.rpartition(":")
    broker = [find_program("mosquitto"), "-c", str(fleet.data / "broker" / CONFIG)]
    program = [sys.executable, str(Path(__file__).with_name("plain_intake.py")), str(fleet.data), host, port]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with ExitStack() as stack:
        stack.enter_context(ended(subprocess.Popen(broker, stderr=subprocess.DEVNULL)))
        until(lambda: listens(host, int(port)), what="the broker")
        intake = subprocess.Popen(
            [*program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        stack.enter_context(ended(intake))
        assert intake.stdout is not None
        assert intake.stdout.readline() == b"listening\n"
        rounds = stack.enter_context(load(folder, fleet, names))
        rounds(2)
        watched = psutil.Process(intake.pid)
        cpu = sum(watched.cpu_times()[:2])
        took = rounds(options.reports // 2)
        cpu = sum(watched.cpu_times()[:2]) - cpu
    found = {
        "floor_per_s": round(took["acknowledged"] / took["seconds"]),
        "floor_cpu_us": round(1e6 * cpu / max(1, took["acknowledged"])),
    }
    sys.stdout.write(
        f"{'floor':<12} {found['floor_per_s']}/s, {found['floor_cpu_us']} us of CPU each, nothing stored\n"
    )
    return found


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """It is ended with the block."""
    with process:
        try:
            yield process
        finally:
            process.terminate()


def enrol(data: Path, url: str, folder: Path, names: Sequence[str]) -> None:
    """Devices with certificates, as enrolment leaves them, by the fleet's own code: it is not what is measured."""
    now = datetime.now(UTC)
    authority = Authority.open(data / "ca", now)
    certificates = Certificates(authority, timedelta(days=1), lambda: datetime.now(UTC))
    with closing(Database(url) if url else Database.in_folder(data)) as database, database.transaction() as session:
        for name in names:
            key = ec.generate_private_key(ec.SECP256R1())
            row = new_row(session, name, now)
            row.profile, row.state, row.enrolled = "raspberry-pi-4", "enrolled", show_instant(now)
            certificate = certificates.first(session, row, key.public_key())
            (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
            private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            (folder / f"{name}.key").write_bytes(private)


@contextmanager
def load(folder: Path, fleet: FleetProcess, names: Sequence[str]) -> Iterator[Any]:
    """The devices in a process of their own: `rounds(n)` has each send so many messages, and gives what came of it."""
    job = {
        "folder": str(folder),
        "port": int(fleet.broker.rpartition(":")[2]),
        "ca": str(fleet.ca_file),
        "devices": list(names),
        "start": time.time() - 900,
        "digest": DIGEST,
    }
    command = [sys.executable, str(Path(__file__).with_name("ingest_load.py"))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(line: str) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                raise ConnectionError("the load ended: see above")
            value: dict[str, Any] = json.loads(answer)
            return value

        def rounds(count: int, together: int = 1) -> dict[str, Any]:
            ask(f"{count} {together}")
            return ask("go")

        try:
            ask(json.dumps(job))
            yield rounds
        finally:
            process.stdin.close()
            process.wait(30)


def stored_records(data: Path, url: str) -> int:
    """Records that the database counts as stored."""
    with closing(Database(url) if url else Database.in_folder(data)) as database, database.transaction() as session:
        return int(session.exec(select(func.sum(DeviceStats.records))).one() or 0)


def plan_speed() -> float | None:
    """Seconds to plan a rollout over 100,000 devices (`tests/plan_speed.py`)."""
    try:
        module = import_module("plan_speed")
    except ModuleNotFoundError:
        sys.stdout.write("tests/plan_speed.py is not there: planning is not measured\n")
        return None
    seconds: float = round(module.plan_s(100_000), 2)
    sys.stdout.write(f"a rollout over 100,000 devices is planned in {seconds:.2f} s\n")
    return seconds


if __name__ == "__main__":
    main()
