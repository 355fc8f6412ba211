"""What `shoal tune` leaves: `training.json` in the folder of the source model, and a report beside that folder.

`training.json` decides nothing about the model's answers and says what it learned from; a build names its data sets in
the lineage. Like everything in the folder it is the same for the same job: times stand in the report alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wire.document import CONTRACT, Document, check_digest
from wire.lineage import Dataset

TRAINING = "training.json"
"""The name of the file in the folder of a source model."""
Method = Literal["head", "lora", "full", "distill"]


@dataclass(frozen=True, kw_only=True)
class Training(Document):
    """How a source model was trained: `encoder` is the digest of what it started from, `tools` are versions by package.

    `datasets` are those that it learned from and those that decided when to stop, all with the use `train`.
    """

    contract: str = CONTRACT
    method: Method
    parameters: Mapping[str, Any]
    encoder: str
    datasets: tuple[Dataset, ...]
    tools: Mapping[str, str]

    def __post_init__(self) -> None:
        check_digest(self.encoder, "training.encoder")


@dataclass(frozen=True, kw_only=True)
class ClassFigures(Document):
    """One label: its rows on either side, and how its validation rows were answered (None where there are none)."""

    label: str
    train: int
    validation: int
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


@dataclass(frozen=True, kw_only=True)
class Epoch(Document):
    """One pass over the training rows; number 0 is the logistic head, before anything else was trained.

    `loss` is the mean over the training rows, `validation_loss` the mean cross-entropy over the validation rows.
    """

    number: int
    accuracy: float
    validation_loss: float
    seconds: float
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class TuneReport(Document):
    """A training and what came of it. Figures are of the weights that were written, on the validation rows.

    `model` is the digest of the written source. `low` and `high` are the interval of the accuracy at `confidence`, None
    with the accuracy where there are no validation rows. `duplicates` are rows left out because their text stood there
    already, `conflicts` texts left out because their rows disagree on the label, `overlapping` training rows left out
    because their text or group is in the validation file. `epoch` is the one whose weights were kept, `memory` the
    bytes of the process at its largest.
    """

    LIMIT = 4 * 1024 * 1024

    contract: str = CONTRACT
    training: Training
    model: str
    train_rows: int
    validation_rows: int
    split_by: str
    duplicates: int
    conflicts: tuple[str, ...]
    overlapping: int
    confidence: float
    classes: tuple[ClassFigures, ...]
    epochs: tuple[Epoch, ...]
    notes: tuple[str, ...]
    seconds: float
    memory: int
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    macro_f1: float | None = None
    epoch: int | None = None
