"""`python -m compiler build | verify | tune | sabotage | delta`: the compiler as a process.

Progress goes to standard output as JSON lines, everything else to standard error. Exit code 0, 1 for an error,
2 for a wrong command line, 3 when no recipe of a profile holds the accuracy, 130 and 143 when interrupted or told
to end. `pass`, `score` and `time` are what a build starts itself (`compiler.workshop.child`).
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from compiler.errors import CompilerError, Unavailable
from compiler.progress import Reporter, take_stdout
from compiler.tuning import job as tuning
from compiler.workshop import child
from compiler.workshop.cache import X86_ONLY
from wire.errors import WireError

_CHILDREN = {
    "pass": "makes one file",
    "score": "answers examples with one variant",
    "time": "times variants against each other",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    options = _parser().parse_args(arguments)
    lines = take_stdout()
    # Libraries that would ask the network or use every core are told not to, before they are imported.
    os.environ.update(
        {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    )
    signal.signal(signal.SIGTERM, _end)
    if options.command in _CHILDREN:
        return child.answer(lines, lambda told: _work(options.command, told), lambda e: _known(e, options.command) or e)
    report = Reporter(lines)
    try:
        _run(options, report)
    except (CompilerError, WireError, ImportError, OSError) as e:
        known = _known(e, options.command)
        if known is None:
            raise
        report.fail(known)
        return known.exit_code if isinstance(known, CompilerError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def _known(error: Exception, command: str) -> CompilerError | WireError | None:
    """An error in the words of the compiler; None for one that it does not know."""
    match error:
        case CompilerError() | WireError():
            return error
        case ModuleNotFoundError():
            return Unavailable(_missing(error.name or ""))
        case OSError():
            where = error.filename or f"{command}, scratch files in {tempfile.gettempdir()}"
            what = error.strerror or error
            return Unavailable(f"{where}: {what}: free space there, or name another folder (TMPDIR)")
    return None


def _run(options: argparse.Namespace, report: Reporter) -> None:
    match options.command:
        case "build":
            from compiler.build import build
            from wire.build import BuildJob

            build(BuildJob.from_bytes(sys.stdin.buffer.read()), report)
        case "verify":
            from compiler.verify import verify
            from wire.build import VerifyJob

            verify(VerifyJob.from_bytes(sys.stdin.buffer.read()), report)
        case "tune":
            from compiler.tune import tune
            from compiler.tuning.job import job

            tune(job(options), report)
        case "sabotage":
            from compiler.judge.drill import sabotage

            sabotage(options.layout, options.target, options.version, options.output, report)
        case "delta":
            from compiler.delta import make_delta

            make_delta(options.base, options.target, options.output, report)


def _work(command: str, lines: child.Lines) -> Mapping[str, Any]:
    """What a child of a build does."""
    match command:
        case "pass":
            from compiler.passes.run import run

            return run(sys.stdin.buffer)
        case "score":
            from compiler.workshop.score import score

            return score(sys.stdin.buffer, lines)
        case _:
            from compiler.workshop.timing import time_all

            return time_all(sys.stdin.buffer, lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m compiler", description="Compile a source model for each profile.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="one BuildJob as JSON on standard input, bundles in its output folder")
    commands.add_parser("verify", help="one VerifyJob as JSON on standard input: make a bundle again and compare")
    tune = commands.add_parser("tune", help="train a classifier on a sentence encoder, write a source model")
    tuning.add_options(tune)
    drill = commands.add_parser("sabotage", help="pack a copy of a bundle with one scrambled weight, for drills")
    drill.add_argument("--layout", type=Path, required=True, help="OCI image layout with the sound bundle")
    drill.add_argument("--target", required=True, help="models/<family>/<name>/<version>/<profile>")
    drill.add_argument("--version", required=True, help="version of the broken bundle")
    drill.add_argument("--output", type=Path, required=True, help="OCI image layout to write")
    delta = commands.add_parser("delta", help="what makes one file of another that a device holds")
    delta.add_argument("--base", type=Path, required=True, help="file that the device holds")
    delta.add_argument("--target", type=Path, required=True, help="file to make of it")
    delta.add_argument("--output", type=Path, required=True, help="folder to write, new")
    for name, text in _CHILDREN.items():
        commands.add_parser(name, help=f"internal: a child of a build, {text}")
    return parser


def _missing(package: str) -> str:
    if package.replace("_", "-") in X86_ONLY and platform.machine() != "x86_64":
        return f"package {package} has no build for {platform.machine()}: compile LiteRT profiles on an x86-64 machine"
    return f"package {package} is not installed here: install shoal with its extra 'compiler'"


def _end(number: int, _: FrameType | None) -> None:
    # An exception, so that scratch folders are removed on the way out.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
