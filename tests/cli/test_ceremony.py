"""Who may sign: keys, thresholds and rotation, on folders alone."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from offline_signers import HOME, NOW, Desk, OnlineSide, found, manifest
from trust_repository import new_signer

from cli.errors import BadInput
from cli.trust import ceremony, listing
from cli.trust.keys import KeyFolder, known_passphrase
from wire.chunks import digest
from wire.signing import RoleKeys
from wire.trust import TrustedSet


def test_what_was_signed_offline_is_what_a_device_trusts(desk: Desk) -> None:
    desk.list(manifest("1.0.0"))
    release = desk.fleet.device_view(desk.book).release(f"{HOME}/1.0.0/x86-64", NOW)
    assert (release.digest, release.counter) == (digest(manifest("1.0.0")), 1)


def test_devices_learn_the_certificate_authorities_from_what_was_signed_offline(desk: Desk) -> None:
    assert desk.fleet.device_view(desk.book).authorities() == tuple(desk.fleet.authorities)


# --- keys -----------------------------------------------------------------------------------------------------


def test_keys_are_encrypted_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    found(tmp_path / "trust", OnlineSide(), passphrase="correct horse")
    paths = list((tmp_path / "trust" / "keys").glob("*.pem"))
    assert len(paths) == 3 + 3 + 2
    for path in paths:
        assert b"ENCRYPTED PRIVATE KEY" in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "trust" / "keys").stat().st_mode & 0o777 == 0o700


def test_a_wrong_passphrase_signs_nothing(tmp_path: Path) -> None:
    desk = found(tmp_path / "trust", OnlineSide(), passphrase="correct horse")
    book, _, _ = listing.list_bundles(desk.book, [manifest("1.0.0")], NOW)
    with pytest.raises(BadInput, match="wrong passphrase"):
        KeyFolder(tmp_path / "trust", lambda: "wrong horse").signers(book.wanted())


def test_without_a_terminal_the_passphrase_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_KEY_PASSPHRASE", raising=False)
    with pytest.raises(BadInput, match="set SHOAL_KEY_PASSPHRASE"):
        known_passphrase()
    monkeypatch.setenv("SHOAL_KEY_PASSPHRASE", "correct horse")
    assert known_passphrase() == "correct horse"


def test_a_key_of_another_kind_of_store_is_refused_by_its_uri(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "trust" / "keys.json"
    path.write_text(path.read_text().replace("file:keys/root-1.pem", "tpm2:0x81000001"))
    with pytest.raises(BadInput, match="only key files can be read"):
        desk.keys.signers(["x"])


def test_a_key_file_is_found_by_its_uri_anywhere(desk: Desk, tmp_path: Path) -> None:
    stick = tmp_path / "stick.pem"
    (tmp_path / "trust" / "keys" / "root-1.pem").rename(stick)
    path = tmp_path / "trust" / "keys.json"
    path.write_text(path.read_text().replace("file:keys/root-1.pem", f"file://{stick}"))
    assert len(desk.keys.signers(desk.book.roles().ids("root"))) == 3


def test_a_key_that_was_made_and_never_listed_is_used_by_the_next_run(tmp_path: Path) -> None:
    """Accident: init is interrupted after some keys were written and before anything named them."""
    keys = KeyFolder(tmp_path / "trust")
    (made,) = keys.make("root", 1, None)
    (tmp_path / "trust" / "keys.json").unlink()
    desk = found(tmp_path / "trust", OnlineSide())
    assert made.keyid in desk.book.roles().ids("root")
    assert len(list((tmp_path / "trust" / "keys").glob("root-*.pem"))) == 3


# --- thresholds -----------------------------------------------------------------------------------------------


def test_one_of_two_release_keys_stages_and_the_second_completes(desk: Desk) -> None:
    ours, theirs = desk.keys.signers(desk.book.roles().ids("release-intents"))
    book, _, _ = listing.list_bundles(desk.book, [manifest("1.0.0")], NOW)
    staged = book.sign([ours])
    (lack,) = staged.missing()
    assert (lack.document, lack.count, lack.unsigned) == ("release-intents", 1, (theirs.public_key.keyid,))
    assert staged.signed == desk.book.signed
    assert list(desk.fleet.device_view(staged).releases()) == []
    done = staged.sign([theirs])
    assert (done.staged, done.missing()) == ({}, [])
    assert [r.target for r in desk.fleet.device_view(done).releases()] == [f"{HOME}/1.0.0/x86-64"]


def test_one_key_that_signs_twice_counts_once(desk: Desk) -> None:
    """Attack: the threshold is reached with one key (GHSA-pwqf-9h7j-7mv8)."""
    ours = desk.keys.signers(desk.book.roles().ids("release-intents"))[0]
    book, _, _ = listing.list_bundles(desk.book, [manifest("1.0.0")], NOW)
    (lack,) = book.sign([ours, ours]).sign([ours]).missing()
    assert lack.count == 1


def test_one_key_cannot_be_named_twice(desk: Desk) -> None:
    """Attack: a threshold of two that one person reaches."""
    roles = desk.book.roles()
    with pytest.raises(BadInput, match="counts different keys"):
        ceremony.added(roles, "release-intents", roles.of("release-intents").keys[0], None)
    twin = new_signer().public_key
    twin.keyval = dict(roles.of("root").keys[0].keyval)
    with pytest.raises(BadInput, match="counts different keys"):
        ceremony.added(roles, "root", twin, None)


@pytest.mark.parametrize("threshold", [0, 3])
def test_a_threshold_that_cannot_be_reached_is_refused(desk: Desk, threshold: int) -> None:
    held = desk.book.roles().of("release-intents")
    with pytest.raises(BadInput, match="threshold"):
        desk.book.roles().with_keys("release-intents", RoleKeys(held.keys, threshold))


def test_a_strangers_signature_is_not_added(desk: Desk) -> None:
    book, _, _ = listing.list_bundles(desk.book, [manifest("1.0.0")], NOW)
    (lack,) = book.sign([new_signer()]).missing()
    assert lack.count == 2


def test_a_staged_document_waits_for_the_staged_one_above_it(desk: Desk) -> None:
    """A release that only the next targets would carry is not complete before those are."""
    releases = desk.keys.signers(desk.book.roles().ids("release-intents"))
    gone = desk.book.roles().ids("release-intents")[0]
    new = new_signer()
    after = ceremony.rotated(desk.book.roles(), "release-intents", gone, new.public_key)
    staged = ceremony.with_roles(desk.book, after, NOW).sign([new, *releases])
    assert set(staged.staged) == {"targets", "release-intents"}
    assert [lack.count for lack in staged.missing() if lack.document == "release-intents"] == [0]
    done = staged.sign(desk.keys.signers(staged.wanted()))
    assert done.staged == {}
    desk.fleet.device_view(done)


# --- rotation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["root", "targets", "release-intents"])
def test_a_rotated_key_signs_no_more_and_devices_follow(desk: Desk, role: str) -> None:
    desk.list(manifest("1.0.0"))
    device = desk.fleet.device_view(desk.book)
    gone = desk.rotate(role, desk.book.roles().ids(role)[0])
    assert desk.book.staged == {}
    assert gone not in desk.book.roles().ids(role)
    desk.list(manifest("1.1.0"))
    desk.fleet.device_view(desk.book, device)
    assert len(list(device.releases())) == 2
    assert not list(desk.book.faults())


@pytest.mark.parametrize("role", ["snapshot", "timestamp", "fleet"])
def test_an_online_key_is_replaced_by_the_one_that_the_fleet_made_to_follow(desk: Desk, role: str) -> None:
    device = desk.fleet.device_view(desk.book)
    old = desk.fleet.signers[role].public_key.keyid
    desk.rotate_online(role)
    assert old not in desk.book.roles().ids(role)
    desk.fleet.device_view(desk.book, device)


def test_an_old_timestamp_key_is_not_believed_after_its_rotation(desk: Desk) -> None:
    """Attack: stolen, and rotated out since."""
    device = desk.fleet.device_view(desk.book)
    stolen = desk.fleet.signers["timestamp"]
    desk.rotate_online("timestamp")
    desk.fleet.device_view(desk.book, device)
    desk.fleet.signers["timestamp"] = stolen
    (refusal,) = device.offer(desk.fleet.offered(desk.book), NOW)
    assert refusal.document == "timestamp"


def test_without_a_next_key_an_online_role_is_not_rotated(desk: Desk) -> None:
    with pytest.raises(BadInput, match="fetch --prepare timestamp"):
        ceremony.next_online_key(desk.book.roles(), desk.fleet.online(), "timestamp")


def test_the_key_to_replace_must_be_named_when_there_are_several(desk: Desk) -> None:
    with pytest.raises(BadInput, match="choose one with --old"):
        ceremony.key_of(desk.book.roles(), "root", None)
    first = desk.book.roles().ids("root")[0]
    assert ceremony.key_of(desk.book.roles(), "root", first[:10]) == first


@pytest.mark.parametrize("role", ["root", "targets"])
def test_a_lost_key_is_replaced_by_the_two_that_are_left(desk: Desk, tmp_path: Path, role: str) -> None:
    """Accident: one of three keys is gone."""
    lost = desk.book.roles().ids(role)[0]
    (tmp_path / "trust" / "keys" / f"{role}-1.pem").unlink()
    assert lost not in {s.public_key.keyid for s in desk.keys.signers([lost])}
    device = desk.fleet.device_view(desk.book)
    desk.rotate(role, lost)
    assert desk.book.staged == {}
    desk.fleet.device_view(desk.book, device)


def test_with_two_of_three_root_keys_lost_nothing_is_changed_any_more(desk: Desk, tmp_path: Path) -> None:
    """Accident, and the limit of the threshold: one key alone names no others."""
    for n in (1, 2):
        (tmp_path / "trust" / "keys" / f"root-{n}.pem").unlink()
    desk.rotate("root", desk.book.roles().ids("root")[0])
    assert set(desk.book.staged) == {"root/2"}
    assert desk.book.root_version() == 1


def test_a_raised_threshold_has_earlier_releases_signed_again(tmp_path: Path) -> None:
    desk = found(tmp_path / "trust", OnlineSide(), threshold=1)
    desk.list(manifest("1.0.0"))
    (new,) = desk.keys.make("release-intents", 1, None)
    roles = ceremony.added(desk.book.roles(), "release-intents", new, 2)
    desk.sign(ceremony.with_roles(desk.book, roles, NOW))
    assert not list(desk.book.faults())
    assert len(list(desk.fleet.device_view(desk.book).releases())) == 1


def test_another_family_gets_keys_of_its_own_and_a_device_believes_both(desk: Desk) -> None:
    desk.list(manifest("1.0.0"))
    desk.sign(ceremony.with_family(desk.book, desk.keys, "locks", NOW, threshold=1, passphrase=None))
    desk.list(manifest("1.0.0", family="locks"))
    assert [r.model for r in desk.fleet.device_view(desk.book).releases()] == ["intents/home", "locks/home"]
    with pytest.raises(BadInput, match="is there already"):
        ceremony.with_family(desk.book, desk.keys, "locks", NOW, threshold=1, passphrase=None)


@pytest.mark.parametrize("role", ["root", "targets", "release-intents"])
def test_a_renewed_role_says_the_same_for_longer(desk: Desk, role: str) -> None:
    desk.list(manifest("1.0.0"))
    later = NOW + timedelta(days=300)
    before = desk.book.newest(role)
    after = desk.sign(ceremony.renewed(desk.book, role, later)).newest(role)
    assert after.version == before.version + 1
    assert after.expires == later + ceremony.LIFETIME
    assert len(list(desk.fleet.device_view(desk.book).releases())) == 1


def test_new_authorities_are_believed_once_targets_is_signed(desk: Desk) -> None:
    desk.fleet.authorities.append(OnlineSide().authorities[0])
    roles = ceremony.with_authorities(desk.book.roles(), desk.fleet.online())
    desk.sign(ceremony.with_roles(desk.book, roles, NOW))
    assert desk.fleet.device_view(desk.book).authorities() == tuple(desk.fleet.authorities)
    with pytest.raises(BadInput, match="nothing to sign"):
        ceremony.with_authorities(desk.book.roles(), desk.fleet.online())


def test_a_second_device_that_was_away_takes_every_root_in_one_go(desk: Desk) -> None:
    device = TrustedSet.from_root(desk.book.signed["root/1"])
    for _ in range(3):
        desk.rotate("root", desk.book.roles().ids("root")[0])
    assert desk.fleet.device_view(desk.book, device).root_version == 4
