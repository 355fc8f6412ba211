"""Two hundred switches of a model under load, over the real server: nothing is dropped, mixed up or left behind."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import quick_model
from bench_local_api import binary_request
from local_stage import served
from raw_http import RawClient

from agent.serving.bundles import Bundle
from agent.serving.service import Served
from agent.store.blobs import Blobs

SWAPS, WARM_UP, CLIENTS = 200, 20, 8


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_200_switches_under_load_fail_no_request_and_leave_no_memory_behind(short_folder: Path) -> None:
    layout = short_folder / "layout"
    bundles = [quick_model.write(layout, version) for version in ("1.0.0", "2.0.0")]
    store = Blobs(layout / "blobs" / "sha256", min_free=0)
    opened = [Bundle.open(store, bundle.digest) for bundle in bundles]
    expected = {
        bundle.digest: quick_model.answer(one.model.read_bytes(), quick_model.frame(1))["next_h"].tobytes()
        for bundle, one in zip(bundles, opened, strict=True)
    }
    clients = [Asking(short_folder / "s", expected) for _ in range(CLIENTS)]

    async def body() -> tuple[int, int]:
        async with served(short_folder, opened[0]) as local:
            for client in clients:
                client.start()
            before = 0
            for i in range(1, SWAPS + 1):
                local.service.try_out("kitchen", await asyncio.to_thread(Served.load, opened[i % 2], {}))
                await asyncio.sleep(0.01)  # both are loaded, and the new one answers
                local.service.commit("kitchen")
                if i == WARM_UP:
                    before = await settled()
            after = await settled()
            for client in clients:
                client.over.set()
            await asyncio.gather(*(asyncio.to_thread(client.join) for client in clients))
        return before, after

    before, after = asyncio.run(body())
    assert [client.faults for client in clients] == [[]] * CLIENTS
    answers = [sum(client.answers[digest] for client in clients) for digest in expected]
    print(f"{sum(answers)} answers, {before / 1e6:.0f} MB after {WARM_UP} switches, {after / 1e6:.0f} MB after {SWAPS}")
    assert min(answers) > SWAPS
    assert after <= before * 1.05


class Asking(threading.Thread):
    """A client in a loop; every answer must be that of the model it names."""

    def __init__(self, path: Path, expected: dict[str, bytes]) -> None:
        super().__init__()
        self.over = threading.Event()
        self.answers = dict.fromkeys(expected, 0)
        self.faults: list[str] = []
        self._path, self._expected = path, expected

    def run(self) -> None:
        request = binary_request()
        with RawClient(self._path) as client:
            while not self.over.is_set():
                status, headers, body = client.ask(request)
                digest = headers.get("shoal-model-digest", "")
                if status != 200 or not self._holds(digest, headers, body):
                    self.faults.append(f"{status} {digest}")
                    return
                self.answers[digest] += 1

    def _holds(self, digest: str, headers: dict[str, str], body: bytes) -> bool:
        length = int(headers["inference-header-content-length"])
        got = np.frombuffer(body[length + 4 :], np.float32)[: quick_model.STATE]  # behind the probability
        wanted = np.frombuffer(self._expected[digest], np.float32)
        return digest.encode() in body[:length] and bool(np.abs(got - wanted).max() < 1e-5)


async def settled() -> int:
    """Resident memory, once what was retired is gone: the smallest of some looks."""
    found = []
    for _ in range(20):
        await asyncio.sleep(0.05)
        found.append(psutil.Process().memory_info().rss)
    return min(found)
