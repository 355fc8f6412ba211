"""Who may call what: the table of the policy, the gate before every route, and a fleet that people log in to."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import APIRouter, FastAPI
from fleet_process import ApiError, FleetProcess, Publisher
from starlette.types import Message, Scope

from fleet import passwords
from fleet.access import ROLES, Caller
from fleet.api import app as api
from fleet.api.policy import POLICY, rule_of
from fleet.errors import StorageFull
from fleet.people import People
from fleet.serial import Serial
from fleet.services import Services
from fleet.store.database import Database
from fleet.tokens import issue, reset_first_token

PASSWORD = "correct horse battery"
EVERYBODY = "viewer operator release-manager approver admin"
ANYONE = f"{EVERYBODY} gateway"
EXPECTED = {
    "GET /api/v1/status": EVERYBODY,
    "GET /api/v1/profiles": EVERYBODY,
    "GET /metrics": EVERYBODY,
    "GET /api/v1/alerts": EVERYBODY,
    "POST /api/v1/alerts/{alert}/acknowledge": "operator admin",
    "POST /api/v1/alerts/silences": "operator admin",
    "DELETE /api/v1/alerts/silences/{silence}": "operator admin",
    "POST /api/v1/alerts/test": "operator admin",
    "GET /api/v1/devices": EVERYBODY,
    "POST /api/v1/devices": "operator admin",
    "GET /api/v1/devices/{device}": EVERYBODY,
    "GET /api/v1/evidence/devices/{device}": EVERYBODY,
    "GET /api/v1/evidence/models/{family}/{name}/{version}": EVERYBODY,
    "GET /api/v1/drift": EVERYBODY,
    "GET /api/v1/drift/models/{digest}": EVERYBODY,
    "POST /api/v1/devices/{device}/accept": "operator admin",
    "POST /api/v1/devices/{device}/reject": "operator admin",
    "POST /api/v1/devices/{device}/revoke": "operator admin",
    "POST /api/v1/devices/{device}/retire": "operator admin",
    "POST /api/v1/devices/{device}/commands": "operator admin",
    "GET /api/v1/devices/{device}/commands": "operator admin",
    "GET /api/v1/devices/{device}/commands/{command}": "operator admin",
    "GET /api/v1/devices/{device}/history": EVERYBODY,
    "POST /api/v1/devices/{device}/labels": "operator admin",
    "GET /api/v1/inventory": EVERYBODY,
    "POST /api/v1/inventory": "operator admin",
    "GET /api/v1/batches": EVERYBODY,
    "POST /api/v1/batches": "operator admin",
    "POST /api/v1/batches/{batch}/revoke": "operator admin",
    "GET /api/v1/authorities": EVERYBODY,
    "POST /api/v1/authorities": "admin",
    "POST /api/v1/authorities/{fingerprint}/use": "admin",
    "DELETE /api/v1/authorities/{fingerprint}": "admin",
    "GET /api/v1/trust": EVERYBODY,
    "POST /api/v1/trust": "release-manager admin",
    "POST /api/v1/trust/keys": "admin",
    "HEAD /api/v1/blobs/{digest}": "release-manager admin",
    "PUT /api/v1/blobs/{digest}": "release-manager admin",
    "GET /api/v1/blobs/{digest}/chunks": "",
    "POST /api/v1/evidence": "release-manager admin",
    "GET /api/v1/models": EVERYBODY,
    "GET /api/v1/registry/models": EVERYBODY,
    "GET /api/v1/registry/models/{family}/{name}": EVERYBODY,
    "GET /api/v1/registry/models/{family}/{name}/versions/{version}/lineage": EVERYBODY,
    "POST /api/v1/registry/models/{family}/{name}/aliases/{alias}": "release-manager approver admin",
    "POST /api/v1/registry/models/{family}/{name}/aliases/{alias}/remove": "release-manager approver admin",
    "GET /api/v1/registry/suggest": EVERYBODY,
    "GET /api/v1/datasets": EVERYBODY,
    "POST /api/v1/datasets": "release-manager admin",
    "GET /api/v1/datasets/{dataset}": EVERYBODY,
    "GET /api/v1/sources": EVERYBODY,
    "POST /api/v1/sources": "release-manager admin",
    "GET /api/v1/builds": EVERYBODY,
    "POST /api/v1/builds": "release-manager admin",
    "GET /api/v1/builds/{build}": EVERYBODY,
    "GET /api/v1/builds/{build}/logs": EVERYBODY,
    "POST /api/v1/builds/{build}/cancel": "release-manager admin",
    "GET /api/v1/builds/{build}/artifacts": EVERYBODY,
    "GET /api/v1/builds/{build}/artifacts/{digest}": EVERYBODY,
    "GET /api/v1/measuring": EVERYBODY,
    "POST /api/v1/measuring": "operator admin",
    "GET /api/v1/measuring/{job}": EVERYBODY,
    "POST /api/v1/measuring/{job}/cancel": "operator admin",
    "POST /api/v1/devices/{device}/shadows": "operator admin",
    "DELETE /api/v1/devices/{device}/shadows/{model}": "operator admin",
    "GET /api/v1/rollouts": EVERYBODY,
    "POST /api/v1/rollouts": "operator admin",
    "GET /api/v1/rollouts/{rollout}": EVERYBODY,
    "POST /api/v1/rollouts/plan": EVERYBODY,
    "POST /api/v1/rollouts/{rollout}/approve": "approver admin",
    "POST /api/v1/rollouts/{rollout}/pause": "operator admin",
    "POST /api/v1/rollouts/{rollout}/resume": "operator admin",
    "POST /api/v1/rollouts/{rollout}/retry": "operator admin",
    "POST /api/v1/rollouts/{rollout}/abort": "operator admin",
    "POST /api/v1/rollouts/{rollout}/rollback": "operator admin",
    "DELETE /api/v1/sessions/current": ANYONE,
    "GET /api/v1/me": ANYONE,
    "GET /api/v1/users": "admin",
    "POST /api/v1/users": "admin",
    "POST /api/v1/users/{user}/disable": "admin",
    "POST /api/v1/users/{user}/enable": "admin",
    "POST /api/v1/users/{user}/password": ANYONE,
    "GET /api/v1/tokens": ANYONE,
    "POST /api/v1/tokens": ANYONE,
    "DELETE /api/v1/tokens/{token}": ANYONE,
    "GET /api/v1/audit": "approver admin",
    "GET /api/v1/audit/newest": "approver admin",
    "POST /v1/chat/completions": "operator admin gateway",
    "POST /v1/completions": "operator admin gateway",
    "POST /v1/embeddings": "operator admin gateway",
    "GET /v1/models": "operator admin gateway",
    "GET /api/v1/gateway/routes": "operator approver admin",
    "GET /api/v1/gateway/usage": "operator approver admin",
    "GET /api/v1/gateway/requests": "operator approver admin",
    "GET /api/v1/gateway/metrics": "operator approver admin",
    "GET /api/v1/gateway/keys": "admin",
    "POST /api/v1/gateway/keys": "admin",
    "POST /api/v1/gateway/keys/{key}/limits": "admin",
    "POST /.well-known/est/simplereenroll": "",
}
"""Which roles a route lets through, said again by hand: the code's own tables are not asked."""
PUBLIC = {
    "GET /healthz",
    "GET /console",
    "GET /console/{name}",
    "GET /.well-known/est/cacerts",
    "POST /.well-known/est/simpleenroll",
    "POST /api/v1/renewals",
    "POST /api/v1/sessions",
}


def routes() -> set[tuple[str, str]]:
    return {(method, r.path) for router in api.ROUTERS for r in router.routes for method in r.methods}  # type: ignore[attr-defined]


def named(row: tuple[str, str]) -> str:
    return " ".join(row)


# --- the table ----------------------------------------------------------------------------------------------------


def test_every_route_has_a_row_of_the_policy_and_every_row_a_route() -> None:
    assert routes() == set(POLICY)


def test_every_row_is_what_this_file_expects() -> None:
    assert {named(row) for row in POLICY} == set(EXPECTED) | PUBLIC
    assert {named(row) for row, rule in POLICY.items() if rule.public} == PUBLIC
    assert set(ANYONE.split()) == set(ROLES)


def test_every_route_is_found_under_its_own_row() -> None:
    for method, template in routes():
        path = template.replace("{", "").replace("}", "")
        found = rule_of(method, path)
        assert found is not None
        assert found[0] == template


@pytest.mark.parametrize("role", ANYONE.split())
def test_a_role_passes_exactly_the_rows_that_name_it(fleet: FleetProcess, role: str) -> None:
    headers = bearer(program(fleet, f"table-{role}", role))
    for row, roles in EXPECTED.items():
        method, template = row.split()
        path = template.replace("{", "").replace("}", "")
        status, _ = fleet.request(method, path, {}, headers=headers)
        if not roles:
            assert status == 401, row
        elif role in roles.split():
            assert status not in (401, 403), row
        else:
            assert status == 403, row


def test_nothing_is_read_of_a_body_before_it_is_known_who_sends_it(fleet: FleetProcess) -> None:
    """Attack: JSON that fails to parse, from nobody. A parser that came first would answer 400."""
    headers = {"Content-Type": "application/json"}
    assert fleet.request("POST", "/api/v1/users", b"{" * 5000, headers=headers)[0] == 401
    assert fleet.request("POST", "/api/v1/users", b"{" * 5000, headers=headers | bearer(fleet.token))[0] == 400


@pytest.mark.parametrize("path", ["/api/v1/users/", "//api/v1/users", "/api/v1/../v1/users", "/api/v1/users%2f"])
def test_another_way_to_write_a_path_does_not_get_past_the_policy(fleet: FleetProcess, path: str) -> None:
    """Attack: a path that the policy and the router read differently."""
    assert fleet.request("GET", path)[0] in (307, 401, 403, 404)
    assert fleet.request("GET", path, headers={"Host": "localhost/healthz?"})[0] in (307, 400, 401, 403, 404)


# --- the gate, in this process ------------------------------------------------------------------------------------


class Log:
    """An audit log that keeps its entries in a list, or has no room."""

    def __init__(self) -> None:
        self.deeds: list[Any] = []
        self.full = False
        self.refused = self.denied = self.repeated = SimpleNamespace(is_first=lambda *_: True)

    def record(self, deed: Any) -> None:
        if self.full:
            raise StorageFull("no room left on the disk")
        self.deeds.append(deed)


@pytest.fixture
def people(tmp_path: Path) -> Iterator[People]:
    with closing(Database.in_folder(tmp_path)) as database:
        yield People(database, lambda: datetime(2026, 11, 22, 8, tzinfo=UTC), timedelta(hours=12))


def admin_token(people: People) -> str:
    with people.database.transaction() as session:
        token, _ = issue(session, name="first", owner="", roles=["admin"], groups=[], now=people.clock(), lifetime=None)
    return token


def application(people: People, log: Log, router: APIRouter) -> FastAPI:
    services = SimpleNamespace(
        settings=SimpleNamespace(max_body=1000, http_rate=1000), people=people, audit=log, serial=Serial()
    )
    app = api.create_app(cast(Services, services))
    app.include_router(router)
    return app


def call(app: FastAPI, method: str, path: str, token: str) -> tuple[int, Any]:
    """One request to an application in this process: status and JSON."""
    sent: list[Message] = []
    scope: Scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "headers": [(b"authorization", f"Bearer {token}".encode())],
        "query_string": b"",
        "client": ("10.0.0.1", 1),
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    app.state.services.serial.close()
    return sent[0]["status"], json.loads(sent[1]["body"])


def router_with(path: str) -> tuple[APIRouter, list[str]]:
    router, done = APIRouter(), []

    @router.post(path)
    async def act() -> dict[str, str]:
        done.append(path)
        return {}

    return router, done


def test_a_route_that_no_row_names_answers_nobody(people: People) -> None:
    """Accident: somebody adds a route and forgets the policy."""
    router, done = router_with("/api/v1/forgotten")
    status, body = call(application(people, Log(), router), "POST", "/api/v1/forgotten", admin_token(people))
    assert (status, body["error"]["code"]) == (403, "forbidden")
    assert "no row of the policy" in body["error"]["message"]
    assert done == []


def test_nobody_hears_of_a_success_that_the_audit_log_could_not_hold(people: People) -> None:
    """Accident: the disk fills up between what was asked for and its entry."""
    log, token = Log(), admin_token(people)
    log.full = True
    router = APIRouter()
    status, body = call(application(people, log, router), "POST", "/api/v1/users/nobody/enable", token)
    assert status == 404  # what failed anyway is told as it was
    people.add(Caller("root", frozenset({"admin"})), "alice", "x", ("viewer",), ())
    status, body = call(application(people, log, router), "POST", "/api/v1/users/alice/enable", token)
    assert (status, "no room" in body["error"]["message"]) == (507, True)
    log.full = False
    assert call(application(people, log, router), "POST", "/api/v1/users/alice/enable", token)[0] == 200
    (deed,) = log.deeds
    assert (deed.who, deed.subject, deed.source) == ("token:first", "/api/v1/users/alice/enable", "10.0.0.1")


# --- a running fleet ----------------------------------------------------------------------------------------------


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def program(fleet: FleetProcess, name: str, *roles: str, groups: tuple[str, ...] = ()) -> str:
    body = {"name": name, "roles": list(roles), "groups": list(groups), "program": True}
    return cast(str, fleet.api("POST", "/api/v1/tokens", body)["token"])


def log_in(fleet: FleetProcess, name: str, password: str = PASSWORD) -> tuple[int, Any]:
    status, body = fleet.request("POST", "/api/v1/sessions", {"name": name, "password": password})
    return status, json.loads(body)


def new_user(fleet: FleetProcess, name: str, *roles: str) -> None:
    fleet.api("POST", "/api/v1/users", {"name": name, "password": PASSWORD, "roles": roles})


def test_a_person_logs_in_acts_under_their_name_and_logs_out(fleet: FleetProcess) -> None:
    new_user(fleet, "alice", "operator")
    status, session = log_in(fleet, "alice")
    assert status == 201
    mine = bearer(session["token"])
    me = json.loads(fleet.request("GET", "/api/v1/me", headers=mine)[1])
    assert (me["name"], me["roles"]) == ("alice", ["operator"])
    assert fleet.request("GET", "/api/v1/users", headers=mine)[0] == 403
    assert fleet.request("DELETE", "/api/v1/sessions/current", headers=mine)[0] == 204
    assert fleet.request("GET", "/api/v1/me", headers=mine)[0] == 401


def test_unknown_and_disabled_names_are_answered_like_a_wrong_password(fleet: FleetProcess) -> None:
    new_user(fleet, "known", "viewer")
    new_user(fleet, "gone", "viewer")
    fleet.api("POST", "/api/v1/users/gone/disable", {})
    answers = [log_in(fleet, "known", "a wrong password"), log_in(fleet, "unknown"), log_in(fleet, "gone")]
    assert answers == [answers[0]] * 3
    assert answers[0][0] == 401


@pytest.mark.alone
def test_after_five_wrong_passwords_the_right_one_has_to_wait_too(fleet: FleetProcess) -> None:
    """Attack: guessing."""
    new_user(fleet, "guessed", "viewer")
    for i in range(passwords.FREE):
        assert log_in(fleet, "guessed", f"wrong password {i}")[0] == 401
    status, body = log_in(fleet, "guessed")
    assert (status, body["error"]["code"]) == (429, "too-many")
    new_user(fleet, "neighbour", "viewer")
    assert log_in(fleet, "neighbour")[0] == 201


def test_ones_own_password_takes_the_current_one(fleet: FleetProcess) -> None:
    """Attack: a login that was left open on a desk."""
    new_user(fleet, "careful", "viewer")
    mine = bearer(log_in(fleet, "careful")[1]["token"])
    path, new = "/api/v1/users/careful/password", "another good password"
    assert fleet.request("POST", path, {"password": new, "current": "not that one"}, headers=mine)[0] == 401
    assert fleet.request("POST", path, {"password": new, "current": PASSWORD}, headers=mine)[0] == 200
    assert log_in(fleet, "careful")[0] == 401
    assert log_in(fleet, "careful", new)[0] == 201


def test_an_operator_acts_in_the_groups_given_and_no_other(fleet: FleetProcess, publisher: Publisher) -> None:
    headers = bearer(program(fleet, "berlin-ops", "operator", groups=("berlin",)))
    body = {"device": "scoped-1", "profile": "x86-64", "group": "berlin"}
    assert fleet.request("POST", "/api/v1/devices", body, headers=headers)[0] == 201
    other = {"device": "scoped-2", "profile": "x86-64", "group": "paris"}
    assert fleet.request("POST", "/api/v1/devices", other, headers=headers)[0] == 403
    fleet.api("POST", "/api/v1/devices", other)
    because = {"reason": "test"}
    assert fleet.request("POST", "/api/v1/devices/scoped-2/revoke", because, headers=headers)[0] == 403
    assert fleet.request("POST", "/api/v1/devices/scoped-1/revoke", because, headers=headers)[0] == 200
    listed = json.loads(fleet.request("GET", "/api/v1/devices", headers=headers)[1])
    assert [d["device"] for d in listed] == ["scoped-1"]


def test_a_release_manager_uploads_and_cannot_deploy(fleet: FleetProcess, publisher: Publisher) -> None:
    headers = bearer(program(fleet, "releases", "release-manager"))
    name = "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert fleet.request("PUT", f"/api/v1/blobs/{name}", b"x", headers=headers)[0] == 201
    body = {"family": "intents", "name": "kitchen", "version": "1.0.0"}
    assert fleet.request("POST", "/api/v1/rollouts", body, headers=headers)[0] == 403


def test_a_lost_first_token_is_replaced_while_the_fleet_runs_and_when_not(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet:
        status, body = fleet.request("GET", "/api/v1/me", headers=bearer("shoal_" + "x" * 43))
        assert (status, b"shoal token reset --data" in body) == (401, True)
        for running in (True, False):
            old, file = fleet.token, fleet.data / "operator-token"
            file.unlink()
            if not running:
                fleet.stop()
            assert reset_first_token(fleet.data, lambda: datetime.now(UTC)) == file
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            if not running:
                fleet.start()
            fleet.token = file.read_text().strip()
            assert fleet.request("GET", "/api/v1/me", headers=bearer(old))[0] == 401
            assert fleet.api("GET", "/api/v1/me")["roles"] == ["admin"]
        resets = [e for e in fleet.api("GET", "/api/v1/audit")["entries"] if e["action"] == "first token reset"]
        assert len(resets) == 2


def test_no_secret_gets_into_the_database_the_log_or_the_audit_log(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet:
        new_user(fleet, "alice", "operator")
        wrong, misplaced = "a wrong password", "password in the place of the name"
        session = log_in(fleet, "alice")[1]["token"]
        log_in(fleet, "alice", wrong)
        log_in(fleet, misplaced)
        made = program(fleet, "ci", "viewer")
        for body in ({"name": misplaced, "password": PASSWORD, "roles": ["viewer"]}, {"name": 1, "password": PASSWORD}):
            with pytest.raises(ApiError):
                fleet.api("POST", "/api/v1/users", body)
        fleet.request("GET", f"/api/v1/devices?token={made}", headers=bearer(made[:-1]))
        entries = json.dumps(fleet.api("GET", "/api/v1/audit"))
        fleet.stop()
        kept = entries + fleet.log
        for path in fleet.data.rglob("*"):
            if path.is_file() and path.name != "operator-token":
                kept += path.read_bytes().decode("latin-1")
        for secret in (PASSWORD, wrong, misplaced, session, made, fleet.token):
            assert secret not in kept
        assert "alice" in kept


def test_a_session_in_the_database_is_worth_nothing_without_its_token(tmp_path: Path) -> None:
    """Attack: whoever reads the database shows what stands in it."""
    with FleetProcess(tmp_path / "fleet") as fleet:
        with closing(sqlite3.connect(fleet.data / "fleet.db")) as connection:
            stored = connection.execute("SELECT id, sha256 FROM api_token").fetchall()
        assert stored
        for value in (v for row in stored for v in row):
            assert fleet.request("GET", "/api/v1/me", headers=bearer(value))[0] == 401
