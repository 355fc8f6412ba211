"""Labelled texts, cleaned and split so that nothing of the validation rows was learned.

Guarantees: no text (case, width and white space aside) and no group is on both sides, and the order of the rows in the
file decides nothing: which row is held out depends on its content and the seed.

    data = read_data(job)
    data.train, data.validation, data.labels
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compiler.errors import Malformed
from compiler.examples.examples import normal, read_texts
from compiler.tuning.job import TuneJob
from wire.lineage import Dataset

FEW, UNEVEN = 8, 10
"""Training rows of a label, and how many times as many another has, from which on the user is told."""


@dataclass(frozen=True)
class Labelled:
    """A text, its label, and what it must stay on one side with: its own words where there are no groups."""

    text: str
    label: str
    group: str


@dataclass(frozen=True)
class Data:
    """Both sides in the texts' order, the labels in alphabetical order, and what was left out; see `TuneReport`."""

    train: tuple[Labelled, ...]
    validation: tuple[Labelled, ...]
    labels: tuple[str, ...]
    datasets: tuple[Dataset, ...]
    duplicates: int
    conflicts: tuple[str, ...]
    overlapping: int
    split_by: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about these rows."""
        return (*_conflict_notes(self.conflicts), *_balance_notes(self))


def read_data(job: TuneJob) -> Data:
    """Raises `Malformed` for a file that is not labelled texts, or that leaves too little to learn from."""
    rows, dataset = _read(job.train, job)
    held: list[Labelled] = []
    sets = [dataset]
    if job.validation is not None:
        held, other = _read(job.validation, job)
        sets.append(other)
    joined = _joined([*rows, *held])
    train, duplicates, conflicts = _clean(rows, joined)
    validation, _, unsure = _clean(held, joined)
    known = {row.group for row in validation}
    kept = [row for row in train if row.group not in known]
    if job.validation is None:
        kept, validation = split(train, job.split, job.seed)
    data = Data(
        train=tuple(kept),
        validation=tuple(validation),
        labels=tuple(sorted({row.label for row in kept})),
        datasets=tuple(sets),
        duplicates=duplicates,
        conflicts=(*conflicts, *unsure),
        overlapping=len(train) - len(kept) if job.validation is not None else 0,
        split_by=_split_by(job),
    )
    _check(data, {row.label for row in rows}, job)
    return data


def split(rows: Sequence[Labelled], share: float, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """Training and validation rows: whole groups, of every label about `share` of its rows and never half of them."""
    groups: dict[str, list[Labelled]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    sizes = Counter(row.label for row in rows)
    have: Counter[str] = Counter()
    held: set[str] = set()
    ordered = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}\0{group}".encode()).digest())
    for group in ordered if share else ():
        adds = Counter(row.label for row in groups[group])
        nearer = sum(abs(share * sizes[k] - have[k] - n) - abs(share * sizes[k] - have[k]) for k, n in adds.items())
        if nearer < 0 and _leaves_most(adds, have, sizes):
            held.add(group)
            have += adds
    # A label whose groups are all larger than its share has none yet: the smallest of them is better than no figure.
    for label in sorted(sizes.keys() - have.keys()) if share else ():
        for group in sorted(ordered, key=lambda group: len(groups[group])):
            adds = Counter(row.label for row in groups[group])
            if label in adds and group not in held and _leaves_most(adds, have, sizes):
                held.add(group)
                have += adds
                break
    return [row for row in rows if row.group not in held], [row for row in rows if row.group in held]


def _leaves_most(adds: Mapping[str, int], have: Mapping[str, int], sizes: Mapping[str, int]) -> bool:
    return all(2 * (have[label] + n) < sizes[label] for label, n in adds.items())


def _read(path: Path, job: TuneJob) -> tuple[list[Labelled], Dataset]:
    examples = read_texts(path)
    if examples.rows[0].label is None:
        raise Malformed(f"examples {path}: its rows have no label: add one to each")
    texts = [str(row.example) for row in examples.rows]
    groups = [f"{job.group}\0{g}" for g in _groups(path, job.group)] if job.group else [normal(text) for text in texts]
    rows = [
        Labelled(text, str(row.label), group) for text, row, group in zip(texts, examples.rows, groups, strict=True)
    ]
    dataset = Dataset(name=path.name, digest=examples.digest, use="train", rows=len(rows), licence=job.licence)
    return rows, dataset


def _groups(path: Path, column: str) -> list[str]:
    """The values of a column of a file that is known to be sound. Raises `Malformed` where one is missing."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".csv":
        rows = [{str(k).strip(): v for k, v in row.items()} for row in csv.DictReader(io.StringIO(text, newline=""))]
    else:
        rows = [json.loads(line) for line in text.encode().splitlines() if line.strip()]
    for n, row in enumerate(rows, 1):
        if not isinstance(row.get(column), (str, int)) or row[column] == "":
            raise Malformed(f"examples {path}: row {n} has no {column!r}, the column to split by")
    return [str(row[column]) for row in rows]


def _joined(rows: Iterable[Labelled]) -> dict[str, str]:
    """For each group the first of all that share a text with it, directly or through others."""
    above: dict[str, str] = {}

    def first(group: str) -> str:
        while above.setdefault(group, group) != group:
            group = above[group]
        return group

    seen: dict[str, str] = {}
    for row in rows:
        mine, other = first(row.group), first(seen.setdefault(normal(row.text), row.group))
        above[max(mine, other)] = min(mine, other)
    return {group: first(group) for group in list(above)}


def _clean(rows: Iterable[Labelled], joined: Mapping[str, str]) -> tuple[list[Labelled], int, list[str]]:
    """One row for each text, in the texts' order; how many more there were; and the texts whose labels disagree."""
    by_text: dict[str, list[Labelled]] = {}
    for row in rows:
        by_text.setdefault(normal(row.text), []).append(replace(row, group=joined[row.group]))
    agreed = {key: same for key, same in by_text.items() if len({row.label for row in same}) == 1}
    kept = [min(agreed[key], key=lambda row: row.text) for key in sorted(agreed)]
    conflicts = [min(row.text for row in by_text[key]) for key in sorted(by_text.keys() - agreed.keys())]
    return kept, sum(len(same) - 1 for same in agreed.values()), conflicts


def _check(data: Data, given: set[str], job: TuneJob) -> None:
    if len(given) < 2:
        raise Malformed(f"examples {job.train}: one label only ({next(iter(given))!r}); a classifier needs two")
    if lost := sorted(given - set(data.labels)):
        raise Malformed(
            f"examples {job.train}: nothing is left to learn label {lost[0]!r} from ({len(lost)} such): its texts have "
            "other labels too, or are in the validation file"
        )
    if strange := sorted({row.label for row in data.validation} - set(data.labels)):
        raise Malformed(f"examples {job.validation}: label {strange[0]!r} is not among the training rows")
    if not data.validation and (job.method != "head" or job.split or job.validation):
        raise Malformed(f"examples {job.train}: too few rows or groups to hold some out: add rows, or --validation")


def _split_by(job: TuneJob) -> str:
    return f"file {job.validation.name}" if job.validation else f"column {job.group}" if job.group else "text"


def _conflict_notes(conflicts: Sequence[str]) -> tuple[str, ...]:
    if not conflicts:
        return ()
    return (f"left out: {len(conflicts)} texts whose rows disagree on the label, such as {conflicts[0][:80]!r}",)


def _balance_notes(data: Data) -> tuple[str, ...]:
    (most, many), *_, (least, few) = Counter(row.label for row in data.train).most_common()
    notes = []
    if many > UNEVEN * few:
        notes.append(f"uneven: {many} rows of {most!r}, {few} of {least!r}: the model will prefer the first")
    elif few < FEW:
        notes.append(f"few: {few} rows of {least!r}: expect little of this label")
    silent = sorted(set(data.labels) - {row.label for row in data.validation})
    if silent and data.validation:
        notes.append(f"no validation rows of {len(silent)} labels, such as {silent[0]!r}: nothing is known of them")
    return tuple(notes)
