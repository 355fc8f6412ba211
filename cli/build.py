"""`shoal build`: compile on the fleet's machine: ask for it, follow it, fetch what came out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from cli.client import Fleet
from cli.dataset import upload
from cli.errors import BadInput, Infeasible, Refused, Unavailable
from cli.options import Data
from cli.output import Json, console, errors, show, table
from cli.profile import supported
from wire.profile import Minimise
from wire.units import show_seconds

app = typer.Typer(help="Compile on the fleet: submit, follow, fetch.", no_args_is_help=True)

ENDED = ("succeeded", "failed", "infeasible", "cancelled")
_POLL_S = 0.5
_FOLDER = (".json", ".txt", ".safetensors")
"""What of a folder in Hugging Face layout is sent: what says how the model is, and its weights."""
_BESIDE_ONNX = (".data", ".onnx_data")
_TOKENIZER = "tokenizer.json"

Build = Annotated[str, typer.Argument(help="Build id, from 'shoal build list'.")]
Wait = Annotated[float, typer.Option(help="Seconds to wait for the end; 0 returns at once.")]


@app.command()
def submit(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder in Hugging Face layout, .onnx or .tflite file, or the digest of a source that the fleet has."
        ),
    ],
    model: Annotated[str, typer.Option(help="Family and name: intents/kitchen.")],
    version: Annotated[str, typer.Option(help="Version of what comes out: 1.0.0.")],
    test: Annotated[str, typer.Option(help="Held-out data set: its name or digest.")],
    calibration: Annotated[
        str | None, typer.Option(help="Data set that static quantization observes.", show_default=False)
    ] = None,
    describe: Annotated[
        Path | None,
        typer.Option(help="TOML that says what the source does not: task, labels, inputs.", show_default=False),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Hardware class; may be repeated.", show_default="all supported"),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="What accuracy, or agreement with the source, may lose: points of 100.")
    ] = 1.0,
    max_ms: Annotated[float, typer.Option(help="Limit of the median latency; 0: none.")] = 0.0,
    max_mb: Annotated[float, typer.Option(help="Limit of the bundle's size, in 10^6 bytes; 0: none.")] = 0.0,
    minimise: Annotated[
        Minimise | None,
        typer.Option(help="What to make small within the limits. [default: as the profile says]", show_default=False),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the decision on --max-drop, two-sided.")] = 0.95,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Try this recipe only; may be repeated.", show_default=False)
    ] = None,
    wait: Wait = 0,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Upload a source, and put a build of it into the fleet's queue."""
    family, _, name = model.partition("/")
    if not name:
        raise BadInput(f"--model {model!r}: expected family and name, such as intents/kitchen")
    fleet = Fleet.connect(data)
    body = {
        "family": family,
        "name": name,
        "version": version,
        "source": _source(fleet, source, name),
        "test": test,
        "calibration": calibration,
        "describe": _text(describe) if describe else None,
        "profiles": profile or supported(),
        "max_drop": max_drop,
        "max_ms": max_ms,
        "max_mb": max_mb,
        "minimise": minimise,
        "confidence": confidence,
        "recipes": recipe or [],
    }
    build = fleet.post("/api/v1/builds", body)
    if wait:
        build = _until_ended(fleet, build["build"], wait)
    show(build, as_json, _view(build))
    if wait:
        _exit_unless_done(build)
    elif not as_json:
        console.print(f"[dim]shoal build logs {build['build']} --follow shows how it goes[/]", highlight=False)


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List the newest builds."""
    values = Fleet.connect(data).get("/api/v1/builds")
    rows = [[v["build"], _model(v), v["state"], _how_far(v), v["who"], v["created"][:19]] for v in values]
    columns = ("Build", "Model", "State", "Progress", "By", "Submitted")
    show(values, as_json, table("Builds", columns, rows, empty="none yet: shoal build submit"))


@app.command("show")
def show_(build: Build, wait: Wait = 0, data: Data = None, as_json: Json = False) -> None:
    """Show one build: its state and why, how far it is, its bundles."""
    fleet = Fleet.connect(data)
    value = _until_ended(fleet, build, wait) if wait else fleet.get(f"/api/v1/builds/{build}")
    show(value, as_json, _view(value))


@app.command()
def logs(
    build: Build,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the build has ended.")] = False,
    data: Data = None,
) -> None:
    """Print the log of a build: its progress, and what its compiler's libraries say."""
    fleet, offset = Fleet.connect(data), 0
    while True:
        page = fleet.get(f"/api/v1/builds/{build}/logs?offset={offset}")
        console.print(page["text"], end="", markup=False, highlight=False, soft_wrap=True)
        if page["ended"] or (not follow and page["offset"] == offset):
            return
        if page["offset"] == offset:
            time.sleep(_POLL_S)
        offset = page["offset"]


@app.command()
def cancel(build: Build, data: Data = None, as_json: Json = False) -> None:
    """Take a build out of the queue, or end it while it runs."""
    fleet = Fleet.connect(data)
    fleet.post(f"/api/v1/builds/{build}/cancel", {})
    value = _until_ended(fleet, build, 60.0)
    show(value, as_json, _view(value))


@app.command()
def fetch(
    build: Build,
    output: Annotated[Path, typer.Option("--output", "-o", help="OCI image layout to write; a new folder.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Fetch the bundles of a build, ready for 'shoal release sign'."""
    fleet = Fleet.connect(data)
    files = fleet.get(f"/api/v1/builds/{build}/artifacts")
    if not files:
        raise Refused(f"build {build}: it wrote nothing: 'shoal build show {build}' says why")
    try:
        output.mkdir(parents=True)
    except FileExistsError as e:
        raise BadInput(f"{output}: exists already: choose a new folder") from e
    for file in files:
        _fetch(fleet, build, file, output)
    value = {"build": build, "output": str(output), "files": len(files)}
    show(value, as_json, f"{output}: {len(files)} files of build {build}")


def _fetch(fleet: Fleet, build: str, file: dict[str, Any], output: Path) -> None:
    path = output / file["path"]
    if not path.resolve().is_relative_to(output.resolve()):
        raise Refused(f"build {build}: file {file['path']!r} leaves the folder")
    content = fleet.get_bytes(f"/api/v1/builds/{build}/artifacts/{file['digest']}")
    found = "sha256:" + hashlib.sha256(content).hexdigest()
    if found != file["digest"]:
        raise Refused(f"build {build}: {file['path']} came with digest {found}, not {file['digest']}: fetch it again")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _source(fleet: Fleet, source: str, name: str) -> str:
    """The digest of a source, which is uploaded unless it is one already."""
    if source.startswith("sha256:"):
        return source
    files = {path: upload(fleet, file) for path, file in _files(Path(source)).items()}
    return str(fleet.post("/api/v1/sources", {"name": name, "files": files})["digest"])


def _files(source: Path) -> dict[str, Path]:
    """Files of a source by their path in it. Raises `BadInput` when there are none."""
    if source.is_dir():
        found = [p for p in sorted(source.rglob("*")) if p.is_file()]
        sent = {p.relative_to(source).as_posix(): p for p in found if p.suffix in _FOLDER}
        left_out = [str(p.relative_to(source)) for p in found if p.suffix not in _FOLDER]
        if left_out:
            errors.print(f"  not sent: {', '.join(left_out)[:500]}", markup=False, highlight=False)
    else:
        sent = {p.name: p for p in (source, *_beside(source))} if source.is_file() else {}
    if not sent:
        raise BadInput(f"{source}: no such source: name a folder in Hugging Face layout, an .onnx or a .tflite file")
    return sent


def _beside(graph: Path) -> Iterator[Path]:
    """What belongs to a graph: its external data, and the tokenizer that its description may name."""
    for path in sorted(graph.parent.iterdir()):
        data = graph.suffix == ".onnx" and path.suffix in _BESIDE_ONNX and path.name.startswith(graph.stem)
        if data or path.name == _TOKENIZER:
            yield path


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise BadInput(f"{path}: cannot be read: {e}") from e


def _until_ended(fleet: Fleet, build: str, seconds: float) -> dict[str, Any]:
    """The build once it has ended; its progress is shown meanwhile. Raises `Unavailable` after `seconds`."""
    deadline, shown = time.monotonic() + seconds, ""
    while (value := fleet.get(f"/api/v1/builds/{build}"))["state"] not in ENDED:
        if time.monotonic() > deadline:
            raise Unavailable(f"build {build}: still {value['state']} after {seconds:.0f} s")
        if (text := f"{value['state']}: {_how_far(value)}") != shown:
            errors.print(f"  {text}", highlight=False, markup=False)
        shown = text
        time.sleep(_POLL_S)
    return dict(value)


def _view(v: dict[str, Any]) -> RenderableType:
    rows = [[b["profile"], b["message"], "yes" if b.get("cached") else "no"] for b in v["bundles"]]
    title = f"Build {v['build']} of {_model(v)}: {v['state']}{': ' + v['reason'] if v['reason'] else ''}"
    view = table(title, ("Profile", "Bundle", "Cached"), rows, empty=_how_far(v) or "no bundle")
    return Group(view, *(f"  {note}" for note in v["notes"]))


def _model(v: dict[str, Any]) -> str:
    return f"{v['family']}/{v['name']} {v['version']}"


def _how_far(v: dict[str, Any]) -> str:
    if v["state"] == "queued":
        return f"waits behind {v['waits_behind']}"
    progress = v["progress"] or {}
    if v["state"] != "running" or not progress:
        return str(v["reason"])
    left = progress.get("seconds_left")
    steps = f"{progress.get('done')} of {progress['total']}" if progress.get("total") else ""
    parts = (steps, progress["message"], f"about {show_seconds(left)} left" if left is not None else "")
    return ", ".join(part for part in parts if part)


def _exit_unless_done(v: dict[str, Any]) -> None:
    if v["state"] == "infeasible":
        raise Infeasible(f"build {v['build']}: {v['reason']}")
    if v["state"] != "succeeded":
        raise Refused(f"build {v['build']} ended {v['state']}: {v['reason']}")
