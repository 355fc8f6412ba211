"""`shoal compile`: source models into bundles; bundles made again to prove them; a page on what is known of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cli.compiling import default_cache, existing, follow, run
from cli.errors import BadInput
from cli.output import Json, errors, show, table
from cli.profile import load, supported
from wire.build import BuildJob, Data, VerifyJob
from wire.errors import WireError
from wire.evidence import Evidence, Measurement
from wire.profile import Minimise, Profile
from wire.units import show_size

if TYPE_CHECKING:
    from compiler.bundle.layout import FoundBundle, Layout

REGISTERED, FUNCTION = "models:/", "python:"
"""Sources that are no path: a registered model of MLflow, and a function that returns a torch module."""
BUILD = "build"
COMMANDS = ("verify", "report")


class _Compile(TyperGroup):
    """`shoal compile SOURCE` compiles; `verify` and `report` are the other things that one may want of a bundle."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The words with the name of the command that is meant. A source folder named `report` is `./report`."""
        first = args[0] if args else ""
        if first in (*COMMANDS, "--verify"):
            return super().parse_args(ctx, [first.removeprefix("--"), *args[1:]])
        return super().parse_args(ctx, [BUILD, *args])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Help and errors show the command as it is typed: without the name that was put in."""
        name, command, rest = super().resolve_command(ctx, args)
        return "" if name == BUILD else name, command, rest


app = typer.Typer(cls=_Compile, help="Compile a source model into one bundle for each profile.")

Describe = Annotated[
    Path | None, typer.Option(help="TOML that says what the source does not: task, labels, inputs.", show_default=False)
]
TestSet = Annotated[Path, typer.Option(help="Held-out examples: JSONL or CSV of text and label, .npz of arrays.")]
Calibration = Annotated[
    Path | None,
    typer.Option(
        help="Other examples, which static quantization observes and, with labels, confidence is learnt from.",
        show_default=False,
    ),
]
Workers = Annotated[
    list[str] | None,
    typer.Option(
        "--worker",
        help="Python of a runtime with an environment of its own: tflite-runtime=/opt/tflite/bin/python.",
        show_default=False,
    ),
]


@app.command(BUILD)
def build(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder in Hugging Face layout, .onnx, .tflite, .gguf, TorchScript .pt, "
            "python:package.module:function, or models:/name@alias of MLflow."
        ),
    ],
    model: Annotated[str, typer.Option(help="Family and name: intents/kitchen.")],
    version: Annotated[str, typer.Option(help="Version of what comes out: 1.0.0.")],
    test_set: TestSet,
    output: Annotated[Path, typer.Option("--output", "-o", help="OCI image layout to write.")],
    calibration: Calibration = None,
    describe: Describe = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Hardware class, or a TOML file of your own; may be repeated.", show_default="all supported"),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="What accuracy, or agreement with the source, may lose: points of 100.")
    ] = 1.0,
    max_ms: Annotated[float, typer.Option(help="Limit of the median latency; 0: none.")] = 0.0,
    max_mb: Annotated[float, typer.Option(help="Limit of the bundle's size, in 10^6 bytes; 0: none.")] = 0.0,
    minimise: Annotated[
        Minimise | None,
        typer.Option(help="What to make small within the limits.", show_default="as the profile says"),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the decision on --max-drop, two-sided.")] = 0.95,
    target_error: Annotated[
        float,
        typer.Option(help="Answers of 100 that may be wrong here where the source is right; less sure ones go up."),
    ] = 0.5,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Try this recipe only; may be repeated.", show_default=False)
    ] = None,
    memory: Annotated[str, typer.Option(help="What candidates may take together while they are made.")] = "3 GiB",
    processes: Annotated[int, typer.Option(help="Candidates that are made at the same time.")] = 2,
    worker: Workers = None,
    test_licence: Annotated[str, typer.Option(help="Licence of the test set, an SPDX expression.")] = "unknown",
    calibration_licence: Annotated[str, typer.Option(help="Licence of the calibration set.")] = "unknown",
    cache: Annotated[
        Path | None, typer.Option(help="Folder of earlier results.", show_default="~/.cache/shoal")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile a source model into one bundle for each profile: the best variant, proven on a held-out test set.

    `shoal compile verify` makes bundles again and compares the bytes; `shoal compile report` writes a page on them.
    """
    family, _, name = model.partition("/")
    if not name:
        raise BadInput(f"--model {model!r}: expected family and name, such as intents/kitchen")
    profiles = tuple(load(p) for p in profile or supported())
    job = BuildJob(
        family=family,
        name=name,
        version=version,
        source=_source(source),
        describe=_optional(describe, "description"),
        test=Data(path=str(existing(test_set, "test set")), licence=test_licence),
        calibration=_data(calibration, calibration_licence),
        output=str(output.absolute()),
        cache=str((cache or default_cache()).absolute()),
        profiles=profiles,
        max_drop=max_drop,
        max_ms=max_ms,
        max_mb=max_mb,
        minimise=minimise,
        confidence=confidence,
        recipes=tuple(recipe or ()),
        target_error=target_error,
        memory=memory,
        processes=processes,
        workers=_workers(worker),
    )
    made = follow(run([BUILD], job.to_bytes(), _environment(source)))
    cached = {line.digest: bool(line.cached) for line in made if line.digest and line.event == "variant"}
    rows = list(_variants(output, cached, {p.name: p for p in profiles}))
    show(rows, as_json, _table(f"{model} {version} in {output}", rows))


@app.command("verify")
def verify(
    bundle: Annotated[Path, typer.Argument(help="OCI image layout with the bundles, as 'shoal compile' wrote it.")],
    source: Annotated[str, typer.Option(help="The source that they were made of.")],
    test_set: TestSet,
    target: Annotated[
        str | None,
        typer.Option(help="One bundle: models/<family>/<name>/<version>/<profile>.", show_default="all"),
    ] = None,
    calibration: Calibration = None,
    describe: Describe = None,
    profile: Annotated[
        Path | None, typer.Option(help="TOML file of the profile, where it is your own.", show_default=False)
    ] = None,
    worker: Workers = None,
    as_json: Json = False,
) -> None:
    """Make bundles again by their recorded recipes, and compare: the same bytes or an error. No search is repeated."""
    from compiler.bundle.layout import Layout  # noqa: PLC0415

    manifests = [found.manifest for found in _bundles(Layout(bundle), target)]
    jobs = [
        VerifyJob(
            layout=str(bundle.absolute()),
            target=manifest.target,
            source=_source(source),
            describe=_optional(describe, "description"),
            test=Data(path=str(existing(test_set, "test set"))),
            calibration=_data(calibration, "unknown"),
            profile=load(str(profile) if profile else manifest.profile),
            workers=_workers(worker),
        )
        for manifest in manifests
    ]
    rows = []
    for job in jobs:
        done = follow(run(["verify"], job.to_bytes(), _environment(source)))
        rows.append({"target": job.target, "digest": done[-1].digest, "same": True})
    view = "\n".join(f"{row['target']}: the same bytes, {row['digest']}" for row in rows)
    show(rows, as_json, view)


@app.command("report")
def report(
    layout: Annotated[Path, typer.Argument(help="OCI image layout, as 'shoal compile' wrote it.")],
    target: Annotated[
        str | None, typer.Argument(help="One bundle: models/<family>/<name>/<version>/<profile>.", show_default="all")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    measured: Annotated[
        Path | None,
        typer.Option(help="What devices measured: the output of 'shoal measure show --json'.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained page on bundles: what was measured, what was tried, and why it lost."""
    from compiler.bundle.layout import Layout  # noqa: PLC0415
    from compiler.report.page import page  # noqa: PLC0415

    opened = Layout(layout)
    records = [e for e in (opened.evidence(found.digest) for found in _bundles(opened, target)) if e is not None]
    if not records:
        raise BadInput(f"{layout}: no evidence of {target or 'any bundle'} in it: compile it again")
    figures = _measured(measured) if measured else {}
    strange = sorted(figures.keys() - {e.subject for e in records})
    if strange:
        raise BadInput(
            f"{measured}: figures of {strange[0]}, which is no bundle of this page: name its layout and target"
        )
    output.write_text(page(records, figures), encoding="utf-8")
    value = {"page": str(output), "targets": [e.target for e in records], "measured": sum(map(len, figures.values()))}
    show(value, as_json, f"{output}: {len(records)} {'bundle' if len(records) == 1 else 'bundles'}")


def _measured(path: Path) -> dict[str, list[Measurement]]:
    """What devices measured, by the digest of the bundle. Raises `BadInput`."""
    found: dict[str, list[Measurement]] = {}
    try:
        for figure in json.loads(existing(path, "file of measurements").read_bytes()):
            found.setdefault(figure["digest"], []).append(Measurement.from_value(figure))
    except (ValueError, TypeError, KeyError, WireError) as e:
        raise BadInput(f"{path}: not what 'shoal measure show --json' writes: {e}") from e
    return found


def _bundles(layout: Layout, target: str | None) -> list[FoundBundle]:
    """One bundle or all. Raises `BadInput` when there is none; the layout's own error names those that it lists."""
    found = [layout.find(target)] if target else layout.bundles()
    if not found:
        raise BadInput(f"{layout.folder}: no bundle in it")
    return found


def compile_only(profile: Profile | None, runtime: str) -> bool:
    """Whether a runtime was never seen working on a profile. A profile that is not known here is not judged."""
    return profile is not None and profile.compile_only(runtime)


def _source(text: str) -> str:
    return text if text.startswith((REGISTERED, FUNCTION)) else str(existing(Path(text), "source model"))


def _environment(source: str) -> Sequence[str]:
    """What a source needs of our environment: where the registry is with its credentials, or where modules are."""
    if source.startswith(REGISTERED):
        return [name for name in os.environ if name.startswith("MLFLOW_")]
    return ["PYTHONPATH"] if source.startswith(FUNCTION) else []


def _optional(path: Path | None, what: str) -> str | None:
    return str(existing(path, what)) if path else None


def _data(path: Path | None, licence: str) -> Data | None:
    return Data(path=str(existing(path, "calibration set")), licence=licence) if path else None


def _workers(words: Sequence[str] | None) -> dict[str, str]:
    found = {}
    for word in words or ():
        runtime, _, python = word.partition("=")
        if not runtime or not python:
            raise BadInput(f"--worker {word!r}: expected a runtime and its Python: tflite-runtime=/path/to/python")
        # Not resolved: the link of a virtual environment is what makes it one.
        found[runtime] = str(existing(Path(python), f"Python for {runtime}"))
    return found


def _variants(output: Path, cached: dict[str, bool], profiles: dict[str, Profile]) -> Iterator[dict[str, Any]]:
    """What is known of each bundle that was just written."""
    from compiler.bundle.layout import Layout  # noqa: PLC0415

    layout = Layout(output)
    for bundle in layout.bundles():
        manifest = bundle.manifest
        evidence = layout.evidence(bundle.digest)
        if bundle.digest not in cached or evidence is None:
            continue
        yield {
            "target": manifest.target,
            "digest": bundle.digest,
            "profile": manifest.profile,
            "compile_only": compile_only(profiles[manifest.profile], manifest.runtime),
            "runtime": manifest.runtime,
            "precision": manifest.precision,
            "recipe": evidence.recipe,
            "bytes": sum(file.size for file in manifest.files if file.role in ("model", "weights")),
            **figures(evidence),
            "cached": cached[bundle.digest],
        }


def figures(evidence: Evidence) -> dict[str, Any]:
    """What tables show of a bundle: its metric and the source's, what was lost and how sure that is, and its latency.

    `accuracy` and `source_accuracy` are None where the examples have no labels, `agreement` where they have.
    """
    decision, p50 = evidence.decision, evidence.get("latency_p50")
    named = {name: evidence.get(name) for name in ("accuracy", "source_accuracy", "agreement")}
    return {
        **{name: found.value if found else None for name, found in named.items()},
        "drop": {k: getattr(decision, k) for k in ("metric", "drop", "low", "high", "confidence", "n", "outcome")},
        "p50_ms": p50.value if p50 else None,
        "evidence": p50.kind if p50 else None,
    }


def _table(title: str, rows: list[dict[str, Any]]) -> Any:
    if any(row["compile_only"] for row in rows):
        errors.print("  compile-only: that runtime was never seen working on that hardware", highlight=False)
    metrics = {row["drop"]["metric"] for row in rows}
    metric = metrics.pop().capitalize() if len(metrics) == 1 else "Metric"
    columns = ("Profile", "Recipe", "#Size", f"#{metric}", "#Drop, points", "#p50 ms")
    return table(title, columns, [_row(r) for r in rows])


def _row(v: dict[str, Any]) -> list[object]:
    drop, p50 = v["drop"], v["p50_ms"]
    marks = ", ".join(word for word, said in (("compile-only", v["compile_only"]), ("cached", v["cached"])) if said)
    return [
        f"{v['profile']}\n[dim]{marks}[/]",
        f"{v['recipe']}\n[dim]{v['runtime']} {v['precision']}[/]",
        show_size(v["bytes"]),
        f"{v[drop['metric']]:.4f}",
        f"{drop['drop']:.2f} {drop['outcome']}\n[dim]{drop['low']:.2f} to {drop['high']:.2f}[/]",
        None if p50 is None else f"{p50:.2f}\n[dim]{v['evidence']}[/]",
    ]
