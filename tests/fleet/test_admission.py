"""What may be published: the whole set verifies and every new release is complete, or nothing changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fleet_process import tiny_bundle
from securesystemslib.signer import CryptoSigner
from trust_repository import Repository, new_signer

from fleet.errors import FleetError, Malformed, Untrusted
from fleet.store.blobs import BlobStore
from fleet.trust.admission import Lifetimes, Published, admit, online_ids, stamp
from fleet.trust.issuer import Issuer
from fleet.trust.keys import OnlineKeys
from wire.bundle import BundleManifest
from wire.chunks import ChunkList, ChunkRef, digest
from wire.errors import WireError
from wire.release import Mark, Release
from wire.signing import release_document, targets_document

LIFETIMES = Lifetimes(snapshot=timedelta(days=30), timestamp=timedelta(days=7))


class Side:
    """The offline repository of a fleet, and the fleet's own folder."""

    def __init__(self, folder: Path) -> None:
        self.keys = OnlineKeys.open(folder / "keys")
        self.authority = Issuer.new(datetime(2026, 11, 22, tzinfo=UTC)).pem
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
        now, authority = self.repo.now, self.authority
        self.published = admit(self.published, offered, self.keys, authority, LIFETIMES, now, self.blobs)
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
    online = {"snapshot": clock(side), "timestamp": clock(side)}
    assert trust.versions() == {"root": 1, "targets": 1, "release-intents": 2, **online}


def clock(side: Side, days: int = 0) -> int:
    return int((side.repo.now + timedelta(days=days)).timestamp())


def test_fresh_signatures_are_newer_and_change_nothing_else(side: Side) -> None:
    side.admit()
    again = stamp(side.published, side.keys, LIFETIMES, side.repo.now + timedelta(days=3))
    trust = side.published.trusted()
    assert trust is not None
    assert trust.offer(again.documents, side.repo.now + timedelta(days=3)) == ()
    assert (trust.versions()["timestamp"], trust.versions()["targets"]) == (clock(side, days=3), 1)


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


def test_a_release_that_says_another_size_than_its_files_have_is_refused(side: Side) -> None:
    """Else a device would begin an update for which it has no room, or refuse one for which it has."""
    manifest = side.upload()
    release = side.release(manifest)
    side.repo.releases[release.target] = replace(release, size=manifest.size - 1)
    side.repo.sign_release()
    with pytest.raises(Untrusted, match=f"have {manifest.size} bytes, the release says {manifest.size - 1}"):
        side.admit()
    side.repo.releases[release.target] = replace(release, size=manifest.size)
    side.repo.sign_release()
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


# --- floors, chunk lists, authorities -------------------------------------------------------------------------


def floored(side: Side, manifest: BundleManifest, counter: int, floor: int) -> None:
    data = manifest.to_bytes()
    fields = (manifest.target, digest(data), len(data), manifest.profile, manifest.runtime)
    side.repo.releases[manifest.target] = Release(*fields, counter, floor)
    side.repo.sign_release()


def test_a_release_below_its_models_floor_is_refused(side: Side) -> None:
    floored(side, side.upload("1.0.0"), 4, 0)
    floored(side, side.upload("2.0.0"), 5, 5)
    with pytest.raises(Untrusted, match=r"1\.0\.0/x86-64: its counter 4 is below the floor 5 of intents/kitchen"):
        side.admit()


@pytest.mark.parametrize("new", [4, 0])
def test_a_floor_that_falls_is_refused(side: Side, new: int) -> None:
    """Attack or accident: dead releases come back because somebody signs an older floor."""
    manifest = side.upload("2.0.0")
    floored(side, manifest, 5, 5)
    side.admit()
    floored(side, manifest, 5, new)
    with pytest.raises(Untrusted, match=f"intents/kitchen: its floor falls from 5 to {new}"):
        side.admit()


def test_a_floor_outlives_the_last_release_that_had_it(side: Side) -> None:
    manifest = side.upload("2.0.0")
    floored(side, manifest, 5, 5)
    side.admit()
    side.repo.releases.clear()
    side.repo.sign_release()
    with pytest.raises(Untrusted, match="its floor falls from 5 to 0"):
        side.admit()
    side.repo.documents["release-intents"] = release_document(
        4, [], side.repo.expires, side.repo.keys["release"], {"intents/kitchen": Mark(5, 5)}
    )
    assert side.admit()
    side.repo.versions["release"] = 4
    floored(side, side.upload("1.0.0"), 4, 0)
    with pytest.raises(Untrusted, match="its floor falls from 5 to 0"):
        side.admit()


def test_one_blob_in_two_cuts_is_refused(side: Side) -> None:
    """The key of a blob's chunks is derived from blob and chunk list, and a blob is asked for by its digest alone."""
    side.release(side.upload("1.0.0"))
    side.admit()
    first, _ = tiny_bundle("1.0.0")
    model, *rest = first.files
    blob = side.blobs.read(model.digest)
    refs = tuple(
        ChunkRef(digest=digest(p), size=len(p)) for p in (blob[i : i + 99_999] for i in range(0, len(blob), 99_999))
    )
    other = side.blobs.add(ChunkList(blob=model.digest, size=model.size, chunks=refs).to_bytes())
    labels = [f for f in rest if f.role != "chunks"]
    bent = replace(first, version="1.0.1", files=(replace(model, chunks=other), *labels))
    side.blobs.add(bent.to_bytes())
    side.release(bent)
    with pytest.raises(Untrusted, match=r"1\.0\.1/x86-64: cuts its blob sha256:.* but .*1\.0\.0/x86-64 as"):
        side.admit()


def test_another_document_of_a_published_version_is_refused(side: Side) -> None:
    """Accident: two people signed the same version apart from each other."""
    side.admit()
    side.repo.expires += timedelta(days=1)
    side.repo.versions["release"] -= 1
    side.repo.sign_release()
    with pytest.raises(Untrusted, match="release-intents: another one of that version"):
        side.admit()


def test_too_many_documents_are_refused(side: Side) -> None:
    with pytest.raises(Malformed, match="289 were sent"):
        side.admit({f"root/{n}": b"{}" for n in range(1, 290)})


def name_authorities(side: Side, *authorities: str) -> dict[str, bytes]:
    repo = side.repo
    families = {repo.family: repo.role("release")}
    repo.versions["targets"] += 1
    version, keys = repo.versions["targets"], repo.keys["targets"]
    fleet = repo.role("fleet")
    repo.documents["targets"] = targets_document(version, fleet, families, repo.expires, keys, authorities)
    return side.offered()


def test_authorities_without_the_one_in_use_are_refused(side: Side) -> None:
    """Accident: every device would look for a fleet that it does not believe."""
    other = Issuer.new(side.repo.now).pem
    with pytest.raises(Untrusted, match="does not name the certificate authority that this fleet uses now"):
        side.admit(name_authorities(side, other))
    trust = side.admit(name_authorities(side, other, side.authority)).trusted()
    assert trust is not None
    assert trust.authorities() == (other, side.authority)


def test_authorities_that_were_named_are_not_left_out_again(side: Side) -> None:
    side.admit(name_authorities(side, side.authority))
    with pytest.raises(Untrusted, match="names no certificate authority any more"):
        side.admit(name_authorities(side))


def test_authorities_that_are_no_certificates_or_too_many_are_refused(side: Side) -> None:
    with pytest.raises(Malformed, match="no PEM certificate"):
        side.admit(name_authorities(side, "not a certificate", side.authority))
    with pytest.raises(Untrusted, match="names 9 certificate authorities, at most 8"):
        side.admit(name_authorities(side, *[side.authority] * 9))


# --- versions and online keys ---------------------------------------------------------------------------------


def test_a_fleet_that_comes_back_from_an_old_backup_signs_above_what_devices_have_seen(side: Side) -> None:
    """Accident: the database is a week old; devices hold newer timestamps than it knows of."""
    side.admit()
    backup = side.published
    device = backup.trusted()
    assert device is not None
    newer = backup
    for day in range(1, 8):
        newer = stamp(newer, side.keys, LIFETIMES, side.repo.now + timedelta(days=day / 2))
    assert device.offer(newer.documents, side.repo.now + timedelta(days=4)) == ()
    restored = stamp(backup, side.keys, LIFETIMES, side.repo.now + timedelta(days=5))
    assert device.offer(restored.documents, side.repo.now + timedelta(days=5)) == ()


def test_a_clock_that_goes_back_does_not_take_versions_back(side: Side) -> None:
    side.admit()
    again = stamp(side.published, side.keys, LIFETIMES, side.repo.now - timedelta(days=3)).trusted()
    assert again is not None
    assert again.versions()["timestamp"] == clock(side) + 1


def test_a_root_that_names_the_next_timestamp_key_is_signed_by_it(side: Side, tmp_path: Path) -> None:
    side.admit()
    device = side.published.trusted()
    assert device is not None
    side.keys.prepare("timestamp")
    side.repo.keys["timestamp"] = [_held(side.keys, "timestamp", side.keys.public_next()["timestamp"]["keyid"])]
    side.repo.sign_root()
    published = side.admit({"root/2": side.repo.roots[2]})
    assert device.offer(published.documents, side.repo.now) == ()
    side.keys.use(online_ids(published))
    side.keys.settle()
    assert side.keys.public_next() == {}
    assert OnlineKeys.open(tmp_path / "keys").public() == side.keys.public()
    assert online_ids(published)["timestamp"] == side.keys.timestamp.public_key.keyid


def test_a_key_that_is_used_and_given_back_stands_as_before(tmp_path: Path) -> None:
    """Accident: the database refuses the transaction that switches the fleet key."""
    keys = OnlineKeys.open(tmp_path)
    keys.prepare("fleet")
    before, following = keys.public(), keys.public_next()
    keys.use({"fleet": following["fleet"]["keyid"]})
    assert keys.fleet.public_key.keyid == following["fleet"]["keyid"]
    keys.use({"fleet": before["fleet"]["keyid"]})
    keys.settle()
    assert (keys.public(), keys.public_next()) == (before, following)
    assert (OnlineKeys.open(tmp_path).public(), OnlineKeys.open(tmp_path).public_next()) == (before, following)


def test_a_next_key_is_made_once_and_only_for_online_roles(tmp_path: Path) -> None:
    keys = OnlineKeys.open(tmp_path)
    keys.prepare("snapshot")
    made = keys.public_next()
    keys.prepare("snapshot")
    assert keys.public_next() == made
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o600}
    with pytest.raises(Malformed, match="no online role"):
        keys.prepare("root")


def _held(keys: OnlineKeys, role: str, keyid: str) -> CryptoSigner:
    signer = keys.signer(role, keyid)
    assert signer is not None
    return signer
