"""`shoal user`, `login`, `logout`, `token` and `audit`, against a running fleet."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fleet_process import FleetProcess, initialise_trust

PASSWORD = "correct horse battery"


class Person:
    """Somebody with a home folder of their own, who types commands."""

    def __init__(self, fleet: FleetProcess, home: Path) -> None:
        self.fleet, self.home = fleet, home
        home.mkdir()

    @property
    def session(self) -> Path:
        return self.home / "config" / "shoal" / "session.json"

    def shoal(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
        env = {**clean, "XDG_CONFIG_HOME": str(self.home / "config"), "COLUMNS": "200", **environ}
        command = [sys.executable, "-P", "-m", "cli", *words]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=self.home, env=env, stdin=subprocess.DEVNULL, check=False
        )

    def must(self, *words: str, **environ: str) -> str:
        done = self.shoal(*words, **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def admin(self, *words: str, **environ: str) -> str:
        """With the token in the fleet's data folder."""
        return self.must(*words, "--data", str(self.fleet.data), **environ)

    def log_in(self, name: str, password: str = PASSWORD) -> subprocess.CompletedProcess[str]:
        where = ("--url", self.fleet.url, "--ca", str(self.fleet.ca_file))
        return self.shoal("login", name, *where, SHOAL_PASSWORD=password)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    with FleetProcess(tmp_path_factory.mktemp("people") / "fleet") as process:
        initialise_trust(process)
        yield process


@pytest.fixture
def person(fleet: FleetProcess, tmp_path: Path) -> Person:
    return Person(fleet, tmp_path / "home")


def test_a_login_is_used_until_it_ends_and_its_file_is_for_its_owner_only(person: Person) -> None:
    person.admin("user", "add", "alice", "--role", "viewer", SHOAL_PASSWORD=PASSWORD)
    assert "alice" in person.admin("user", "list")
    done = person.log_in("alice")
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(person.session.stat().st_mode) == 0o600
    assert "Fleet" in person.must("status")
    refused = person.shoal("user", "list")
    assert (refused.returncode, "alice: people.manage takes one of the roles admin" in refused.stderr) == (1, True)
    token = json.loads(person.session.read_text())["token"]
    assert "logged out" in person.must("logout")
    assert not person.session.exists()
    assert person.fleet.request("GET", "/api/v1/me", headers={"Authorization": f"Bearer {token}"})[0] == 401
    assert "no fleet runs from" in person.shoal("status", HOME=str(person.home)).stderr


def test_a_wrong_password_leaves_no_login(person: Person) -> None:
    done = person.log_in("nobody", "a wrong password")
    assert (done.returncode, "name or password is wrong" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr
    assert not person.session.exists()


def test_a_password_is_never_waited_for_where_nobody_can_type(person: Person) -> None:
    done = person.shoal("login", "alice", "--url", person.fleet.url, "--ca", str(person.fleet.ca_file))
    assert (done.returncode, "set SHOAL_PASSWORD" in done.stderr) == (1, True)
    assert "name the fleet with --url" in person.shoal("login", "alice", SHOAL_PASSWORD=PASSWORD).stderr


def test_a_login_that_ran_out_says_so(person: Person) -> None:
    person.admin("user", "add", "carol", "--role", "viewer", SHOAL_PASSWORD=PASSWORD)
    assert person.log_in("carol").returncode == 0
    value = json.loads(person.session.read_text())
    person.session.write_text(json.dumps({**value, "expires": "2020-01-01T00:00:00.000Z"}))
    assert "the login of carol" in person.shoal("status").stderr
    person.session.write_text("{}")
    assert "run `shoal logout`" in person.shoal("status").stderr
    person.must("logout")
    assert not person.session.exists()


def test_a_person_is_disabled_enabled_and_given_another_password(person: Person) -> None:
    person.admin("user", "add", "dave", "--role", "operator", "--group", "berlin", SHOAL_PASSWORD=PASSWORD)
    assert person.log_in("dave").returncode == 0
    person.admin("user", "disable", "dave")
    assert person.shoal("status").returncode == 1
    assert person.log_in("dave").returncode == 1
    person.admin("user", "enable", "dave")
    assert person.log_in("dave").returncode == 0
    person.must("user", "password", "dave", SHOAL_PASSWORD=PASSWORD, SHOAL_NEW_PASSWORD="another good password")
    assert person.log_in("dave").returncode == 1
    person.admin("user", "password", "dave", SHOAL_PASSWORD="and one from the admin")
    assert person.log_in("dave", "and one from the admin").returncode == 0
    short = person.shoal("user", "add", "eve", "--role", "viewer", "--data", str(person.fleet.data), SHOAL_PASSWORD="x")
    assert "12 to 256 characters" in short.stderr


def test_a_token_is_made_used_listed_and_revoked(person: Person) -> None:
    made = json.loads(person.admin("token", "create", "ci", "--role", "viewer", "--days", "7", "--program", "--json"))
    environ = {
        "SHOAL_FLEET_URL": person.fleet.url,
        "SHOAL_CA": str(person.fleet.ca_file),
        "SHOAL_TOKEN": made["token"],
    }
    assert "Fleet" in person.must("status", **environ)
    assert person.shoal("token", "create", "more", "--role", "admin", **environ).returncode == 1
    shown = person.admin("token", "list")
    assert made["id"] in shown
    assert made["token"] not in shown
    person.admin("token", "revoke", made["id"])
    assert "revoked" in person.shoal("status", **environ).stderr


def test_a_first_token_that_was_lost_is_reset(person: Person) -> None:
    old = person.fleet.token
    (person.fleet.data / "operator-token").unlink()
    person.admin("token", "reset")
    person.fleet.token = (person.fleet.data / "operator-token").read_text().strip()
    assert person.fleet.token != old
    person.admin("status")
    nowhere = person.shoal("token", "reset", "--data", str(person.home))
    assert (nowhere.returncode, "no fleet stands there" in nowhere.stderr) == (1, True)
    assert list(person.home.iterdir()) == []


def test_the_log_is_listed_verified_exported_and_verified_again_without_the_fleet(person: Person) -> None:
    person.admin("token", "create", "audited", "--role", "viewer", "--program")
    listed = json.loads(person.admin("audit", "list", "--who", "token:first", "--since", "1 h", "--json"))
    assert listed[0]["action"] == "POST /api/v1/tokens"
    assert "token:first" in person.admin("audit", "list")
    assert "is whole" in person.admin("audit", "verify")
    person.admin("audit", "export", "copy.jsonl")
    assert "exists already" in person.shoal("audit", "export", "copy.jsonl", "--data", str(person.fleet.data)).stderr
    person.admin("token", "create", "later", "--role", "viewer", "--program")
    assert "is the one of the head of" in person.admin("audit", "verify", "--head", "copy.jsonl.head")
    assert "is whole" in person.must("audit", "verify", "--file", "copy.jsonl")
    copy = person.home / "copy.jsonl"
    copy.write_text(copy.read_text().replace("token:first", "token:worst", 1))
    done = person.shoal("audit", "verify", "--file", "copy.jsonl")
    assert (done.returncode, "it does not fit its hash" in done.stderr) == (1, True)


def test_the_key_of_the_head_is_the_one_that_the_offline_keys_name(tmp_path: Path) -> None:
    """Attack: a fleet that shows a log and metadata of its own making, to somebody who holds the offline folder."""
    with FleetProcess(tmp_path / "fleet") as fleet, FleetProcess(tmp_path / "other") as other:
        person = Person(fleet, tmp_path / "home")
        for name, process in (("trust", fleet), ("foreign", other)):
            init = ("release", "init", "--family", "intents", "--unencrypted", "--trust", name)
            person.must(*init, "--data", str(process.data))
        assert "is whole" in person.admin("audit", "verify", "--trust", "trust")
        done = person.shoal("audit", "verify", "--trust", "foreign", "--data", str(fleet.data))
        assert (done.returncode, "not by a key of this fleet" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("UPDATE audit SET detail = 'nothing' WHERE seq = 2", "audit entry 2"),
        ("DELETE FROM audit WHERE seq = 2", "audit entry 2"),
        ("DELETE FROM audit WHERE seq > 2", "audit entry 3"),
        ("DELETE FROM meta WHERE key = 'audit-head'", "no signed head"),
    ],
)
def test_a_log_that_was_changed_behind_the_fleets_back_is_found(tmp_path: Path, damage: str, message: str) -> None:
    """Attack: somebody with the database removes what they did."""
    with FleetProcess(tmp_path / "fleet") as fleet:
        person = Person(fleet, tmp_path / "home")
        for name in ("a", "b", "c"):
            person.fleet.api("POST", "/api/v1/tokens", {"name": name, "roles": ["viewer"], "program": True})
        assert "is whole: 4 entries" in person.admin("audit", "verify")
        with closing(sqlite3.connect(fleet.data / "fleet.db")) as connection, connection:
            assert connection.execute(damage).rowcount > 0
        done = person.shoal("audit", "verify", "--data", str(fleet.data))
        assert (done.returncode, message in done.stderr) == (1, True), done.stderr


def test_a_cut_log_with_its_old_head_put_back_is_found_by_a_head_that_was_exported(tmp_path: Path) -> None:
    """Attack: the database of yesterday is put back."""
    with FleetProcess(tmp_path / "fleet") as fleet:
        person = Person(fleet, tmp_path / "home")
        fleet.stop()
        old = (fleet.data / "fleet.db").read_bytes()
        fleet.start()
        fleet.api("POST", "/api/v1/tokens", {"name": "a", "roles": ["viewer"], "program": True})
        person.admin("audit", "export", "copy.jsonl")
        fleet.stop()
        (fleet.data / "fleet.db").write_bytes(old)
        fleet.start()
        assert "is whole" in person.admin("audit", "verify")
        done = person.shoal("audit", "verify", "--head", "copy.jsonl.head", "--data", str(fleet.data))
        assert (done.returncode, "audit entry 2: missing" in done.stderr) == (1, True)
