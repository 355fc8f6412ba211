"""A model behind the local API on a Unix socket of this process, for tests.

async with served(short_folder, opened(bundle)) as stage:       # offline, as `kitchen`
    stage.client.ask("POST", "/v2/models/kitchen/infer", {...})

routing = routed(cloud.url, authority, short_folder, lambda: True, words_below=50)
async with served(short_folder, opened(bundle), routing=routing) as stage: ...
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloud_stand_in import no_cloud, tls_of
from local_client import Client
from tiny_bundle import TinyBundle

from agent.life.telemetry import WindowMeter
from agent.serving.api import LocalApi
from agent.serving.bundles import Bundle, prepare
from agent.serving.cloud import Cloud
from agent.serving.router import Router
from agent.serving.server import LocalServer
from agent.serving.service import Bounds, Served, Service
from agent.settings import AgentSettings
from agent.store.blobs import Blobs

Routing = Callable[[WindowMeter], Router]
BODY = 64 * 1024


@dataclass(frozen=True)
class Local:
    """What serves, and a client of it."""

    service: Service
    served: Served
    meter: WindowMeter
    router: Router
    api: LocalApi
    client: Client


def store_of(bundle: TinyBundle) -> Blobs:
    """The blobs of its own layout."""
    return Blobs(bundle.layout / "blobs" / "sha256", min_free=0)


def opened(bundle: TinyBundle) -> Bundle:
    """A bundle out of its own layout."""
    return Bundle.open(store_of(bundle), bundle.digest)


def routed(
    url: str,
    authority: Any,
    folder: Path,
    online: Callable[[], bool],
    *,
    chance: Callable[[], float] = random.random,
    **settings: Any,
) -> Routing:
    """How a device asks the cloud at this address for the model `large`."""
    cloud = Cloud(url, tls_of(authority), 5.0, lambda: datetime.now(UTC))
    chosen = AgentSettings(state=folder, socket=folder / "s", **{"cloud_model": "large", **settings})
    return lambda meter: Router(cloud, online, meter.agreement, chosen, chance=chance)


def api_of(
    service: Service, meter: WindowMeter, router: Router, online: Callable[[], bool] = bool, **options: Any
) -> LocalApi:
    """The local API of a device that is offline, unless `online` says otherwise."""
    told: dict[str, Any] = {"status": dict, "body_limit": BODY, "version": "0", **options}
    return LocalApi(service=service, meter=meter, router=router, online=online, **told)


@asynccontextmanager
async def listening(api: LocalApi, folder: Path) -> AsyncIterator[Client]:
    """The API on the socket `s` of a folder."""
    server = LocalServer(api, folder / "s", None)
    task = await server.start()
    try:
        yield Client(folder / "s")
    finally:
        await server.stop(task)


@asynccontextmanager
async def served(
    folder: Path,
    bundle: Bundle,
    *,
    name: str = "kitchen",
    bounds: Bounds | None = None,
    routing: Routing | None = None,
    online: Callable[[], bool] = bool,
    **options: Any,
) -> AsyncIterator[Local]:
    """A bundle under a name; all of it has ended after the block."""
    prepare()
    meter = WindowMeter()
    service = Service(meter, bounds or Bounds())
    model = await asyncio.to_thread(Served.load, bundle, {})
    service.place(name, model)
    router = routing(meter) if routing is not None else no_cloud(meter, folder)
    api = api_of(service, meter, router, online, **options)
    try:
        async with listening(api, folder) as client:
            yield Local(service, model, meter, router, api, client)
    finally:
        await router.stop()
        service.close()
