"""`shoal profile`: the hardware classes that Shoal compiles for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from cli import detect as detection
from cli.errors import BadInput, Refused
from cli.output import Json, show, table
from wire.errors import WireError
from wire.profile import Profile, ProfileRuntime
from wire.units import show_size

app = typer.Typer(help="The hardware classes that Shoal compiles for.", no_args_is_help=True)

_SUFFIX = ".toml"


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List every profile: its hardware, its runtimes, which of them are compile-only, and its limits."""
    profiles = [load(name) for name in names()]
    rows = [
        [
            p.name,
            p.title,
            p.status,
            p.hardware.cpu,
            p.hardware.memory,
            ", ".join(map(_runtime, p.runtimes)),
            p.minimise,
            p.limits.disk,
        ]
        for p in profiles
    ]
    columns = ("Profile", "Hardware", "Status", "CPU", "#Memory", "Runtimes", "Minimise", "#Disk limit")
    show([p.to_value() for p in profiles], as_json, table("Profiles", columns, rows))


@app.command("show")
def show_(
    name: Annotated[str, typer.Argument(help="Name of a profile, or a TOML file of your own.")], as_json: Json = False
) -> None:
    """Show one profile: hardware, runtimes, limits, recipes with the rules that refuse some, and sources."""
    profile = load(name)
    recipes = list(_recipes(profile))
    show(profile.to_value() | {"recipes": recipes}, as_json, _view(profile, recipes))


@app.command()
def detect(
    worker: Annotated[
        list[str] | None,
        typer.Option(help="RUNTIME=PYTHON of a runtime with an environment of its own; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell which profile fits this machine, and try one inference with each of its runtimes."""
    pythons = dict(_pair(word) for word in worker or ())
    here = detection.look()
    profiles = [load(name) for name in names()]
    against = {p.name: detection.differences(p, here) for p in profiles}
    fitting = [p for p in profiles if not against[p.name]]
    tried = {p.name: detection.probe(p, pythons) for p in fitting}
    value = {
        "here": asdict(here) | {"features": sorted(here.features)},
        "fits": [p.name for p in fitting],
        "differences": {name: found for name, found in against.items() if found},
        "runtimes": {name: [asdict(p) for p in probes] for name, probes in tried.items()},
    }
    show(value, as_json, _found(here, against, tried))


@app.command()
def lint(
    profiles: Annotated[list[Path] | None, typer.Argument(help="TOML files. [default: the profiles of Shoal]")] = None,
    as_json: Json = False,
) -> None:
    """Check profiles: fields, sources, status, features, limits, versions, opset and IR. Exit code 1 with findings."""
    from compiler.plan.lint import lint as findings_of  # noqa: PLC0415  the other commands need no compiler

    given = {str(p): (p.name, _read(p)) for p in profiles or ()} or {f"{n}{_SUFFIX}": _shipped(n) for n in names()}
    findings = [(where, f) for where, (file, data) in given.items() for f in findings_of(file, data)]
    rows = [(where, f.key, f.message) for where, f in findings]
    value = [{"file": where, "key": f.key, "message": f.message} for where, f in findings]
    show(value, as_json, table("Findings", ("File", "Key", "What to do"), rows, empty=f"none in {len(given)} profiles"))
    if findings:
        raise Refused(f"profile lint: {len(findings)} findings in {len({where for where, _ in findings})} files")


def names() -> list[str]:
    """Names of the profiles that this installation carries."""
    return sorted(
        f.name.removesuffix(_SUFFIX) for f in files("firmware_profiles").iterdir() if f.name.endswith(_SUFFIX)
    )


def supported() -> list[str]:
    """Names of those whose runtime was seen working: what is compiled for unless somebody names others."""
    return [name for name in names() if load(name).status == "supported"]


def load(name: str) -> Profile:
    """One profile by name, or from a file of the user's own that ends in .toml.

    Raises `BadInput` that names those that exist, or says what is wrong with the file.
    """
    if name in names():
        return Profile.from_toml(_shipped(name)[1])
    if not name.endswith(_SUFFIX):
        raise BadInput(f"profile {name!r} is unknown: choose from {', '.join(names())}, or give a .toml file")
    try:
        return Profile.from_toml(_read(Path(name)))
    except WireError as e:
        raise BadInput(f"{name}: {e}; 'shoal profile lint {name}' checks a corrected file") from e


def _shipped(name: str) -> tuple[str, bytes]:
    """File name and bytes of a profile."""
    return f"{name}{_SUFFIX}", files("firmware_profiles").joinpath(f"{name}{_SUFFIX}").read_bytes()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise BadInput(f"{path}: this profile cannot be read: {e.strerror}") from e


def _pair(word: str) -> tuple[str, str]:
    runtime, _, python = word.partition("=")
    if not python:
        raise BadInput(f"--worker {word!r}: expected a runtime and its Python: tflite-runtime=/opt/tflite/bin/python")
    return runtime, python


def _runtime(runtime: ProfileRuntime) -> str:
    return f"{runtime.name} {runtime.version}{'' if runtime.seen_working else ' (compile-only)'}"


def _recipes(profile: Profile) -> Iterator[dict[str, Any]]:
    """What the rules say of every recipe, for the source that allows most: see `_asked_for`."""
    from compiler.plan.recipes import RECIPES  # noqa: PLC0415
    from compiler.plan.rules import WORKERS, refusal  # noqa: PLC0415

    source = _asked_for()
    for recipe in RECIPES.values():
        refused = refusal(recipe, profile, source, calibrated=True, workers=WORKERS)
        said = {"rule": refused.rule, "reason": refused.reason} if refused else {"rule": "", "reason": ""}
        yield {"recipe": recipe.name, "runtime": recipe.runtime, "precision": recipe.precision, **said}


def _asked_for() -> Any:
    """A source for which the rules are shown: a classifier of pictures in PyTorch, since texts are refused more."""
    from compiler.sources.source import Source  # noqa: PLC0415
    from wire.pipeline import TensorSpec  # noqa: PLC0415

    given = TensorSpec(name="input", dtype="float32", shape=(1, 3, 224, 224))
    made = TensorSpec(name="output", dtype="float32", shape=(1, 10))
    return Source(
        kind="torch-module",
        place="",
        digest="",
        size=0,
        architecture="",
        task="image-classification",
        labels=(),
        activation="softmax",
        inputs=(given,),
        outputs=(made,),
    )


def _view(profile: Profile, recipes: list[dict[str, Any]]) -> RenderableType:
    hardware = {k: v for k, v in profile.hardware.to_value().items() if v not in ("", [])}
    facts = [(key, ", ".join(v) if isinstance(v, list) else v) for key, v in hardware.items()]
    facts += [("disk limit", profile.limits.disk), ("memory limit", profile.limits.memory)]
    facts += [("minimise", profile.minimise)]
    runtimes = [
        (r.name, r.version, r.opset or "", r.ir or "", "yes" if r.seen_working else "no: compile-only")
        for r in profile.runtimes
    ]
    return Group(
        table(f"{profile.name}: {profile.title}, {profile.status}", ("Hardware", ""), facts),
        table("Runtimes", ("Runtime", "Version", "#Opset", "#IR", "Seen working"), runtimes),
        table(
            "Recipes of a PyTorch model, with calibration examples and workers",
            ("Recipe", "Runtime", "Precision", "Refused by", "Because"),
            [list(r.values()) for r in recipes],
        ),
        table(
            "Sources",
            ("Figure", "Source", "Confirmed"),
            [(s.figure, s.source, "yes" if s.confirmed else "no") for s in profile.sources],
        ),
    )


def _found(
    here: detection.Here, against: dict[str, list[str]], tried: dict[str, list[detection.Probe]]
) -> RenderableType:
    facts = [("board", here.board), ("compatible", ", ".join(here.compatible)), ("Jetson Linux", here.jetson)]
    facts += [("machine", here.machine), ("processor", here.cpu), ("memory", show_size(here.memory))]
    facts += [("Python", here.python), ("glibc", here.glibc)]
    fits = [(name, "no" if found else "yes", "; ".join(found)) for name, found in against.items()]
    words = {True: "works", False: "does not work", None: "unknown"}
    probes = [(name, p.runtime, words[p.works], p.told) for name, found in tried.items() for p in found]
    return Group(
        table("This machine", ("What", ""), facts),
        table("Profiles", ("Profile", "Fits", "Because"), fits),
        table("One inference each", ("Profile", "Runtime", "Result", "What it said"), probes, empty="no profile fits"),
    )
