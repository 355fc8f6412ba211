"""A training as a run of MLflow, for teams that keep theirs there. Only the report goes there, never a row.

The server is the one that the caller names, with MLflow's own variables for its credentials.
"""

# ruff: noqa: PLC0415  mlflow takes seconds, and is optional
from __future__ import annotations

import os
import time
from collections.abc import Iterator

from compiler.errors import Unavailable
from wire.tune import TuneReport

EXPERIMENT = "shoal tune"
"""Where a run belongs unless `MLFLOW_EXPERIMENT_NAME` says otherwise."""
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""A model is made already: nobody waits minutes for a server that is away."""


def log(report: TuneReport, uri: str, name: str) -> str:
    """Write a finished run called `name`; its id. Raises `Unavailable` when mlflow is missing or does not answer."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it reports its use to its makers otherwise
    for key, value in _PATIENCE.items():
        os.environ.setdefault(key, value)
    try:
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ModuleNotFoundError as e:
        raise Unavailable("mlflow is not installed: install shoal[mlflow]") from e
    now = int(time.time() * 1000)
    began = now - int(report.seconds * 1000)
    metrics = [Metric(key, value, began + int(after * 1000), step) for key, value, after, step in _metrics(report)]
    params = [Param(key, value[:500]) for key, value in _parameters(report).items()]
    try:
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(_experiment())
        experiment = found.experiment_id if found else client.create_experiment(_experiment())
        run: str = client.create_run(experiment, start_time=began, run_name=name).info.run_id
        client.log_batch(run, metrics=metrics, params=params)
        client.log_text(run, report.to_bytes().decode(), "report.json")
        client.set_terminated(run, end_time=now)
    except (MlflowException, OSError) as e:
        raise Unavailable(f"mlflow at {uri} did not take the run: {_first_line(e)}") from e
    return run


def _metrics(report: TuneReport) -> Iterator[tuple[str, float, float, int]]:
    """Name, value, seconds after the first epoch, epoch."""
    after = 0.0
    for epoch in report.epochs:
        after += epoch.seconds
        yield "validation_accuracy", epoch.accuracy, after, epoch.number
        yield "validation_loss", epoch.validation_loss, after, epoch.number
        if epoch.loss is not None:
            yield "loss", epoch.loss, after, epoch.number
    figures = {
        "accuracy": report.accuracy,
        "accuracy_low": report.low,
        "accuracy_high": report.high,
        "macro_f1": report.macro_f1,
        "seconds": report.seconds,
        "memory_bytes": float(report.memory),
    }
    for name, value in figures.items():
        if value is not None:
            yield name, value, report.seconds, report.epoch or 0


def _parameters(report: TuneReport) -> dict[str, str]:
    training = report.training
    values = {"method": training.method, **training.parameters, "encoder": training.encoder, "model": report.model}
    values |= {"train_rows": report.train_rows, "validation_rows": report.validation_rows, "split_by": report.split_by}
    for i, dataset in enumerate(training.datasets):
        values |= {f"data_{i}": dataset.digest, f"data_{i}_licence": dataset.licence}
    return {key: str(value) for key, value in values.items()}


def _experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
