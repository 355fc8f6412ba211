"""Users and tokens in a database: what they are worth, for how long, and who may give what to whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fleet.access import Caller
from fleet.errors import Conflict, Forbidden, Malformed, NotFound, Unauthorized
from fleet.people import NewToken, People
from fleet.store.database import Database
from fleet.store.tables import ApiToken, UserRow
from fleet.tokens import hash_token, issue


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database.in_folder(tmp_path)) as opened:
        yield opened


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 22, 8, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def people(database: Database, clock: Clock) -> People:
    return People(database, clock, timedelta(hours=12))


ADMIN = Caller("root", frozenset({"admin"}), user="root", session=True)


def admin_token(people: People) -> str:
    with people.database.transaction() as session:
        token, _ = issue(session, name="first", owner="", roles=["admin"], groups=[], now=people.clock(), lifetime=None)
    return token


def add_user(people: People, name: str, *roles: str, groups: tuple[str, ...] = ()) -> None:
    people.add(ADMIN, name, "x", roles, groups)


def session_of(people: People, name: str) -> Caller:
    token, _ = people.log_in(name, "x", None)
    return people.caller(token)[0]


def test_a_token_expires_to_the_second(people: People, clock: Clock) -> None:
    token = people.add_token(ADMIN, NewToken(name="ci", roles=("viewer",), days=1, program=True))["token"]
    clock.now += timedelta(days=1, milliseconds=-1)
    assert people.caller(token)[0].roles == {"viewer"}
    clock.now += timedelta(milliseconds=1)
    with pytest.raises(Unauthorized, match="expired"):
        people.caller(token)


def test_a_login_lasts_as_long_as_the_setting_says(people: People, clock: Clock) -> None:
    add_user(people, "alice", "viewer")
    token, row = people.log_in("alice", "x", None)
    assert row.expires == "2026-11-22T20:00:00.000Z"
    clock.now += timedelta(hours=12)
    with pytest.raises(Unauthorized, match="expired"):
        people.caller(token)
    people.log_in("alice", "x", None)
    with people.database.transaction() as session:
        assert session.get(ApiToken, row.id) is None, "logins that ran out pile up"


def test_a_token_holds_256_random_bits_and_is_stored_as_a_hash_only(people: People, database: Database) -> None:
    made = [people.add_token(ADMIN, NewToken(name=f"t{i}", program=True)) for i in range(3)]
    assert len({m["token"] for m in made}) == 3
    for m in made:
        assert m["token"].startswith("shoal_")
        assert len(m["token"].removeprefix("shoal_")) == 43  # 32 bytes as base64
        with database.transaction() as session:
            row = session.get_one(ApiToken, m["id"])
            assert row.sha256 == hash_token(m["token"])
            assert m["token"] not in row.model_dump_json()


@pytest.mark.parametrize("days", [0, 366, -1])
def test_a_token_that_would_live_too_long_is_refused(people: People, days: int) -> None:
    with pytest.raises(Malformed, match="1 to 365 days"):
        people.add_token(ADMIN, NewToken(name="ci", days=days, program=True))


def test_nobody_gives_what_they_do_not_have(people: People) -> None:
    """Attack: an operator of one group makes a token for more."""
    add_user(people, "bob", "operator", groups=("berlin",))
    bob = session_of(people, "bob")
    for roles, groups in ((("admin",), ()), (("release-manager",), ()), (("approver",), ("berlin",))):
        with pytest.raises(Forbidden, match="may not give"):
            people.add_token(bob, NewToken(name="more", roles=roles, groups=groups))
    with pytest.raises(Forbidden, match="groups of berlin"):
        people.add_token(bob, NewToken(name="more", roles=("operator",), groups=("paris",)))
    with pytest.raises(Forbidden, match=r"people\.manage"):
        people.add_token(bob, NewToken(name="more", program=True))
    made = people.add_token(bob, NewToken(name="less", roles=("viewer",)))
    assert (made["roles"], made["groups"], made["owner"]) == (["viewer"], ["berlin"], "bob")
    scoped = people.caller(made["token"])[0]
    assert (scoped.name, scoped.groups) == ("bob:less", {"berlin"})
    with pytest.raises(Forbidden):
        scoped.check("devices.enrol")
    with pytest.raises(Forbidden, match="only on berlin"):
        scoped.check_group("paris")


def test_an_api_token_makes_no_token_of_its_own(people: People) -> None:
    """Attack: whoever stole a token that ends tomorrow makes one that ends next year."""
    add_user(people, "bob", "operator")
    stolen = people.caller(people.add_token(session_of(people, "bob"), NewToken(name="ci", days=1))["token"])[0]
    with pytest.raises(Forbidden, match=r"people\.manage"):
        people.add_token(stolen, NewToken(name="longer", days=365))


def test_an_admin_of_one_group_cannot_become_one_of_all(people: People) -> None:
    """Attack: a scoped admin takes over an unscoped one by giving it a password, or gives a role without a group."""
    add_user(people, "root", "admin")
    add_user(people, "branch", "admin", groups=("berlin",))
    branch = session_of(people, "branch")
    for attack in (
        lambda: people.set_password(branch, "root", "y"),
        lambda: people.set_disabled(branch, "root", disabled=True),
        lambda: people.add(branch, "mallory", "y", ("admin",), ()),
        lambda: people.add(branch, "mallory", "y", ("viewer",), ("paris",)),
        lambda: people.add_token(branch, NewToken(name="all", groups=("paris",), program=True)),
    ):
        with pytest.raises(Forbidden):
            attack()
    people.add(branch, "helper", "y", ("operator",), ("berlin",))


def test_a_revoked_token_is_out_at_once(people: People) -> None:
    made = people.add_token(ADMIN, NewToken(name="ci", program=True))
    people.caller(made["token"])
    admin_token(people)
    people.revoke_token(ADMIN, made["id"])
    with pytest.raises(Unauthorized, match="revoked"):
        people.caller(made["token"])
    assert people.revoke_token(ADMIN, made["id"])["revoked"] == "2026-11-22T08:00:00.000Z"
    with pytest.raises(NotFound, match="no such token"):
        people.revoke_token(ADMIN, "0" * 12)


def test_a_user_ends_only_tokens_of_their_own(people: People) -> None:
    for name in ("alice", "bob"):
        add_user(people, name, "viewer")
    alice, bob = session_of(people, "alice"), session_of(people, "bob")
    made = people.add_token(alice, NewToken(name="laptop"))
    with pytest.raises(NotFound):
        people.revoke_token(bob, made["id"])
    assert {t["owner"] for t in people.tokens(bob)} == {"bob"}
    assert {t["owner"] for t in people.tokens(ADMIN)} == {"alice", "bob"}
    admin_token(people)
    people.revoke_token(alice, made["id"])


def test_a_disabled_users_tokens_and_logins_stop_at_once(people: People) -> None:
    add_user(people, "root", "admin")
    add_user(people, "alice", "viewer")
    login, _ = people.log_in("alice", "x", None)
    api_token = people.add_token(people.caller(login)[0], NewToken(name="laptop"))["token"]
    people.set_disabled(ADMIN, "alice", disabled=True)
    for token in (login, api_token):
        with pytest.raises(Unauthorized):
            people.caller(token)
    assert people.stored("alice") is None
    people.set_disabled(ADMIN, "alice", disabled=False)
    assert people.caller(api_token)[0].user == "alice"
    with pytest.raises(Unauthorized):
        people.caller(login)  # who was out logs in again


def test_another_password_ends_every_login(people: People) -> None:
    add_user(people, "alice", "viewer")
    token, _ = people.log_in("alice", "x", None)
    people.set_password(people.caller(token)[0], "alice", "y")
    with pytest.raises(Unauthorized):
        people.caller(token)
    with pytest.raises(Unauthorized, match="changed meanwhile"):
        people.log_in("alice", "x", None)


def test_a_token_may_no_more_than_its_owner_may_now(people: People, database: Database) -> None:
    add_user(people, "alice", "operator", groups=("berlin", "paris"))
    token = people.add_token(session_of(people, "alice"), NewToken(name="laptop", groups=("berlin",)))["token"]
    with database.transaction() as session:
        row = session.get_one(UserRow, "alice")
        row.roles, row.groups = '["viewer"]', '["paris"]'
        session.add(row)
    with pytest.raises(Unauthorized, match="none of its groups"):
        people.caller(token)
    with database.transaction() as session:
        session.get_one(UserRow, "alice").groups = "[]"
    caller = people.caller(token)[0]
    assert (caller.permissions, caller.groups) == (frozenset(), {"berlin"})


def test_the_last_way_of_an_admin_cannot_be_closed(people: People, database: Database) -> None:
    """Accident: an admin disables the only admin, or revokes the only token of one."""
    token = admin_token(people)
    first = people.caller(token)[0]
    with pytest.raises(Conflict, match="last way"):
        people.revoke_token(first, first.token)
    assert people.caller(token)[0] == first, "the refusal changed something"
    add_user(people, "alice", "admin")
    add_user(people, "branch", "admin", groups=("berlin",))
    people.revoke_token(ADMIN, first.token)
    with pytest.raises(Conflict, match="last way"):
        people.set_disabled(ADMIN, "alice", disabled=True)
    people.set_disabled(ADMIN, "branch", disabled=True)  # was no way to all of it


def test_the_use_of_a_token_is_noted_once_a_minute(people: People, clock: Clock) -> None:
    token = admin_token(people)
    _, due = people.caller(token)
    assert due is not None
    people.touch(due)
    assert people.caller(token)[1] is None
    clock.now += timedelta(seconds=59)
    assert people.caller(token)[1] is None
    clock.now += timedelta(seconds=1)
    assert people.caller(token)[1] == due


@pytest.mark.parametrize("name", ["", "A", "a b", "a/b", "a" * 65, "token", "device", "first\n"])
def test_a_name_that_would_confuse_a_log_is_refused_and_not_repeated(people: People, name: str) -> None:
    with pytest.raises(Malformed, match="user: the name must be") as error:
        add_user(people, name, "viewer")
    assert len(name) < 3 or name in ("token", "device") or name not in str(error.value)


@pytest.mark.parametrize("roles", [(), ("root",), ("admin", "wheel")])
def test_a_role_that_is_not_in_the_table_is_refused(people: People, roles: tuple[str, ...]) -> None:
    with pytest.raises(Malformed, match="choose from viewer"):
        add_user(people, "alice", *roles)
