"""How long it takes to plan a rollout over a fleet of so many devices: what `scripts/bench ingest` calls.

    plan_s(100_000)        # seconds, the best of three: rows read, target asked, order made, waves dealt out

The database is SQLite on disk, as a fleet has it; each device has a profile, a group, two tags in three, and a model.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from rollout_world import OPERATOR, World
from sqlmodel import insert

from fleet.store.database import Database
from fleet.store.tables import Device
from fleet.store.tag_table import DeviceTag
from wire.orders import DesiredModel

PROFILES = ("raspberry-pi-4", "raspberry-pi-zero-2-w", "jetson-nano", "x86-64")
TAGS = ("kitchen", "cellar")
TARGET = "profile:raspberry-* or tag:kitchen and not group:lab"


def plan_s(devices: int, *, target: str = "all", folder: Path | None = None) -> float:
    """Seconds of the best of three plans over a fleet of so many devices, made in `folder` if it is not there yet."""
    with tempfile.TemporaryDirectory() as scratch:
        path = folder or Path(scratch)
        with closing(Database.in_folder(path)) as database:
            world = World(database, lease=False)
            for version in ("1.0.0", "2.0.0"):
                world.release(version, *PROFILES)
            _fill(world, devices)
            gc.collect()
            gc.freeze()  # as a fleet does once it is ready
            return min(_once(world, target, devices) for _ in range(3))


def _once(world: World, target: str, devices: int) -> float:
    began = time.perf_counter()
    with world.session() as session:
        request = world.request("2.0.0", waves="10,1%,10%,100%", target=target, soak="1 h")
        planned = world.rollouts.plan(session, request, OPERATOR)
    took = time.perf_counter() - began
    found = sum(len(wave.devices) for wave in planned.plan.waves)
    assert found == devices if target == "all" else 0 < found < devices
    assert {d.runs for d in planned.plan.waves[0].devices} == {"1.0.0"}
    return took


def _fill(world: World, devices: int) -> None:
    rows, tags = [], []
    for i in range(devices):
        profile = PROFILES[i % len(PROFILES)]
        target = f"models/intents/kitchen/1.0.0/{profile}"
        digest = world.repository.releases[target].release.digest
        model = DesiredModel(target=target, digest=digest, rollout=f"r-{i % 5:012x}")
        id_ = f"device-{i:06}"
        rows.append(
            {
                **Device(id=id_, profile=profile, created="", token_hash="", token_expires="").model_dump(),
                "group": "lab" if i % 10 == 0 else f"floor-{i % 7}",
                "state": "enrolled",
                "desired_models": json.dumps([model.to_value()]),
                "reported": "x" * 1500,  # what a report takes: it is not read, and lies between what is
            }
        )
        tags += [{"device": id_, "tag": TAGS[i % 2]}] if i % 3 else []
    with world.session() as session:
        for start in range(0, devices, 5000):
            session.connection().execute(insert(Device), rows[start : start + 5000])
        session.connection().execute(insert(DeviceTag), tags)


def main() -> None:
    """Both targets, for people and as JSON."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    figures = {"plan_100k_s": round(plan_s(count), 2), "plan_100k_query_s": round(plan_s(count, target=TARGET), 2)}
    for name, value in figures.items():
        print(f"{name:20} {value:6.2f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
