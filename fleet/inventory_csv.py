"""The list of devices as a CSV file (RFC 4180), which spreadsheets open and people edit. Pure.

    text = render(lines)
    parse(text) == lines                   # for all that `check` lets through

A cell that a spreadsheet would take for a formula gets an apostrophe in front, which `parse` takes off again: a note
that a device's owner wrote must not run anything on the machine of whoever opens the file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fleet.errors import Malformed
from wire.document import check_device, check_name
from wire.errors import Malformed as WireMalformed

COLUMNS: Final = ("id", "profile", "group", "tags", "note")
MOST_LINES: Final = 5_000
MOST_TAGS: Final = 64
LONGEST_NOTE: Final = 2_000
SHOWN: Final = 20
"""Faults that an error names."""
_FORMULA: Final = tuple("=+-@'\uff1d\uff0b\uff0d\uff20")
"""The full-width forms too: some spreadsheets take them for the others."""


@dataclass(frozen=True)
class Line:
    """One device. `number` is that of its line in the file, for messages; it is no part of what it says."""

    id: str
    profile: str
    group: str
    tags: frozenset[str]
    note: str
    number: int = 0


def render(lines: Iterable[Line]) -> str:
    """The file, with its heading."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for line in lines:
        cells = (line.id, line.profile, line.group, " ".join(sorted(line.tags)), line.note)
        writer.writerow(_guarded(cell) for cell in cells)
    return file.getvalue()


def parse(text: str) -> list[Line]:
    """Every line, checked. Raises `Malformed` that names each line at fault, up to `SHOWN` of them."""
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        heading = tuple(cell.strip().lower() for cell in next(reader, []))
        if heading != COLUMNS:
            raise Malformed(f"line 1: expected the columns {', '.join(COLUMNS)}, got {', '.join(heading)[:80] or '-'}")
        rows = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as e:
        raise Malformed(f"line {reader.line_num}: not CSV: {e}") from e
    if len(rows) > MOST_LINES:
        raise Malformed(f"{len(rows)} lines: at most {MOST_LINES} at once: split the file")
    return _checked(rows)


def raise_faults(faults: Sequence[str]) -> None:
    """Raises `Malformed` with the first of them, if there are any."""
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise Malformed("; ".join(faults[:SHOWN]) + more + ": nothing was changed")


def check_note(note: str) -> str:
    """A note: text in lines, of at most `LONGEST_NOTE` characters. Raises `Malformed`."""
    if len(note) > LONGEST_NOTE:
        raise Malformed(f"note: {len(note)} characters: at most {LONGEST_NOTE}")
    if not all(c.isprintable() or c == "\n" for c in note):
        raise Malformed("note: a control character is in it")
    return note


def _checked(rows: Sequence[tuple[int, list[str]]]) -> list[Line]:
    lines, faults, first = [], [], dict[str, int]()
    for number, cells in rows:
        try:
            line = _line(number, cells)
        except (Malformed, WireMalformed) as e:
            faults.append(f"line {number}: {e}")
            continue
        if line.id in first:
            faults.append(f"line {number}: {line.id} stands on line {first[line.id]} too")
        first[line.id] = number
        lines.append(line)
    raise_faults(faults)
    return lines


def _line(number: int, cells: list[str]) -> Line:
    if len(cells) != len(COLUMNS):
        raise Malformed(f"expected {len(COLUMNS)} cells, got {len(cells)}")
    id_, profile, group, tags, note = map(_plain, cells)
    named = frozenset(check_name(tag, "tags") for tag in tags.split())
    if len(named) > MOST_TAGS:
        raise Malformed(f"tags: {len(named)} of them: at most {MOST_TAGS}")
    return Line(
        check_device(id_, "id"),
        check_name(profile, "profile"),
        check_name(group, "group"),
        named,
        check_note(note.replace("\r\n", "\n")),
        number,
    )


def _guarded(cell: str) -> str:
    return f"'{cell}" if cell.lstrip().startswith(_FORMULA) else cell


def _plain(cell: str) -> str:
    return cell.removeprefix("'")
