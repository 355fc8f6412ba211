"""`scripts/bench gateway`: what the gateway costs the fleet: CPU for each request, and memory over many of them.

A whole fleet process as it ships, over TLS, with a stub upstream in a process of its own: a key that is looked up,
rates, budgets of tokens and money, a deny list, personal data redacted and injection looked for in prompts and in
answers (streams too), and the audit written. CPU is that of the fleet's process (user and system), less what it uses
without any request in the same time. A stream has 22 pieces, half a millisecond apart. Several rounds in turn; the
median of them.

In the same rounds stands the floor (`plain_gateway.py`): Starlette and aiohttp's client behind the same certificate
and on the same loop, which pass on and do nothing else; and the same once more without TLS. How busy the machine is
shows in their figures as in ours, not in the ratio of them.

With `--litellm PYTHON`, the Python of an environment that has `litellm[proxy]`, its proxy stands before the same stub
in the same rounds, with a master key and nothing else on; the ratio is that of its CPU for a request to ours, the
smaller one of JSON and streams.

Growth is resident memory after `--requests` more requests, a tenth of them streams, less that after the first tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
from fleet_process import FleetProcess, listens, until

STUB = Path(__file__).with_name("stub_upstream.py")
PLAIN = Path(__file__).with_name("plain_gateway.py")
PATH = "/v1/chat/completions"
AT_ONCE = 8
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant of a shop for bicycles."},
    {"role": "user", "content": "Which of your bags fits a rack of 12 cm, and can it be here on Thursday?"},
]
CONFIG = """
[upstreams.stub]
url = "http://127.0.0.1:PORT/v1"
[routes.stub]
[[routes.stub.targets]]
upstream = "stub"
[prices.stub]
"*" = { input = 0.1, output = 0.3 }
[limits.total]
money_per_month = 1000000
[limits.each]
requests_per_minute = 1000000
tokens_per_day = 1000000000000
money_per_month = 1000000
filters = ["default"]
[filters.default]
deny = ["project nautilus", "operation mincemeat", "the merger with acme"]
personal = "redact"
injection = "block"
answers = true
"""


@dataclass(frozen=True)
class Gateway:
    """Something to send requests to, and the process whose CPU counts."""

    name: str
    url: str
    key: str
    process: psutil.Process
    tls: ssl.SSLContext | bool
    idle: float = 0.0
    """CPU seconds for a second without requests."""

    def cpu(self) -> float:
        """Seconds so far, with those of its children."""
        times = [self.process.cpu_times(), *(child.cpu_times() for child in self._children())]
        return sum(t.user + t.system for t in times)

    def memory(self) -> float:
        """Resident megabytes."""
        return self.process.memory_info().rss / 1e6

    def _children(self) -> list[psutil.Process]:
        return [] if self.name == "shoal" else self.process.children(recursive=True)


async def send(gateway: Gateway, count: int, *, stream: bool) -> None:
    """So many requests, `AT_ONCE` at a time; each has to be answered whole."""
    body = json.dumps({"model": "stub", "messages": MESSAGES, "stream": stream, "max_tokens": 64})
    headers = {"Authorization": f"Bearer {gateway.key}", "Content-Type": "application/json"}
    left = iter(range(count))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=gateway.tls, limit=AT_ONCE)) as session:

        async def one_after_the_other() -> None:
            for _ in left:
                async with session.post(gateway.url + PATH, data=body, headers=headers) as answer:
                    data = await answer.read()
                assert answer.status == 200, data[:500]
                assert data.rstrip().endswith(b"data: [DONE]" if stream else b"}"), data[-200:]

        await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))


def cpu_us(gateway: Gateway, count: int, *, stream: bool) -> float:
    """Microseconds of CPU for a request."""
    before, started = gateway.cpu(), time.monotonic()
    asyncio.run(send(gateway, count, stream=stream))
    return (gateway.cpu() - before - gateway.idle * (time.monotonic() - started)) / count * 1e6


@contextmanager
def shoal(folder: Path, port: int) -> Iterator[Gateway]:
    """A fleet, and a key of its gateway."""
    data = folder / "fleet"
    data.mkdir()
    (data / "gateway.toml").write_text(CONFIG.replace("PORT", str(port)))
    with FleetProcess(data, http_rate=10000) as fleet:
        key = fleet.api("POST", "/api/v1/gateway/keys", {"name": "bench", "limits": {"models": ["stub"]}})["token"]
        process = psutil.Process(fleet.pid)
        time.sleep(2)
        before = sum(process.cpu_times()[:2])
        time.sleep(5)
        idle = (sum(process.cpu_times()[:2]) - before) / 5
        yield Gateway("shoal", fleet.url, key, process, fleet.tls(), idle)
        used = fleet.api("GET", "/api/v1/gateway/usage")[0]
        assert used["answered"] == used["requests"], used  # every one of them stands in the audit


@contextmanager
def floor(folder: Path, upstream: int, tls: ssl.SSLContext | bool) -> Iterator[Gateway]:
    """The plain gateway before the same upstream, with the certificate of the fleet in the same folder, or no TLS."""
    pair = [folder / "fleet" / "ca" / name for name in ("server.pem", "server.key")] if tls else []
    command = [sys.executable, str(PLAIN), str(upstream), *map(str, pair)]
    name, scheme = ("floor", "https") if tls else ("no TLS", "http")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            yield Gateway(name, f"{scheme}://127.0.0.1:{port}", "none", psutil.Process(process.pid), tls)
        finally:
            process.terminate()


@contextmanager
def litellm(python: Path, folder: Path, upstream: int) -> Iterator[Gateway]:
    """The LiteLLM proxy before the same upstream."""
    config = {
        "model_list": [
            {
                "model_name": "stub",
                "litellm_params": {
                    "model": "openai/stub",
                    "api_base": f"http://127.0.0.1:{upstream}/v1",
                    "api_key": "none",
                },
            }
        ],
        "general_settings": {"master_key": "sk-bench"},
        "litellm_settings": {"telemetry": False},
    }
    (folder / "litellm.json").write_text(json.dumps(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = python.with_name("litellm")
    command = [str(program), "--config", str(folder / "litellm.json"), "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "PATH": f"{python.parent}:/usr/bin:/bin",
        "HOME": str(folder),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        until(lambda: listens("127.0.0.1", port), within=120, what="the LiteLLM proxy")
        yield Gateway("litellm", f"http://127.0.0.1:{port}", "sk-bench", psutil.Process(process.pid), True)
    finally:
        process.terminate()
        process.wait(20)


def growth_mb(gateway: Gateway, requests: int) -> float:
    """Megabytes more after nine tenths of the requests than after one tenth."""
    tenth = max(requests // 10, 10)
    sizes = []
    for _ in range(10):
        asyncio.run(send(gateway, tenth - tenth // 10, stream=False))
        asyncio.run(send(gateway, tenth // 10, stream=True))
        sizes.append(gateway.memory())
        print(f"  {len(sizes) * tenth:>8} requests: {sizes[-1]:.1f} MB")
    return sizes[-1] - sizes[0]


def measure(gateways: list[Gateway], rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Median CPU by gateway and kind of request; the gateways take turns."""
    found: dict[str, dict[str, list[float]]] = {g.name: {"json": [], "stream": []} for g in gateways}
    for gateway in gateways:
        for stream in (False, True):
            asyncio.run(send(gateway, 200, stream=stream))
    for _ in range(rounds):
        for gateway in gateways:
            share = count if gateway.name != "litellm" else max(count // 10, 50)
            found[gateway.name]["json"].append(cpu_us(gateway, share, stream=False))
            found[gateway.name]["stream"].append(cpu_us(gateway, share // 3 + 1, stream=True))
    return {name: {kind: statistics.median(v) for kind, v in kinds.items()} for name, kinds in found.items()}


def print_table(gateways: list[Gateway], cpu: dict[str, dict[str, float]]) -> None:
    """A line for each gateway."""
    print(f"{'':10}{'JSON us':>10}{'stream us':>12}{'MB':>8}   CPU for a request")
    for gateway in gateways:
        found = cpu[gateway.name]
        print(f"{gateway.name:10}{found['json']:>10.0f}{found['stream']:>12.0f}{gateway.memory():>8.0f}")


def figures_of(cpu: dict[str, dict[str, float]]) -> dict[str, float]:
    """Ours in microseconds, and as so many times the floor; what TLS takes of that; LiteLLM's by ours, if there."""
    ours, least, bare = cpu["shoal"], cpu["floor"], cpu["no TLS"]
    figures: dict[str, float] = {"json_cpu_us": round(ours["json"]), "stream_cpu_us": round(ours["stream"])}
    figures |= {f"{kind}_floor_ratio": round(ours[kind] / least[kind], 2) for kind in ours}
    figures |= {f"{kind}_tls_us": round(least[kind] - bare[kind]) for kind in ours}
    if "litellm" in cpu:
        figures["litellm_cpu_ratio"] = round(min(cpu["litellm"][kind] / ours[kind] for kind in ours), 1)
    return figures


def main() -> None:
    """Measure, print a table, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000, help="for the growth of memory; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=3000, help="JSON requests of a round; a third as many streams")
    parser.add_argument("--litellm", type=Path, help="Python of an environment with litellm[proxy]")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(subprocess.Popen([sys.executable, str(STUB)], stdout=subprocess.PIPE))
        stack.callback(upstream.kill)
        assert upstream.stdout is not None
        port = int(upstream.stdout.readline())
        ours = stack.enter_context(shoal(folder, port))
        gateways = [ours, *(stack.enter_context(floor(folder, port, tls)) for tls in (ours.tls, False))]
        if options.litellm:
            gateways.append(stack.enter_context(litellm(options.litellm, folder, port)))
        cpu = measure(gateways, options.rounds, options.count)
        print_table(gateways, cpu)
        figures = figures_of(cpu)
        if options.requests:
            figures["growth_mb"] = round(growth_mb(gateways[0], options.requests), 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
