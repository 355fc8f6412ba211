"""Asking before something that cannot be undone."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.errors import BadInput

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed where nobody can answer.")]


def confirm(question: str, *, yes: bool) -> None:
    """Go on only with a yes, asked for on standard error. Raises `BadInput` for a no, and where nobody answers."""
    try:
        agreed = yes or typer.confirm(question, err=True)
    except typer.Abort as e:
        raise BadInput(f"{question} Nobody can be asked here, and nothing was changed: say --yes") from e
    if not agreed:
        raise BadInput("nothing was changed")
