"""Fine-tuning: from a sentence encoder and labelled texts to a source model.

    head     a logistic head on the encoder as it is
    lora     the head and adapters in every layer, merged into the weights at the end
    full     the head and all weights
    distill  a student with fewer layers, taught by the encoder with its head

Every method starts from the logistic head, so none is worse than it on the validation rows, the student aside.
Deterministic: the same encoder, rows, options and versions give the same folder. The folder is there as a whole or not
at all; the report lies beside it, because it tells times.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: bad input is told before they are
from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from compiler.errors import Malformed, Unavailable
from compiler.progress import Reporter
from compiler.tuning.data import Data, read_data
from compiler.tuning.encoder import Encoder, read_encoder
from compiler.tuning.job import TuneJob
from compiler.tuning.report import card, make_report, tools
from compiler.workshop.cache import write_whole
from compiler.workshop.child import peak
from wire.tune import TRAINING, Training
from wire.units import size

if TYPE_CHECKING:
    from compiler.tuning.train import Trained

_NO_MEMORY = ("allocate memory", "failed to map segment")


def tune(job: TuneJob, report: Reporter) -> None:
    """Write a source model folder at `job.output`. Raises `Malformed` and writes nothing for bad input."""
    started = time.monotonic()
    job.check()
    encoder, data = read_encoder(job.source, job.max_length), read_data(job)
    for note in data.notes:
        report.note(note)
    training = Training(
        method=job.method,
        parameters=job.parameters | {"max_length": encoder.max_length},
        encoder=encoder.digest,
        datasets=data.datasets,
        tools=tools(job.method),
    )
    from compiler.tuning.train import steps, train

    with _within(job.memory):
        report.total = steps(job) + 1
        trained = train(job, encoder, data, report)
    report.step("writing the source model")
    digest = _write(job, encoder, data, training, trained)
    made = make_report(
        training,
        data,
        trained.answered,
        model=digest,
        epochs=trained.epochs,
        epoch=trained.epoch,
        seconds=time.monotonic() - started,
        memory=peak(),
    )
    write_whole(job.report, made.to_bytes())
    report.finish(f"source model with {len(data.labels)} labels written to {job.output}")


def _write(job: TuneJob, encoder: Encoder, data: Data, training: Training, trained: Trained) -> str:
    """The digest of the source that a build will read."""
    from compiler.sources.read import read
    from compiler.tuning.write import new_folder, write_model

    with new_folder(job.output) as folder:
        write_model(folder, encoder, trained.network, data.labels, frozen=job.method == "head")
        (folder / TRAINING).write_bytes(training.to_bytes())
        (folder / "README.md").write_text(card(training, data, trained.answered), encoding="utf-8")
        return read(str(folder), None).digest


@contextmanager
def _within(memory: str | None) -> Iterator[None]:
    """Let the process take so much memory and no more. Raises `Unavailable` when that is too little."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (size(memory), before[1]))
    try:
        yield
    except (MemoryError, RuntimeError, ImportError, OSError, Malformed) as e:
        # Every library says it by another error, and by the same words.
        if not isinstance(e, MemoryError) and not any(words in str(e) for words in _NO_MEMORY):
            raise
        told = f"within {memory}" if memory else "on this machine"
        raise Unavailable(f"tune: not enough memory {told}: give a smaller --batch or --max-length, or more") from e
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
