"""What goes wrong in the demo, on purpose: no broker, SIGKILL in an update, a broken model, a changed byte."""

from __future__ import annotations

import http.client
import itertools
import time
from functools import partial
from pathlib import Path
from typing import Any

from cli.demo import sentences
from cli.demo.steps import MODEL, NAME, RECIPES, build, chat, sign_and_publish
from cli.demo.world import Device, FleetProcess, World, wait_for
from cli.errors import Refused
from wire.bundle import split_target

OFFLINE_ROUNDS = 60


def go_offline(world: World, fleet: FleetProcess, devices: list[Device], data: sentences.Split) -> dict[str, Any]:
    """Ctrl-C on the fleet, requests to every device, the fleet again; then every record must have arrived once."""
    fleet.stop()
    for device in devices:
        wait_for(f"{device.name} to notice", partial(is_alone, device))
    asked = answered = 0
    for text, _ in itertools.islice(itertools.cycle(data.test), OFFLINE_ROUNDS):
        for device in devices:
            asked += 1
            answered += bool(device.ask(NAME, [text])["labels"])
    refused, took_ms = ask_the_cloud_offline(devices[0])
    world.say(f"  {answered} of {asked} requests answered with nobody to talk to")
    world.say(f"  the cloud question is refused at once, in {took_ms:.0f} ms: {refused}")
    fleet.up()
    ledgers = [wait_for(f"the records of {d.name}", partial(settled_ledger, world, d)) for d in devices]
    totals = {
        key: sum(ledger[key] for ledger in ledgers) for key in ("produced", "delivered", "lost_requests", "duplicates")
    }
    world.say(
        f"  back again: {totals['delivered']} of {totals['produced']} telemetry records are with the fleet, none twice"
    )
    return {"requests": asked, "answered": answered, **totals, "cloud_refused_ms": round(took_ms, 1)}


def is_alone(device: Device) -> bool:
    """Whether a device knows that it has no link to its fleet."""
    return not device.status()["link"]["up"]


def ask_the_cloud_offline(device: Device) -> tuple[str, float]:
    """The refusal in words and the milliseconds it took."""
    begun = time.perf_counter()
    status, body = device.call("POST", "/v1/chat/completions", chat("Still there?"))
    took_ms = (time.perf_counter() - begun) * 1000
    if status != http.client.SERVICE_UNAVAILABLE:
        raise Refused(f"{device.name}: offline, and the cloud question was answered with {status}")
    return str(body["error"]["message"]), took_ms


def settled_ledger(world: World, device: Device) -> dict[str, int] | None:
    """Records produced against records stored, once the device waits for nothing; None while records move."""
    before = device.status()
    stats = world.fleet().get(f"/api/v1/devices/{device.name}")["stats"]
    after = device.status()
    telemetry, answered = before["telemetry"], before["requests"]["answered"]
    if telemetry["waiting"] or telemetry["produced"] != after["telemetry"]["produced"]:
        return None
    if stats["records"] < telemetry["produced"]:
        return None
    return {
        "produced": telemetry["produced"],
        "delivered": stats["records"],
        "lost_requests": answered - stats["requests"],
        "duplicates": max(0, stats["records"] - telemetry["produced"]) + max(0, stats["requests"] - answered),
    }


def kill_in_an_update(world: World, data: sentences.Split, device: Device) -> dict[str, Any]:
    """Version 1.1.0, trained on all sentences, for one profile; its device is killed while chunks arrive."""
    build(world, "1.1.0", data.train, (device.profile,), RECIPES[:1])
    sign_and_publish(world, world.folder / "1.1.0")
    old = device.ask(NAME, ["turn on the light"])["digest"]
    rollout = world.shoal("rollout", "start", MODEL, "1.1.0", "--waves", "100", "--gates", "install")["rollout"]
    update = wait_for("the update to be under way", lambda: partly_fetched(device))
    device.kill()
    world.say(f"  SIGKILL after {update['chunks_done']} of {update['chunks_total']} chunks")
    device.start(with_model=True)
    still = device.ask(NAME, ["turn on the light"])["digest"]
    world.say(f"  up again, and answering with {'the old model' if still == old else 'another model'}")
    world.shoal("rollout", "watch", rollout, "--timeout", "90")
    new = device.ask(NAME, ["turn on the light"])["digest"]
    world.say(f"  the update went on where it was; now {new[:19]}... answers")
    return {
        "device": device.name,
        "chunks_at_kill": update["chunks_done"],
        "chunks": update["chunks_total"],
        "answered_after_restart": still == old,
        "updated": new != old,
        "active": active_version(world, device),
    }


def partly_fetched(device: Device) -> dict[str, Any] | None:
    """The update of a device that has at least a quarter of its chunks, and lacks some."""
    for update in device.status()["updates"]:
        if (
            update["phase"] == "fetching"
            and update["chunks_total"] / 4 < update["chunks_done"] < update["chunks_total"]
        ):
            return dict(update)
    return None


def send_broken_release(world: World, devices: list[Device]) -> dict[str, Any]:
    """Signed by the right keys, listed by the fleet, and wrong: the device's own self-test is the last gate."""
    layout = world.folder / "1.2.0"
    for device in devices:
        sabotage(world, device.profile, "1.2.0")
    sign_and_publish(world, layout)
    before = {d.name: d.ask(NAME, ["turn on the light"])["digest"] for d in devices}
    rollout = run_to_its_end(world, "1.2.0")
    refused = {d["device"]: d["reason"] for d in rollout["devices"] if d["state"] in ("failed", "returned")}
    for name, reason in refused.items():
        world.say(f"  {name}: {reason}")
    after = {d.name: d.ask(NAME, ["turn on the light"])["digest"] for d in devices}
    kept = _same(before, after)
    world.say(f"  the rollout is {rollout['state']}; the old model answers on {kept} of {len(devices)} devices")
    return {
        "devices": len(devices),
        "refused": len(refused),
        "old_model_answers": kept,
        "rollout": rollout["state"],
        "reasons": refused,
    }


def sabotage(world: World, profile: str, version: str) -> None:
    """A copy of the profile's bundle of 1.0.0 with one scrambled weight matrix, in the layout of `version`."""
    layouts = ["--layout", str(world.folder / "1.0.0"), "--output", str(world.folder / version)]
    world.compiler("sabotage", *layouts, "--target", f"models/{MODEL}/1.0.0/{profile}", "--version", version)


def send_tampered_release(world: World, device: Device) -> dict[str, Any]:
    """A release whose bytes are changed in the fleet's own store, as one who broke into the fleet could."""
    layout = world.folder / "1.3.0"
    sabotage(world, device.profile, "1.3.0")
    sign_and_publish(world, layout)
    blob = flip_a_byte(world, layout)
    before = device.ask(NAME, ["turn on the light"])["digest"]
    rollout = run_to_its_end(world, "1.3.0")
    (outcome,) = rollout["devices"]
    stored = list(device.state.rglob(f"*{blob.removeprefix('sha256:')}"))
    world.say(f"  {outcome['device']}: {outcome['reason']}")
    world.say(
        f"  the changed file is {'on the device' if stored else 'nowhere on the device'}, and the old model answers"
    )
    return {
        "device": device.name,
        "refused": outcome["state"] in ("failed", "returned"),
        "stored": bool(stored),
        "old_model_answers": device.ask(NAME, ["turn on the light"])["digest"] == before,
        "reason": outcome["reason"],
    }


def flip_a_byte(world: World, layout: Path) -> str:
    """Change one bit of the model file in the fleet's blob store; gives the digest it still has by name."""
    from compiler.bundle.layout import Layout  # noqa: PLC0415

    (bundle,) = Layout(layout).bundles()
    blob = bundle.manifest.file("model").digest
    (path,) = [p for p in world.data.rglob(blob.removeprefix("sha256:")) if p.is_file()]
    path.chmod(0o600)
    with path.open("r+b") as f:
        f.seek(path.stat().st_size // 2)
        byte = f.read(1)
        f.seek(-1, 1)
        f.write(bytes([byte[0] ^ 1]))
    return blob


def run_to_its_end(world: World, version: str) -> dict[str, Any]:
    """Start a rollout to everyone and give it when it runs no more, done or not."""
    rollout = world.shoal("rollout", "start", MODEL, version, "--waves", "100", "--gates", "install")["rollout"]
    return wait_for(f"rollout {rollout} to end", lambda: ended(world, rollout))


def ended(world: World, rollout: str) -> dict[str, Any] | None:
    """The rollout, if it runs no more."""
    value = world.fleet().get(f"/api/v1/rollouts/{rollout}")
    return None if value["state"] == "running" else dict(value)


def active_version(world: World, device: Device) -> str | None:
    """The version in a device's active slot, as the fleet sees it."""
    slots = world.fleet().get(f"/api/v1/devices/{device.name}")["slots"]
    return next((split_target(s["target"])[2] for s in slots if s["slot"] == "active"), None)


def _same(before: dict[str, str], after: dict[str, str]) -> int:
    return sum(after[name] == digest for name, digest in before.items())
