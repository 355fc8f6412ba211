"""What people read and what programs read: one value, shown as a table or printed as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

WARN_DAYS = 30
"""Signed metadata is shown in red from so many days before it expires."""
_PIPE_WIDTH = 160
"""Columns of a table that is not shown on a terminal: nothing is cut off in a file or a log."""


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH


console = Console(width=_width(sys.stdout))
errors = Console(stderr=True, width=_width(sys.stderr))


def show(value: Any, as_json: bool, view: RenderableType) -> None:
    """Print `value` as JSON, or its `view` for people."""
    if as_json:
        json.dump(value, sys.stdout, indent=2, sort_keys=True)
        sys.stdout.write("\n")
    else:
        console.print(view, highlight=False, soft_wrap=isinstance(view, str))


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str = "nothing yet"
) -> RenderableType:
    """A table; a column `#n` is right-aligned. Without rows it is one line that says `empty`."""
    if not rows:
        return Text.from_markup(f"[bold]{title}[/]: {empty}")
    view = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        right = name.startswith("#")
        view.add_column(name.removeprefix("#"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        view.add_row(*(_cell(cell) for cell in row))
    return view


def _cell(value: object) -> str:
    return "[dim]-[/]" if value is None or value == "" else str(value)
