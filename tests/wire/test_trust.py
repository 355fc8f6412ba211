from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from trust_repository import Repository, new_signer
from tuf.api.metadata import DelegatedRole, Delegations, Targets

from wire.chunks import digest
from wire.errors import Malformed, OutOfStep, Untrusted
from wire.release import Release
from wire.signing import RoleKeys, release_document, sign, targets_document
from wire.trust import TrustedSet

TARGET = "models/intents/kitchen/1.0.0/x86-64"


@pytest.fixture
def repo() -> Repository:
    repo = Repository()
    repo.release(TARGET, b"manifest")
    return repo


@pytest.fixture
def trust(repo: Repository) -> TrustedSet:
    trust = TrustedSet.from_root(repo.roots[1])
    assert trust.offer(repo.offered(), repo.now) == ()
    return trust


def test_a_listed_release_is_found(repo: Repository, trust: TrustedSet) -> None:
    release = trust.release(TARGET, repo.now)
    assert (release.profile, release.runtime, release.counter) == ("x86-64", "onnxruntime", 1)


def test_a_release_that_is_not_listed_is_not_trusted(repo: Repository, trust: TrustedSet) -> None:
    with pytest.raises(Untrusted, match="no release role lists it"):
        trust.release("models/intents/kitchen/2.0.0/x86-64", repo.now)


def test_what_was_saved_is_trusted_again_even_after_it_expired(repo: Repository, trust: TrustedSet) -> None:
    again = TrustedSet.from_documents(trust.documents)
    assert again.versions() == trust.versions()
    with pytest.raises(Untrusted, match="expired"):
        again.release(TARGET, repo.expires)


def test_documents_may_arrive_in_any_order(repo: Repository) -> None:
    """A retained snapshot that comes before its timestamp is out of step, and taken with the rest."""
    trust = TrustedSet.from_root(repo.roots[1])
    offered = repo.offered()
    (refusal,) = trust.offer({"snapshot": offered["snapshot"]}, repo.now)
    assert isinstance(refusal.error, OutOfStep)
    assert trust.offer(offered, repo.now) == ()


def test_half_a_set_that_was_saved_can_be_loaded_and_completed(repo: Repository, trust: TrustedSet) -> None:
    repo.release("models/intents/kitchen/1.1.0/x86-64", b"newer")
    offered = repo.offered()
    trust.offer({"timestamp": offered["timestamp"]}, repo.now)
    again = TrustedSet.from_documents(trust.documents)
    with pytest.raises(Untrusted, match="not the one listed now"):
        again.release(TARGET, repo.now)
    assert again.offer(offered, repo.now) == ()
    assert again.release("models/intents/kitchen/1.1.0/x86-64", repo.now)


def test_metadata_rollback_is_refused(repo: Repository, trust: TrustedSet) -> None:
    """Attack: an old, correctly signed timestamp is sent again."""
    old = dict(repo.documents)
    repo.release("models/intents/kitchen/1.1.0/x86-64", b"newer")
    assert trust.offer(repo.offered(), repo.now) == ()
    (refusal,) = trust.offer(old, repo.now)
    assert refusal.document == "timestamp"
    assert "is old" in str(refusal.error)


def test_a_timestamp_of_the_same_version_with_other_content_is_left_and_is_no_fault(
    repo: Repository, trust: TrustedSet
) -> None:
    """Specification 5.4.3.1: equal is normal, and raises nothing."""
    held = trust.documents["timestamp"]
    repo.versions["timestamp"] -= 1
    repo.expires += timedelta(days=1)
    repo.publish()
    assert repo.documents["timestamp"] != held
    assert trust.offer({"timestamp": repo.documents["timestamp"]}, repo.now) == ()
    assert trust.documents["timestamp"] == held


def test_mix_and_match_is_refused(repo: Repository, trust: TrustedSet) -> None:
    """Attack: documents of two publications are combined."""
    old = dict(repo.documents)
    repo.release("models/intents/kitchen/1.1.0/x86-64", b"newer")
    mixed = {**repo.documents, "release-intents": old["release-intents"]}
    fresh = TrustedSet.from_root(repo.roots[1])
    (refusal,) = fresh.offer(mixed, repo.now)
    assert refusal.document == "release-intents"
    with pytest.raises(Untrusted):
        fresh.release(TARGET, repo.now)


def test_an_expired_timestamp_is_refused(repo: Repository, trust: TrustedSet) -> None:
    """Attack: freeze."""
    repo.expires = repo.now - timedelta(seconds=1)
    repo.publish()
    (refusal,) = trust.offer(repo.offered(), repo.now)
    assert "expired" in str(refusal.error)


def test_endless_data_is_refused_before_it_is_parsed(repo: Repository, trust: TrustedSet) -> None:
    """Attack: a timestamp of 10 MB."""
    (refusal,) = trust.offer({"timestamp": b" " * 10_000_000}, repo.now)
    assert "the limit is" in str(refusal.error)


def test_a_model_signed_by_the_fleet_key_is_refused(repo: Repository, trust: TrustedSet) -> None:
    """Attack: the online server signs a release itself."""
    repo.keys["release"] = repo.keys["fleet"]
    repo.release("models/intents/evil/1.0.0/x86-64", b"evil")
    (refusal,) = trust.offer(repo.offered(), repo.now)
    assert refusal.document == "release-intents"
    assert "signed by 0/1" in str(refusal.error)


def test_one_of_two_release_keys_is_not_enough() -> None:
    """Attack: one stolen release key below the threshold."""
    repo = Repository(release_threshold=2)
    repo.keys["release"] = repo.keys["release"][:1]
    repo.release(TARGET, b"manifest")
    trust = TrustedSet.from_root(repo.roots[1])
    (refusal,) = trust.offer(repo.offered(), repo.now)
    assert "signed by 1/2" in str(refusal.error)


def test_one_key_under_two_ids_does_not_count_twice() -> None:
    """Attack: GHSA-pwqf-9h7j-7mv8. The delegator lists one public key under two key ids."""
    repo = Repository(release_threshold=2)
    signer = repo.keys["release"][0]
    twin = new_signer()
    twin.public_key.keyval = dict(signer.public_key.keyval)
    repo.keys["release"] = [signer, twin]
    repo.sign_targets()
    repo.publish()
    trust = TrustedSet.from_root(repo.roots[1])
    refused = trust.offer(repo.offered(), repo.now)
    assert "one public key stands under two key ids" in str(refused[0].error)


def test_a_path_outside_the_delegation_is_not_found(repo: Repository, trust: TrustedSet) -> None:
    """Attack: the release role of one family lists a target of another."""
    repo.release("models/locks/front/1.0.0/x86-64", b"manifest")
    assert trust.offer(repo.offered(), repo.now) == ()
    with pytest.raises(Untrusted, match="no release role lists it"):
        trust.release("models/locks/front/1.0.0/x86-64", repo.now)


def test_a_release_key_that_targets_revoked_is_believed_no_more_at_once(repo: Repository, trust: TrustedSet) -> None:
    """Attack: a stolen release key is revoked, and the role's old, still current document is left in place."""
    revoked = repo.documents["release-intents"]
    repo.keys["release"] = [new_signer()]
    repo.sign_targets()
    repo.publish()
    (refusal,) = trust.offer(repo.offered(), repo.now)
    assert refusal.document == "release-intents"
    with pytest.raises(Untrusted, match="has not arrived yet"):
        trust.release(TARGET, repo.now)
    assert revoked not in trust.documents.values()
    assert TrustedSet.from_documents(trust.documents).versions() == trust.versions()
    repo.sign_release()
    assert trust.offer(repo.offered(), repo.now) == ()
    assert trust.release(TARGET, repo.now)


def test_targets_keys_that_the_root_revoked_are_believed_no_more_at_once(repo: Repository, trust: TrustedSet) -> None:
    """Attack: stolen targets keys are revoked, and with them whom they named as the fleet."""
    repo.keys["targets"] = [new_signer() for _ in range(3)]
    repo.sign_root()
    trust.offer({"root/2": repo.roots[2]}, repo.now)
    with pytest.raises(Untrusted, match="no trusted metadata yet"):
        trust.targets()
    repo.sign_targets()
    repo.publish()
    assert trust.offer(repo.offered(), repo.now) == ()
    assert trust.release(TARGET, repo.now)


def test_a_role_is_believed_only_with_the_keys_of_the_delegator_that_leads_to_the_target(repo: Repository) -> None:
    """Attack: one family's signer delegates to a role name that another family uses, with a key of his own."""
    thief, owner = new_signer(), new_signer()
    roles = {"shared": [thief], "release-a": [new_signer()], "release-b": [new_signer()]}
    paths = {"release-a": "models/a/*/*/*", "release-b": "models/b/*/*/*"}
    repo.documents = {"targets": delegating(1, repo.expires, repo.keys["targets"], [
        ("fleet", repo.keys["fleet"], ""), *((name, roles[name], path) for name, path in paths.items()),
    ])}  # fmt: skip
    for name, keys in (("release-a", [thief]), ("release-b", [owner])):
        repo.documents[name] = delegating(1, repo.expires, roles[name], [("shared", keys, paths[name])])
    evil = "models/b/door/1.0.0/x86-64"
    listed = Release(evil, digest(b"evil"), 4, "x86-64", "onnxruntime", 1)
    repo.documents["shared"] = release_document(1, [listed], repo.expires, [thief])
    repo.publish()
    trust = TrustedSet.from_root(repo.roots[1])
    assert trust.offer(repo.offered(), repo.now) == ()
    with pytest.raises(Untrusted, match="shared: shared was signed by 0/1"):
        trust.release(evil, repo.now)


def delegating(
    version: int, expires: datetime, signers: list[CryptoSigner], delegated: list[tuple[str, list[CryptoSigner], str]]
) -> bytes:
    """A targets document that lists no target and delegates each `(role, its keys, its path)`."""
    roles = {
        name: DelegatedRole(
            name, [k.public_key.keyid for k in keys], 1, terminating=False, paths=[path] if path else []
        )
        for name, keys, path in delegated
    }
    keys = {k.public_key.keyid: k.public_key for _, each, _ in delegated for k in each}
    return sign(Targets(version=version, expires=expires, delegations=Delegations(keys, roles)), signers)


def test_ten_missed_roots_are_caught_up_in_one_session(repo: Repository, trust: TrustedSet) -> None:
    for _ in range(10):
        before = repo.keys["root"]
        repo.keys["root"] = [new_signer() for _ in range(3)]
        repo.sign_root(also=before)
    assert trust.offer(repo.offered(), repo.now) == ()
    assert trust.root_version == 11


def test_a_missing_root_fails_closed(repo: Repository, trust: TrustedSet) -> None:
    """Attack: one link of the root chain is withheld; the online keys after it are not believed."""
    for _ in range(2):
        before = repo.keys["root"]
        repo.keys["root"], repo.keys["timestamp"] = [new_signer() for _ in range(3)], [new_signer()]
        repo.sign_root(also=before)
    repo.publish()
    del repo.roots[2]
    (refusal,) = trust.offer(repo.offered(), repo.now)
    assert trust.root_version == 1
    assert refusal.document == "timestamp"


def test_a_fast_forward_is_undone_by_rotating_the_online_keys(repo: Repository, trust: TrustedSet) -> None:
    """Attack: stolen online keys sign version 1,000,000."""
    repo.versions["timestamp"] = repo.versions["snapshot"] = 1_000_000
    repo.publish()
    assert trust.offer(repo.offered(), repo.now) == ()
    repo.keys["timestamp"], repo.keys["snapshot"] = [new_signer()], [new_signer()]
    repo.versions["timestamp"] = repo.versions["snapshot"] = 10
    repo.sign_root()
    repo.publish()
    assert trust.offer(repo.offered(), repo.now) == ()
    assert trust.versions()["timestamp"] == 11


@pytest.mark.parametrize(("digest_", "counter"), [("sha256:../../x", 1), (digest(b"x"), -1)])
def test_a_listed_release_with_a_bad_digest_or_counter_is_malformed(
    digest_: str, counter: int, repo: Repository, trust: TrustedSet
) -> None:
    """A digest becomes a file name further on."""
    repo.releases[TARGET] = Release(TARGET, digest_, 1, "x86-64", "onnxruntime", counter)
    repo.sign_release()
    trust.offer(repo.offered(), repo.now)
    with pytest.raises(Malformed, match=TARGET):
        trust.release(TARGET, repo.now)


def test_floors_are_those_of_roles_that_may_speak_for_the_model(repo: Repository, trust: TrustedSet) -> None:
    """Attack: the release role of one family raises the floor of another one's model."""
    foreign = "models/locks/front/1.0.0/x86-64"
    for target, floor in ((TARGET, 1), (foreign, 99)):
        repo.releases[target] = Release(target, digest(b"manifest"), 8, "x86-64", "onnxruntime", 99, floor)
    repo.sign_release()
    assert trust.offer(repo.offered(), repo.now) == ()
    assert trust.floors() == {"intents/kitchen": 1}


def test_authorities_are_those_that_targets_names(repo: Repository, trust: TrustedSet) -> None:
    assert trust.authorities() == ()
    name_authorities(repo, ["one", "two"])
    assert trust.offer(repo.offered(), repo.now) == ()
    assert trust.authorities() == ("one", "two")
    assert TrustedSet.from_documents(trust.documents).authorities() == ("one", "two")


def test_authorities_that_are_no_texts_are_malformed(repo: Repository, trust: TrustedSet) -> None:
    name_authorities(repo, [1])  # type: ignore[list-item]
    assert trust.offer(repo.offered(), repo.now) == ()
    with pytest.raises(Malformed, match="authorities"):
        trust.authorities()


def name_authorities(repo: Repository, authorities: list[str]) -> None:
    families = {repo.family: repo.role("release")}
    repo.versions["targets"] += 1
    version, fleet, signers = repo.versions["targets"], repo.role("fleet"), repo.keys["targets"]
    repo.documents["targets"] = targets_document(version, fleet, families, repo.expires, signers, authorities)
    repo.publish()


@pytest.mark.parametrize(("role", "changes"), [("timestamp", True), ("snapshot", True), ("targets", False)])
def test_the_ids_of_the_online_keys_change_with_timestamp_and_snapshot_only(
    repo: Repository, trust: TrustedSet, role: str, changes: bool
) -> None:
    before = trust.online_keys()
    repo.keys[role] = [new_signer() for _ in repo.keys[role]]
    repo.sign_root()
    trust.offer({"root/2": repo.roots[2]}, repo.now)
    assert trust.root_version == 2
    assert (trust.online_keys() != before) == changes


def test_one_key_in_two_spellings_does_not_count_twice() -> None:
    """Attack: as GHSA-pwqf-9h7j-7mv8, where the twin's hexadecimal digits are written otherwise."""
    repo = Repository(release_threshold=2)
    signer = repo.keys["release"][0]
    twin = new_signer()
    text = signer.public_key.keyval["public"]
    twin.public_key.keyval = {"public": f"{text[:2]} {text[2:].upper()}"}
    assert bytes.fromhex(twin.public_key.keyval["public"]) == bytes.fromhex(text)
    repo.keys["release"] = [signer, twin]
    repo.sign_targets()
    repo.publish()
    refused = TrustedSet.from_root(repo.roots[1]).offer(repo.offered(), repo.now)
    assert "one public key stands under two key ids" in str(refused[0].error)


def test_a_version_that_no_database_holds_is_refused(repo: Repository, trust: TrustedSet) -> None:
    """Attack: a stolen timestamp key, and a device that cannot store or report what it took."""
    repo.versions["timestamp"] = 2**63 - 1
    repo.publish()
    (refusal,) = trust.offer(repo.offered(), repo.now)
    assert refusal.document == "timestamp"
    assert "63 bits" in str(refusal.error)


@pytest.mark.parametrize("counter", [2**63, "1"])
def test_a_role_that_cannot_be_read_hides_no_floor_of_another(repo: Repository, counter: Any) -> None:
    """Attack: who signs for one family keeps devices from learning the floors of all the others."""
    role = RoleKeys((repo.keys["release"][0].public_key,))
    families = {"intents": role, "locks": role}
    signers = repo.keys["targets"]
    repo.documents["targets"] = targets_document(2, repo.role("fleet"), families, repo.expires, signers)
    floored = Release("models/locks/front/1.0.0/x86-64", digest(b"x"), 1, "x86-64", "onnxruntime", 7, 7)
    unreadable = replace(floored, target=TARGET, counter=counter)
    for family, release in (("locks", floored), ("intents", unreadable)):
        repo.documents[f"release-{family}"] = release_document(2, [release], repo.expires, repo.keys["release"])
    repo.publish()
    trust = TrustedSet.from_root(repo.roots[1])
    assert trust.offer(repo.offered(), repo.now) == ()
    with pytest.raises(Malformed, match="counter"):
        list(trust.releases())
    assert trust.floors() == {"locks/front": 7}
