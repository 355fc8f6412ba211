"""Asking before something that cannot be undone."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cli.errors import BadInput

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed where nobody can answer.")]


def confirm(question: str, *, yes: bool) -> None:
    """Go on only with a yes. Raises `BadInput` where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise BadInput(f"{question} Nobody can be asked here, and nothing was changed: say --yes")
    typer.confirm(question, abort=True)
