"""Attacks on the fleet, by a device, a neighbour, somebody who listened, or somebody on the fleet's own machine."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from fleet_process import ApiError, FleetProcess, Publisher, new_signer, tiny_bundle, until
from securesystemslib.signer import CryptoSigner
from simulators import simulator

from fleet.mqtt.limits import BURST, Gate
from wire import topics
from wire.audit import AuditEntry, AuditHead, check_log, open_head, seal_head
from wire.dsse import seal
from wire.errors import Untrusted
from wire.messages import Renewal
from wire.release import Release
from wire.signing import release_document

_fleet = simulator("fleet")
fleet, publisher, new_device = _fleet.fleet, _fleet.publisher, _fleet.new_device
SOON = 10.0
"""Seconds in which a refusal must show."""


@pytest.fixture
def device(new_device: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A device of the test's own, connected."""
    device = new_device(f"d{abs(hash(request.node.name)) % 10**12}")
    device.connect()
    return device


def alarm(device: Any) -> str:
    """The reason of the newest security event of a device."""
    return until(lambda: device.view()["security"], within=SOON, what="a security event")[-1]["reason"]


# --- what devices say


def test_forged_telemetry_is_refused(device: Any) -> None:
    """Attack: forged telemetry, signed by another key under the key id of the device's."""
    forger = new_signer()
    forger.public_key.keyid = device.signer.public_key.keyid
    device.send(device.batch(1, nonce="forged"), signer=forger)
    assert "not signed by the key" in alarm(device)
    assert device.view()["stats"]["records"] == 0


def test_replayed_telemetry_is_refused(device: Any) -> None:
    """Attack: replayed telemetry. A batch of this device is recorded and sent again after a newer one."""
    old = device.batch(1, nonce="old")
    for batch in (old, device.batch(2, nonce="new"), old):
        device.send(batch)
    assert "came before" in alarm(device)


def test_a_forged_report_is_refused(device: Any) -> None:
    """Attack: forged report. It names a sealing key of the forger's, so that keys of models would be sealed to it."""
    honest = device.report()
    device.answer_to(honest)
    device.say(topics.Reported(device.id), dataclasses.replace(honest, seq=9, agent="evil"), signer=new_signer())
    assert "not signed by the key" in alarm(device)
    assert device.view()["agent"] == honest.agent


def test_a_replayed_report_is_refused(device: Any) -> None:
    """Attack: replayed report. What a device ran last week is said again, to fool a rollout's gates."""
    old = device.report(agent="old")
    device.answer_to(device.report(agent="new"))
    device.say(topics.Reported(device.id), old)
    assert "came before" in alarm(device)
    assert device.view()["agent"] == "new"


def test_a_cloned_identity_raises_an_alarm(device: Any) -> None:
    """Attack: cloned identity. The flash card was copied; both machines count their starts, and boot for themselves."""
    device.answer_to(device.report())
    device.report(boot="another-boot")
    assert "two machines use this identity" in alarm(device)


def test_a_statement_about_another_device_is_refused(device: Any, new_device: Any) -> None:
    """Attack: a device reports in the name of another one, on its own topic and signed by its own key."""
    other = new_device(f"{device.id}-b")
    device.report(device=other.id)
    assert f"sent by {device.id}" in alarm(device)
    assert other.view()["agent"] is None


# --- topics


def test_a_device_cannot_say_that_another_is_gone(device: Any, new_device: Any) -> None:
    """Attack: another device's topics. A death is not signed: only the broker's access list keeps it to its own."""
    victim = new_device(f"{device.id}-b")
    victim.connect()
    victim.until_status("online")
    device.publish(topics.State(victim.id).topic, victim.presence(online=False))
    device.send(device.batch(1))
    device.next_ack()
    assert victim.view()["status"] == "online"


def test_a_device_hears_nothing_of_what_is_said_to_another(device: Any, new_device: Any) -> None:
    """Attack: another device's topics. The broker grants the subscription, and nothing must come of it."""
    curious = new_device(f"{device.id}-b")
    curious.connect(topics.Ack(device.id).topic, topics.Desired(device.id).topic)
    device.send(device.batch(1))
    device.next_ack()
    curious.send(curious.batch(1))
    heard = set()
    while f"shoal/1/d/{curious.id}/ack" not in heard:
        heard.add(curious.inbox.get(timeout=SOON)[0])
    assert not any(device.id == topic.split("/")[3] for topic in heard)


def test_a_client_id_cannot_be_borrowed(device: Any, new_device: Any) -> None:
    """Attack: cloned identity. A device connects with its own certificate and the client id of another."""
    lost: list[object] = []
    device.client.on_disconnect = lambda *_: lost.append(1)
    new_device(f"{device.id}-b").connect(client_id=device.id)
    device.send(device.batch(1))
    device.next_ack()
    assert lost == []


# --- models


def test_a_chunk_that_is_not_assigned_is_not_sent(device: Any, publisher: Publisher) -> None:
    """Attack: a device asks for a model of another group, to collect what it may get the key of some day."""
    manifest, blobs = tiny_bundle("7.0.0")
    publisher.release(manifest, blobs)
    device.want(manifest.file("model").digest, range(5), 5)
    assert f"not assigned to {device.id}" in alarm(device)


def test_a_release_that_only_the_fleet_signed_is_not_published(fleet: FleetProcess, publisher: Publisher) -> None:
    """Attack: somebody with a release manager's token uploads metadata by a key of their own."""
    evil = Release("models/intents/evil/1.0.0/x86-64", "sha256:" + 64 * "0", 4, "x86-64", "onnxruntime", 1)
    document = release_document(publisher.version + 1, [evil], publisher.expires, [new_signer()])
    with pytest.raises(ApiError, match="signed by 0/1"):
        publisher.post({"release-intents": document})
    assert evil.target not in str(fleet.api("GET", "/api/v1/models"))


# --- who may ask


def ask(fleet: FleetProcess, token: str, method: str = "GET", path: str = "/api/v1/devices") -> int:
    return fleet.request(method, path, headers={"Authorization": f"Bearer {token}"})[0]


def test_a_token_that_somebody_made_up_is_refused(fleet: FleetProcess) -> None:
    """Attack: a self-made token of the right form."""
    assert ask(fleet, fleet.token) == 200
    assert ask(fleet, "shoal_" + "A" * 43) == 401


def test_a_token_that_was_revoked_is_refused(fleet: FleetProcess) -> None:
    """Attack: a token that was found in an old backup."""
    made = fleet.api("POST", "/api/v1/tokens", {"name": "lost", "roles": ["viewer"]})
    assert ask(fleet, made["token"]) == 200
    fleet.api("DELETE", f"/api/v1/tokens/{made['id']}")
    assert ask(fleet, made["token"]) == 401


def test_a_viewer_changes_nothing(fleet: FleetProcess, publisher: Publisher, device: Any) -> None:
    """Attack: who may only look revokes a device."""
    made = fleet.api("POST", "/api/v1/tokens", {"name": "looks", "roles": ["viewer"]})
    assert ask(fleet, made["token"], "POST", f"/api/v1/devices/{device.id}/revoke") == 403
    assert device.view()["status"] == "online"


# --- certificates


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def test_a_certificate_that_was_replaced_opens_nothing(device: Any) -> None:
    """Attack: cloned identity. The certificate before the renewal, and its key, were copied from the flash card."""
    old, key = (device.certificate, device.key), new_key()
    status, body = device.renew(key)
    assert status == 200
    device.use(_fleet.certificate_in(body), key)
    assert device.renew(new_key())[0] == 200  # seen in use: the one before it is old from here on
    device.use(*old)
    assert device.renew(new_key())[0] == 403


def renewal(device: Any, signer: CryptoSigner) -> bytes:
    pem = device.certificate.public_bytes(Encoding.PEM).decode()
    request = base64.b64encode(_fleet.request_for(device.id, new_key())).decode()
    return seal(Renewal(device=device.id, certificate=pem, request=request), signer)


def test_a_renewal_after_expiry_needs_the_key_of_the_certificate(fleet: FleetProcess, device: Any) -> None:
    """Attack: cloned identity. A certificate is no secret; somebody asks for its next one with a key of their own."""
    assert fleet.request("POST", "/api/v1/renewals", renewal(device, device.signer))[0] == 200
    forger = new_signer()
    forger.public_key.keyid = device.signer.public_key.keyid
    assert fleet.request("POST", "/api/v1/renewals", renewal(device, forger))[0] >= 400


# --- floods


def test_a_flood_is_dropped_before_it_is_read() -> None:
    """Attack: flood. A device says more than its share; what is over costs the fleet one look at a name."""
    gate = Gate(10, clock=lambda: 0.0)
    admitted = sum(gate.admits("shoal/1/d/noisy/telemetry") for _ in range(10_000))
    assert admitted == 10 * BURST
    assert gate.admits("shoal/1/d/quiet/telemetry")


# --- the audit log


def log() -> tuple[list[AuditEntry], AuditHead]:
    at, previous, entries = "2026-11-22T08:00:00.000Z", "", []
    for seq in range(1, 6):
        entry = AuditEntry(seq=seq, at=at, who="a", action=f"{seq}", subject="s", source="x", outcome="200")
        entries.append(dataclasses.replace(entry, hash=entry.after(previous)))
        previous = entries[-1].hash
    return entries, AuditHead(seq=5, hash=previous, at=at)


def test_an_edited_audit_entry_is_found() -> None:
    """Attack: audit tampering. Somebody with the database changes what one entry says."""
    entries, head = log()
    entries[2] = dataclasses.replace(entries[2], who="nobody")
    with pytest.raises(Untrusted, match="audit entry 3: it does not fit its hash"):
        check_log(entries, head)


def test_a_deleted_audit_entry_is_found_though_every_later_hash_was_made_anew() -> None:
    """Attack: audit tampering. An entry is taken out, and the chain behind it is computed again with its numbers."""
    entries, head = log()
    del entries[2]
    previous = entries[1].hash
    for i in (2, 3):
        entries[i] = dataclasses.replace(entries[i], hash=entries[i].after(previous))
        previous = entries[i].hash
    with pytest.raises(Untrusted, match="entry 4 stands in its place"):
        check_log(entries, dataclasses.replace(head, seq=4, hash=previous))


def test_a_log_that_was_written_anew_does_not_reach_its_signed_head() -> None:
    """Attack: audit tampering. The whole chain is made anew, to the same length."""
    entries, head = log()
    entries[4] = dataclasses.replace(entries[4], who="nobody")
    entries[4] = dataclasses.replace(entries[4], hash=entries[4].after(entries[3].hash))
    with pytest.raises(Untrusted, match="written anew"):
        check_log(entries, head)


def test_a_truncated_audit_log_is_found() -> None:
    """Attack: audit tampering. The newest entries are cut off."""
    entries, head = log()
    with pytest.raises(Untrusted, match="missing"):
        check_log(entries[:3], head)


def test_a_log_cut_off_together_with_its_head_is_found_by_a_head_that_was_kept() -> None:
    """Attack: audit tampering. Log and signed head of last week are put back from a backup."""
    entries, head = log()
    earlier = dataclasses.replace(head, seq=3, hash=entries[2].hash)
    assert check_log(entries[:3], earlier) == 3
    with pytest.raises(Untrusted, match="missing"):
        check_log(entries[:3], earlier, [head])


def test_a_head_that_somebody_else_signed_is_refused() -> None:
    """Attack: audit tampering. A head is made for the log that was made anew."""
    ours, theirs = new_signer(), new_signer()
    theirs.public_key.keyid = ours.public_key.keyid
    _, head = log()
    assert open_head(seal_head(head, ours), [ours.public_key]) == head
    with pytest.raises(Untrusted, match="not by a key of this fleet"):
        open_head(seal_head(head, theirs), [ours.public_key])


# --- time


def test_an_expired_release_role_is_not_published(publisher: Publisher) -> None:
    """Accident: metadata that no device would take is refused where somebody can still do something about it."""
    expired = datetime.now(UTC) - timedelta(seconds=1)
    document = release_document(publisher.version + 1, [], expired, [publisher.release_signer])
    with pytest.raises(ApiError, match="expired"):
        publisher.post({"release-intents": document})
