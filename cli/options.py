"""Options that several commands share."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import BadInput
from wire.errors import Malformed
from wire.units import instant, seconds, show_instant

Data = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Data folder of a fleet on this machine. [default: $SHOAL_DATA or ~/.shoal]", show_default=False
    ),
]
TrustFolder = Annotated[
    Path,
    typer.Option("--trust", help="Folder of the offline keys and the metadata they signed; keep it off the fleet."),
]
DEFAULT_TRUST = Path("shoal-trust")
KeysFolder = Annotated[
    Path | None,
    typer.Option("--keys", help="Folder of the keys that you hold. [default: the trust folder]", show_default=False),
]
Unencrypted = Annotated[bool, typer.Option("--unencrypted", help="Keep new keys without a passphrase.")]

Since = Annotated[str | None, typer.Option(help="An age such as '2 h', or a time in RFC 3339.")]


def since_time(text: str | None) -> str:
    """The time that an age or a time means, in RFC 3339; empty for none. Raises `BadInput`."""
    if not text:
        return ""
    if re.fullmatch(r"\d+(\.\d+)?\s*[a-z]+", text.strip()):
        return show_instant(datetime.now(UTC) - timedelta(seconds=seconds(text, where="--since")))
    try:
        return show_instant(instant(text, where="--since"))
    except Malformed as e:
        raise BadInput(f"{e}; or an age such as '2 h'") from e
