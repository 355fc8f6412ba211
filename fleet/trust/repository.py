"""The fleet's side of The Update Framework: what is published now, kept in the database, and what it lists.

repository.admit({"targets": ..., "release-intents": ...}, resign)   # all of it or nothing
repository.refresh()                                         # new freshness when half of the old is gone
repository.messages()                                        # every retained message, the timestamp last
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session, select

from fleet.errors import Conflict, NotFound
from fleet.store.blobs import BlobStore
from fleet.store.database import Database
from fleet.store.tables import TrustRow
from fleet.trust.admission import Lifetimes, Published, admit, online_ids, stamp, version_and_expiry
from fleet.trust.keys import OnlineKeys
from wire.bundle import BundleManifest, target_path
from wire.errors import WireError
from wire.release import Release
from wire.topics import Topic, TrustRole, TrustRoot
from wire.trust import TrustedSet

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListedRelease:
    """A release and the manifest that it names."""

    release: Release
    manifest: BundleManifest


class Repository:
    """Used from one thread at a time, but for `listed`, which only reads a dictionary that is never changed."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        keys: OnlineKeys,
        authority: Callable[[], str],
        lifetimes: Lifetimes,
        clock: Callable[[], datetime],
    ) -> None:
        self._database, self._blobs, self._keys, self._authority = database, blobs, keys, authority
        self._lifetimes, self._clock = lifetimes, clock
        self._take(self._load())
        keys.use(online_ids(self.published))
        keys.settle()
        self._check_keys()

    def admit(self, offered: Mapping[str, bytes], resign: Callable[[Session], None]) -> None:
        """Publish documents signed offline, or change nothing. Raises `Malformed`, or `Untrusted` with every reason.

        Where they name the next key of an online role, the fleet signs with it from here on. When that is the fleet
        role's, `resign` signs again, in the same transaction, what devices have from the old key.
        """
        now, authority = self._clock(), self._authority()
        published = admit(self.published, offered, self._keys, authority, self._lifetimes, now, self._blobs)
        self._save(published, resign)

    def refresh(self) -> bool:
        """Sign freshness again once half of the timestamp's life is gone. True when there is something to publish."""
        if self.trust is None or not self._holds_keys():
            return False
        _, expires = self.versions()["timestamp"]
        if expires - self._clock() > self._lifetimes.timestamp / 2:
            return False
        self._save(stamp(self.published, self._keys, self._lifetimes, self._clock()))
        return True

    def messages(self) -> Iterator[tuple[Topic, bytes]]:
        """What stands retained on the broker, in the order to publish it: what names others comes after them."""
        documents = self.published.documents
        for version in self.published.roots():
            yield TrustRoot(version), documents[f"root/{version}"]
        roles = [n for n in documents if not n.startswith("root/") and n not in ("snapshot", "timestamp")]
        for name in (*sorted(roles), "snapshot", "timestamp"):
            if name in documents:
                yield TrustRole(name), documents[name]

    def documents(self) -> dict[str, str]:
        """Every published document as text: what an enrolment kit carries. Raises `Conflict` when there is none yet."""
        if self.trust is None:
            raise Conflict(
                "this fleet has no trust root yet: run `shoal release init`, which makes the offline keys and the root"
            )
        return {name: data.decode() for name, data in self.published.documents.items()}

    def versions(self) -> dict[str, tuple[int, datetime]]:
        """Version and expiry of every document in force."""
        if self.trust is None:
            return {}
        return {name: version_and_expiry(data) for name, data in sorted(self.trust.documents.items())}

    def of_version(self, family: str, name: str, version: str) -> dict[str, ListedRelease]:
        """The releases of one version by profile. Raises `NotFound`."""
        prefix = target_path(family, name, version, "x").removesuffix("x")
        found = {r.manifest.profile: r for target, r in self.releases.items() if target.startswith(prefix)}
        if not found:
            raise NotFound(f"{prefix}: no release is listed under it: sign and publish one with `shoal release sign`")
        return found

    def _load(self) -> Published:
        with self._database.transaction() as session:
            return Published({row.name: row.document.encode() for row in session.exec(select(TrustRow))})

    def _check_keys(self) -> None:
        if not self._holds_keys():
            _log.error(
                "the published root or targets name an online key that is not in the keys folder: nothing is signed "
                "until it is back from a backup, or until `shoal release rotate` has named another one"
            )

    def _holds_keys(self) -> bool:
        return all(self._keys.signer(role, keyid) for role, keyid in online_ids(self.published).items())

    def _save(self, published: Published, resign: Callable[[Session], None] | None = None) -> None:
        """Keep a new set, with the keys that it names. Only once it is on disk are the files of old keys dropped."""
        was, named = online_ids(self.published), online_ids(published)
        self._keys.use(named)
        try:
            with self._database.transaction() as session:
                for name, data in published.documents.items():
                    session.merge(TrustRow(name=name, document=data.decode()))
                if resign is not None and named["fleet"] != was.get("fleet"):
                    resign(session)
        except BaseException:
            self._keys.use(was)
            raise
        self._take(published)
        self._keys.settle()

    def _take(self, published: Published) -> None:
        self.published = published
        self.trust: TrustedSet | None = published.trusted()
        listed = list(self.trust.releases()) if self.trust else []
        manifests = [complete for release in listed for complete in self._complete(release)]
        self.releases: dict[str, ListedRelease] = {r.release.target: r for r in manifests}
        self.listed: dict[str, str | None] = dict(pair for r in manifests for pair in blobs_of(r))
        """Every blob that may be sent, with the digest of its chunk list if it has one."""

    def _complete(self, release: Release) -> Iterator[ListedRelease]:
        """The release with its manifest; nothing when the blob was lost since, so that it can be uploaded again."""
        try:
            yield ListedRelease(release, BundleManifest.from_bytes(self._blobs.read(release.digest)))
        except (NotFound, WireError) as e:
            _log.error("release %s cannot be shipped: %s", release.target, e)


def blobs_of(listed: ListedRelease) -> Iterator[tuple[str, str | None]]:
    """Every blob of a release, with the digest of its chunk list if it has one."""
    yield listed.release.digest, None
    yield listed.manifest.config.digest, None
    for file in listed.manifest.files:
        yield file.digest, file.chunks
        if file.chunks is not None:
            yield file.chunks, None
