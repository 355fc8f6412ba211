"""The two kinds of windows as rows: how each is read, and written again.

for number, begins, window in MODELS.read(session, subjects, FINE, low, high): ...
MODELS.write(session, [(number, FINE, begins, window)])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Select, bindparam, select
from sqlmodel import Session, col

from fleet.evidence.windows import NUMBERS, HealthSum, Window
from fleet.store.evidence_tables import EvidenceWindow, HealthWindow
from fleet.store.upsert import upsert

T = TypeVar("T", Window, HealthSum)
AT_ONCE: Final = 10_000
"""Parameters of a query at most: both databases take three times as many."""


@dataclass(frozen=True)
class Kind(Generic[T]):
    """`names` are the columns of a window after its key, `make` what makes one of their values."""

    table: Any
    names: tuple[str, ...]
    make: Callable[..., T]
    columns: Callable[[T], dict[str, Any]]

    def read(
        self, session: Session, subjects: Iterable[int], span: int, low: int, high: int
    ) -> Iterator[tuple[int, int, T]]:
        """Subject, begin and window of all that begin from `low` on and before `high`, in seconds since 1970."""
        query = _reading(self.table, self.names)
        for some in parts(list(subjects)):
            where = {"subjects": some, "of": span, "low": low, "high": high}
            for subject, begins, *values in session.connection().execute(query, where):
                yield subject, begins, self.make(*values)

    def write(self, session: Session, windows: Iterable[tuple[int, int, int, T]]) -> None:
        """Windows by subject, span and begin, in the place of those that are there."""
        rows = [
            {"subject": subject, "span": span, "begins": begins, **self.columns(one)}
            for subject, span, begins, one in windows
        ]
        upsert(session, self.table, rows)


@cache
def _reading(table: Any, names: tuple[str, ...]) -> Select[Any]:
    t = table
    return select(*(col(getattr(t, name)) for name in ("subject", "begins", *names))).where(
        col(t.subject).in_(bindparam("subjects", expanding=True)),
        col(t.span) == bindparam("of"),
        col(t.begins) >= bindparam("low"),
        col(t.begins) < bindparam("high"),
    )


def parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many at a time as a query takes."""
    for start in range(0, len(values), AT_ONCE):
        yield values[start : start + AT_ONCE]


def _window(ends: int, *values: Any) -> Window:
    *numbers, latency, detail = values
    return Window.from_columns(ends, numbers, latency, detail)


MODELS: Final = Kind(EvidenceWindow, ("ends", *NUMBERS, "latency", "detail"), _window, Window.columns)
HEALTH: Final = Kind(
    HealthWindow, ("ends", "samples", "memory", "temperature", "cpu_sum", "restarts"), HealthSum, HealthSum.columns
)
