"""Packs a broken copy of a bundle: same golden set, one scrambled weight. It is sound in every other way.

A release of it is what a fleet must survive: signed by the right people, whole in transit, and wrong.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from compiler.bundle.layout import Layout
from compiler.bundle.pack import Packer, bundle_files
from compiler.judge.sabotage import scramble
from compiler.progress import Reporter
from wire.bundle import BundleConfig, BundleManifest, Role
from wire.chunks import digest
from wire.document import check_name, dump_json


def sabotage(layout: Path, target: str, version: str, output: Path, report: Reporter) -> None:
    """Write the broken bundle of `target` under another version into `output`. Raises `Malformed` or `Incompatible`."""
    report.total = 2
    report.step(f"scrambling the model of {target}")
    check_name(version, "sabotage version")
    found = Layout(layout)
    manifest = found.find(target).manifest
    files: list[tuple[Role, str, bytes]] = []
    for file in manifest.files:
        if file.role != "chunks":
            data = found.read(file.digest)
            files.append((file.role, file.path, scramble(data) if file.role == "model" else data))
    entries, blobs = bundle_files(files)
    config = _config(found.read(manifest.config.digest), version, [f.digest for f in entries])
    broken = BundleManifest(
        family=manifest.family,
        name=manifest.name,
        version=version,
        profile=manifest.profile,
        runtime=manifest.runtime,
        precision=manifest.precision,
        config=BundleConfig(digest=digest(config), size=len(config)),
        files=entries,
        annotations=manifest.annotations,
    )
    report.step(f"packing {broken.target}")
    with Packer(output) as packer:
        bundle = packer.add_bundle(broken, [config, *blobs.values()])
        packer.publish()
    report.finish(f"{broken.target}, one weight scrambled, written to {output}", digest=bundle.digest)


def _config(sound: bytes, version: str, layers: Sequence[str]) -> bytes:
    """The ModelPack config, true for the broken bundle."""
    value = json.loads(sound)
    value["descriptor"]["version"] = version
    value["modelfs"]["diffIds"] = list(layers)
    return dump_json(value)
