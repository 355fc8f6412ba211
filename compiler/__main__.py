"""`python -m compiler build | tune | sabotage`: the compiler as a process.

Progress goes to standard output as JSON lines, everything else to standard error. Exit code 0, 1 for an error,
2 for a wrong command line, 3 when no recipe of a profile holds the accuracy, 130 and 143 when interrupted or told
to end.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from compiler.cache import X86_ONLY
from compiler.errors import CompilerError, Unavailable
from compiler.progress import Reporter, take_stdout
from wire.errors import WireError


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    options = _parser().parse_args(arguments)
    lines = take_stdout()
    # Libraries that would ask the network or use every core are told not to, before they are imported.
    os.environ.update(
        {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    )
    signal.signal(signal.SIGTERM, _end)
    report = Reporter(lines)
    try:
        _run(options, report)
    except CompilerError as e:
        report.fail(e)
        return e.exit_code
    except WireError as e:
        report.fail(e)
        return 1
    except ModuleNotFoundError as e:
        report.fail(Unavailable(_missing(e.name or "")))
        return 1
    except OSError as e:
        where = e.filename or f"{options.command}, scratch files in {tempfile.gettempdir()}"
        report.fail(Unavailable(f"{where}: {e.strerror or e}: free space there, or name another folder (TMPDIR)"))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _run(options: argparse.Namespace, report: Reporter) -> None:
    match options.command:
        case "build":
            from compiler.build import build
            from wire.build import BuildJob

            build(BuildJob.from_bytes(sys.stdin.buffer.read()), report)
        case "tune":
            from compiler.tune import TuneJob, tune

            tune(TuneJob(options.source, options.train, options.output, options.seed, options.max_length), report)
        case "sabotage":
            from compiler.drill import sabotage

            sabotage(options.layout, options.target, options.version, options.output, report)
        case "score":
            from compiler.score import main as score

            score(sys.stdin.buffer, report.lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m compiler", description="Compile a source model for each profile.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="one BuildJob as JSON on standard input, bundles in its output folder")
    tune = commands.add_parser("tune", help="train a classifier on a sentence encoder, write a source model")
    tune.add_argument("--source", type=Path, required=True, help="folder of the sentence encoder")
    tune.add_argument("--train", type=Path, required=True, help="JSONL of text and label")
    tune.add_argument("--output", type=Path, required=True, help="folder to write, new or empty")
    tune.add_argument("--seed", type=int, default=0)
    tune.add_argument("--max-length", type=int, default=128, help="tokens (default 128)")
    drill = commands.add_parser("sabotage", help="pack a copy of a bundle with one scrambled weight, for drills")
    drill.add_argument("--layout", type=Path, required=True, help="OCI image layout with the sound bundle")
    drill.add_argument("--target", required=True, help="models/<family>/<name>/<version>/<profile>")
    drill.add_argument("--version", required=True, help="version of the broken bundle")
    drill.add_argument("--output", type=Path, required=True, help="OCI image layout to write")
    commands.add_parser("score", help="internal: score texts with one variant")
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
