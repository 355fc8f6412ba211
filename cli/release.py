"""`shoal release`: say, with offline keys, what may be installed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cli.client import Fleet
from cli.errors import BadInput
from cli.options import DEFAULT_TRUST, Data, TrustFolder
from cli.output import Json, errors, show, table
from compiler.layout import FoundBundle, Layout
from wire.chunks import digest

app = typer.Typer(help="Say, with offline keys, what may be installed.", no_args_is_help=True)

Bundles = Annotated[Path, typer.Argument(help="OCI image layout that 'shoal compile' wrote.")]


@app.command()
def init(
    family: Annotated[str, typer.Option(help="Family of models whose releases the same people sign.")],
    trust: TrustFolder = DEFAULT_TRUST,
    threshold: Annotated[int, typer.Option(min=1, max=10, help="How many release keys must sign.")] = 2,
    unencrypted: Annotated[bool, typer.Option("--unencrypted", help="Keep the keys without a passphrase.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make the offline keys and the first trust metadata, and give the metadata to the fleet."""
    from securesystemslib.signer import Key  # noqa: PLC0415

    from cli import ceremony, offline_keys  # noqa: PLC0415

    fleet = Fleet.connect(data)
    known = fleet.get("/api/v1/trust")
    if known["documents"]:
        raise BadInput("this fleet has a trust root already: use the trust folder it was made with")
    online = {role: Key.from_dict(key.pop("keyid"), key) for role, key in known["online"].items()}
    passphrase = None if unencrypted else offline_keys.new_passphrase()
    folder = ceremony.TrustFolder(trust)
    ceremony.found(folder, family, online, datetime.now(UTC), release_threshold=threshold, passphrase=passphrase)
    _publish_documents(fleet, folder.documents())
    view = (
        f"{trust}: root and targets keys (2 of 3) and {threshold} release key(s) of family [bold]{family}[/]\n"
        "The fleet got the signed metadata only. Keep this folder off the fleet, in more than one place."
    )
    show({"trust": str(trust), "family": family, "threshold": threshold}, as_json, view)


@app.command()
def sign(bundles: Bundles, trust: TrustFolder = DEFAULT_TRUST, as_json: Json = False) -> None:
    """Sign every bundle of a layout as a release. Works without network and without a fleet."""
    from cli import ceremony, offline_keys  # noqa: PLC0415

    folder = ceremony.TrustFolder(trust)
    layout = Layout(bundles)
    manifests = [layout.read(found.digest) for found in layout.bundles()]
    passphrase = offline_keys.known_passphrase(folder.keys)
    added = ceremony.list_bundles(folder, manifests, datetime.now(UTC), passphrase)
    rows = [[r.target, r.digest[:19], r.runtime, r.counter] for r in added]
    view = table("Signed", ("Release", "Digest", "Runtime", "#Counter"), rows, empty="all of them were listed already")
    show([{"target": r.target, "digest": r.digest, "counter": r.counter} for r in added], as_json, view)


@app.command()
def publish(bundles: Bundles, trust: TrustFolder = DEFAULT_TRUST, data: Data = None, as_json: Json = False) -> None:
    """Give the fleet the bundles with their evidence, then the metadata that lists them."""
    from cli import ceremony  # noqa: PLC0415

    fleet = Fleet.connect(data)
    layout = Layout(bundles)
    found = layout.bundles()
    evidence = [e for e in (layout.evidence(bundle.digest) for bundle in found) if e is not None]
    blobs = sorted({blob for bundle in found for blob in _blobs(bundle)})
    with errors.status(f"uploading {len(blobs)} blobs"):
        for blob in blobs:
            fleet.put_file(f"/api/v1/blobs/{blob}", layout.blob(blob))
        _publish_documents(fleet, ceremony.TrustFolder(trust).documents())
        for record in evidence:
            blob = digest(record.to_bytes())
            fleet.put_file(f"/api/v1/blobs/{blob}", layout.blob(blob))
            fleet.post("/api/v1/evidence", {"digest": blob})
    view = f"{bundles}: {len(found)} bundles, their evidence and the signed metadata are with the fleet"
    show({"bundles": len(found), "blobs": len(blobs), "evidence": len(evidence)}, as_json, view)


def _publish_documents(fleet: Fleet, documents: dict[str, bytes]) -> None:
    fleet.post("/api/v1/trust", {"documents": {name: data.decode() for name, data in documents.items()}})


def _blobs(bundle: FoundBundle) -> list[str]:
    manifest = bundle.manifest
    lists = [f.chunks for f in manifest.files if f.chunks]
    return [bundle.digest, manifest.config.digest, *(f.digest for f in manifest.files), *lists]
