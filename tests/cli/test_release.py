"""`shoal release` on machines without a network: a folder goes in, a folder comes out."""

from __future__ import annotations

import json
import shutil
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from offline_signers import OnlineSide, layout_of, manifest
from typer.testing import CliRunner

from cli.errors import BadInput, CliError
from cli.release import app
from cli.trust.folder import TrustFolder
from cli.trust.keys import KeyFolder

HOME = "models/intents/home"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection can be opened, and no fleet is known."""

    def refuse(*_: object) -> None:
        raise AssertionError("a command that works offline opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("SHOAL_FLEET_URL", "SHOAL_TOKEN", "SHOAL_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHOAL_DATA", "no-fleet-here")
    monkeypatch.setenv("SHOAL_KEY_PASSPHRASE", "correct horse")


def shoal(*words: str, answer: str | None = None) -> Any:
    """The JSON of a command. Raises what it raised."""
    done = CliRunner().invoke(app, [*words, "--json"], input=answer)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return json.loads(done.stdout[done.stdout.index("{") :])  # the runner repeats an answer before it


@pytest.fixture
def fleet() -> OnlineSide:
    return OnlineSide()


@pytest.fixture
def trust(tmp_path: Path, fleet: OnlineSide) -> str:
    """A trust folder that was founded offline, with every key in it."""
    fleet.fetch_into(tmp_path / "trust")
    shoal("init", "--family", "intents", "--trust", str(tmp_path / "trust"), "--unencrypted", "--yes")
    return str(tmp_path / "trust")


def releases(trust: str) -> dict[str, int]:
    return {r["target"].removeprefix(f"{HOME}/"): r["counter"] for r in shoal("status", "--trust", trust)["releases"]}


def test_the_whole_ceremony_needs_no_network(tmp_path: Path, fleet: OnlineSide) -> None:
    trust = str(tmp_path / "trust")
    fleet.fetch_into(tmp_path / "trust")
    made = shoal("init", "--family", "intents", "--trust", trust, "--yes")
    assert (made["published"], made["staged"]) == (False, [])
    for version in ("1.0.0", "1.1.0"):
        layout = layout_of(tmp_path / version, manifest(version))
        (release,) = shoal("sign", str(layout), "--trust", trust)["releases"]
        assert release["target"] == f"{HOME}/{version}/x86-64"
    for role in ("snapshot", "timestamp", "fleet"):
        fleet.prepare(role)
        fleet.fetch_into(tmp_path / "trust")
        assert shoal("rotate", role, "--trust", trust, "--yes")["staged"] == []
        fleet.switch(role)
    for role in ("root", "targets", "release-intents"):
        first = TrustFolder(Path(trust)).book().roles().ids(role)[0]
        assert shoal("rotate", role, "--old", first[:12], "--trust", trust)["staged"] == []
    assert shoal("raise-floor", "intents/home", "--to", "2", "--yes", "--trust", trust)["floor"] == 2
    view = fleet.device_view(TrustFolder(Path(trust)).book())
    assert ([r.counter for r in view.releases()], view.floors()) == ([2], {"intents/home": 2})


def test_the_guard_of_these_tests_bites(tmp_path: Path) -> None:
    """Without online.json, init asks a fleet; here that cannot be."""
    with pytest.raises(CliError, match="no fleet runs from"):
        shoal("init", "--family", "intents", "--trust", str(tmp_path / "trust"), "--unencrypted")
    with socket.socket() as s, pytest.raises(AssertionError, match="opened a connection"):
        s.connect(("127.0.0.1", 9))


@pytest.fixture
def two_people(trust: str, tmp_path: Path) -> tuple[str, str]:
    """The folders of keys of two people: neither holds what the other has, and the trust folder holds none."""
    folders = {who: tmp_path / who / "keys" for who in ("ada", "bob")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for who, names in {"ada": ["1"], "bob": ["2", "3"]}.items():
        for path in (Path(trust) / "keys").glob("*.pem"):
            if path.stem.rpartition("-")[2] in names:
                shutil.move(path, folders[who] / path.name)
    assert list((Path(trust) / "keys").glob("*.pem")) == []
    return str(tmp_path / "ada"), str(tmp_path / "bob")


def test_two_signers_in_two_places_release_together(
    tmp_path: Path, trust: str, two_people: tuple[str, str], fleet: OnlineSide
) -> None:
    ada, bob = two_people
    layout = layout_of(tmp_path / "bundles", manifest("1.0.0"))
    signed = shoal("sign", str(layout), "--trust", trust, "--keys", ada, "--yes")
    (lack,) = signed["staged"]
    assert (lack["document"], lack["missing"], len(lack["signed"])) == ("release-intents", 1, 1)
    assert list(fleet.device_view(TrustFolder(Path(trust)).book()).releases()) == []

    carried = shutil.copytree(trust, tmp_path / "at-bob's")
    assert shoal("sign", "--trust", str(carried), "--keys", bob, "--yes")["complete"] == ["release-intents"]
    view = fleet.device_view(TrustFolder(carried).book())
    assert [r.target for r in view.releases()] == [f"{HOME}/1.0.0/x86-64"]


def test_a_root_that_replaces_a_key_needs_the_old_and_the_new_threshold(
    trust: str, two_people: tuple[str, str], fleet: OnlineSide
) -> None:
    ada, bob = two_people
    book = TrustFolder(Path(trust)).book()
    device = fleet.device_view(book)
    (ada_key,) = (s.public_key.keyid for s in KeyFolder(Path(ada)).signers(book.roles().ids("root")))
    staged = shoal("rotate", "root", "--old", ada_key, "--trust", trust, "--keys", ada, "--yes")["staged"]
    assert {(s["document"], s["missing"]) for s in staged} == {("root/2", 1)}
    assert shoal("sign", "--trust", trust, "--keys", bob, "--yes")["staged"] == []
    assert fleet.device_view(TrustFolder(Path(trust)).book(), device).root_version == 2


def test_who_signs_what_others_staged_sees_it_first_and_can_say_no(
    tmp_path: Path, trust: str, two_people: tuple[str, str]
) -> None:
    """Attack: somebody slips a release of their own into the folder and hopes that it is signed unread."""
    ada, bob = two_people
    shoal("sign", str(layout_of(tmp_path / "bundles", manifest("6.6.6"))), "--trust", trust, "--keys", ada, "--yes")
    done = CliRunner().invoke(app, ["sign", "--trust", trust, "--keys", bob], input="n\n", env={"COLUMNS": "200"})
    assert f"+ release {HOME}/6.6.6/x86-64 counter 1" in done.stderr
    assert isinstance(done.exception, BadInput)
    with pytest.raises(BadInput, match="say --yes"):
        shoal("sign", "--trust", trust, "--keys", bob, answer="")
    mine = layout_of(tmp_path / "mine", manifest("1.0.0"))
    with pytest.raises(BadInput, match="nothing was changed"):
        shoal("sign", str(mine), "--trust", trust, "--keys", bob, answer="n\n")
    (lack,) = shoal("status", "--trust", trust)["staged"]
    assert len(lack["signed"]) == 1


def test_somebody_elses_public_key_is_added_and_a_threshold_raised(
    tmp_path: Path, trust: str, fleet: OnlineSide
) -> None:
    key = Ed25519PrivateKey.generate().public_key()
    pem = tmp_path / "eve.pub"
    pem.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    added = shoal("add-key", "release-intents", "--public", str(pem), "--trust", trust)
    assert added["staged"] == []
    assert added["keyid"] in TrustFolder(Path(trust)).book().roles().ids("release-intents")
    with pytest.raises(BadInput, match="counts different keys"):
        shoal("add-key", "release-intents", "--public", str(pem), "--trust", trust)
    shoal("add-key", "root", "--threshold", "3", "--trust", trust, "--unencrypted")
    roles = {r["role"]: r for r in shoal("status", "--trust", trust)["roles"]}
    assert (roles["root"]["threshold"], len(roles["root"]["keys"]), roles["root"]["version"]) == (3, 4, 2)
    fleet.device_view(TrustFolder(Path(trust)).book())


@pytest.mark.parametrize("role", ["snapshot", "fleet", "nonsense"])
def test_an_online_or_unknown_role_gets_no_second_key(trust: str, role: str) -> None:
    before = sorted(p.name for p in (Path(trust) / "keys").iterdir())
    with pytest.raises(BadInput, match=f"role '?{role}"):
        shoal("add-key", role, "--trust", trust, "--unencrypted")
    assert sorted(p.name for p in (Path(trust) / "keys").iterdir()) == before


def test_a_floor_first_lists_what_it_kills_and_asks(tmp_path: Path, trust: str) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        shoal("sign", str(layout_of(tmp_path / version, manifest(version))), "--trust", trust)
    words = ["raise-floor", "intents/home", "--to", "3", "--trust", trust]
    done = CliRunner().invoke(app, words, input="n\n", env={"COLUMNS": "200"})
    listed, asked = (done.stderr.index(text) for text in (f"{HOME}/1.0.0/x86-64", "Raise the floor"))
    assert listed < asked
    assert f"{HOME}/1.1.0/x86-64" in done.stderr
    assert f"{HOME}/1.2.0/x86-64" not in done.stderr
    assert isinstance(done.exception, BadInput)
    assert len(releases(trust)) == 3
    killed = shoal(*words, answer="y\n")["killed"]
    assert [r["counter"] for r in killed] == [1, 2]
    assert releases(trust) == {"1.2.0/x86-64": 3}


def test_a_release_is_withdrawn_by_its_target_or_by_model_and_version(tmp_path: Path, trust: str) -> None:
    both = manifest("1.0.0"), manifest("1.0.0", "raspberry-pi-4"), manifest("1.1.0")
    shoal("sign", str(layout_of(tmp_path / "bundles", *both)), "--trust", trust)
    shoal("withdraw", f"{HOME}/1.1.0/x86-64", "--trust", trust)
    assert releases(trust) == {"1.0.0/raspberry-pi-4": 1, "1.0.0/x86-64": 1}
    with pytest.raises(BadInput, match="--all-profiles"):
        shoal("withdraw", "intents/home", "1.0.0", "--trust", trust)
    with pytest.raises(BadInput, match="not listed"):
        shoal("withdraw", "intents/home", "1.0.0", "--profile", "toaster", "--trust", trust)
    assert len(shoal("withdraw", "intents/home", "1.0.0", "--all-profiles", "--trust", trust)["withdrawn"]) == 2
    assert releases(trust) == {}


def test_status_shows_keys_versions_and_days_and_warns_before_the_end(
    trust: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.trust.ceremony.LIFETIME", timedelta(days=20))
    shoal("renew", "targets", "--trust", trust)
    status = shoal("status", "--trust", trust)
    roles = {r["role"]: r for r in status["roles"]}
    assert [roles[r]["days"] < 30 for r in ("root", "targets", "release-intents")] == [False, True, False]
    assert all(len(roles[r]["here"]) == len(roles[r]["keys"]) for r in ("root", "targets", "release-intents"))
    assert status["faults"] == []
    shown = CliRunner().invoke(app, ["status", "--trust", trust], env={"COLUMNS": "200"}).stdout
    assert "targets expires in 19 days: run 'shoal release renew targets'" in shown


def test_status_of_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="run 'shoal release init', or 'shoal release fetch'"):
        shoal("status", "--trust", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_document_that_is_none_is_named(trust: str) -> None:
    (Path(trust) / "metadata" / "targets.json").write_text("{}")
    with pytest.raises(BadInput, match="targets: not TUF metadata"):
        shoal("status", "--trust", trust)
