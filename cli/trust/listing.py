"""What may be installed: bundles listed, a release withdrawn, a floor raised. Each act stages release metadata.

Counters belong to a model (family and name). A new version gets one above the highest that was ever used, also by what
was withdrawn since, and carries the model's floor on; the role's metadata remembers both (`wire.release.Mark`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tuf.api.metadata import Targets

from cli.errors import BadInput
from cli.trust.book import Book
from cli.trust.ceremony import expiry
from wire.bundle import BundleManifest, split_target
from wire.chunks import digest
from wire.release import Mark, Release, marks_of, releases_of
from wire.signing import release_document, release_role


@dataclass
class Listing:
    """What one release role lists, to be changed and staged again."""

    role: str
    version: int
    releases: dict[str, Release]
    marks: dict[str, Mark]

    @classmethod
    def of(cls, book: Book, family: str) -> Listing:
        """The newest of a family. Raises `BadInput` for a family without keys."""
        role = release_role(family)
        newest: Targets | None = book.newest(role)
        if newest is None:
            raise BadInput(f"no metadata of family {family!r} here: run 'shoal release init --family {family}'")
        return cls(role, book.version(role) + 1, {r.target: r for r in releases_of(newest)}, marks_of(newest))

    def of_model(self, model: str) -> list[Release]:
        """The listed releases of a model, oldest counter first."""
        return sorted((r for r in self.releases.values() if r.model == model), key=lambda r: (r.counter, r.target))

    def stage(self, book: Book, now: datetime) -> Book:
        """The book with this listing staged."""
        listed = sorted(self.releases.values(), key=lambda r: r.target)
        return book.stage({self.role: release_document(self.version, listed, expiry(now), [], self.marks)})


def list_bundles(book: Book, manifests: Iterable[bytes], now: datetime) -> tuple[Book, list[Release], list[str]]:
    """Stage release metadata that lists these manifests beside all earlier ones.

    Gives the new releases and the roles of every family concerned. A manifest that is listed already is left as it is.
    Raises `BadInput` when a target is listed with another digest, or a family has no keys.
    """
    parsed = [(BundleManifest.from_bytes(data), data) for data in manifests]
    listings = {family: Listing.of(book, family) for family in sorted({m.family for m, _ in parsed})}
    added: list[Release] = []
    for family, listing in listings.items():
        new = _add(listing, [pair for pair in parsed if pair[0].family == family])
        book = listing.stage(book, now) if new else book
        added += new
    return book, added, [listing.role for listing in listings.values()]


def _add(listing: Listing, manifests: Iterable[tuple[BundleManifest, bytes]]) -> list[Release]:
    """All profiles of one version share a counter."""
    counters: dict[tuple[str, str], int] = {}
    added: list[Release] = []
    for manifest, data in manifests:
        model = f"{manifest.family}/{manifest.name}"
        mark = listing.marks.get(model, Mark())
        listed = listing.releases.get(manifest.target)
        if listed is not None:
            _check_same(listed, data)
            continue
        counter = counters.setdefault((model, manifest.version), mark.counter + 1)
        fields = (manifest.target, digest(data), len(data), manifest.profile, manifest.runtime)
        release = Release(*fields, counter, mark.floor, manifest.size)
        listing.releases[release.target] = release
        listing.marks[model] = mark.above(Mark(counter, mark.floor))
        added.append(release)
    return added


def chosen(book: Book, what: str, version: str | None, profile: str | None, every: bool) -> list[str]:
    """The targets that are meant by a target path, or by a model with a version and one or all profiles.

    Raises `BadInput` when that names none, or leaves open which.
    """
    if version is None:
        split_target(what)
        return [what]
    family, _, name = what.partition("/")
    prefix = f"models/{family}/{name}/{version}/"
    found = [target for target in Listing.of(book, family).releases if target.startswith(prefix)]
    if not found:
        raise BadInput(f"{what} {version}: no release is listed under {prefix}")
    if profile is None and not every:
        profiles = ", ".join(sorted(target.removeprefix(prefix) for target in found))
        raise BadInput(f"{what} {version}: say which with --profile, or --all-profiles: {profiles}")
    return [target for target in found if every or target == prefix + str(profile)] or [prefix + str(profile)]


def withdraw(book: Book, targets: Sequence[str], now: datetime) -> tuple[Book, list[Release]]:
    """Stage release metadata without these targets; a device that runs one goes on until the fleet says otherwise.

    Raises `BadInput` for a target that is not listed.
    """
    gone: list[Release] = []
    for family in sorted({split_target(target)[0] for target in targets}):
        listing = Listing.of(book, family)
        for target in (t for t in targets if split_target(t)[0] == family):
            if target not in listing.releases:
                raise BadInput(f"{target}: not listed: 'shoal release status' shows what is")
            gone.append(listing.releases.pop(target))
        book = listing.stage(book, now)
    return book, gone


def killed_by(book: Book, model: str, floor: int) -> list[Release]:
    """The releases that a floor kills: those with a counter below it. Raises `BadInput` for one that may not be.

    It may not fall, and it may not kill everything that the model has.
    """
    family, _, _ = model.partition("/")
    listing = Listing.of(book, family)
    listed, held = listing.of_model(model), listing.marks.get(model, Mark()).floor
    if not listed:
        raise BadInput(f"{model}: no release of it is listed: 'shoal release status' shows what is")
    if floor <= held:
        raise BadInput(f"{model}: its floor is {held} already and never falls")
    killed = [release for release in listed if release.counter < floor]
    if len(killed) == len(listed):
        raise BadInput(f"{model}: a floor of {floor} kills every release of it: the highest counter is {_top(listed)}")
    return killed


def raise_floor(book: Book, model: str, floor: int, now: datetime) -> tuple[Book, list[Release]]:
    """Stage release metadata with a higher floor of a model and without the releases that it kills (`killed_by`)."""
    killed = killed_by(book, model, floor)
    listing = Listing.of(book, model.partition("/")[0])
    for release in killed:
        del listing.releases[release.target]
    for release in listing.of_model(model):
        listing.releases[release.target] = replace(release, floor=floor)
    listing.marks[model] = listing.marks[model].above(Mark(0, floor))
    return listing.stage(book, now), killed


def everything(book: Book) -> Mapping[str, Listing]:
    """The newest listing of every family."""
    return {family: Listing.of(book, family) for family in sorted(book.roles().families())}


def _check_same(listed: Release, data: bytes) -> None:
    if listed.digest != digest(data):
        raise BadInput(
            f"{listed.target}: listed already with {listed.digest}: a version never changes, give it a new one"
        )


def _top(releases: Iterable[Release]) -> int:
    return max(release.counter for release in releases)
