"""Data sets: files of examples, registered once and for good by content digest, with licence and use.

add(session, NewDataset(...), examples, size, who, now)
find(session, "reviews-test")            # by name or digest; raises NotFound
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlmodel import Session, col, select

from fleet.builds.content import ExamplesFile
from fleet.errors import Conflict, Malformed, NotFound
from fleet.store.tables import DatasetRow
from wire.document import check_digest, check_name
from wire.lineage import Use

_LICENCE: Final = re.compile(r"\(?[A-Za-z0-9][A-Za-z0-9.+:-]*\)?( (AND|OR|WITH) \(?[A-Za-z0-9][A-Za-z0-9.+:-]*\)?)*")


@dataclass(frozen=True)
class NewDataset:
    """What is said of an uploaded file. `licence` is an SPDX expression, or "unknown"."""

    digest: str
    name: str
    use: Use
    licence: str

    def __post_init__(self) -> None:
        check_digest(self.digest, "dataset.digest")
        check_name(self.name, "dataset.name")
        if len(self.licence) > 200 or not _LICENCE.fullmatch(self.licence):
            raise Malformed(
                f"dataset.licence: {self.licence[:80]!r} is no SPDX expression such as CC-BY-4.0, and not 'unknown'"
            )


def add(session: Session, new: NewDataset, found: ExamplesFile, size: int, who: str, now: str) -> DatasetRow:
    """Register a file. The same again is no change; raises `Conflict` for other words on it, or a name that is taken.

    Nothing of a data set ever changes: lineages name it.
    """
    row = session.get(DatasetRow, new.digest)
    if row is not None:
        if (row.name, row.use, row.licence) != (new.name, new.use, new.licence):
            raise Conflict(
                f"data set {new.digest}: is registered as {row.name} ({row.use}, {row.licence}) for good: use it so"
            )
        return row
    if session.exec(select(DatasetRow).where(DatasetRow.name == new.name)).first():
        raise Conflict(f"data set {new.name}: another file has this name: choose a new one, such as {new.name}-2")
    row = DatasetRow(
        digest=new.digest,
        name=new.name,
        use=new.use,
        licence=new.licence,
        format=found.format,
        rows=found.rows,
        size=size,
        who=who,
        created=now,
    )
    session.add(row)
    return row


def find(session: Session, reference: str) -> DatasetRow:
    """A data set by name or digest. Raises `NotFound`."""
    chosen = DatasetRow.digest if reference.startswith("sha256:") else DatasetRow.name
    row = session.exec(select(DatasetRow).where(chosen == reference)).first()
    if row is None:
        raise NotFound(f"data set {reference[:80]!r}: there is none: register it with POST /api/v1/datasets")
    return row


def all_datasets(session: Session) -> Sequence[DatasetRow]:
    """Every data set, by name."""
    return session.exec(select(DatasetRow).order_by(col(DatasetRow.name))).all()


def view(row: DatasetRow) -> dict[str, Any]:
    """What is told of a data set; never its examples."""
    return row.model_dump()
