"""What `tune` is asked for, as options of the command line and as a checked value."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from compiler.errors import Malformed
from compiler.sources.assemble import TOKENS
from wire.tune import Method
from wire.units import size

RATES: Mapping[Method, float] = {"lora": 5e-4, "full": 5e-5, "distill": 1e-4}
"""Learning rates where none is given."""


@dataclass(frozen=True)
class TuneJob:
    """A training. `split` is the share of rows held out when no `validation` file is given, `group` the column by whose
    values they are held out; `max_length` is in tokens, frame included; `memory` bounds the process, None leaves it.
    """

    source: Path
    train: Path
    output: Path
    method: Method = "head"
    validation: Path | None = None
    split: float = 0.15
    group: str | None = None
    licence: str = "unknown"
    student_layers: int | None = None
    epochs: int = 6
    patience: int = 2
    learning_rate: float | None = None
    batch: int = 16
    seed: int = 0
    max_length: int = 128
    memory: str | None = None

    @property
    def report(self) -> Path:
        """Where the report is written: beside the folder, because times in it would change the model's digest."""
        return self.output.with_name(f"{self.output.name}.report.json")

    @property
    def rate(self) -> float:
        """The learning rate of a method that has one."""
        return RATES[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def parameters(self) -> dict[str, Any]:
        """What decides the result beside the data: for lineage and for people."""
        given: dict[str, Any] = {"seed": self.seed, "max_length": self.max_length}
        given |= {"split": self.split} if self.validation is None else {}
        given |= {"group": self.group} if self.group else {}
        if self.method != "head":
            given |= {"epochs": self.epochs, "patience": self.patience, "batch": self.batch, "learning_rate": self.rate}
        return given | ({"student_layers": self.student_layers} if self.student_layers else {})

    def check(self) -> None:
        """Raises `Malformed` for a value that cannot be used, and for an output that is there already."""
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise Malformed(f"tune output {self.output}: not empty; remove it or name another folder")
        self._check_numbers()
        if self.split == 0 and self.validation is None and self.method != "head":
            raise Malformed(f"tune split 0: method {self.method} needs validation rows to know when to stop")
        if self.student_layers is not None and (self.method != "distill" or self.student_layers < 1):
            raise Malformed("tune student-layers: a number from 1, for the method distill")
        if self.memory is not None:
            size(self.memory, where="tune memory")

    def _check_numbers(self) -> None:
        for name, value, low, high in (
            ("max-length", self.max_length, 8, TOKENS),
            ("epochs", self.epochs, 1, 1000),
            ("patience", self.patience, 1, 1000),
            ("batch", self.batch, 1, 1024),
            ("seed", self.seed, 0, 2**32 - 1),
        ):
            if not low <= value <= high:
                raise Malformed(f"tune {name} {value}: expected {low} to {high}")
        if not 0 <= self.split <= 0.5:
            raise Malformed(f"tune split {self.split:g}: expected a share of the rows from 0 to 0.5")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise Malformed(f"tune learning-rate {self.learning_rate}: expected more than 0 and less than 1")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a job; `job` reads them."""
    parser.add_argument("--source", type=Path, required=True, help="folder of the sentence encoder")
    parser.add_argument("--train", type=Path, required=True, help="CSV or JSONL of text and label")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--method", choices=get_args(Method), default="head")
    parser.add_argument("--validation", type=Path, help="CSV or JSONL of other rows (default: a split of the rows)")
    parser.add_argument("--split", type=float, default=0.15, help="share of the rows held out (default 0.15)")
    parser.add_argument("--group", help="column whose values are never on both sides")
    parser.add_argument("--licence", default="unknown", help="of the rows, an SPDX expression")
    parser.add_argument("--student-layers", type=int, help="layers of a distilled student (default: half)")
    parser.add_argument("--epochs", type=int, default=6, help="at most (default 6)")
    parser.add_argument("--patience", type=int, default=2, help="epochs without a better one (default 2)")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--batch", type=int, default=16, help="rows of a step (default 16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-length", type=int, default=128, help="tokens (default 128)")
    parser.add_argument("--memory", help="most that the process may take, such as '2 GiB'")


def job(options: argparse.Namespace) -> TuneJob:
    """The job of these options."""
    return TuneJob(**{field.name: getattr(options, field.name) for field in fields(TuneJob)})
