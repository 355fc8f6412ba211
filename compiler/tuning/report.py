"""The report of a training: figures on the validation rows, and the card that people read. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from statistics import fmean
from typing import Any

from compiler.judge.figures import _interval as interval
from compiler.tuning.data import Data
from wire.tune import ClassFigures, Epoch, Training, TuneReport

CONFIDENCE = 0.95
_TOOLS = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scikit-learn")


def tools(method: str) -> dict[str, str]:
    """Versions of what shapes the weights."""
    return {tool: _version(tool) for tool in (*_TOOLS, *(("peft",) if method == "lora" else ()))}


def make_report(
    training: Training,
    data: Data,
    answered: Sequence[int],
    *,
    model: str,
    epochs: tuple[Epoch, ...],
    epoch: int | None,
    seconds: float,
    memory: int,
) -> TuneReport:
    """`answered` are the classes given to the validation rows; the rest is as in `TuneReport`."""
    classes = tuple(_classes(data, answered))
    return TuneReport(
        training=training,
        model=model,
        train_rows=len(data.train),
        validation_rows=len(data.validation),
        split_by=data.split_by,
        duplicates=data.duplicates,
        conflicts=data.conflicts,
        overlapping=data.overlapping,
        confidence=CONFIDENCE,
        classes=classes,
        epochs=epochs,
        notes=data.notes,
        seconds=seconds,
        memory=memory,
        epoch=epoch,
        **_overall(data, answered, classes),
    )


def card(training: Training, data: Data, answered: Sequence[int]) -> str:
    """The model card in Markdown: no time and no machine, so that the same job gives the same folder."""
    overall = _overall(data, answered, tuple(_classes(data, answered)))
    found = (
        f"Accuracy {overall['accuracy']:.3f} ({overall['low']:.3f} to {overall['high']:.3f} at {CONFIDENCE:.0%}), "
        f"macro F1 {overall['macro_f1']:.3f}, on {len(data.validation)} held-out rows, split by {data.split_by}."
        if overall
        else "No rows were held out: nothing is known of its accuracy."
    )
    left_out = (
        f"* Left out: {data.duplicates} duplicates, {len(data.conflicts)} texts whose labels disagree, "
        f"{data.overlapping} rows that are in the validation file"
    )
    lines = [
        f"# A classifier of texts with {len(data.labels)} labels",
        "",
        f"Trained by the method `{training.method}` on {len(data.train)} rows. {found}",
        "",
        *(f"* Data: {d.name}, {d.rows} rows, licence {d.licence}, `{d.digest}`" for d in training.datasets),
        f"* Encoder: `{training.encoder}`",
        f"* Parameters: {', '.join(f'{k} {v}' for k, v in sorted(training.parameters.items()))}",
        f"* Tools: {', '.join(f'{k} {v}' for k, v in sorted(training.tools.items()))}",
        left_out,
        *(f"* Note: {note}" for note in data.notes),
        "",
        "| Label | Training rows | Validation rows | Precision | Recall | F1 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {_plain(c.label)} | {c.train} | {c.validation} | {_cell(c.precision)} | {_cell(c.recall)} "
            f"| {_cell(c.f1)} |"
            for c in _classes(data, answered)
        ),
    ]
    return "\n".join(lines) + "\n"


def _overall(data: Data, answered: Sequence[int], classes: Sequence[ClassFigures]) -> Mapping[str, Any]:
    """Accuracy with its interval and macro F1; nothing without validation rows."""
    right = [float(data.labels[got] == row.label) for got, row in zip(answered, data.validation, strict=True)]
    if not right:
        return {}
    low, high = interval(right, CONFIDENCE)
    scores = [c.f1 for c in classes if c.f1 is not None]
    return {"accuracy": fmean(right), "low": low, "high": high, "macro_f1": fmean(scores)}


def _classes(data: Data, answered: Sequence[int]) -> Iterator[ClassFigures]:
    train, held = Counter(row.label for row in data.train), Counter(row.label for row in data.validation)
    given = Counter(data.labels[got] for got in answered)
    pairs = zip(answered, data.validation, strict=True)
    right = Counter(row.label for got, row in pairs if data.labels[got] == row.label)
    for label in data.labels:
        yield ClassFigures(
            label=label,
            train=train[label],
            validation=held[label],
            precision=right[label] / given[label] if given[label] else None,
            recall=right[label] / held[label] if held[label] else None,
            # Of a label with validation rows and no answer it is 0, not unknown.
            f1=2 * right[label] / (given[label] + held[label]) if held[label] else None,
        )


def _version(tool: str) -> str:
    try:
        return version(tool)
    except PackageNotFoundError:
        return "absent"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plain(label: str) -> str:
    return label.replace("|", "\\|").replace("\n", " ")
