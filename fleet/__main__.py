"""The fleet without the rest of the command line.

python -m fleet up --data DIR [--set key=value ...]
python -m fleet openapi                                # the description of its HTTPS interface
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from fleet.api.app import description
from fleet.errors import FleetError
from fleet.settings import load
from fleet.up import Running, run


def main(arguments: list[str]) -> int:
    """The exit code: 0, 1 after an error while running, 2 for bad settings."""
    options = _parser().parse_args(arguments)
    if options.command == "openapi":
        json.dump(description(), sys.stdout, indent=1)
        return 0
    overrides: dict[str, object] = dict(pair.partition("=")[::2] for pair in options.set)
    try:
        settings = load(options.data, environ=os.environ, overrides=overrides)
    except FleetError as e:
        sys.stderr.write(f"error: {e}\n")
        return 2
    return run(settings, announce=_announce)


def _announce(running: Running) -> None:
    sys.stdout.write(f"ready {running.url} broker {running.broker} data {running.data}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fleet", description="Run a fleet.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("openapi", help="print the OpenAPI description of the HTTPS interface")
    up = commands.add_parser("up", help="run until interrupted")
    up.add_argument("--data", type=Path, required=True, help="the data folder, made on first use")
    up.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, such as https_port=0")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
