"""Statements in DSSE envelopes (Dead Simple Signing Envelope, v1): the signed bytes are the sent bytes.

data = seal(desired, signer)                       # the fleet or a device signs
desired = open_by_role(data, Desired, targets)     # believed when the fleet role of the targets metadata signed it
batch = open_by_key(data, TelemetryBatch, key)     # believed when this device's key signed it
"""

from __future__ import annotations

from typing import TypeVar

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Targets

from wire.document import dump_json, parse_json
from wire.errors import Malformed, Untrusted
from wire.messages import Statement

FLEET_ROLE = "fleet"
"""Name of the role, delegated by targets and without target paths, whose key makes a device act or forget."""

S = TypeVar("S", bound=Statement)


def seal(statement: Statement, signer: Signer) -> bytes:
    """The statement in an envelope signed by one key."""
    envelope = Envelope(statement.to_bytes(), statement.PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return dump_json(envelope.to_dict())


def open_by_role(data: bytes, kind: type[S], targets: Targets) -> S:
    """A statement of the fleet role. Raises `Malformed`, `Incompatible`, or `Untrusted` when it did not sign."""
    envelope = _envelope(data, kind)
    try:
        targets.verify_delegate(FLEET_ROLE, envelope.pae(), envelope.signatures)
    except (RepositoryError, ValueError) as e:
        raise Untrusted(f"{kind.__name__.lower()}: not signed by the fleet's current key: {e}") from e
    return kind.from_bytes(envelope.payload)


def open_by_key(data: bytes, kind: type[S], key: Key) -> S:
    """A statement of one key. Raises `Malformed`, `Incompatible`, or `Untrusted` when that key did not sign it."""
    envelope = _envelope(data, kind)
    try:
        envelope.verify([key], 1)
    except VerificationError as e:
        raise Untrusted(f"{kind.__name__.lower()}: not signed by the key of the device's certificate") from e
    return kind.from_bytes(envelope.payload)


def read_unverified(data: bytes, kind: type[S]) -> S:
    """What an envelope says, believed by nobody yet: for a statement that itself tells which key to verify it with.

    Raises `Malformed`, `Incompatible`, or `Untrusted` for another kind of statement.
    """
    return kind.from_bytes(_envelope(data, kind).payload)


def _envelope(data: bytes, kind: type[Statement]) -> Envelope:
    what = f"{kind.__name__.lower()} envelope"
    # Base64 takes 4/3 of the payload; the rest is room for signatures.
    value = parse_json(data, what=what, limit=kind.LIMIT * 3 // 2 + 4096)
    try:
        envelope = Envelope.from_dict(value)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise Malformed(f"{what}: not a DSSE envelope: {e}") from e
    if envelope.payload_type != kind.PAYLOAD_TYPE:
        raise Untrusted(f"{what}: holds {str(envelope.payload_type)[:80]!r}, expected {kind.PAYLOAD_TYPE}")
    return envelope
