"""What people read and what programs read: one value, shown as a table or printed as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

console = Console(soft_wrap=False)
errors = Console(stderr=True)


def show(value: Any, as_json: bool, view: Table | str) -> None:
    """Print `value` as JSON, or its `view` for people."""
    if as_json:
        json.dump(value, sys.stdout, indent=2, sort_keys=True)
        sys.stdout.write("\n")
    else:
        console.print(view)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str = "nothing yet") -> Table:
    """A table with right-aligned numbers; `empty` is shown in place of no rows. A column `#n` is right-aligned."""
    view = Table(title=title, title_justify="left", title_style="bold", header_style="bold", expand=False)
    for name in columns:
        view.add_column(name.removeprefix("#"), justify="right" if name.startswith("#") else "left", overflow="fold")
    for row in rows:
        view.add_row(*(_cell(cell) for cell in row))
    if not rows:
        view.add_row(*([f"[dim]{empty}[/]"] + [""] * (len(columns) - 1)))
    return view


def _cell(value: object) -> str:
    return "[dim]-[/]" if value is None or value == "" else str(value)
