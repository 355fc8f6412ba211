"""Project Wycheproof's Ed25519 vectors through the two ways in which our programs check a signature.

The vectors are not part of this project: `SHOAL_VECTORS` names their folder, by default `../shared/vectors`.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signature
from trust_repository import Repository, new_signer
from tuf.api.metadata import Metadata, Targets

from wire.errors import Untrusted
from wire.metadata import check_signed

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(os.environ.get("SHOAL_VECTORS", ROOT / "../shared/vectors")) / "ed25519_test.json"


@dataclass(frozen=True)
class Case:
    number: int
    key: Key
    message: bytes
    signature: bytes
    valid: bool


def cases() -> list[Case]:
    if not FILE.is_file():
        pytest.skip(f"no Wycheproof vectors at {FILE}: set SHOAL_VECTORS to the folder of ed25519_test.json")
    value = json.loads(FILE.read_bytes())
    found = [_case(group, test) for group in value["testGroups"] for test in group["tests"]]
    assert len(found) == value["numberOfTests"] == 151
    return found


def _case(group: dict[str, Any], test: dict[str, Any]) -> Case:
    # As it stands in targets metadata, so that the key is read as ours are.
    key = {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": group["publicKey"]["pk"]}}
    message, signature = bytes.fromhex(test["msg"]), bytes.fromhex(test["sig"])
    return Case(test["tcId"], Key.from_dict("k", key), message, signature, test["result"] == "valid")


def by_role(case: Case) -> bool:
    """As `TrustedSet` and `wire.dsse.open_by_role` check it: the fleet role of a targets document, one key of one."""
    targets = Metadata[Targets].from_bytes(Repository().documents["targets"]).signed
    assert targets.delegations is not None
    targets.delegations.keys["k"] = case.key
    targets.delegations.roles["fleet"].keyids = ["k"]

    signed = SimpleNamespace(signed_bytes=case.message, signatures={"k": Signature("k", case.signature.hex())})
    try:
        check_signed(targets.verify_delegate, "fleet", signed)
    except Untrusted:
        return False
    return True


def by_key(case: Case) -> bool:
    """As `wire.dsse.open_by_key` checks it: an envelope read from JSON, whose signed bytes are the vector's."""

    class Bare(Envelope):
        def pae(self) -> bytes:
            return case.message

    signature = {"keyid": "k", "sig": base64.b64encode(case.signature).decode()}
    envelope = Bare.from_dict({"payload": "", "payloadType": "t", "signatures": [signature]})
    try:
        envelope.verify([case.key], 1)
    except VerificationError:
        return False
    return True


@pytest.mark.parametrize("check", [by_role, by_key])
def test_every_vector_is_judged_as_it_says(check: Callable[[Case], bool]) -> None:
    """Attack: forged, malleable and mis-encoded signatures, points of small order, truncated and padded ones."""
    mismatches = [case.number for case in cases() if check(case) != case.valid]
    assert mismatches == []


@pytest.mark.parametrize("check", [by_role, by_key])
def test_a_vector_with_another_key_is_refused(check: Callable[[Case], bool]) -> None:
    """The two ways do look at the key: with another one, no valid vector is left."""
    other = new_signer().public_key
    other.keyid = "k"
    valid = [case for case in cases() if case.valid]
    assert valid
    assert not any(check(Case(c.number, other, c.message, c.signature, valid=False)) for c in valid)
