"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
