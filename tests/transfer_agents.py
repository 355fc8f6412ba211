"""A process with several devices that fetch one blob: the real line, store and fetcher of each, and nothing else.

    python tests/transfer_agents.py SPEC.json       # says ready, waits for a line on stdin, then fetches

The spec: `states` (folders of enrolled devices), `stores`, `chunks` (file of the chunk list), `key` (hex), `drop`
(share of the chunks that are thrown away before anything looks at them), `seed`, `https` (whether that way is open),
`fleet` (another address for it), `timeout`. It prints a JSON object a line: `ready`; `done` for each device; `memory`,
the most that this process took over idle.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from agent.errors import AgentError
from agent.identity.credentials import Credentials
from agent.identity.tls import Https
from agent.install.fetch import Fetcher
from agent.install.keys import ChunkKeys
from agent.install.ranges import TIMEOUT, Ranges
from agent.line.link import MqttLink
from agent.store.blobs import Blobs
from agent.store.state import StateFile
from agent.trust.clock import Clock
from wire import topics
from wire.chunks import ChunkList


class OneKey(ChunkKeys):
    """The key of every blob."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def get(self, _blob: str) -> bytes | None:
        return self._key


class Agent:
    """One device; `received` counts the chunks that came over the line, `dropped` those thrown away."""

    def __init__(self, state: Path, store: Path, spec: dict[str, Any], number: int) -> None:
        credentials = Credentials.open(state)
        clock = Clock(StateFile.open(state / "bench.db"))
        self.up = asyncio.Event()
        self.link = MqttLink(
            credentials,
            now=clock.signed,
            on_up=self._on_up,
            on_down=lambda: None,
            on_message=self._take,
        )
        ranges = Ranges(Https(spec.get("fleet", credentials.joined.fleet), credentials.tls, clock.now, TIMEOUT))
        self.fetcher = Fetcher(
            *(credentials.device, self.link, Blobs(store, 0), OneKey(bytes.fromhex(spec["key"]))),
            timeout=spec.get("timeout", 2.0),
            bad_chunks=5,
            on_bad=lambda _blob, reason: print(json.dumps({"event": "bad", "reason": reason}), flush=True),
            ranges=ranges if spec.get("https", True) else None,
        )
        self.device = credentials.device
        self.random, self.drop = random.Random(spec.get("seed", 0) * 1000 + number), spec.get("drop", 0.0)
        self.received = self.dropped = self.done = self.held = 0
        self.link.start()

    def _on_up(self) -> None:
        self.up.set()
        self.fetcher.line_is_up()

    def _take(self, name: str, payload: bytes) -> None:
        topic = topics.parse(name)
        assert isinstance(topic, topics.Chunk)
        if self.random.random() < self.drop:
            self.dropped += 1
            return
        self.received += 1
        self.fetcher.receive(topic, payload)

    def _count(self, chunks: int) -> None:
        if self.received == 0:
            self.held += chunks
        self.done += chunks

    async def fetch(self, chunks: ChunkList) -> None:
        begun = time.monotonic()
        await self.fetcher.fetch(chunks, self._count)
        ended = time.monotonic()
        self._say(seconds=ended - begun, ended=ended)

    def _say(self, **more: float) -> None:
        figures = {"received": self.received, "dropped": self.dropped, "held": self.held}
        print(json.dumps({"event": "done", "device": self.device, **figures, **more}), flush=True)


class Memory(threading.Thread):
    """The largest resident set of this process, looked at fifty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process()
        self.idle = self.most = self.process.memory_info().rss
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            self.most = max(self.most, self.process.memory_info().rss)


async def main(spec: dict[str, Any], chunks: ChunkList) -> None:
    pairs = zip(spec["states"], spec["stores"], strict=True)
    agents = [Agent(Path(state), Path(store), spec, i) for i, (state, store) in enumerate(pairs)]
    if spec.get("line", True):
        await asyncio.gather(*(agent.up.wait() for agent in agents))
    memory = Memory()
    memory.start()
    print(json.dumps({"event": "ready"}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    try:
        await asyncio.gather(*(agent.fetch(chunks) for agent in agents))
    except AgentError as e:
        print(json.dumps({"event": "failed", "reason": str(e)}), flush=True)
    memory.over.set()
    print(json.dumps({"event": "memory", "extra": memory.most - memory.idle}), flush=True)
    for agent in agents:
        await agent.link.stop()


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    asyncio.run(main(given, ChunkList.from_bytes(Path(given["chunks"]).read_bytes())))
