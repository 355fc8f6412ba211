"""Attacks on trusted metadata, by whoever holds the line, the fleet's machine or some of the keys."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from trust_repository import Repository, new_signer
from tuf.api.metadata import Metadata, Snapshot

from wire.chunks import digest
from wire.errors import Untrusted
from wire.release import Release
from wire.signing import release_document, sign, snapshot_document, timestamp_document
from wire.topics import TrustRole

TARGET = "models/intents/kitchen/1.0.0/x86-64"
NEWER = "models/intents/kitchen/1.1.0/x86-64"
FAR = 1_000_000


def snapshot_of(repo: Repository, changes: dict[str, int | None], version: int | None = None) -> bytes:
    """A snapshot signed by the stolen online key, with other versions than those published; None leaves a role out."""
    snapshot = Metadata[Snapshot].from_bytes(repo.documents["snapshot"]).signed
    for role, number in changes.items():
        if number is None:
            del snapshot.meta[f"{role}.json"]
        else:
            snapshot.meta[f"{role}.json"].version = number
    repo.versions["snapshot"] = version or repo.versions["snapshot"] + 1
    snapshot.version = repo.versions["snapshot"]
    return sign(snapshot, repo.keys["snapshot"])


def timestamp_of(repo: Repository, snapshot: bytes, version: int | None = None) -> bytes:
    repo.versions["timestamp"] = version or repo.versions["timestamp"] + 1
    return timestamp_document(repo.versions["timestamp"], snapshot, repo.expires, repo.keys["timestamp"][0])


def naming(repo: Repository, snapshot: bytes) -> dict[str, bytes]:
    return {"snapshot": snapshot, "timestamp": timestamp_of(repo, snapshot)}


# --- going back


def test_an_old_timestamp_is_refused(repo, device) -> None:
    """Attack: metadata rollback. Yesterday's timestamp, correctly signed and not expired, is sent again."""
    old = repo.documents["timestamp"]
    repo.documents["timestamp"] = timestamp_of(repo, repo.documents["snapshot"])
    assert device.hear(repo.offered()) == {}
    assert "is old" in str(device.hear({"timestamp": old}).get("timestamp"))
    assert device.held["timestamp"] == repo.documents["timestamp"]


def test_a_new_timestamp_that_names_an_old_snapshot_is_refused(repo, device) -> None:
    """Attack: metadata rollback with the stolen timestamp key."""
    old = repo.documents["snapshot"]
    repo.release(NEWER, b"newer")
    assert device.hear(repo.offered()) == {}
    refused = device.hear({"timestamp": timestamp_of(repo, old), "snapshot": old})
    assert "snapshot named by the timestamp" in str(refused.get("timestamp"))
    assert device.trusted.release(NEWER, repo.now)


def test_a_new_snapshot_that_names_an_old_role_is_refused(repo, device) -> None:
    """Attack: metadata rollback with both stolen online keys: the withdrawn release of yesterday comes back."""
    old = repo.documents["release-intents"]
    del repo.releases[TARGET]
    repo.release(NEWER, b"newer")
    assert device.hear(repo.offered()) == {}
    roles = {"targets": repo.documents["targets"], "release-intents": old}
    bad = snapshot_document(repo.versions["snapshot"] + 1, roles, repo.expires, repo.keys["snapshot"][0])
    refused = device.hear({**naming(repo, bad), "release-intents": old})
    assert "release-intents.json in the snapshot" in str(refused.get("snapshot"))
    with pytest.raises(Untrusted):
        device.trusted.release(TARGET, repo.now)


def test_a_role_that_was_listed_cannot_disappear(repo, device) -> None:
    """Attack: a snapshot without a release role, so that its version may start again from any number."""
    refused = device.hear(naming(repo, snapshot_of(repo, {"release-intents": None})))
    assert "is gone" in str(refused.get("snapshot"))


# --- putting together what does not belong together


def test_an_older_role_under_a_newer_snapshot_is_not_taken(repo, join) -> None:
    """Attack: mix-and-match. A new device is given today's snapshot with yesterday's release role."""
    old = repo.documents["release-intents"]
    repo.release(NEWER, b"newer")
    device = join(repo)
    device.hear({**repo.offered(), "release-intents": old})
    assert "release-intents" not in device.held
    with pytest.raises(Untrusted, match="has not arrived"):
        device.trusted.release(TARGET, repo.now)


def test_other_content_under_the_listed_version_is_refused(repo, join) -> None:
    """Attack: mix-and-match. Two documents of one version, both signed by the role; the snapshot names one hash."""
    evil = Release(TARGET, digest(b"evil"), 4, "x86-64", "onnxruntime", 1)
    other = release_document(repo.versions["release"], [evil], repo.expires, repo.keys["release"])
    device = join(repo)
    assert "release-intents" in device.hear({**repo.offered(), "release-intents": other})
    assert "release-intents" not in device.held


# --- too much


def test_a_timestamp_of_ten_megabytes_is_not_even_kept(repo, device) -> None:
    """Attack: endless data. The device's memory, not its patience, is what is aimed at."""
    device.keeper.take(TrustRole("timestamp"), b" " * 10_000_000)
    assert not device.keeper._buffer


def test_a_signed_timestamp_that_was_blown_up_is_not_parsed(repo, device) -> None:
    """Attack: endless data, past whoever should have counted: ten megabytes around a good timestamp."""
    repo.publish()
    (refusal,) = device.trusted.offer({"timestamp": repo.documents["timestamp"] + b" " * 10_000_000}, repo.now)
    assert "the limit is" in str(refusal.error)


def test_a_flood_of_roles_and_roots_waits_in_bounded_memory(repo, device) -> None:
    """Attack: endless data in many pieces, each below its limit, under names that nobody has delegated."""
    for i in range(1000):
        device.keeper.take(TrustRole(f"role-{i}"), b"x" * 1_000_000)
    assert sum(map(len, device.keeper._buffer.values())) <= 20_000_000
    assert device.trusted.release(TARGET, repo.now)


# --- keys that may not, or not alone


def test_a_model_signed_by_the_fleet_key_is_refused(repo, device) -> None:
    """Attack: whoever took over the fleet's machine signs a release with every online key that lies there."""
    repo.keys["release"] = repo.keys["fleet"]
    repo.release(NEWER, b"evil")
    assert "signed by 0/1" in str(device.hear(repo.offered()).get("release-intents"))
    with pytest.raises(Untrusted):
        device.trusted.release(NEWER, repo.now)


def test_one_of_two_release_keys_is_not_enough(join) -> None:
    """Attack: one stolen release key, where two people must sign."""
    repo = Repository(release_threshold=2)
    repo.keys["release"] = repo.keys["release"][:1]
    repo.release(TARGET, b"manifest")
    device = join(repo)
    assert "signed by 1/2" in str(device.hear(repo.offered()).get("release-intents"))
    with pytest.raises(Untrusted):
        device.trusted.release(TARGET, repo.now)


def one_key_twice(signers: list) -> list:
    """Two key ids for the first signer's key."""
    twin = new_signer()
    twin._private_key = signers[0]._private_key
    twin.public_key.keyval = dict(signers[0].public_key.keyval)
    return [signers[0], twin]


def test_the_same_release_key_twice_is_not_two(join) -> None:
    """Attack: GHSA-pwqf-9h7j-7mv8. One of the two people puts their own key into targets under a second id."""
    repo = Repository(release_threshold=2)
    repo.keys["release"] = one_key_twice(repo.keys["release"])
    repo.sign_targets()
    repo.release(TARGET, b"manifest")
    device = join(repo)
    assert "one public key stands under two key ids" in str(device.hear(repo.offered()).get("targets"))
    assert "release-intents" not in device.held


def test_the_same_root_key_twice_is_not_two(repo, device) -> None:
    """Attack: the same, in a new root: whoever put it there could sign every later one alone."""
    before, repo.keys["root"] = repo.keys["root"], one_key_twice(repo.keys["root"])
    repo.sign_root(also=before)
    assert "one public key stands under two key ids" in str(device.hear(repo.offered()).get("root/2"))
    assert device.trusted.root_version == 1


# --- freezing


def test_an_expired_timestamp_is_not_taken(repo, device) -> None:
    """Attack: freeze. A timestamp that was held back until it expired is sent at last."""
    repo.expires = repo.now - timedelta(seconds=1)
    repo.publish()
    assert "expired" in str(device.hear({"timestamp": repo.documents["timestamp"]}).get("timestamp"))
    assert device.held["timestamp"] != repo.documents["timestamp"]


def test_a_device_that_hears_nothing_installs_nothing_new_after_the_expiry(repo, device) -> None:
    """Attack: freeze. Nothing newer is let through: what is held stops being a reason to install."""
    assert device.trusted.release(TARGET, repo.expires - timedelta(seconds=1))
    with pytest.raises(Untrusted, match="expired"):
        device.trusted.release(TARGET, repo.expires)


# --- beyond one's own


def test_a_path_outside_the_delegation_is_not_believed(repo, device) -> None:
    """Attack: the signers of one family list a model of another."""
    evil = Release("models/locks/front/1.0.0/x86-64", digest(b"evil"), 4, "x86-64", "onnxruntime", 1)
    repo.releases[evil.target] = evil
    repo.sign_release()
    assert device.hear(repo.offered()) == {}
    with pytest.raises(Untrusted, match="no release role lists it"):
        device.trusted.release(evil.target, repo.now)
    assert evil.target not in {release.target for release in device.trusted.releases()}


# --- roots


def new_roots(repo: Repository, count: int) -> None:
    """Roots after the one that the device holds, each with another timestamp key."""
    for _ in range(count):
        repo.keys["timestamp"] = [new_signer()]
        repo.sign_root()
    repo.publish()


def test_a_missing_root_fails_closed(repo, device) -> None:
    """Attack: one link of the root chain is held back, and the next is sent in its place."""
    new_roots(repo, 2)
    refused = device.hear({**repo.documents, "root/2": repo.roots[3]})
    assert "expected the next one" in str(refused.get("root/2"))
    assert device.trusted.root_version == 1
    assert device.hear(repo.offered()) == {}
    assert device.trusted.root_version == 3


def test_a_root_that_only_its_own_keys_signed_is_refused(repo, device) -> None:
    """Attack: somebody makes a root of their own, complete and signed as it asks."""
    repo.keys["root"] = [new_signer() for _ in range(3)]
    repo.sign_root()
    assert "signed by 0/2" in str(device.hear({"root/2": repo.roots[2]}).get("root/2"))
    assert device.trusted.root_version == 1


def test_a_root_whose_own_keys_have_not_signed_is_refused(repo, device) -> None:
    """Accident: a root that nobody could ever replace again would lock every device out."""
    before, repo.keys["root"] = repo.keys["root"], [new_signer() for _ in range(3)]
    repo.sign_root(also=before)
    lost = json.loads(repo.roots[2])
    lost["signatures"] = [s for s in lost["signatures"] if s["keyid"] in {k.public_key.keyid for k in before}]
    assert "signed by 0/2" in str(device.hear({"root/2": json.dumps(lost).encode()}).get("root/2"))
    assert device.trusted.root_version == 1


# --- and back to work


def test_ten_missed_roots_are_caught_up_in_one_session(repo, device) -> None:
    """Recovered: a device that was off while every online key was changed ten times."""
    new_roots(repo, 10)
    assert device.hear(repo.offered()) == {}
    assert device.trusted.root_version == 11
    assert device.trusted.release(TARGET, repo.now)


def test_a_fast_forwarded_timestamp_and_snapshot_are_recovered_by_rotating_the_online_keys(repo, device) -> None:
    """Recovered: stolen online keys signed version 1,000,000, so that nothing real is ever new again."""
    before = dict(repo.versions)
    snapshot = snapshot_of(repo, {}, FAR)
    assert device.hear({"snapshot": snapshot, "timestamp": timestamp_of(repo, snapshot, FAR)}) == {}
    assert device.trusted.versions()["timestamp"] == FAR
    repo.versions.update(snapshot=before["snapshot"], timestamp=before["timestamp"])
    repo.keys["timestamp"], repo.keys["snapshot"] = [new_signer()], [new_signer()]
    repo.sign_root()
    repo.release(NEWER, b"newer")
    assert device.hear(repo.offered()) == {}
    assert device.trusted.release(NEWER, repo.now)


def test_a_fast_forwarded_role_in_the_snapshot_is_recovered_by_rotating_one_online_key(repo, device) -> None:
    """Recovered: specification 5.3.11. The snapshot names version 1,000,000 of a role, and its key stays."""
    bad = snapshot_of(repo, {"release-intents": FAR}, FAR)
    device.hear({"snapshot": bad, "timestamp": timestamp_of(repo, bad, FAR)})
    assert device.trusted.versions()["snapshot"] == FAR
    repo.versions.update(snapshot=10, timestamp=10)
    repo.keys["timestamp"] = [new_signer()]
    repo.sign_root()
    repo.release(NEWER, b"newer")
    assert device.hear(repo.offered()) == {}
    assert device.trusted.release(NEWER, repo.now)


def test_what_a_rotated_out_release_key_signed_is_dropped(repo, device) -> None:
    """Attack: the release key was stolen and used before the targets people replaced it."""
    repo.keys["release"] = [new_signer(), new_signer()]
    repo.sign_targets()
    repo.publish()
    assert device.hear({k: v for k, v in repo.offered().items() if k != "release-intents"}) == {}
    assert "release-intents" not in device.held
    assert list(device.trusted.floors()) == []
