"""A JSONL file of `{"text", "label"}` rows: the held-out test set of a build, the training set of `tune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import Malformed
from wire.chunks import digest
from wire.document import parse_json
from wire.errors import Malformed as MalformedJson

LINE = 64 * 1024
"""Largest row in bytes."""


@dataclass(frozen=True)
class Row:
    """One text and its label."""

    text: str
    label: str


@dataclass(frozen=True)
class TestSet:
    """The rows of a file, in its order, and the digest of its bytes."""

    __test__ = False  # pytest: no test class

    rows: tuple[Row, ...]
    digest: str

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts alone."""
        return tuple(row.text for row in self.rows)

    def spread(self, n: int) -> tuple[Row, ...]:
        """At most `n` rows, taken from every label in turn, and among more labels than `n` evenly."""
        by_label: dict[str, list[Row]] = {}
        for row in self.rows:
            by_label.setdefault(row.label, []).append(row)
        labels = sorted(by_label)
        if len(labels) > n:
            labels = [labels[i * len(labels) // n] for i in range(n)]
        deepest = max(len(by_label[label]) for label in labels)
        turns = (by_label[label][i] for i in range(deepest) for label in labels if i < len(by_label[label]))
        return tuple(turns)[:n]


def read(path: Path) -> TestSet:
    """Raises `Malformed` for a missing or empty file, or a bad row, with its line number."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise Malformed(f"test set {path}: cannot be read: {e.strerror}") from e
    rows = tuple(_row(line, f"{path}:{n}") for n, line in enumerate(data.splitlines(), 1) if line.strip())
    if not rows:
        raise Malformed(f'test set {path}: it has no rows; write one {{"text": ..., "label": ...}} per line')
    return TestSet(rows=rows, digest=digest(data))


def check_labels(test: TestSet, labels: Sequence[str], path: Path) -> None:
    """Raises `Malformed` when the test set asks for a label that the model cannot give, or for one label only."""
    asked = {row.label for row in test.rows}
    strangers = sorted(asked - set(labels))
    if strangers:
        raise Malformed(
            f"test set {path}: label {strangers[0]!r} ({len(strangers)} such) is not one of the source's "
            f"{len(labels)} labels ({', '.join(labels[:5])}...): use the labels of its config.json, id2label"
        )
    if len(asked) < 2:
        raise Malformed(
            f"test set {path}: every row has the label {test.rows[0].label!r}: a model that always gives it would be "
            "perfect here; add rows of the other labels"
        )


def _row(line: bytes, where: str) -> Row:
    try:
        value = parse_json(line, what=where, limit=LINE)
    except MalformedJson as e:
        raise Malformed(str(e)) from e
    match value:
        case {"text": str(text), "label": str(label)} if label:
            return Row(text=text, label=label)
    raise Malformed(f'{where}: expected {{"text": string, "label": string}}, got {line[:80].decode(errors="replace")}')
