"""The HTTP interface: who may ask, what is refused, what is kept."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from evidence_of import evidence
from fastapi.routing import APIRoute
from fleet_process import ApiError, FleetProcess, Publisher, initialise_trust, tiny_bundle, until

from fleet import errors
from fleet.api import app as api
from fleet.api.policy import POLICY
from fleet.services import Services
from wire import errors as wire_errors
from wire.chunks import digest


def routes() -> Iterator[tuple[str, str, APIRoute]]:
    services = SimpleNamespace(settings=SimpleNamespace(max_body=1, http_rate=1))
    app = api.create_app(cast(Services, services))
    assert len(app.routes) == len(api.ROUTERS), "a route was added beside the routers"
    for route in (route for router in api.ROUTERS for route in router.routes):
        assert isinstance(route, APIRoute), f"{route}: a route that is not one of ours"
        for method in sorted(route.methods):
            yield method, route.path, route


def test_no_route_answers_without_a_credential(fleet: FleetProcess) -> None:
    asked = 0
    for method, path, _ in routes():
        if not POLICY[method, path].public:
            url = re.sub(r"\{\w+\}", "a", path)
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {fleet.token}"}):
                assert fleet.request(method, url, {}, headers=headers)[0] == 401, f"{method} {path}"
                asked += 1
    assert asked > 90


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/redoc", "/", "/api/v1/nothing"])
def test_there_are_no_documentation_or_debug_routes(fleet: FleetProcess, path: str) -> None:
    with pytest.raises(ApiError, match="not-found"):
        fleet.api("GET", path)


def test_a_path_cannot_forge_a_line_of_the_log(fleet: FleetProcess) -> None:
    """Attack: a line break in the path of a request that nobody needs a credential for."""
    assert fleet.request("GET", "/api/v1/devices/a%0aERROR%20forged")[0] == 401
    assert "%0aERROR%20forged" in fleet.log
    assert not any(line.startswith("ERROR forged") for line in fleet.log.splitlines())


def test_every_error_has_a_status_of_its_own_kind() -> None:
    def tree(kind: type[Exception]) -> Iterator[type[Exception]]:
        for child in kind.__subclasses__():
            yield child
            yield from tree(child)

    for kind in [*tree(errors.FleetError), *tree(wire_errors.WireError)]:
        assert any(parent in api.STATUS for parent in kind.__mro__), kind


def test_a_body_that_does_not_fit_is_told_by_field(fleet: FleetProcess) -> None:
    with pytest.raises(ApiError, match=r"body\.profile") as error:
        fleet.api("POST", "/api/v1/devices", {"device": "a"})
    assert (error.value.status, error.value.body["error"]["code"]) == (400, "malformed")


def test_a_blob_is_stored_only_under_its_own_digest(fleet: FleetProcess) -> None:
    data = b"some bytes"
    name = digest(data)
    with pytest.raises(ApiError) as error:
        fleet.api("HEAD", f"/api/v1/blobs/{name}")
    assert error.value.status == 404
    with pytest.raises(ApiError, match="the bytes sent have digest") as error:
        fleet.api("PUT", f"/api/v1/blobs/{name}", data + b"!")
    assert error.value.status == 400
    assert not stored(fleet.data)
    assert fleet.api("PUT", f"/api/v1/blobs/{name}", data) == {"digest": name, "size": len(data)}
    fleet.api("HEAD", f"/api/v1/blobs/{name}")
    assert stored(fleet.data) == [name.removeprefix("sha256:")]


@pytest.mark.parametrize("name", ["sha256:xyz", "..%2f..%2fetc", "md5:0"])
def test_a_blob_name_that_is_no_digest_is_refused(fleet: FleetProcess, name: str) -> None:
    """Attack: path traversal."""
    with pytest.raises(ApiError) as error:
        fleet.api("PUT", f"/api/v1/blobs/{name}", b"x")
    assert error.value.status in (400, 404)


def test_a_blob_over_the_limit_leaves_nothing(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet", max_blob="1 KiB") as fleet:
        data = b"x" * 2000
        with pytest.raises(ApiError, match="max_blob") as error:
            fleet.api("PUT", f"/api/v1/blobs/{digest(data)}", data)
        assert error.value.status == 413
        assert not stored(fleet.data)


def test_a_disk_without_room_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """The kernel itself refuses the bytes: the running fleet's largest file is limited from outside."""
    with FleetProcess(tmp_path / "fleet") as fleet:
        data = b"x" * 3_000_000
        _, most = resource.prlimit(fleet.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(fleet.pid, resource.RLIMIT_FSIZE, (1_000_000, most))
        with pytest.raises(ApiError, match="no room left on the disk") as error:
            fleet.api("PUT", f"/api/v1/blobs/{digest(data)}", data)
        assert (error.value.status, error.value.body["error"]["code"]) == (507, "unavailable")
        assert not [p for p in (fleet.data / "blobs").rglob("*") if p.is_file()]
        resource.prlimit(fleet.pid, resource.RLIMIT_FSIZE, (most, most))
        fleet.api("PUT", f"/api/v1/blobs/{digest(data)}", data)


def test_a_database_that_cannot_grow_is_told_and_blames_no_device(tmp_path: Path, enrolling: Any) -> None:
    """Accident: the disk fills up while a device delivers; what was not stored is not acknowledged."""
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("a")
        device.connect()
        until(lambda: device.view()["status"] == "online", what="its birth to be stored")
        _, most = resource.prlimit(fleet.pid, resource.RLIMIT_FSIZE)
        # No file may grow beyond what the database's log has now; the fleet's own log is far from that.
        resource.prlimit(fleet.pid, resource.RLIMIT_FSIZE, ((fleet.data / "fleet.db-wal").stat().st_size, most))
        with pytest.raises(ApiError, match="disk") as error:
            fleet.api("POST", "/api/v1/devices", {"device": "b", "profile": "x86-64"})
        assert error.value.status in (503, 507)
        device.send(device.batch(1, nonce="lost"))
        until(lambda: re.search("were not taken, .*/telemetry", fleet.log), what="a line in the log")
        resource.prlimit(fleet.pid, resource.RLIMIT_FSIZE, (most, most))
        device.send(device.batch(1, nonce="kept"))
        assert device.next_ack().nonce == "kept"
        assert (device.view()["security"], device.view()["stats"]["duplicates"]) == ([], 0)


def test_evidence_is_shown_with_the_bundle_it_measures(fleet: FleetProcess, publisher: Publisher) -> None:
    release = publisher.release(*tiny_bundle())
    record = evidence(subject=release.digest, target=release.target)
    publisher.upload([record.to_bytes()])
    fleet.api("POST", "/api/v1/evidence", {"digest": digest(record.to_bytes())})
    (model,) = fleet.api("GET", "/api/v1/models")
    assert model["evidence"] == json.loads(record.to_bytes())
    assert (model["name"], model["precision"], model["devices"]) == ("kitchen", "int8", 0)
    with pytest.raises(ApiError, match="not stored here"):
        fleet.api("POST", "/api/v1/evidence", {"digest": "sha256:" + "0" * 64})
    labels = publisher.releases[release.target].digest
    with pytest.raises(ApiError, match="malformed"):
        fleet.api("POST", "/api/v1/evidence", {"digest": labels})


def test_a_refused_set_of_documents_changes_nothing_on_the_fleet(fleet: FleetProcess, publisher: Publisher) -> None:
    before = fleet.api("GET", "/api/v1/trust")
    publisher.list(tiny_bundle("6.6.6")[0])
    with pytest.raises(ApiError, match="was not uploaded") as error:
        publisher.post(publisher.release_documents())
    assert (error.value.status, error.value.body["error"]["code"]) == (422, "untrusted")
    assert fleet.api("GET", "/api/v1/trust") == before
    del publisher.releases["models/intents/kitchen/6.6.6/x86-64"]


def test_the_profiles_are_those_that_are_shipped(fleet: FleetProcess) -> None:
    shown: list[dict[str, Any]] = fleet.api("GET", "/api/v1/profiles")
    shipped = sorted(path.stem for path in (Path(__file__).parents[2] / "firmware-profiles").glob("*.toml"))
    assert [p["name"] for p in shown] == shipped
    assert len(shipped) == 9


def stored(data: Path) -> list[str]:
    return [p.name for p in (data / "blobs").rglob("*") if p.is_file()]
