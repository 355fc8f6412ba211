"""A cloud's language model: the agent's own local API over TCP, in a process of its own.

`python smollm2_server.py LAYOUT DIGEST SOCKET PORT` says `ready ADDRESS` when the bundle is loaded. It answers whoever
shows `TOKEN` under the name `MODEL`, one request at a time: the next one gets 503. It ends with a signal.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from cloud_stand_in import no_cloud
from local_stage import api_of

from agent.life.telemetry import WindowMeter
from agent.serving.bundles import Bundle
from agent.serving.doors import TcpDoor
from agent.serving.server import LocalServer
from agent.serving.service import Served, Service
from agent.store.blobs import Blobs

MODEL, TOKEN = "smollm2", "of-the-test"


async def serve(layout: Path, digest: str, path: Path, port: int) -> None:
    meter = WindowMeter()
    service = Service(meter)
    api = api_of(service, meter, no_cloud(meter, path.parent), body_limit=1024 * 1024, language_queue=0)
    bundle = Bundle.open(Blobs(layout / "blobs" / "sha256", min_free=0), digest)
    service.place(MODEL, await asyncio.to_thread(Served.load, bundle, {}))
    server = LocalServer(api, path, f"127.0.0.1:{port}", door=TcpDoor(TOKEN, path))
    task = await server.start()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: asyncio.ensure_future(server.stop(task)))
    sys.stdout.write(f"ready {server.tcp_address}\n")
    sys.stdout.flush()
    await task
    service.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
