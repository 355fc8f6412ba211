"""`scripts/bench transfer`: a file to 1, 10 and 50 devices, against raw mosquitto with paho and nginx over mutual TLS.

Ours is the whole way: a real fleet, its broker, and agents (the real line, store and fetcher, several in a process)
that decrypt, verify and write every chunk, and check the whole. The others do the same job: paho subscribers (QoS 1,
64 KiB messages, a broker of their own that drops nothing) and HTTPS clients of nginx write the file and check its
digest. All show certificates over TLS 1.3, in as many processes, taken in turn within one run; the pace of the fleet is
off. MB/s is the size of the file by the time until the last of the clients has it.

Publisher bytes are all chunks published and all answered over HTTPS, by the size of the file. Late: a fifth of the
devices begins when 48 % of the file has gone out. Loss: every device throws one chunk in twenty away, unlooked at.
The round trip of 100 ms is made by a proxy that holds every byte for 50 ms. nginx: Debian's package `nginx`; without it
its ratio is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import psutil
from fleet_process import until
from mosquitto import free_port
from paho.mqtt.enums import CallbackAPIVersion
from tcp_proxy import TcpProxy
from transfer_fleet import Agents, TransferFleet

from wire.chunks import AVERAGE

COUNTS = (1, 10, 50)
PROCESSES = os.cpu_count() or 1
PLAIN = Path(__file__).with_name("plain_clients.py")
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


@dataclass
class Result:
    """MB/s to each client by (way, clients), publisher bytes by situation, memory."""

    rates: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    rtt100: list[float] = field(default_factory=list)
    extra_mb: list[float] = field(default_factory=list)
    broker_mb = fleet_mb = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=64, help="MiB of the file (default 64)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured, in turn (default 3)")
    parser.add_argument("--devices", type=int, default=COUNTS[-1], help="most devices (default 50)")
    options = parser.parse_args()
    counts = sorted({*(n for n in COUNTS if n < options.devices), options.devices})
    result = Result()
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder, ExitStack() as stack:
        size = options.size_mb * 1024 * 1024
        fleet = stack.enter_context(TransferFleet(Path(folder), size=size, devices=counts[-1], transfer_rate="0 B"))
        stack.enter_context(memory_of(fleet, result))
        plain = {"raw mqtt": stack.enter_context(raw_broker(fleet)), "nginx": stack.enter_context(nginx(fleet))}
        for number in range(options.rounds):
            for count in counts:
                measure_present(fleet, count, result)
                for way, port in plain.items():
                    if port:
                        rate = measure_plain(fleet, way, port, count)
                        result.rates.setdefault((way, count), []).append(rate)
            measure_late(fleet, counts[-1], 0.0, result)
            measure_late(fleet, counts[-1], 0.05, result)
            measure_round_trip(fleet, result)
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    report(result, counts, options.size_mb)


# --- ours ---------------------------------------------------------------------------------------------------------


def measure_present(fleet: TransferFleet, count: int, result: Result) -> None:
    with situation(fleet, result, f"present {count}"), processes(fleet, range(count)) as all_agents:
        begun = go(all_agents)
        result.rates.setdefault(("shoal", count), []).append(rate_of(fleet, all_agents, begun))
        if count == 1:
            result.extra_mb.append(all_agents[0].next("memory")["extra"] / 1e6)


def measure_late(fleet: TransferFleet, count: int, loss: float, result: Result) -> None:
    late = max(1, count // 5)
    name = "late, loss" if loss else "late"
    with (
        situation(fleet, result, name),
        processes(fleet, range(count - late), drop=loss) as early,
        fleet.agents(range(count - late, count), drop=loss) as joiners,
    ):
        before = fleet.sent()[0]
        go(early)
        until(lambda: fleet.sent()[0] - before >= 0.48 * fleet.chunks.size, within=600, what="half of the transfer")
        joiners.go()
        rate_of(fleet, [*early, joiners], 0.0)


def measure_round_trip(fleet: TransferFleet, result: Result) -> None:
    host, port = fleet.process.broker.split(":")
    fleet.empty()
    with (
        TcpProxy(host, int(port), delay=0.05) as proxy,
        fleet.agents([0], broker=proxy.address, https=False) as agents,
    ):
        begun = go([agents])
        result.rtt100.append(rate_of(fleet, [agents], begun))


@contextmanager
def situation(fleet: TransferFleet, result: Result, name: str) -> Iterator[None]:
    """Publisher bytes of what happens within, by the size of the file. The devices begin empty."""
    fleet.empty()
    before = sum(fleet.sent())
    yield
    result.ratios.setdefault(name, []).append((sum(fleet.sent()) - before) / fleet.chunks.size)


@contextmanager
def processes(fleet: TransferFleet, numbers: range, **spec: object) -> Iterator[list[Agents]]:
    """These devices in as many processes as there are cores."""
    with ExitStack() as stack:
        shares = [list(numbers[i::PROCESSES]) for i in range(PROCESSES)]
        yield [stack.enter_context(fleet.agents(share, **spec)) for share in shares if share]


def go(all_agents: list[Agents]) -> float:
    begun = time.monotonic()
    for agents in all_agents:
        agents.go()
    return begun


def rate_of(fleet: TransferFleet, all_agents: list[Agents], begun: float) -> float:
    """MB/s (10^6 bytes) to each, once all are done."""
    ended = max(done["ended"] for agents in all_agents for done in agents.all_done(within=600))
    return fleet.chunks.size / (ended - begun) / 1e6


# --- the others ---------------------------------------------------------------------------------------------------


def measure_plain(fleet: TransferFleet, way: str, port: int, count: int) -> float:
    fleet.empty()
    with ExitStack() as stack:
        clients = [
            stack.enter_context(fleet.clients(plain_spec(fleet, way, port, range(count)[i::PROCESSES]), PLAIN))
            for i in range(min(PROCESSES, count))
        ]
        publisher = stack.enter_context(raw_publisher(fleet, port)) if way == "raw mqtt" else None
        begun = go(clients)
        if publisher is not None:
            publish(fleet, publisher)
        return rate_of(fleet, clients, begun)


def plain_spec(fleet: TransferFleet, way: str, port: int, numbers: range) -> dict[str, Any]:
    names = [f"device-{n}" for n in numbers]
    return {
        "kind": "mqtt" if way == "raw mqtt" else "https",
        "port": port,
        "first": numbers[0],
        "step": PROCESSES,
        "states": [str(fleet.state(name)) for name in names],
        "stores": [str(fleet.store(name)) for name in names],
        "size": fleet.chunks.size,
        "digest": fleet.chunks.blob,
    }


def file_of(fleet: TransferFleet) -> Path:
    name = fleet.chunks.blob.removeprefix("sha256:")
    return fleet.process.data / "blobs" / name[:2] / name


@contextmanager
def raw_broker(fleet: TransferFleet) -> Iterator[int]:
    """mosquitto with its own defaults, but that it asks for certificates and drops nothing."""
    port, ca, folder = free_port(), fleet.process.data / "ca", fleet.folder / "raw"
    folder.mkdir()
    lines = (
        *(f"listener {port} 127.0.0.1", f"cafile {ca / 'believed.pem'}"),
        *(f"certfile {ca / 'server.pem'}", f"keyfile {ca / 'server.key'}", "tls_version tlsv1.3"),
        *("require_certificate true", "allow_anonymous true", "user root"),
        *("max_queued_messages 0", "max_queued_bytes 0", "set_tcp_nodelay true"),
    )
    (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
    program = shutil.which("mosquitto", path=_PATH)
    assert program, "mosquitto is missing: scripts/setup says which package has it"
    with running([program, "-c", str(folder / "mosquitto.conf")], folder / "log", port):
        yield port


@contextmanager
def nginx(fleet: TransferFleet) -> Iterator[int]:
    """nginx that serves the file; 0 where there is none."""
    program = shutil.which("nginx", path=_PATH)
    if program is None:
        print("nginx is missing: its figures are left out; on Debian: apt install nginx", file=sys.stderr)
        yield 0
        return
    port, ca, folder = free_port(), fleet.process.data / "ca", fleet.folder / "nginx"
    (folder / "www").mkdir(parents=True)
    shutil.copy(file_of(fleet), folder / "www" / "file")
    (folder / "nginx.conf").write_text(f"""
daemon off;
{"user root;" if os.geteuid() == 0 else ""}
worker_processes {PROCESSES};
pid {folder}/pid;
error_log stderr warn;
events {{}}
http {{
  access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl; root {folder}/www;
    ssl_certificate {ca}/server.pem; ssl_certificate_key {ca}/server.key; ssl_protocols TLSv1.3;
    ssl_client_certificate {ca}/believed.pem; ssl_verify_client on;
  }}
}}
""")
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    with running(command, folder / "log", port):
        yield port


@contextmanager
def running(command: list[str], log: Path, port: int) -> Iterator[None]:
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            until(lambda: process.poll() is not None or listens(process.pid, port), what=f"{command[0]} on its port")
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.terminate()
            process.wait(10)


def listens(pid: int, port: int) -> bool:
    return any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in psutil.Process(pid).net_connections())


@contextmanager
def raw_publisher(fleet: TransferFleet, port: int) -> Iterator[mqtt.Client]:
    identity, ready = fleet.state("device-0") / "identity", threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="publisher")
    client.tls_set(str(identity / "ca.pem"), str(identity / "cert.pem"), str(identity / "key.pem"))
    client.on_connect = lambda *_: ready.set()
    client.connect("localhost", port)
    client.loop_start()
    assert ready.wait(30)
    try:
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


def publish(fleet: TransferFleet, client: mqtt.Client) -> None:
    with file_of(fleet).open("rb") as file:
        while data := file.read(AVERAGE):
            client.publish("file", data, qos=1)


# --- the report ---------------------------------------------------------------------------------------------------


@contextmanager
def memory_of(fleet: TransferFleet, result: Result) -> Iterator[None]:
    """The largest resident sets of the fleet and of its broker."""
    over = threading.Event()
    broker = psutil.Process(fleet.process.api("GET", "/api/v1/status")["broker"]["pid"])
    watched = {"fleet_mb": psutil.Process(fleet.process.pid), "broker_mb": broker}

    def watch() -> None:
        while not over.wait(0.1):
            for name, process in watched.items():
                setattr(result, name, max(getattr(result, name), process.memory_info().rss / 1e6))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def report(result: Result, counts: list[int], size: int) -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {size} MiB, measured")
    print(f"{'MB/s to each, median (lowest - highest)':42}" + "".join(f"{n:>20}" for n in counts))
    for way in dict.fromkeys(way for way, _ in result.rates):
        print(f"{way:42}" + "".join(f"{shown(result.rates[way, n]):>20}" for n in counts))
    for name, ratios in result.ratios.items():
        print(f"publisher bytes, {name:25}{shown(ratios, 3):>20}")
    print(f"{'one device at 100 ms round trip, MB/s':42}{shown(result.rtt100):>20}")
    print(f"{'memory of one agent over idle, MB':42}{shown(result.extra_mb):>20}")
    print(f"{'largest memory of fleet and broker, MB':42}{result.fleet_mb:>10.0f}{result.broker_mb:>10.0f}")
    print(json.dumps({"bench": "transfer", "figures": figures(result, counts)}))


def figures(result: Result, counts: list[int]) -> dict[str, float]:
    most = counts[-1]
    found = {f"mb_s_{n}": round(statistics.median(result.rates["shoal", n]), 1) for n in counts}
    for way, name in (("raw mqtt", "raw_mqtt"), ("nginx", "nginx")):
        if (way, most) in result.rates:
            pairs = zip(result.rates["shoal", most], result.rates[way, most], strict=True)
            found[f"{name}_ratio_{most}"] = round(statistics.median(ours / theirs for ours, theirs in pairs), 2)
    return found | {
        "publisher_ratio_present": round(max(result.ratios[f"present {most}"]), 2),
        "publisher_ratio_late": round(max(result.ratios["late"]), 2),
        "publisher_ratio_late_loss": round(max(result.ratios["late, loss"]), 2),
        "rtt100_mb_s": round(statistics.median(result.rtt100), 1),
        "agent_extra_mb": round(max(result.extra_mb), 1),
        "broker_mb": round(result.broker_mb),
        "fleet_mb": round(result.fleet_mb),
    }


def shown(values: list[float], digits: int = 1) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


if __name__ == "__main__":
    main()
