"""What the demo does, in order. Each chapter changes the world by the commands that a person would type, and gives back
what it saw; `cli.demo.report` judges that.
"""

from __future__ import annotations

import time
from typing import Any

from cli.demo.accidents import go_offline, kill_in_an_update, send_broken_release, send_tampered_release
from cli.demo.steps import (
    MODEL,
    ask_everyone,
    join_devices,
    make_first_version,
    profiles,
    sign_and_publish,
    start_fleet,
)
from cli.demo.world import World
from wire.bundle import split_target


def tell(world: World) -> dict[str, Any]:
    """The whole story; gives the results as data."""
    begun = time.monotonic()
    world.chapter("A fleet starts: HTTPS, database, certificate authority, MQTT broker")
    fleet = start_fleet(world)
    world.chapter("A model: MiniLM-L6 learns smart-home commands, and is compiled for four kinds of hardware")
    data, variants = make_first_version(world)
    world.chapter("Offline keys sign the release, and the fleet gets it")
    sign_and_publish(world, world.folder / "1.0.0", first=True)
    world.chapter("Four devices join, each with a key of its own")
    devices = join_devices(world)
    world.chapter("The release goes out in waves: one device first, then the rest")
    world.shoal("rollout", "start", MODEL, "1.0.0", "--waves", "25,100", "--gates", "install", "--wait", "90")
    answers = ask_everyone(world, devices, data)
    world.chapter("The fleet and its broker are switched off: devices go on answering")
    offline = go_offline(world, fleet, devices, data)
    world.chapter("A device is killed with SIGKILL in the middle of an update")
    killed = kill_in_an_update(world, data, devices[0])
    world.chapter("A broken bundle, correctly signed: a weight matrix is scrambled")
    broken = send_broken_release(world, devices)
    world.chapter("A tampered bundle: one byte changes on its way to the device")
    tampered = send_tampered_release(world, devices[-1])
    world.chapter("What the fleet shows")
    seen = look_at_the_fleet(world)
    fleet.stop()
    return {
        "profiles": list(profiles()),
        "variants": variants,
        "devices": [{**d, **answers[d["device"]]} for d in seen],
        "offline": offline,
        "killed": killed,
        "broken_release": broken,
        "tampered_release": tampered,
        "seconds": round(time.monotonic() - begun, 1),
    }


def look_at_the_fleet(world: World) -> list[dict[str, Any]]:
    """The tables that an operator would look at, and one row a device for the results."""
    world.show_tables()
    rows = []
    for d in world.fleet().devices():
        active = next((s for s in d["slots"] if s["slot"] == "active"), None)
        rows.append(
            {
                "device": d["device"],
                "profile": d["profile"],
                "status": d["status"],
                "emulated": d["emulated"],
                "active": active and split_target(active["target"])[2],
                "digest": active and active["digest"],
                "requests": d["stats"]["requests"],
                "p50_ms": d["stats"]["latency_p50_ms"],
            }
        )
    return rows
