"""`shoal compile` and `shoal tune`: run the compiler as a process of its own, and show how it goes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cli.errors import BadInput, CliError, Infeasible, Refused
from cli.output import Json, errors, show, table
from cli.profile import load, names
from wire.build import BuildJob
from wire.build import Progress as ProgressLine
from wire.bundle import BundleManifest
from wire.units import show_size

INFEASIBLE = 3
"""Exit code of the compiler when no recipe of a profile holds the accuracy."""


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/shoal`, or `~/.cache/shoal`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "shoal"


def compile_(
    source: Annotated[Path, typer.Argument(help="Folder of the source model, in Hugging Face layout.")],
    model: Annotated[str, typer.Option(help="Family and name: intents/kitchen.")],
    version: Annotated[str, typer.Option(help="Version of what comes out: 1.0.0.")],
    test_set: Annotated[Path, typer.Option(help="JSONL file of held-out {text, label} rows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="OCI image layout to write.")],
    profile: Annotated[list[str] | None, typer.Option(help="Hardware class; may be repeated. [default: all]")] = None,
    max_drop: Annotated[float, typer.Option(help="Accuracy that may be lost, in points of a percent.")] = 1.0,
    cache: Annotated[Path | None, typer.Option(help="Folder of earlier results. [default: ~/.cache/shoal]")] = None,
    as_json: Json = False,
) -> None:
    """Compile a source model into one bundle for each profile, measured on a held-out test set."""
    family, _, name = model.partition("/")
    if not name:
        raise BadInput(f"--model {model!r}: expected family and name, such as intents/kitchen")
    job = BuildJob(
        family=family,
        name=name,
        version=version,
        source=str(_existing(source, "source model")),
        test_set=str(_existing(test_set, "test set")),
        output=str(output.absolute()),
        cache=str((cache or default_cache()).absolute()),
        profiles=tuple(load(p) for p in profile or names()),
        max_drop=max_drop,
    )
    made = _follow(_run_compiler(["build"], job.to_bytes()))
    rows = list(_variants(output, made))
    columns = (
        "Profile",
        "Runtime",
        "Precision",
        "Recipe",
        "#Size",
        "#Accuracy",
        "#Source",
        "#p50 ms",
        "Latency is",
        "Cached",
    )
    show(rows, as_json, table(f"{model} {version} in {output}", columns, [_row(r) for r in rows]))


def tune(
    source: Annotated[Path, typer.Argument(help="Folder of a sentence encoder, in Hugging Face layout.")],
    train: Annotated[Path, typer.Option(help="JSONL file of {text, label} rows to learn from.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the source model to write.")],
    as_json: Json = False,
) -> None:
    """Train a classifier on top of a sentence encoder; what comes out is a source model for 'shoal compile'."""
    paths = (_existing(source, "encoder"), _existing(train, "training rows"), output.absolute())
    words = ["tune", "--source", str(paths[0]), "--train", str(paths[1]), "--output", str(paths[2])]
    _follow(_run_compiler(words, b""))
    show({"source": str(output)}, as_json, f"{output}: a source model, ready for 'shoal compile'")


def _existing(path: Path, what: str) -> Path:
    if not path.exists():
        raise BadInput(f"{path}: this {what} does not exist")
    return path.absolute()


def _run_compiler(words: list[str], job: bytes) -> Iterator[ProgressLine]:
    """Lines of progress from the compiler's process. Raises `Refused` or `Infeasible` with its reason when it fails."""
    # The compiler gets no key, token or path of ours: only what the system needs to start a program.
    env = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")}
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
        except BaseException:
            child.terminate()
            raise
        child.wait()
        if child.returncode != 0:
            chatter.seek(0)
            raise _failure(child.returncode, last, chatter.read().decode(errors="replace"))


def _failure(code: int, last: ProgressLine | None, chatter: str) -> CliError:
    if last is not None and last.event == "failed":
        return Infeasible(last.message) if code == INFEASIBLE else Refused(last.message)
    end = chatter.strip().splitlines()[-1:] or ["it said nothing"]
    return Refused(f"the compiler ended with {code} before it was done: {end[0]}; nothing was written")


def _follow(lines: Iterator[ProgressLine]) -> list[ProgressLine]:
    """Show progress on standard error until the end; gives the lines that announce a variant."""
    made: list[ProgressLine] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("starting the compiler", total=None)
        for line in lines:
            text = f"{line.profile}: {line.message}" if line.profile else line.message
            bar.update(task, description=text, completed=line.done, total=line.total)
            if line.event == "variant":
                made.append(line)
            if line.event == "step" and not errors.is_terminal:
                errors.print(f"  {text}", highlight=False)
    return made


def _variants(output: Path, made: list[ProgressLine]) -> Iterator[dict[str, Any]]:
    from compiler.layout import Layout  # noqa: PLC0415

    layout = Layout(output)
    for line in made:
        assert line.digest
        manifest = BundleManifest.from_bytes(layout.read(line.digest))
        evidence = layout.evidence(line.digest)
        assert evidence is not None
        figures = {m.metric: m.value for m in evidence.measurements}
        kinds = {m.metric: m.kind for m in evidence.measurements}
        yield {
            "target": manifest.target,
            "digest": line.digest,
            "profile": manifest.profile,
            "runtime": manifest.runtime,
            "precision": manifest.precision,
            "recipe": evidence.recipe,
            "bytes": manifest.file("model").size,
            "accuracy": figures["accuracy"],
            "source_accuracy": figures["source_accuracy"],
            "p50_ms": figures["latency_p50"],
            "evidence": kinds["latency_p50"],
            "cached": bool(line.cached),
        }


def _row(v: dict[str, Any]) -> list[object]:
    figures = [f"{v['accuracy']:.3f}", f"{v['source_accuracy']:.3f}", f"{v['p50_ms']:.1f}"]
    head = [v[k] for k in ("profile", "runtime", "precision", "recipe")]
    return [*head, show_size(v["bytes"]), *figures, v["evidence"], "yes" if v["cached"] else "no"]
