"""`shoal release`: say, with offline keys, what may be installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import release_keys
from cli.asking import Yes, confirm
from cli.client import Fleet
from cli.errors import BadInput, Unavailable
from cli.options import DEFAULT_TRUST, Data, KeysFolder, TrustFolder, Unencrypted
from cli.output import Json, errors, table
from compiler.bundle.layout import FoundBundle, Layout
from wire.chunks import digest

if TYPE_CHECKING:
    from cli.trust.book import Book
    from wire.release import Release

app = typer.Typer(help="Say, with offline keys, what may be installed.", no_args_is_help=True)

Bundles = Annotated[Path, typer.Argument(help="OCI image layout that 'shoal compile' wrote.")]
_TRUST = "/api/v1/trust"


@app.command()
def init(
    family: Annotated[str, typer.Option(help="Family of models whose releases the same people sign.")],
    trust: TrustFolder = DEFAULT_TRUST,
    keys: KeysFolder = None,
    threshold: Annotated[int, typer.Option(min=1, max=10, help="How many release keys must sign.")] = 2,
    unencrypted: Unencrypted = False,
    yes: Yes = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make the offline keys and the first trust metadata, or the keys of one more family.

    Works without network when the folder has online.json (`shoal release fetch`); else it asks the fleet and gives it
    the signed metadata.
    """
    from cli.trust import ceremony, desk  # noqa: PLC0415

    at = desk.Desk.open(trust, keys)
    book, now, fleet = at.trust.book(), datetime.now(UTC), None
    founded_offline = not book.is_founded() and at.trust.online() is not None
    passphrase = desk.passphrase_for_new(unencrypted)
    if book.is_founded():
        book = ceremony.with_family(book, at.keys, family, now, threshold=threshold, passphrase=passphrase)
    else:
        online = at.trust.online()
        if online is None:
            fleet = Fleet.connect(data)
            online = _online(fleet)
        book = ceremony.found(at.keys, family, online, now, release_threshold=threshold, passphrase=passphrase)
    book = at.finish(book, yes=yes, ask=founded_offline)
    if fleet is not None:
        _publish_documents(fleet, book)
    after = "The fleet got the signed metadata only." if fleet else "Carry it back, and run 'shoal release publish'."
    view = (
        f"{trust}: {threshold} release key(s) of family [bold]{family}[/]; root and targets are signed by 2 of 3.\n"
        f"{after} Keep the private keys off the fleet, in more than one place."
    )
    value = {"trust": str(trust), "family": family, "threshold": threshold, "published": fleet is not None}
    desk.report(value, view, book, as_json)


@app.command()
def fetch(
    trust: TrustFolder = DEFAULT_TRUST,
    prepare: Annotated[
        str | None, typer.Option(help="First let the fleet make the next key of fleet, snapshot or timestamp.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Take the fleet's public keys, authorities and metadata into a folder, for a machine without network."""
    from rich.console import Group  # noqa: PLC0415

    from cli.trust import desk, state  # noqa: PLC0415

    fleet = Fleet.connect(data)
    known = fleet.post(f"{_TRUST}/keys", {"role": prepare}) if prepare else fleet.get(_TRUST)
    folder = desk.Desk.open(trust).trust
    book = folder.book().take(_encoded(known["documents"]))
    folder.save_online(known)
    folder.save(book)
    documents = sorted(book.signed)
    carry = f"{trust}: online.json and {len(documents)} documents: carry it to the machine that signs"
    view = Group(state.online_view(folder.fetched()), carry)
    desk.report({"trust": str(trust), "documents": documents, "next": sorted(known["next"])}, view, book, as_json)


@app.command()
def sign(
    bundles: Annotated[Path | None, typer.Argument(help="OCI image layout that 'shoal compile' wrote.")] = None,
    trust: TrustFolder = DEFAULT_TRUST,
    keys: KeysFolder = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Sign every bundle of a layout as a release, or without one all that waits. Works without network and fleet."""
    from cli.trust import ceremony, desk, listing  # noqa: PLC0415

    at, now = desk.Desk.open(trust, keys), datetime.now(UTC)
    before = at.trust.book()
    book, added, only = before, list["Release"](), None
    if bundles is None:
        book = ceremony.with_roles(book, book.roles(), now)
    else:
        layout = Layout(bundles)
        manifests = [layout.read(found.digest) for found in _bundles(layout)]
        book, added, only = listing.list_bundles(book, manifests, now)
    book = at.finish(book, only, yes=yes)
    complete = sorted(name for name, data in book.signed.items() if before.signed.get(name) != data)
    rows = [[r.target, r.digest[:19], r.runtime, r.counter] for r in added]
    none = f"no new release; complete now: {', '.join(complete) or 'nothing new'}"
    view = table("Signed", ("Release", "Digest", "Runtime", "#Counter"), rows, empty=none)
    desk.report({"releases": [_release(r) for r in added], "complete": complete}, view, book, as_json)


@app.command()
def publish(
    bundles: Annotated[Path | None, typer.Argument(help="OCI image layout whose bundles go with it.")] = None,
    trust: TrustFolder = DEFAULT_TRUST,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Give the fleet the bundles with their evidence, then the metadata that lists them."""
    from cli.trust.desk import Desk, report  # noqa: PLC0415

    fleet, book = Fleet.connect(data), Desk.open(trust).trust.book()
    layout = Layout(bundles) if bundles else None
    found = _bundles(layout) if layout else []
    blobs = _upload(fleet, layout, found) if layout else 0
    sent = _publish_documents(fleet, book)
    evidence = _publish_evidence(fleet, layout, found) if layout else 0
    documents = ", ".join(sent) or "nothing new"
    view = f"{bundles or trust}: {len(found)} bundles, {evidence} with evidence; metadata: {documents}"
    value = {"bundles": len(found), "blobs": blobs, "evidence": evidence, "documents": sent}
    report(value, view, book, as_json)


def _bundles(layout: Layout) -> list[FoundBundle]:
    found = layout.bundles()
    if not found:
        raise BadInput(f"{layout.folder}: its index lists no bundle of a model: name what 'shoal compile' wrote")
    return found


@app.command()
def withdraw(
    what: Annotated[str, typer.Argument(help="A target path, or FAMILY/NAME with a version.")],
    version: Annotated[str | None, typer.Argument(help="Version, when a model is named.")] = None,
    profile: Annotated[str | None, typer.Option(help="Only the release for this profile.")] = None,
    all_profiles: Annotated[bool, typer.Option("--all-profiles", help="The releases for every profile.")] = False,
    trust: TrustFolder = DEFAULT_TRUST,
    keys: KeysFolder = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delist a release: nothing installs it any more. A device that runs it goes on until it is told otherwise."""
    from cli.trust import desk, listing  # noqa: PLC0415

    at = desk.Desk.open(trust, keys)
    book = at.trust.book()
    targets = listing.chosen(book, what, version, profile, every=all_profiles)
    book, gone = listing.withdraw(book, targets, datetime.now(UTC))
    book = at.finish(book, only={f"release-{r.model.partition('/')[0]}" for r in gone}, yes=yes)
    view = table("Withdrawn", ("Release", "#Counter"), [[r.target, r.counter] for r in gone])
    desk.report({"withdrawn": [_release(r) for r in gone]}, view, book, as_json)


@app.command("raise-floor")
def raise_floor(
    model: Annotated[str, typer.Argument(help="FAMILY/NAME")],
    to: Annotated[int, typer.Option(min=1, help="Lowest counter that may still be installed, for ever.")],
    trust: TrustFolder = DEFAULT_TRUST,
    keys: KeysFolder = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Kill every release of a model below a counter, for ever: no device that heard of it installs one again."""
    from cli.trust import desk, listing  # noqa: PLC0415

    at = desk.Desk.open(trust, keys)
    book = at.trust.book()
    killed = [[r.target, r.counter] for r in listing.killed_by(book, model, to)]
    errors.print(table(f"A floor of {to} kills", ("Release", "#Counter"), killed, empty="no listed release"))
    confirm(f"Raise the floor of {model} to {to}? It never falls again.", yes=yes)
    book, gone = listing.raise_floor(book, model, to, datetime.now(UTC))
    book = at.finish(book, only={f"release-{model.partition('/')[0]}"}, yes=yes)
    view = f"{model}: floor {to}; {len(gone)} releases are dead once this is signed and published"
    desk.report({"model": model, "floor": to, "killed": [_release(r) for r in gone]}, view, book, as_json)


app.command("add-key")(release_keys.add_key)
app.command()(release_keys.rotate)
app.command()(release_keys.renew)


@app.command()
def status(
    trust: TrustFolder = DEFAULT_TRUST, keys: KeysFolder = None, data: Data = None, as_json: Json = False
) -> None:
    """Keys, thresholds, expiry, releases and what waits for signatures; compared with the fleet when it answers."""
    from rich.console import Group  # noqa: PLC0415

    from cli.trust import desk, state  # noqa: PLC0415

    at = desk.Desk.open(trust, keys)
    book, published = at.trust.book(), _published(data)
    here = {entry.keyid for entry in at.keys.here() if entry.keyid is not None}
    fleet = state.versions(published) if published is not None else None
    roles, releases = state.role_values(book, here, fleet, datetime.now(UTC)), state.release_values(book)
    faults = list(book.faults())
    view = Group(state.role_view(roles), state.release_view(releases), *faults)
    desk.report({"roles": roles, "releases": releases, "faults": faults}, view, book, as_json)


def _online(fleet: Fleet) -> Any:
    from cli.trust.folder import Online  # noqa: PLC0415

    known = fleet.get(_TRUST)
    if known["documents"]:
        raise BadInput("this fleet has a trust root already: use the trust folder it was made with")
    return Online.read(known, fleet.url)


def _published(data: Path | None) -> dict[str, bytes] | None:
    """What the fleet publishes; None when there is none to ask."""
    try:
        return _encoded(Fleet.connect(data).get(_TRUST)["documents"])
    except Unavailable:
        return None


def _publish_documents(fleet: Fleet, book: Book) -> list[str]:
    """Send what the fleet does not have yet; gives the names. Raises `BadInput` for what nobody would believe."""
    if faults := list(book.faults()):
        raise BadInput(f"the metadata is not complete: {'; '.join(faults)}: 'shoal release sign' goes on with it")
    published = _encoded(fleet.get(_TRUST)["documents"])
    new = book.newer_than(published)
    for name in book.older_than(published):
        errors.print(f"{name}: the fleet has a newer version: 'shoal release fetch' brings it")
    if new:
        fleet.post(_TRUST, {"documents": {name: data.decode() for name, data in new.items()}})
    return sorted(new)


def _upload(fleet: Fleet, layout: Layout, found: Iterable[FoundBundle]) -> int:
    blobs = sorted({blob for bundle in found for blob in _blobs(bundle)})
    with errors.status(f"uploading {len(blobs)} blobs"):
        for blob in blobs:
            fleet.put_file(f"/api/v1/blobs/{blob}", layout.blob(blob))
    return len(blobs)


def _publish_evidence(fleet: Fleet, layout: Layout, found: Iterable[FoundBundle]) -> int:
    evidence = [e for e in (layout.evidence(bundle.digest) for bundle in found) if e is not None]
    for record in evidence:
        blob = digest(record.to_bytes())
        fleet.put_file(f"/api/v1/blobs/{blob}", layout.blob(blob))
        fleet.post("/api/v1/evidence", {"digest": blob})
    return len(evidence)


def _encoded(documents: Mapping[str, str]) -> dict[str, bytes]:
    return {name: text.encode() for name, text in documents.items()}


def _blobs(bundle: FoundBundle) -> list[str]:
    manifest = bundle.manifest
    lists = [f.chunks for f in manifest.files if f.chunks]
    return [bundle.digest, manifest.config.digest, *(f.digest for f in manifest.files), *lists]


def _release(release: Release) -> dict[str, Any]:
    return {"target": release.target, "digest": release.digest, "counter": release.counter}
