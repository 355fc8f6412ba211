"""Statements are believed only when the right key signed these very bytes, and nothing sent does anything but that."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trust_repository import Repository, new_signer

from wire.chunks import digest
from wire.document import dump_json
from wire.dsse import open_by_key, open_by_role, seal
from wire.errors import Incompatible, Malformed, Untrusted, WireError
from wire.messages import Presence, Reported
from wire.orders import Ack, Desired, DesiredModel
from wire.trust import TrustedSet

TIME = "2026-11-22T08:00:00.000Z"
ACK = Ack(
    device="a", epoch=1, seq=1, issued=TIME, expires=TIME, nonce="n", boot="b", stored=1,
    desired_epoch=1, desired_seq=1,
)  # fmt: skip
DESIRED = Desired(
    device="a", epoch=1, seq=1, issued=TIME, expires=TIME,
    models=(DesiredModel(target="models/f/n/1/p", digest=digest(b"x")),),
)  # fmt: skip
SIGNER = new_signer()
KEY = SIGNER.public_key


@pytest.fixture(scope="module")
def repo() -> Repository:
    return Repository()


def trusted(repo: Repository) -> TrustedSet:
    trust = TrustedSet.from_root(repo.roots[1])
    assert trust.offer(repo.offered(), repo.now) == ()
    return trust


def test_what_the_fleet_role_signed_is_opened(repo: Repository) -> None:
    data = seal(DESIRED, repo.keys["fleet"][0])
    assert open_by_role(data, Desired, trusted(repo).targets()) == DESIRED


@pytest.mark.parametrize("role", ["release", "timestamp", "targets"])
def test_what_another_role_signed_is_refused(role: str, repo: Repository) -> None:
    with pytest.raises(Untrusted, match="not signed by the fleet's current key"):
        open_by_role(seal(DESIRED, repo.keys[role][0]), Desired, trusted(repo).targets())


def test_what_a_rotated_out_fleet_key_signed_is_refused() -> None:
    """Attack: the fleet's key was stolen and replaced."""
    repo = Repository()
    stolen = repo.keys["fleet"][0]
    trust = trusted(repo)
    assert open_by_role(seal(DESIRED, stolen), Desired, trust.targets())
    repo.keys["fleet"] = [new_signer()]
    repo.sign_targets()
    repo.publish()
    assert trust.offer(repo.offered(), repo.now) == ()
    with pytest.raises(Untrusted):
        open_by_role(seal(DESIRED, stolen), Desired, trust.targets())


def test_a_statement_of_one_kind_is_not_taken_for_another() -> None:
    """Attack: an acknowledgement is sent where a desired state is expected, by the right key."""
    with pytest.raises(Untrusted, match=r"expected application/vnd\.shoal\.desired"):
        open_by_key(seal(ACK, SIGNER), Desired, KEY)


def test_a_changed_payload_under_the_old_signature_is_refused() -> None:
    envelope = json.loads(seal(ACK, SIGNER))
    payload = base64.b64decode(envelope["payload"]).replace(b'"stored":1', b'"stored":9')
    envelope["payload"] = base64.b64encode(payload).decode()
    with pytest.raises(Untrusted):
        open_by_key(dump_json(envelope), Ack, KEY)


def test_another_signer_under_the_key_id_of_the_right_one_is_refused() -> None:
    """Attack: the key id in an envelope is only a hint."""
    envelope = json.loads(seal(ACK, new_signer()))
    envelope["signatures"][0]["keyid"] = KEY.keyid
    with pytest.raises(Untrusted):
        open_by_key(dump_json(envelope), Ack, KEY)


def test_a_signed_statement_of_another_major_is_incompatible() -> None:
    with pytest.raises(Incompatible):
        open_by_key(seal(replace(ACK, contract="2.0"), SIGNER), Ack, KEY)


def test_an_envelope_over_its_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(Malformed, match="the limit is"):
        open_by_key(b" " * 200_000, Reported, KEY)


json_values = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.integers(), max_size=2)


@given(st.sampled_from(["payload", "payloadType", "signatures", "keyid", "sig"]), json_values, st.booleans())
def test_an_envelope_bent_anywhere_is_refused_with_a_wire_error(part: str, value: Any, absent: bool) -> None:
    envelope = json.loads(seal(ACK, SIGNER))
    holder = envelope["signatures"][0] if part in ("keyid", "sig") else envelope
    holder.pop(part) if absent else holder.update({part: value})
    with pytest.raises(WireError):
        open_by_key(json.dumps(envelope).encode(), Ack, KEY)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        open_by_key(data, Ack, KEY)
    with pytest.raises(WireError):
        Presence.from_bytes(data)


@given(st.data(), json_values | st.sampled_from([1e308, 10**400, {"a": {"b": []}}, "\ud800"]))
def test_trust_documents_bent_anywhere_are_refused_and_never_break_the_device(
    repo: Repository, data: st.DataObject, value: Any
) -> None:
    trust = TrustedSet.from_root(repo.roots[1])
    name = data.draw(st.sampled_from(sorted(repo.documents)))
    document = json.loads(repo.documents[name])
    places: list[tuple[Any, Any]] = []
    queue: list[Any] = [document]
    while queue:
        holder = queue.pop()
        for key, inner in holder.items() if isinstance(holder, dict) else enumerate(holder):
            places.append((holder, key))
            if isinstance(inner, (dict, list)):
                queue.append(inner)
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = value
    offered = {**repo.offered(), name: json.dumps(document).encode()}
    trust.offer(offered, repo.now)
    again = TrustedSet.from_documents(trust.documents)
    assert again.versions() == trust.versions()


@given(st.binary(max_size=300))
def test_any_bytes_as_a_root_are_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        TrustedSet.from_root(data)
