"""What may be published: the whole set verifies and every new release is complete, or nothing changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from fleet_process import tiny_bundle
from trust_repository import Repository, new_signer

from fleet.errors import FleetError, Malformed, Untrusted
from fleet.store.blobs import BlobStore
from fleet.trust.admission import Lifetimes, Published, admit, stamp
from fleet.trust.keys import OnlineKeys
from wire.bundle import BundleManifest
from wire.errors import WireError
from wire.trust import Release

LIFETIMES = Lifetimes(snapshot=timedelta(days=30), timestamp=timedelta(days=7))


class Side:
    """The offline repository of a fleet, and the fleet's own folder."""

    def __init__(self, folder: Path) -> None:
        self.keys = OnlineKeys.open(folder / "keys")
        self.blobs = BlobStore(folder / "blobs")
        self.repo = Repository()
        self.repo.keys |= {
            "fleet": [self.keys.fleet],
            "snapshot": [self.keys.snapshot],
            "timestamp": [self.keys.timestamp],
        }
        self.published = Published()
        self.again()

    def again(self) -> None:
        """Sign everything from version 1."""
        self.repo.versions = dict.fromkeys(self.repo.versions, 0)
        self.repo.roots.clear()
        self.repo.sign_root()
        self.repo.sign_targets()
        self.repo.sign_release()

    def offered(self) -> dict[str, bytes]:
        """What the offline signers hand in."""
        mine = {n: d for n, d in self.repo.documents.items() if n not in ("snapshot", "timestamp")}
        return {**{f"root/{v}": data for v, data in self.repo.roots.items()}, **mine}

    def admit(self, offered: Mapping[str, bytes] | None = None) -> Published:
        offered = self.offered() if offered is None else offered
        self.published = admit(self.published, offered, self.keys, LIFETIMES, self.repo.now, self.blobs)
        return self.published

    def upload(self, version: str = "1.0.0") -> BundleManifest:
        manifest, blobs = tiny_bundle(version)
        for data in (manifest.to_bytes(), *blobs):
            self.blobs.add(data)
        return manifest

    def release(self, manifest: BundleManifest) -> Release:
        return self.repo.release(manifest.target, manifest.to_bytes())


@pytest.fixture
def side(tmp_path: Path) -> Side:
    return Side(tmp_path)


def test_the_first_set_is_published_with_freshness_of_our_own(side: Side) -> None:
    side.release(side.upload())
    published = side.admit()
    trust = published.trusted()
    assert trust is not None
    assert trust.release("models/intents/kitchen/1.0.0/x86-64", side.repo.now).counter == 1
    assert trust.versions() == {"root": 1, "targets": 1, "release-intents": 2, "snapshot": 1, "timestamp": 1}


def test_fresh_signatures_are_newer_and_change_nothing_else(side: Side) -> None:
    side.admit()
    again = stamp(side.published, side.keys, LIFETIMES, side.repo.now + timedelta(days=3))
    trust = side.published.trusted()
    assert trust is not None
    assert trust.offer(again.documents, side.repo.now + timedelta(days=3)) == ()
    assert (trust.versions()["timestamp"], trust.versions()["targets"]) == (2, 1)


def test_a_manifest_that_was_not_uploaded_is_refused(side: Side) -> None:
    manifest, _ = tiny_bundle()
    side.release(manifest)
    with pytest.raises(Untrusted, match=r"its manifest sha256:.* was not uploaded"):
        side.admit()


def test_every_missing_blob_is_named_at_once(side: Side) -> None:
    manifest, _ = tiny_bundle()
    side.blobs.add(manifest.to_bytes())
    side.release(manifest)
    with pytest.raises(Untrusted) as error:
        side.admit()
    for name in (manifest.config.digest, *(f.digest for f in manifest.files)):
        assert name in str(error.value)


def test_a_release_of_another_target_than_its_manifest_is_refused(side: Side) -> None:
    """Attack: a signed path that leads to another model."""
    manifest = side.upload()
    side.repo.release("models/intents/kitchen/1.0.0/raspberry-pi-4", manifest.to_bytes())
    with pytest.raises(Untrusted, match=r"the manifest is of models/intents/kitchen/1\.0\.0/x86-64"):
        side.admit()


def test_a_release_of_another_runtime_than_its_manifest_is_refused(side: Side) -> None:
    manifest = side.upload()
    side.repo.release(manifest.target, manifest.to_bytes(), runtime="litert")
    with pytest.raises(Untrusted, match="litert"):
        side.admit()


def test_a_manifest_with_a_wrong_length_is_refused(side: Side) -> None:
    manifest = side.upload()
    release = side.release(manifest)
    side.repo.releases[release.target] = replace(release, length=release.length + 1)
    side.repo.sign_release()
    with pytest.raises(Untrusted, match="the release says"):
        side.admit()


def test_a_chunk_list_of_another_blob_is_refused(side: Side) -> None:
    """Attack: the list of a good blob under the name of a bad one."""
    _, blobs = tiny_bundle("2.0.0")
    foreign = side.blobs.add(blobs[-1])
    manifest = side.upload()
    model, *rest = manifest.files
    bent = replace(manifest, files=(replace(model, chunks=foreign), *rest))
    side.blobs.add(bent.to_bytes())
    side.release(bent)
    with pytest.raises(Untrusted, match=r"the chunk list of model.onnx is of sha256:"):
        side.admit()


def test_a_blob_that_is_no_manifest_is_refused(side: Side) -> None:
    side.blobs.add(b"not a manifest")
    side.repo.release("models/intents/kitchen/1.0.0/x86-64", b"not a manifest")
    with pytest.raises(Untrusted, match="not valid JSON"):
        side.admit()


def test_a_model_signed_by_the_fleet_key_is_refused(side: Side) -> None:
    """Attack: the online server tries to release a model itself."""
    side.admit()
    side.repo.keys["release"] = [side.keys.fleet]
    side.release(side.upload())
    with pytest.raises(Untrusted, match=r"release-intents: .*signed by 0/1"):
        side.admit()


def test_a_root_that_names_another_timestamp_key_is_refused(side: Side) -> None:
    side.repo.keys["timestamp"] = [new_signer()]
    side.again()
    with pytest.raises(Untrusted, match="does not name this fleet's timestamp key"):
        side.admit()


def test_targets_that_trust_a_second_fleet_key_are_refused(side: Side) -> None:
    """Attack: a key of somebody else would command the devices too."""
    side.repo.keys["fleet"].append(new_signer())
    side.again()
    with pytest.raises(Untrusted, match="does not name this fleet's fleet key"):
        side.admit()


def test_a_set_without_targets_is_refused(side: Side) -> None:
    with pytest.raises(Untrusted, match="targets is missing"):
        side.admit({"root/1": side.repo.roots[1]})


def test_another_root_of_a_published_version_is_refused(side: Side) -> None:
    """Attack: history is rewritten."""
    side.admit()
    side.again()
    side.repo.expires += timedelta(days=1)
    side.again()
    with pytest.raises(Untrusted, match="another one of that version"):
        side.admit()


def test_an_old_release_document_is_refused(side: Side) -> None:
    """Attack: rollback of the release role."""
    old = side.offered()
    side.release(side.upload())
    side.admit()
    with pytest.raises(Untrusted, match="is old"):
        side.admit(old)


def test_a_root_that_skips_a_version_is_refused(side: Side) -> None:
    side.admit()
    side.repo.sign_root()
    side.repo.sign_root()
    with pytest.raises((Untrusted, WireError)):
        side.admit({"root/3": side.repo.roots[3]})


def test_a_role_that_nobody_delegates_to_is_refused(side: Side) -> None:
    with pytest.raises(Untrusted, match="release-other"):
        side.admit({**side.offered(), "release-other": side.repo.documents["release-intents"]})


@pytest.mark.parametrize("name", ["timestamp", "snapshot", "root", "root/0", "../x", "fleet", ""])
def test_only_documents_that_are_signed_offline_can_be_offered(side: Side, name: str) -> None:
    with pytest.raises(Malformed, match="expected root/"):
        side.admit({name: b"{}"})


def test_bytes_that_are_no_metadata_are_malformed(side: Side) -> None:
    with pytest.raises(Malformed, match="not TUF metadata"):
        side.admit({**side.offered(), "targets": b'{"signed": 1}'})


def test_what_was_refused_leaves_the_published_set_as_it_was(side: Side) -> None:
    side.admit()
    before = side.published
    side.release(tiny_bundle()[0])
    with pytest.raises(FleetError):
        side.admit()
    assert side.published is before
