"""The command `shoal demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import BadInput, Refused


def demo(
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the results to this file.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Work here and keep it. [default: a temporary folder]")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of compiled results. [default: ~/.cache/shoal]")] = None,
) -> None:
    """Show the whole of Shoal on this machine: a real model, four devices, failures and attacks included."""
    from cli.compiling import default_cache  # noqa: PLC0415
    from cli.demo import report, story, world  # noqa: PLC0415

    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise BadInput(f"{folder}: is not empty: choose a new folder")
    with world.folder_for(folder) as work, world.World(work, (cache or default_cache()).absolute()) as stage:
        results = story.tell(stage)
    faults = report.faults(results)
    report.show(results, faults)
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=2) + "\n")
    if faults:
        raise Refused(f"the demo did not hold: {'; '.join(faults)}")
