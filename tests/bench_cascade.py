"""`scripts/bench cascade`: a small model that asks a larger one when it is unsure, and the fleet's estimate of it.

Two classifiers on the MiniLM encoder, smart-home sentences (`intents`) and film reviews (`reviews`), as `bench compile`
tunes them. Small is the variant with half of the feed-forward neurons pruned and the rest in int8; the source in fp32
stands for the larger model. The rows that no head was trained on are split in three:

    built        the compiler decides whether the small variant holds
    calibration  pruning is fitted to some of them, confidence and threshold are learnt from all
    fresh        what is told here; nothing else looked at them

The cascade is the agent's own: `wire.processing` says how sure an answer is, `agent.routing` whether it goes up. The
target error is what an operator would choose who may send `MOST_UP` of the requests: the smallest of `TARGET_ERRORS` at
which the evidence that comes with the bundle, of the calibration rows alone, says `escalated` is no more with 95 %
confidence. Sentences are split by template between training and the rest, not among the three parts.

Then the fleet's estimate (`fleet.agreement`) of the small model's accuracy, as if every fresh answer were a device's:
`CHECKED` answers drawn anew, with replacement, are compared with the larger model, and on `LABELLED` of them the truth
is told. Over 2,000 such draws: how often does the 95 % interval hold the true share of right answers?

`--small litert-int8-dynamic-quarter` takes a weaker model, so that there is something to win by asking.

Keys: `accuracy_gap_points`, `sent_up_percent`, `interval_coverage`: the worse of both data sets; those of each beside.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_compile import build, encoder_folder, reviews, tune

from agent.routing import Features, decide
from cli.demo import sentences
from cli.profile import load
from compiler.bundle.layout import Layout
from compiler.runtimes import open_graph
from fleet.agreement import accuracy
from wire.agreement import Agreement, stratum
from wire.build import BuildJob, Data
from wire.evidence import Measurement
from wire.pipeline import Labels, Pipeline
from wire.processing import Processor, Result

TARGET_ERRORS = (0.5, 1.0, 1.5, 2.0, 3.0)
"""Answers of 100 that may stay wrong on the device where the larger model is right: the default, and above."""
MOST_UP = 0.3
BUILT, CALIBRATION = 1000, 2000
"""Rows of these parts; the others are fresh."""
INTENTS_PER_CLASS = 330
DRAWS, CHECKED, LABELLED = 2000, 1500, 300
SMALL, LARGE = "onnx-int8-dynamic-half", "onnx-fp32"
Row = tuple[str, str]


@dataclass(frozen=True)
class Asked:
    """What both models answered to the fresh rows: arrays of booleans, one place a row."""

    right: np.ndarray
    larger_right: np.ndarray
    agreed: np.ndarray
    up: np.ndarray
    strata: np.ndarray

    @property
    def cascade(self) -> float:
        """Accuracy where the larger model answers what went up."""
        return float(np.where(self.up, self.larger_right, self.right).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="work here and keep it (default: a temporary folder)")
    parser.add_argument("--small", default=SMALL, metavar="RECIPE", help=f"the small model (default: {SMALL})")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-cascade-") as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(run(folder, options.small)))


def run(folder: Path, recipe: str = SMALL) -> dict[str, Any]:
    """Both data sets; the table is printed on the way."""
    columns = ("", "n", "target error", "small", "larger", "cascade", "gap", "sent up", "error before", "error after")
    print("".join(f"{name:>13}" for name in (*columns, "coverage")))
    found: dict[str, Any] = {}
    for name, (train, held) in {"intents": intents(), "reviews": reviews()}.items():
        rows = list(held)
        random.Random(11).shuffle(rows)
        parts = rows[:BUILT], rows[BUILT : BUILT + CALIBRATION], rows[BUILT + CALIBRATION :]
        found |= cascade(folder, name, recipe, list(train), parts)
    worst = {
        "accuracy_gap_points": max(found[f"accuracy_gap_points_{n}"] for n in ("intents", "reviews")),
        "sent_up_percent": max(found[f"sent_up_percent_{n}"] for n in ("intents", "reviews")),
        "interval_coverage": min(found[f"interval_coverage_{n}"] for n in ("intents", "reviews")),
    }
    return {**worst, **found}


def cascade(
    folder: Path, name: str, recipe: str, train: list[Row], parts: tuple[list[Row], list[Row], list[Row]]
) -> dict[str, Any]:
    """Tune, compile and ask one data set."""
    source = tune(folder, name, encoder_folder(), train)
    files = [
        sentences.write_jsonl(folder / f"{name}-{part}.jsonl", rows)
        for part, rows in zip(("built", "calibration"), parts, strict=False)
    ]
    small, measured, target_error = chosen(folder, name, recipe, source, files)
    larger, _ = compiled(folder, name, LARGE, source, files, TARGET_ERRORS[0])
    asked = ask(small, larger, parts[2])
    told = {
        "accuracy_gap_points": round(100 * (float(asked.larger_right.mean()) - asked.cascade), 3),
        "sent_up_percent": round(100 * float(asked.up.mean()), 2),
        "interval_coverage": coverage(asked),
    }
    figures = (asked.right.mean(), asked.larger_right.mean(), asked.cascade)
    shown = [name, len(parts[2]), target_error, *(f"{v:.4f}" for v in figures), *map(str, list(told.values())[:2])]
    errors = [f"{measured[m].value:.4f}" for m in ("calibration_error_before", "calibration_error")]
    print("".join(f"{v:>13}" for v in (*shown, *errors, told["interval_coverage"])))
    return {f"{key}_{name}": value for key, value in told.items()}


def chosen(
    folder: Path, name: str, recipe: str, source: Path, files: list[Path]
) -> tuple[Model, dict[str, Measurement], float]:
    """The small model with the smallest target error that sends no more up than may be, by its evidence."""
    for target_error in TARGET_ERRORS:
        small, measured = compiled(folder, name, recipe, source, files, target_error)
        high = measured["escalated"].high
        if high is not None and high <= MOST_UP:
            break
    return small, measured, target_error


def compiled(
    folder: Path, name: str, recipe: str, source: Path, files: list[Path], target_error: float
) -> tuple[Model, dict[str, Measurement]]:
    """The bundle of one recipe, opened as an agent opens it, and the figures of its evidence."""
    job = BuildJob(
        family="bench",
        name=name,
        version="1",
        source=str(source),
        test=Data(path=str(files[0])),
        calibration=Data(path=str(files[1])),
        output=str(folder / f"{name}-{recipe}-{target_error:g}"),
        cache=str(folder / "cache"),
        profiles=(load("x86-64"),),
        recipes=(recipe,),
        # What the small one loses the larger makes good: that is the point. Above it the gates could not see sabotage.
        max_drop=5.0,
        target_error=target_error,
    )
    build(job)
    layout = Layout(Path(job.output))
    (bundle,) = layout.bundles()
    evidence = layout.evidence(bundle.digest)
    assert evidence is not None
    return Model(layout, bundle.digest), {m.metric: m for m in evidence.measurements}


class Model:
    """A bundle that answers."""

    def __init__(self, layout: Layout, digest: str) -> None:
        manifest = next(b.manifest for b in layout.bundles() if b.digest == digest)
        read = {f.role: layout.read(f.digest) for f in manifest.files}
        self.pipeline = Pipeline.from_bytes(read["pipeline"])
        labels = Labels.from_bytes(read["labels"]).labels
        self._processor = Processor(self.pipeline, labels, read["tokenizer"])
        path = layout.folder / "model.onnx"
        path.write_bytes(read["model"])
        self._graph = open_graph(manifest.runtime, path, self.pipeline, None)

    def answer(self, text: str) -> Result:
        return self._processor.run(text, self._graph)


def ask(small: Model, larger: Model, rows: list[Row]) -> Asked:
    """Both models answer every row; the agent's policy says which answers the larger one would have given."""
    calibration = small.pipeline.calibration
    assert calibration is not None
    found = []
    for text, label in rows:
        ours, theirs = small.answer(text), larger.answer(text)
        features = Features(target=True, online=True, confidence=ours.confidence, threshold=calibration.threshold)
        up = decide(features).where == "cloud"
        right, larger_right = ours.labels[0] == label, theirs.labels[0] == label
        agreed = ours.labels == theirs.labels
        found.append((right, larger_right, agreed, up, stratum(ours.confidence, calibration.threshold)))
    return Asked(*(np.asarray(column) for column in zip(*found, strict=True)))


def coverage(asked: Asked) -> float:
    """The share of draws in which the fleet's interval holds the small model's accuracy on all fresh rows."""
    random_state, truth = np.random.default_rng(7), float(asked.right.mean())
    hits = 0
    for _ in range(DRAWS):
        drawn = random_state.integers(0, len(asked.right), CHECKED)
        estimate = accuracy(counted(asked, drawn))
        assert estimate is not None
        hits += estimate.low <= truth <= estimate.high
    return hits / DRAWS


def counted(asked: Asked, drawn: np.ndarray) -> list[Agreement]:
    """What a device would count: every drawn answer is checked, the first `LABELLED` get their label."""
    told = np.arange(len(drawn)) < LABELLED
    right, agreed, strata = asked.right[drawn], asked.agreed[drawn], asked.strata[drawn]
    cells = {
        "right_agreed": right & agreed & told,
        "right_differed": right & ~agreed & told,
        "wrong_agreed": ~right & agreed & told,
        "wrong_differed": ~right & ~agreed & told,
        "agreed": agreed,
        "checked": np.ones(len(drawn), bool),
        "answers": np.ones(len(drawn), bool),
    }
    return [
        Agreement(stratum=int(k), **{name: int(cell[strata == k].sum()) for name, cell in cells.items()})
        for k in np.unique(strata)
    ]


def intents() -> tuple[list[Row], list[Row]]:
    """Training sentences, and those of other templates."""
    split = sentences.make_split(7, test_per_class=INTENTS_PER_CLASS)
    known = {text for text, _ in split.train}
    return split.train, [row for row in split.test if row[0] not in known]


if __name__ == "__main__":
    main()
