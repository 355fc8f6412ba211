"""The compiler as a process of its own: started, followed and ended. Nothing of ours goes in but its job."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Generator, Iterator
from contextlib import suppress
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cli.errors import BadInput, CliError, Infeasible, Refused, Stopped
from cli.output import errors
from wire.build import Progress as ProgressLine
from wire.units import show_seconds

INFEASIBLE = 3
"""Exit code of the compiler when no variant of a profile holds the limits."""
_ENVIRONMENT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")
_PATIENCE_S = 10.0
"""How long a compiler that was told to end may take to remove what it was working on."""


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/shoal`, or `~/.cache/shoal`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "shoal"


def existing(path: Path, what: str) -> Path:
    """The absolute path of a file or folder. Raises `BadInput` when nothing is there."""
    if not path.exists():
        raise BadInput(f"{path}: this {what} does not exist")
    return path.absolute()


def run(words: list[str], job: bytes, environment: Collection[str] = ()) -> Generator[ProgressLine]:
    """Lines of progress from `python -m compiler`, which reads `job` on standard input.

    It gets no key, token or path of ours: only what the system needs to start a program, and the variables named in
    `environment`. Raises `Refused` or `Infeasible` with its reason when it fails. Whoever stops reading ends it.
    """
    env = {k: v for k, v in os.environ.items() if k in (*_ENVIRONMENT, *environment)}
    command = [sys.executable, "-P", "-m", "compiler", *words]
    last: ProgressLine | None = None
    # A file, not a pipe: nobody reads the libraries' chatter meanwhile, and a full pipe would block the compiler.
    with (
        tempfile.TemporaryFile() as chatter,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=chatter, env=env) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with suppress(BrokenPipeError):  # it ended before it read its job: its exit code and last words say why
                child.stdin.write(job)
                child.stdin.close()
            for line in child.stdout:
                last = ProgressLine.from_bytes(line)
                yield last
            child.wait()
        except BaseException:
            _end(child)
            raise
        if child.returncode != 0:
            chatter.seek(0)
            raise _failure(child.returncode, last, chatter.read().decode(errors="replace"))


def follow(lines: Generator[ProgressLine]) -> list[ProgressLine]:
    """Show progress until the end; gives the lines that announce a result.

    Raises `Stopped` after Ctrl-C, when the compiler has ended and removed what it was working on.
    """
    found: list[ProgressLine] = []
    try:
        _show(lines, found)
    except KeyboardInterrupt:
        lines.close()
        raise Stopped(
            "stopped" if any(line.event == "done" for line in found) else "stopped: nothing was written"
        ) from None
    return found


def _show(lines: Iterator[ProgressLine], found: list[ProgressLine]) -> None:
    """On a terminal a bar with an estimate, otherwise a line a step; notes always."""
    words = (TextColumn("{task.description}", markup=False), TextColumn("{task.fields[left]}", style="dim"))
    columns = (SpinnerColumn(), words[0], BarColumn(bar_width=24), TimeElapsedColumn(), words[1])
    shown = ""
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("starting the compiler", total=None, left="")
        for line in lines:
            text = f"{line.profile}: {line.message}" if line.profile else line.message
            if line.event in ("variant", "done"):
                found.append(line)
            # Without a terminal nobody watches the seconds, which stand in brackets behind what is done.
            new = text.partition(" (")[0] != shown
            if line.event == "note" or (line.event == "step" and not errors.is_terminal and new):
                errors.print(f"  {text}", highlight=False, markup=False)
            if line.event == "step":
                shown = text.partition(" (")[0]
                estimate = f"about {show_seconds(line.seconds_left)} left" if line.seconds_left is not None else ""
                bar.update(task, description=text, completed=line.done, total=line.total, left=estimate)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Politely, so that it removes its scratch folders; then not."""
    child.terminate()
    try:
        child.wait(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()


def _failure(code: int, last: ProgressLine | None, chatter: str) -> CliError:
    if last is not None and last.event == "failed":
        return Infeasible(last.message) if code == INFEASIBLE else Refused(last.message)
    end = chatter.strip().splitlines()[-1:] or ["it said nothing"]
    return Refused(f"the compiler ended with {code} before it was done: {end[0]}; nothing was written")
