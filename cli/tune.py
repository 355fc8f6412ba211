"""`shoal tune`: train a classifier of texts, and show how good it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cli.compiling import existing, follow, run
from cli.errors import BadInput
from cli.output import Json, errors, show, table
from wire.tune import Method, TuneReport
from wire.units import show_seconds, show_size


def tune(
    source: Annotated[
        Path, typer.Argument(help="Folder of a sentence encoder in Hugging Face layout; to distill, also a classifier.")
    ],
    train: Annotated[Path, typer.Option(help="CSV or JSONL file of text and label.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the source model to write.")],
    method: Annotated[
        Method, typer.Option(help="A head on the encoder, adapters, all weights, or a smaller student.")
    ] = "head",
    student_layers: Annotated[int | None, typer.Option(help="Layers of the student. [default: half]")] = None,
    validation: Annotated[Path | None, typer.Option(help="File of rows to hold out, instead of a split.")] = None,
    split: Annotated[float | None, typer.Option(help="Share of the rows to hold out. [default: 0.15]")] = None,
    group: Annotated[str | None, typer.Option(help="Column whose values never stand on both sides.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the rows, an SPDX expression.")] = "unknown",
    epochs: Annotated[int, typer.Option(help="Most passes over the rows.")] = 6,
    patience: Annotated[int, typer.Option(help="Stop after so many epochs that were no better.")] = 2,
    learning_rate: Annotated[float | None, typer.Option(help="[default: one for each method]")] = None,
    batch: Annotated[int, typer.Option(help="Rows of one step.")] = 16,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    max_length: Annotated[int, typer.Option(help="Tokens of a text; the rest is cut off.")] = 128,
    memory: Annotated[str | None, typer.Option(help="Most that the training may take: '2 GiB'.")] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="MLflow server for the report. [default: $MLFLOW_TRACKING_URI]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a classifier on a sentence encoder; what comes out is a source model for 'shoal compile'.

    The report, with accuracy on rows that were not learned, lies beside the folder as OUTPUT.report.json.
    """
    if validation is not None and split is not None:
        raise BadInput("--validation and --split: give one of them")
    options: dict[str, Any] = {
        "source": existing(source, "encoder"),
        "train": existing(train, "file of training rows"),
        "output": output.absolute(),
        "method": method,
        "student-layers": student_layers,
        "validation": validation and existing(validation, "file of validation rows"),
        "split": split,
        "group": group,
        "licence": licence,
        "epochs": epochs,
        "patience": patience,
        "learning-rate": learning_rate,
        "batch": batch,
        "seed": seed,
        "max-length": max_length,
        "memory": memory,
    }
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    follow(run(["tune", *words], b""))
    made = output.absolute()
    report = TuneReport.from_bytes(made.with_name(f"{made.name}.report.json").read_bytes())
    show(report.to_value(), as_json, _view(report, output))
    # From here, not from the compiler's process: that one gets no address and no token.
    uri = mlflow or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        _log(report, uri, made.name)


def _log(report: TuneReport, uri: str, name: str) -> None:
    from compiler.errors import Unavailable  # noqa: PLC0415
    from compiler.tuning.tracking import log  # noqa: PLC0415

    try:
        errors.print(f"logged as run {log(report, uri, name)} at {uri}", highlight=False, markup=False)
    except Unavailable as e:
        errors.print(f"not logged, the model is there: {e}", highlight=False, markup=False, style="yellow")


def _view(report: TuneReport, output: Path) -> RenderableType:
    columns = ("Label", "#Training rows", "#Validation rows", "#Precision", "#Recall", "#F1")
    rows = [
        (c.label, c.train, c.validation, *(v if v is None else f"{v:.3f}" for v in (c.precision, c.recall, c.f1)))
        for c in report.classes
    ]
    parts: list[RenderableType] = [table(f"{report.training.method} on {report.train_rows} rows", columns, rows)]
    if report.epochs:
        parts.append(_curve(report))
    parts += [Text(line) for line in _lines(report, output)]
    return Group(*parts)


def _curve(report: TuneReport) -> RenderableType:
    columns = ("#Epoch", "#Loss", "#Validation loss", "#Accuracy", "#Time", "")
    rows = [
        (
            e.number,
            None if e.loss is None else f"{e.loss:.3f}",
            f"{e.validation_loss:.3f}",
            f"{e.accuracy:.3f}",
            show_seconds(e.seconds) if e.number else None,
            "kept" if e.number == report.epoch else None,
        )
        for e in report.epochs
    ]
    return table("Epochs (0 is the head alone)", columns, rows)


def _lines(report: TuneReport, output: Path) -> list[str]:
    found = "no rows were held out, so nothing is known of its accuracy"
    if report.accuracy is not None:
        found = (
            f"accuracy {report.accuracy:.3f} ({report.low:.3f} to {report.high:.3f} at {report.confidence:.0%}), "
            f"macro F1 {report.macro_f1:.3f}, on {report.validation_rows} held-out rows (split by {report.split_by})"
        )
    left_out = f"left out: {report.duplicates} duplicates, {len(report.conflicts)} texts whose labels disagree, "
    return [
        found,
        f"{left_out}{report.overlapping} rows that are in the validation file",
        f"{show_seconds(report.seconds)}, {show_size(report.memory)} of memory",
        f"{output}: a source model, ready for 'shoal compile'",
    ]
