"""The trust folder travels on a stick: whoever changes it on the way gets no signature that nobody saw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from offline_signers import HOME, NOW, Desk, OnlineSide, found, layout_of, manifest
from trust_repository import new_signer
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, TargetFile
from typer.testing import CliRunner

from cli.errors import BadInput
from cli.release import app
from cli.trust import ceremony, listing
from cli.trust.book import Book
from cli.trust.changes import changes
from cli.trust.desk import Desk as SigningDesk
from cli.trust.folder import MAX_DOCUMENTS, Online, TrustFolder
from cli.trust.keys import KeyFolder, new_passphrase
from cli.trust.plain import check_lifetime, check_plain
from fleet.trust.issuer import Issuer
from wire.metadata import ROLE_LIMIT

Change = Callable[[Any], None]


@pytest.fixture
def signer(desk: Desk, tmp_path: Path) -> SigningDesk:
    """Somebody who signed before: their keys, in a folder of their own, know the root."""
    shutil.copytree(tmp_path / "trust" / "keys", tmp_path / "mine" / "keys")
    desk.list(manifest("1.0.0"))
    TrustFolder(tmp_path / "stick").save(desk.book)
    KeyFolder(tmp_path / "mine").keep_root(str(desk.book.root_digest()))
    return SigningDesk.open(tmp_path / "stick", tmp_path / "mine")


def changed(data: bytes, change: Change) -> bytes:
    """A document after somebody changed it; its signatures fit no more."""
    md = Metadata[Any].from_bytes(data)
    change(md.signed)
    return md.to_bytes()


def plant(stick: Path, part: str, name: str, data: bytes) -> None:
    (stick / part).mkdir(exist_ok=True)
    (stick / part / f"{name.replace('/', '.')}.json").write_bytes(data)


def shoal(*words: str, answer: str = "") -> Any:
    return CliRunner().invoke(app, list(words), input=answer, env={"COLUMNS": "400"})


# --- staged documents -----------------------------------------------------------------------------------------


def lend_ids(root: Any) -> None:
    """The ids that everybody knows, with the keys of somebody else under them."""
    for keyid in root.roles["root"].keyids:
        root.keys[keyid].keyval = dict(new_signer().public_key.keyval)


def delegate_on(release: Any) -> None:
    key = new_signer().public_key
    role = DelegatedRole("mine", [key.keyid], 1, terminating=True, paths=["models/intents/*/*/*"])
    release.delegations = Delegations({key.keyid: key}, {"mine": role})


def widen(targets: Any) -> None:
    targets.delegations.roles["release-intents"].paths.append("models/*/*/*/*")


def add_role(targets: Any) -> None:
    key = new_signer().public_key
    targets.delegations.keys[key.keyid] = key
    targets.delegations.roles["mine"] = DelegatedRole("mine", [key.keyid], 1, terminating=False, paths=["*"])


def list_in_targets(targets: Any) -> None:
    targets.targets = {f"{HOME}/6.6.6/x86-64": TargetFile(1, {"sha256": "0" * 64}, f"{HOME}/6.6.6/x86-64")}


def spell_twice(root: Any) -> None:
    """One key under two ids, in two spellings of its hexadecimal digits."""
    first, second, _ = root.roles["root"].keyids
    root.keys[second].keyval = {"public": root.keys[first].keyval["public"].upper()}


def colour(release: Any) -> None:
    next(iter(release.targets.values())).unrecognized_fields["custom"]["runtime"] = "\x1b[2Jonnxruntime"


@pytest.mark.parametrize(
    ("role", "change"),
    [
        ("root", lend_ids),
        ("root", spell_twice),
        ("root", lambda root: setattr(root, "consistent_snapshot", False)),
        ("root", lambda root: setattr(root, "version", 7)),
        ("targets", widen),
        ("targets", add_role),
        ("targets", list_in_targets),
        ("targets", lambda targets: targets.unrecognized_fields.update(custom={"authorities": 5})),
        ("targets", lambda targets: targets.unrecognized_fields.update(custom={"authorities": ["no PEM"]})),
        ("release-intents", delegate_on),
        ("release-intents", colour),
        ("release-intents", lambda release: release.unrecognized_fields.update(more="unseen")),
    ],
)
def test_a_staged_document_with_something_that_is_not_shown_is_not_taken(
    desk: Desk, tmp_path: Path, role: str, change: Change
) -> None:
    """Attack: what its signer reads is harmless, and what they sign is not."""
    desk.list(manifest("1.0.0"))
    ((name, data),) = ceremony.renewed(desk.book, role, NOW).staged.items()
    check_plain(name, data)
    TrustFolder(tmp_path / "stick").save(desk.book)
    evil = changed(data, change)
    assert evil != changed(data, lambda _: None)
    plant(tmp_path / "stick", "staged", name, evil)
    with pytest.raises(BadInput, match=r"not as this program writes it|holds more than can be shown|holds version 7"):
        TrustFolder(tmp_path / "stick").book()


def test_two_ids_that_begin_alike_are_told_apart(desk: Desk) -> None:
    """Attack: a key that was searched for until its id begins as a known one does."""
    roles = desk.book.roles()
    staged = ceremony.with_roles(
        desk.book, ceremony.rotated(roles, "root", roles.ids("root")[0], new_signer().public_key), NOW
    )
    new = staged.newest("root").roles["root"].keyids[0]
    lines = [line for _, line in changes(staged, desk.book.believed())]
    assert lines == [f"- root: key {roles.ids('root')[0]}", f"+ root: key {new}"]


def test_a_counter_that_no_release_has_is_shown(desk: Desk) -> None:
    """Attack: the highest counter is pushed so far that there is no room above it."""

    def push(release: Any) -> None:
        release.unrecognized_fields["custom"]["models"]["intents/home"]["counter"] = 2**62

    desk.list(manifest("1.0.0"))
    staged = ceremony.renewed(desk.book, "release-intents", NOW)
    evil = desk.book.stage({"release-intents": changed(staged.staged["release-intents"], push)})
    ((_, line),) = changes(evil, desk.book.believed())
    assert f"highest counter 1 → {2**62}" in line


def test_a_document_that_would_outlive_its_keys_is_not_signed(desk: Desk) -> None:
    """Attack: valid until the year 9999."""
    (data,) = ceremony.renewed(desk.book, "root", NOW + timedelta(days=9)).staged.values()
    check_lifetime("root/2", data, ceremony.expiry(NOW + timedelta(days=9)))
    with pytest.raises(BadInput, match="clock is wrong"):
        check_lifetime("root/2", data, ceremony.expiry(NOW))


@pytest.mark.parametrize(
    "words",
    [
        ["renew", "targets"],
        ["withdraw", "models/intents/home/1.0.0/x86-64"],
        ["add-key", "root", "--unencrypted"],
        ["rotate", "release-intents", "--old", "", "--unencrypted"],
        ["init", "--family", "locks", "--unencrypted"],
    ],
    ids=lambda words: words[0],
)
def test_no_command_signs_what_somebody_else_staged_without_a_yes(
    desk: Desk, signer: SigningDesk, words: list[str]
) -> None:
    """Attack: a release is slipped in, in the hope that a command for something else signs it too."""
    words = [w or desk.book.roles().ids("release-intents")[0] for w in words]
    staged, _, _ = listing.list_bundles(desk.book, [manifest("6.6.6")], NOW)
    signer.trust.save(staged)
    done = shoal(*words, "--trust", str(signer.trust.folder), "--keys", str(signer.keys.folder), answer="n\n")
    assert isinstance(done.exception, BadInput)
    assert "+ release models/intents/home/6.6.6/x86-64" in done.stderr
    (lack,) = signer.trust.book().missing()
    assert (lack.document, lack.signed) == ("release-intents", ())


# --- signed documents -----------------------------------------------------------------------------------------


def test_a_release_that_was_slipped_in_among_the_signed_ones_is_shown(
    desk: Desk, signer: SigningDesk, tmp_path: Path
) -> None:
    """Attack: the list that the next release is added to is not the one that was signed."""
    evil, _, _ = listing.list_bundles(desk.book, [manifest("6.6.6")], NOW)
    plant(signer.trust.folder, "metadata", "release-intents", evil.staged["release-intents"])
    mine = layout_of(tmp_path / "bundles", manifest("2.0.0"))
    words = ("--trust", str(signer.trust.folder), "--keys", str(signer.keys.folder))
    done = shoal("sign", str(mine), *words, answer="n\n")
    assert isinstance(done.exception, BadInput)
    assert "+ release models/intents/home/6.6.6/x86-64" in done.stderr


def test_nothing_is_shown_and_asked_for_ones_own_release_on_documents_that_are_believed(
    signer: SigningDesk, tmp_path: Path
) -> None:
    mine = layout_of(tmp_path / "bundles", manifest("2.0.0"))
    done = shoal("sign", str(mine), "--trust", str(signer.trust.folder), "--keys", str(signer.keys.folder))
    assert done.exception is None
    assert "To be signed" not in done.stderr


def test_keys_sign_for_no_other_root(desk: Desk, signer: SigningDesk, tmp_path: Path) -> None:
    """Attack: every document is exchanged for those of somebody who made a root of their own."""
    other = found(tmp_path / "theirs", OnlineSide())
    for words in (["sign"], ["renew", "root"], ["status"]):
        folder = tmp_path / f"exchanged-{words[0]}"
        TrustFolder(folder).save(other.book)
        done = shoal(*words, "--trust", str(folder), "--keys", str(signer.keys.folder))
        assert isinstance(done.exception, BadInput)
        assert "another fleet's folder" in str(done.exception)
    (signer.trust.folder / "metadata" / "root.1.json").unlink()
    with pytest.raises(BadInput, match="root/1 is missing"):
        SigningDesk.open(signer.trust.folder, signer.keys.folder)


def test_keys_that_never_signed_show_everything_and_ask(desk: Desk, signer: SigningDesk, tmp_path: Path) -> None:
    """Attack: a new signer is given a folder that is false from the beginning."""
    (signer.keys.folder / "keys.json").unlink()
    mine = layout_of(tmp_path / "bundles", manifest("2.0.0"))
    words = ("sign", str(mine), "--trust", str(signer.trust.folder), "--keys", str(signer.keys.folder))
    done = shoal(*words, answer="n\n")
    assert isinstance(done.exception, BadInput)
    assert str(desk.book.root_digest()) in done.stderr
    assert "+ release models/intents/home/1.0.0/x86-64" in done.stderr
    assert shoal(*words, answer="y\n").exception is None
    assert signer.keys.belongs_to() == desk.book.root_digest()


def test_what_is_believed_ends_where_the_signatures_do(desk: Desk) -> None:
    desk.list(manifest("1.0.0"))
    desk.rotate("root", desk.book.roles().ids("root")[0])
    assert desk.book.believed() == desk.book
    for name, left in (("root/1", set[str]()), ("targets", {"root/1", "root/2"})):
        signed = {**desk.book.signed, name: changed(desk.book.signed[name], lambda d: setattr(d, "expires", NOW))}
        assert set(Book(signed).believed().signed) == left


def test_a_root_that_is_missing_in_the_chain_is_named(desk: Desk) -> None:
    for _ in range(2):
        desk.rotate("root", desk.book.roles().ids("root")[0])
    without = Book({name: data for name, data in desk.book.signed.items() if name != "root/2"})
    assert "root/2: is missing: a device that has it could not follow" in list(without.faults())


def test_one_more_signature_makes_no_other_document(desk: Desk) -> None:
    """Accident: of three people, A and B complete one copy of the folder, A and C another."""
    a, b, c = desk.keys.signers(desk.book.roles().ids("root"))
    staged = ceremony.renewed(desk.book, "root", NOW)
    ours, theirs = staged.sign([a, b]), staged.sign([a, c])
    assert ours.signed["root/2"] != theirs.signed["root/2"]
    assert ours.take(theirs.signed) == ours
    assert ours.newer_than(theirs.signed) == {}


# --- online.json, keys and files ------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["rotate", "timestamp"], ["rotate", "authorities"]], ids=lambda words: words[1])
def test_what_a_fleet_is_said_to_have_is_shown_before_it_is_signed(
    desk: Desk, signer: SigningDesk, words: list[str]
) -> None:
    """Attack: online.json names the keys and the certificate authority of somebody else."""
    desk.fleet.prepare("timestamp")
    desk.fleet.authorities = [Issuer.new(NOW).pem]
    desk.fleet.fetch_into(signer.trust.folder)
    done = shoal(*words, "--trust", str(signer.trust.folder), "--keys", str(signer.keys.folder), answer="n\n")
    assert isinstance(done.exception, BadInput)
    shown = desk.fleet.next["timestamp"].public_key.keyid if words[1] == "timestamp" else "+ certificate authority"
    assert shown in done.stderr


def test_the_first_root_of_a_fleet_that_is_only_on_a_stick_is_shown_before_it_is_signed(tmp_path: Path) -> None:
    """Attack: as above, before anything was signed."""
    fleet = OnlineSide()
    fleet.fetch_into(tmp_path)
    done = shoal("init", "--family", "intents", "--unencrypted", "--trust", str(tmp_path), answer="n\n")
    assert isinstance(done.exception, BadInput)
    assert all(signer.public_key.keyid in done.stderr for signer in fleet.signers.values())
    assert not (tmp_path / "metadata").exists()
    again = shoal("init", "--family", "intents", "--unencrypted", "--trust", str(tmp_path), answer="y\n")
    assert again.exception is None


def test_an_online_key_under_a_false_id_is_refused(desk: Desk) -> None:
    value = json.loads(json.dumps(desk.fleet.value()))
    Online.read(value, "online.json")
    value["online"]["timestamp"]["keyval"] = dict(new_signer().public_key.keyval)
    with pytest.raises(BadInput, match="under a false id"):
        Online.read(value, "online.json")


def test_two_certificates_in_one_text_are_refused(desk: Desk) -> None:
    """Attack: the fingerprint of the first is shown, and devices would believe both."""
    value = {**desk.fleet.value(), "authorities": [desk.fleet.authorities[0] + OnlineSide().authorities[0]]}
    with pytest.raises(BadInput, match="more than one PEM certificate"):
        Online.read(value, "online.json")


def test_a_key_that_somebody_left_in_the_folder_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    """Attack: two root keys lie there already when init looks for those of an interrupted run."""
    KeyFolder(tmp_path / "trust").make("root", 2, None)
    with pytest.raises(BadInput, match="a key without a passphrase"):
        found(tmp_path / "trust", OnlineSide(), passphrase="correct horse")
    KeyFolder(tmp_path / "other").make("root", 2, "a horse of theirs")
    with pytest.raises(BadInput, match="wrong passphrase"):
        found(tmp_path / "other", OnlineSide(), passphrase="correct horse")


def test_a_short_passphrase_makes_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_KEY_PASSPHRASE", "horse")
    with pytest.raises(BadInput, match="5 characters"):
        new_passphrase()


@pytest.mark.parametrize("name", ["root.x", "root.0", "evil", "release-UP", "snapshot"])
def test_a_file_that_is_no_document_of_a_trust_folder_is_named(tmp_path: Path, name: str) -> None:
    plant(tmp_path, "metadata", name, b"{}")
    with pytest.raises(BadInput, match="no document of a trust folder"):
        TrustFolder(tmp_path).book()


def test_a_file_that_is_too_large_or_no_file_is_not_read(tmp_path: Path) -> None:
    """Attack: the memory of the machine that signs."""
    (tmp_path / "metadata").mkdir()
    with (tmp_path / "metadata" / "targets.json").open("wb") as file:
        file.truncate(ROLE_LIMIT + 1)
    with pytest.raises(BadInput, match="over 5000000 bytes"):
        TrustFolder(tmp_path).book()
    (tmp_path / "metadata" / "targets.json").unlink()
    (tmp_path / "metadata" / "targets.json").symlink_to("/dev/zero")
    with pytest.raises(BadInput, match="not a file"):
        TrustFolder(tmp_path).book()


def test_more_documents_than_a_fleet_has_roots_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    for n in range(1, MAX_DOCUMENTS + 2):
        (tmp_path / "staged" / f"root.{n}.json").touch()
    with pytest.raises(BadInput, match="at most 10000"):
        TrustFolder(tmp_path).book()
