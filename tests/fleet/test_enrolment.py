"""Who gets in, and how an operator puts them out: kits, batches, revoked and retired devices, over real TLS."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fleet_process import ApiError, FleetProcess, Publisher, initialise_trust, until
from joining import EST, Batch, Holder, certificate_in, enrol, kit_for, new_key, request_for, stranger
from paho.mqtt.enums import CallbackAPIVersion

from wire.kit import EnrolmentKit


@pytest.fixture(autouse=True)
def _with_trust(publisher: Publisher) -> None:
    """Every kit carries signed metadata."""


def view(fleet: FleetProcess, device: str) -> Any:
    return fleet.api("GET", f"/api/v1/devices/{device}")


def act(fleet: FleetProcess, device: str, what: str, **body: Any) -> Any:
    return fleet.api("POST", f"/api/v1/devices/{device}/{what}", body)


def pending(batch: Batch, device: str) -> ec.EllipticCurvePrivateKey:
    """The key of a device that asked and waits."""
    key = new_key()
    status, body = batch.ask(device, key)
    assert status == 202, body
    return key


def accepted(batch: Batch, device: str) -> Holder:
    """A device of the batch that is in."""
    key = pending(batch, device)
    act(batch.fleet, device, "accept")
    status, body = batch.ask(device, key)
    assert status == 200, body
    return Holder(batch.fleet, device, certificate_in(body), key, batch.folder)


def let_into_the_broker(holder: Holder) -> bool:
    """Whether the broker takes a connection with this certificate."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=holder.name, protocol=mqtt.MQTTv5)
    answers: list[bool] = []
    client.on_connect = lambda _c, _u, _f, reason, _p: answers.append(not reason.is_failure)
    client.on_disconnect = lambda *_: answers.append(False)
    client.tls_set_context(holder.tls())
    host, port = holder.fleet.broker.split(":")
    try:
        client.connect(host, int(port), keepalive=10)
    except (ssl.SSLError, OSError):
        return False
    client.loop_start()
    try:
        return bool(until(lambda: answers, what="an answer of the broker")[0])
    finally:
        client.disconnect()
        client.loop_stop()


# One device


def test_two_kits_share_no_credential(fleet: FleetProcess, tmp_path: Path) -> None:
    a, b = kit_for(fleet, "shares-a"), kit_for(fleet, "shares-b")
    assert a.token != b.token
    assert a.claim is b.claim is None
    one, other = (Batch.make(fleet, tmp_path, name) for name in ("shares-c", "shares-d"))
    assert one.kit.claim is not None
    assert other.kit.claim is not None
    assert one.kit.claim.key != other.kit.claim.key
    assert one.certificate.serial_number != other.certificate.serial_number
    assert one.kit.token is one.kit.device is None


def test_a_token_is_good_for_its_own_device_only(fleet: FleetProcess) -> None:
    """Attack: the token of one device, to become another one."""
    mine, theirs = kit_for(fleet, "token-mine"), kit_for(fleet, "token-theirs")
    assert enrol(fleet, "token-theirs", mine.token or "", new_key())[0] == 401
    assert enrol(fleet, "token-mine", theirs.token or "", new_key())[0] == 401


def test_a_kit_names_its_group_and_when_it_was_made(fleet: FleetProcess) -> None:
    kit = kit_for(fleet, "grouped", group="kitchens")
    assert kit.issued < kit.expires
    assert view(fleet, "grouped")["group"] == "kitchens"
    with pytest.raises(ApiError) as error:
        kit_for(fleet, "grouped-badly", group="No Group")
    assert error.value.status == 400


def test_a_kit_is_void_once_its_device_was_revoked(fleet: FleetProcess) -> None:
    """Accident: a kit is lost before anybody enrolled with it."""
    kit = kit_for(fleet, "lost-kit")
    act(fleet, "lost-kit", "revoke", reason="the kit was lost")
    assert view(fleet, "lost-kit")["status"] == "revoked"
    assert enrol(fleet, "lost-kit", kit.token or "", new_key())[0] == 401


# A batch


def test_a_kit_that_was_revoked_does_not_come_back_with_the_next_one_of_the_same_request(fleet: FleetProcess) -> None:
    """Attack: who has the kit of a device that was put out waits until its operator makes it another one."""
    asked, key = {"device": "same-request", "profile": "x86-64"}, {"Idempotency-Key": "one"}

    def kit() -> EnrolmentKit:
        return EnrolmentKit.from_value(fleet.api("POST", "/api/v1/devices", asked, headers=key))

    lost = kit()
    assert kit().token == lost.token, "the same request, its answer lost"
    act(fleet, "same-request", "revoke", reason="the kit was lost")
    new = kit()
    assert enrol(fleet, "same-request", lost.token or "", new_key())[0] == 401
    assert enrol(fleet, "same-request", new.token or "", new_key())[0] == 200


def test_a_device_of_a_batch_waits_until_an_operator_accepts_it(fleet: FleetProcess, tmp_path: Path) -> None:
    batch = Batch.make(fleet, tmp_path, "waits", group="kitchens")
    key = pending(batch, "waits-1")
    shown = view(fleet, "waits-1")
    assert (shown["status"], shown["batch"], shown["group"], shown["certificates"]) == (
        "pending",
        "waits",
        "kitchens",
        [],
    )
    assert [d["device"] for d in fleet.api("GET", "/api/v1/devices?status=pending&group=kitchens")] == ["waits-1"]
    assert batch.ask("waits-1", key)[0] == 202

    shown = act(fleet, "waits-1", "accept")
    assert shown["status"] == "unknown"  # it never spoke
    assert act(fleet, "waits-1", "accept") == shown
    status, body = batch.ask("waits-1", key)
    assert status == 200
    certificate = certificate_in(body)
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "waits-1"
    assert batch.ask("waits-1", key) == (200, body)
    assert let_into_the_broker(Holder(fleet, "waits-1", certificate, key, tmp_path))


def test_who_waits_is_told_when_to_ask_again(fleet: FleetProcess, tmp_path: Path) -> None:
    """RFC 7030, section 4.2.3: 202 comes with Retry-After."""
    batch = Batch.make(fleet, tmp_path, "told")
    host, port = fleet.url.removeprefix("https://").split(":")
    connection = http.client.HTTPSConnection(host, int(port), context=batch.tls(), timeout=10)
    try:
        connection.request("POST", f"{EST}/simpleenroll", base64.b64encode(request_for("told-1", new_key())))
        answer = connection.getresponse()
        assert answer.status == 202
        assert int(answer.headers["Retry-After"]) > 0
    finally:
        connection.close()


def test_what_an_operator_says_of_a_device_stands_over_its_batch(fleet: FleetProcess, tmp_path: Path) -> None:
    batch = Batch.make(fleet, tmp_path, "changed")
    pending(batch, "changed-1")
    shown = act(fleet, "changed-1", "accept", group="bakeries", profile="raspberry-pi-4")
    assert (shown["group"], shown["profile"]) == ("bakeries", "raspberry-pi-4")
    with pytest.raises(ApiError) as error:
        act(fleet, "changed-1", "accept", group="kitchens")
    assert error.value.status == 409


def test_a_rejected_device_gets_nothing_until_it_is_accepted_after_all(fleet: FleetProcess, tmp_path: Path) -> None:
    batch = Batch.make(fleet, tmp_path, "turned")
    key = pending(batch, "turned-1")
    shown = act(fleet, "turned-1", "reject", reason="nobody ordered it")
    assert shown["status"] == "rejected"
    assert "nobody ordered it" in shown["security"][-1]["reason"]
    assert act(fleet, "turned-1", "reject", reason="again") == shown
    assert batch.ask("turned-1", key)[0] == 403
    act(fleet, "turned-1", "accept")
    status, body = batch.ask("turned-1", key)
    assert status == 200
    assert until(
        lambda: let_into_the_broker(Holder(fleet, "turned-1", certificate_in(body), key, tmp_path)), what="a connection"
    )


def test_a_batch_takes_in_no_more_than_its_quota(fleet: FleetProcess, tmp_path: Path) -> None:
    """Attack: a stolen claim certificate asks for many ids; one that was turned away makes no room."""
    batch = Batch.make(fleet, tmp_path, "few", quota=2)
    key = pending(batch, "few-1")
    pending(batch, "few-2")
    act(fleet, "few-2", "reject", reason="unknown")
    for _ in range(2):
        status, body = batch.ask("few-3", new_key())
        assert (status, b"quota" in body) == (403, True)
    assert batch.ask("few-1", key)[0] == 202
    with pytest.raises(ApiError) as error:
        view(fleet, "few-3")
    assert error.value.status == 404
    (shown,) = [b for b in fleet.api("GET", "/api/v1/batches") if b["batch"] == "few"]
    assert (shown["quota"], shown["devices"], shown["revoked"]) == (2, 2, None)


def test_a_batch_takes_nobody_in_after_its_time_and_serves_who_came_before(fleet: FleetProcess, tmp_path: Path) -> None:
    batch = Batch.make(fleet, tmp_path, "short", quota=90, lifetime_s=2)
    key = pending(batch, "short-1")
    names = iter(range(2, 99))

    def refused() -> bool:
        status, body = batch.ask(f"short-{next(names)}", new_key())
        return status == 403 and b"took in devices until" in body

    until(refused, what="the end of the batch")
    act(fleet, "short-1", "accept")
    assert batch.ask("short-1", key)[0] == 200


def test_a_revoked_batch_takes_nobody_in(fleet: FleetProcess, tmp_path: Path) -> None:
    """Attack: a stolen claim certificate, after it was found out."""
    batch = Batch.make(fleet, tmp_path, "stolen")
    waiting = pending(batch, "stolen-1")
    first = fleet.api("POST", "/api/v1/batches/stolen/revoke", {})
    assert first["revoked"]
    assert fleet.api("POST", "/api/v1/batches/stolen/revoke", {}) == first
    for name, key in (("stolen-1", waiting), ("stolen-2", new_key())):
        status, body = batch.ask(name, key)
        assert (status, b"revoked" in body) == (403, True)
    with pytest.raises(ApiError, match="kit of its own") as error:
        act(fleet, "stolen-1", "accept")
    assert error.value.status == 409


def test_another_key_for_an_id_that_waits_is_refused_and_an_alarm(fleet: FleetProcess, tmp_path: Path) -> None:
    """Attack: a second device of the batch takes the name of one that waits, or of one that is in."""
    batch = Batch.make(fleet, tmp_path, "swap")
    key = pending(batch, "swap-1")
    assert batch.ask("swap-1", new_key())[0] == 403
    act(fleet, "swap-1", "accept")
    assert batch.ask("swap-1", new_key())[0] == 403
    status, body = batch.ask("swap-1", key)
    assert (status, certificate_in(body).public_key()) == (200, key.public_key())
    assert [(e["subject"], "another key" in e["reason"]) for e in view(fleet, "swap-1")["security"]] == [
        ("enrolment", True)
    ] * 2


def test_a_batch_cannot_have_the_id_of_a_device_of_another_origin(fleet: FleetProcess, tmp_path: Path) -> None:
    """Attack: a claim certificate asks for an id that stands outside its batch, with and without a certificate."""
    kit_for(fleet, "outside-kit")
    other = Batch.make(fleet, tmp_path, "outside-other")
    pending(other, "outside-other-1")
    inside = Holder.enrolled(fleet, tmp_path, "outside-in")
    batch = Batch.make(fleet, tmp_path, "outside")
    for name in ("outside-kit", "outside-other-1", "outside-in"):
        assert batch.ask(name, new_key())[0] == 403
        assert "not its own" in view(fleet, name)["security"][-1]["reason"]
    assert batch.ask("outside-in", inside.key)[0] == 403


def test_batches_and_devices_share_no_name(fleet: FleetProcess, tmp_path: Path) -> None:
    """On the broker the name in the certificate is who somebody is: a batch's must never be a device's."""
    batch = Batch.make(fleet, tmp_path, "shared-name")
    kit_for(fleet, "shared-device")
    with pytest.raises(ApiError, match="a batch has this name") as error:
        kit_for(fleet, "shared-name")
    assert error.value.status == 409
    with pytest.raises(ApiError, match="a device has this name") as error:
        Batch.make(fleet, tmp_path, "shared-device")
    assert error.value.status == 409
    assert batch.ask("shared-name", new_key())[0] == 409


def test_a_batch_admits_device_ids_only(fleet: FleetProcess, tmp_path: Path) -> None:
    batch = Batch.make(fleet, tmp_path, "ids")
    for name in ("Bad Name", "a/b", "x" * 64, "_fleet", "+", "#"):
        assert batch.ask(name, new_key())[0] == 400
    assert batch.post(f"{EST}/simpleenroll", base64.b64encode(b"\x30\x82garbage"))[0] == 400
    assert batch.post(f"{EST}/simpleenroll", b"%%%")[0] == 400
    (shown,) = [b for b in fleet.api("GET", "/api/v1/batches") if b["batch"] == "ids"]
    assert shown["devices"] == 0


def test_a_claim_certificate_opens_nothing_else(fleet: FleetProcess, tmp_path: Path) -> None:
    """Attack: a claim certificate at the broker, the gateway, the API, and where devices renew."""
    batch = Batch.make(fleet, tmp_path, "nothing")
    assert not let_into_the_broker(batch)
    assert batch.seen() == 403
    assert fleet.request("GET", "/api/v1/devices", tls=batch.tls())[0] == 401
    for name in ("nothing", "nothing-1"):
        assert batch.ask(name, new_key(), again=True)[0] == 403
    assert batch.by_statement(new_key())[0] == 403
    # It does open the one door that it is for.
    pending(batch, "nothing-1")


def test_a_device_does_not_enrol_others(fleet: FleetProcess, tmp_path: Path) -> None:
    """Attack: a device's own certificate instead of a claim."""
    device = Holder.enrolled(fleet, tmp_path, "no-claim")
    assert device.ask("no-claim-2", new_key())[0] == 401
    assert device.ask("no-claim", new_key())[0] == 401


def test_a_claim_of_another_authority_is_not_even_heard(fleet: FleetProcess, tmp_path: Path) -> None:
    """Attack: a claim certificate that somebody made for a batch of ours."""
    Batch.make(fleet, tmp_path, "forged")
    with pytest.raises((ssl.SSLError, OSError)):
        stranger(fleet, "forged", tmp_path).ask("forged-1", new_key())


def test_a_repeated_request_gives_the_same_kit_of_a_batch(fleet: FleetProcess, tmp_path: Path) -> None:
    """Accident: the answer that held the only copy of the claim's key was lost."""
    asked = {"batch": "repeated", "profile": "x86-64", "quota": 3}

    def ask(key: str | None, **changes: Any) -> EnrolmentKit:
        headers = {"Idempotency-Key": key} if key else {}
        return EnrolmentKit.from_value(fleet.api("POST", "/api/v1/batches", {**asked, **changes}, headers=headers))

    first = ask("k")
    assert ask("k").claim == first.claim
    changes: tuple[tuple[str | None, dict[str, int]], ...] = ((None, {}), ("other", {}), ("k", {"quota": 4}))
    for key, change in changes:
        with pytest.raises(ApiError) as error:
            ask(key, **change)
        assert error.value.status == 409


def test_the_claims_key_is_nowhere_on_the_fleets_disk(fleet: FleetProcess, tmp_path: Path) -> None:
    batch = Batch.make(fleet, tmp_path, "unkept")
    assert batch.kit.claim is not None
    secret = batch.kit.claim.key.splitlines()[1].encode()
    pending(batch, "unkept-1")
    for path in fleet.data.rglob("*"):
        if path.is_file():
            assert secret not in path.read_bytes(), path


@pytest.mark.parametrize("change", [{"quota": 0}, {"quota": 10**9}, {"lifetime_s": 0}, {"group": "No"}, {"batch": "B"}])
def test_a_batch_that_makes_no_sense_is_refused(fleet: FleetProcess, change: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as error:
        fleet.api("POST", "/api/v1/batches", {"batch": "senseless", "profile": "x86-64", "quota": 1, **change})
    assert error.value.status == 400


# Out again


def test_a_revoked_device_gets_in_by_no_way(fleet: FleetProcess, tmp_path: Path) -> None:
    """Attack: a device that was stolen and revoked, with all its certificates, token and signed request."""
    kit, key = kit_for(fleet, "gone"), new_key()
    status, body = enrol(fleet, "gone", kit.token or "", key)
    assert status == 200
    old = Holder(fleet, "gone", certificate_in(body), key, tmp_path)
    current = old.renewed(new_key())
    assert current.seen() != 403  # this promotes it: the first one is old now
    following = current.renewed(new_key())

    shown = act(fleet, "gone", "revoke", reason="stolen")
    assert shown["status"] == "revoked"
    assert [(c["state"], c["reason"]) for c in shown["certificates"]] == [("revoked", "stolen")] * 2
    assert act(fleet, "gone", "revoke", reason="again") == shown
    for holder in (old, current, following):
        assert holder.seen() == 403
        assert holder.ask("gone", new_key(), again=True)[0] == 403
        assert holder.by_statement(new_key())[0] == 403
        assert not let_into_the_broker(holder)
    assert enrol(fleet, "gone", kit.token or "", key)[0] == 401


def test_a_revoked_device_of_a_batch_does_not_come_back_by_its_claim(fleet: FleetProcess, tmp_path: Path) -> None:
    batch = Batch.make(fleet, tmp_path, "back")
    device = accepted(batch, "back-1")
    act(fleet, "back-1", "revoke", reason="stolen")
    assert batch.ask("back-1", device.key)[0] == 403
    assert batch.ask("back-1", new_key())[0] == 403
    with pytest.raises(ApiError) as error:
        act(fleet, "back-1", "accept")
    assert error.value.status == 409


def test_a_revoked_device_comes_back_with_a_new_kit_and_its_numbers_go_on(
    fleet: FleetProcess, new_device: Any, tmp_path: Path
) -> None:
    """Its old orders, signed and maybe kept by somebody, must not be newer than the new ones."""
    first = new_device("again")
    first.connect()
    before = first.next_desired(seq=1).seq
    first.answer_to(first.report())
    for seq in (1, 2):
        first.send(first.batch(seq))
        first.next_ack()
    first.disconnect()
    old = Holder(fleet, "again", first.certificate, first.key, tmp_path)
    act(fleet, "again", "revoke", reason="repaired")

    second = new_device("again")
    until(
        lambda: let_into_the_broker(Holder(fleet, "again", second.certificate, second.key, tmp_path)), what="a way in"
    )
    second.connect()
    assert second.next_desired(seq=before + 1).seq == before + 1
    # Its own counters start anew, and are heard.
    assert second.answer_to(second.report()).desired_seq == before + 1
    second.boot = "boot-of-the-second"
    second.send(second.batch(1, nonce="anew"))
    assert second.next_ack().nonce == "anew"
    assert old.seen() == 403
    assert not let_into_the_broker(old)


def test_a_retired_device_is_told_to_wipe_itself_and_is_out_when_it_did(
    fleet: FleetProcess, new_device: Any, tmp_path: Path
) -> None:
    device = new_device("leaves")
    device.connect()
    assert act(fleet, "leaves", "retire", now=False)["status"] == "retiring"
    command = device.next_command()
    assert command.action == "wipe"
    holder = Holder(fleet, "leaves", device.certificate, device.key, tmp_path)
    assert holder.seen() != 403
    device.reply(command)
    device.until_status("retired")
    until(lambda: holder.seen() == 403, what="the refusal of a retired device")
    assert until(lambda: not let_into_the_broker(holder), what="the broker's refusal")


def test_a_device_that_does_not_come_any_more_is_retired_at_once(fleet: FleetProcess, tmp_path: Path) -> None:
    device = Holder.enrolled(fleet, tmp_path, "never-back")
    assert act(fleet, "never-back", "retire")["status"] == "retiring"
    assert act(fleet, "never-back", "retire", now=True)["status"] == "retired"
    assert device.seen() == 403
    kit_for(fleet, "unused")
    assert act(fleet, "unused", "retire")["status"] == "retired"


@pytest.mark.parametrize("what", ["accept", "reject"])
def test_who_does_not_wait_is_neither_accepted_nor_rejected(fleet: FleetProcess, what: str) -> None:
    kit_for(fleet, f"not-waiting-{what}")
    with pytest.raises(ApiError, match="does not wait") as error:
        act(fleet, f"not-waiting-{what}", what, **({"reason": "r"} if what == "reject" else {}))
    assert error.value.status == 409


# Groups


@pytest.fixture
def baker(fleet: FleetProcess) -> Iterator[FleetProcess]:
    """The same fleet, as an operator of the bakeries sees it."""
    asked = {"name": "baker", "roles": ["operator"], "groups": ["bakeries"]}
    token = fleet.api("POST", "/api/v1/tokens", asked)
    mine, fleet.token = fleet.token, token["token"]
    yield fleet
    fleet.token = mine


def test_an_operator_of_one_group_acts_on_no_other(
    fleet: FleetProcess, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kit_for(fleet, "group-kitchen", group="kitchens")
    batch = Batch.make(fleet, tmp_path, "group-batch", group="kitchens")
    pending(batch, "group-batch-1")
    baker = request.getfixturevalue("baker")
    own = kit_for(baker, "group-bakery", group="bakeries")
    assert own.device == "group-bakery"
    assert {d["group"] for d in baker.api("GET", "/api/v1/devices")} == {"bakeries"}
    assert baker.api("GET", "/api/v1/batches") == []
    refused: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/api/v1/devices/group-kitchen", {}),
        ("POST", "/api/v1/devices", {"device": "group-new", "profile": "x86-64", "group": "kitchens"}),
        ("POST", "/api/v1/devices", {"device": "group-kitchen", "profile": "x86-64", "group": "bakeries"}),
        ("POST", "/api/v1/devices/group-kitchen/revoke", {"reason": "r"}),
        ("POST", "/api/v1/devices/group-kitchen/retire", {}),
        ("POST", "/api/v1/devices/group-batch-1/accept", {}),
        ("POST", "/api/v1/devices/group-batch-1/accept", {"group": "bakeries"}),
        ("POST", "/api/v1/devices/group-batch-1/reject", {"reason": "r"}),
        ("POST", "/api/v1/batches", {"batch": "group-2", "profile": "x86-64", "quota": 1, "group": "kitchens"}),
        ("POST", "/api/v1/batches/group-batch/revoke", {}),
    ]
    for method, path, body in refused:
        with pytest.raises(ApiError, match="may not act on group") as error:
            baker.api(method, path, body if method == "POST" else None)
        assert error.value.status == 403


# What stays of it


def test_no_token_or_key_of_a_kit_is_in_the_log(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet", log_level="debug") as fleet:
        initialise_trust(fleet)
        kit = kit_for(fleet, "quiet")
        assert enrol(fleet, "quiet", kit.token or "", new_key())[0] == 200
        assert enrol(fleet, "quiet", kit.token or "", new_key())[0] == 403
        batch = Batch.make(fleet, tmp_path, "quiet-batch")
        pending(batch, "quiet-batch-1")
        audit = json.dumps(fleet.api("GET", "/api/v1/audit"))
        assert "quiet-batch-1" in audit
        assert kit.token is not None
        assert batch.kit.claim is not None
        for secret in (kit.token, batch.kit.claim.key.splitlines()[1]):
            assert secret not in fleet.log
            assert secret not in audit
