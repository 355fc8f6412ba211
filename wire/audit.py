"""The audit log as a value: entries that each hold the hash of all before them, and a signed head that names the last.

    head = open_head(envelope, keys)              # raises Untrusted unless one of the keys signed it
    check_log(entries, head)                      # raises Untrusted that names the first entry that does not hold
    check_log(entries, head, [head_of_last_week]) # finds a log that was cut off together with its newest head

An edit, a deletion, an insertion and another order break a hash; a cut end does not reach the head; a cut end whose
old head was put back does not reach a head that was saved elsewhere. Whoever holds the fleet key can write another log:
only a head that was saved elsewhere shows that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signer

from wire.document import CONTRACT, Document, check_counts, dump_json, parse_json
from wire.errors import Malformed, Untrusted
from wire.units import instant

_TYPE: Final = "application/vnd.shoal.audit-head.v1+json"


@dataclass(frozen=True, kw_only=True)
class AuditEntry(Document):
    """Who did what to what, from where, with what outcome. `at` is RFC 3339."""

    LIMIT: ClassVar[int] = 16 * 1024

    seq: int
    at: str
    who: str
    action: str
    subject: str
    source: str
    outcome: str
    detail: str = ""
    hash: str = ""

    def after(self, previous: str) -> str:
        """The hash of this entry behind the entry whose hash is `previous`: SHA-256 in hexadecimal over both."""
        value = {**self.to_value(), "previous": previous}
        del value["hash"]
        return hashlib.sha256(dump_json(value)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class AuditHead(Document):
    """The newest entry of the log, as the fleet signed it at that moment."""

    LIMIT: ClassVar[int] = 4 * 1024

    contract: str = CONTRACT
    seq: int
    hash: str
    at: str

    def __post_init__(self) -> None:
        check_counts(self, "seq")
        instant(self.at, where="audithead.at")


def seal_head(head: AuditHead, signer: Signer) -> bytes:
    """The head in a DSSE envelope. It is no `Statement`: it is about no device, and no device takes one."""
    envelope = Envelope(head.to_bytes(), _TYPE, {})
    envelope.sign(signer)
    return dump_json(envelope.to_dict())


def open_head(data: bytes, keys: Sequence[Key]) -> AuditHead:
    """The head that one of the keys signed. Raises `Malformed`, or `Untrusted` when none of them did."""
    envelope = _envelope(data)
    try:
        envelope.verify(list(keys), 1)
    except (VerificationError, ValueError) as e:
        signers = ", ".join(key[:12] for key in envelope.signatures)
        raise Untrusted(f"audit head: signed by {signers or 'nobody'}, and not by a key of this fleet") from e
    return AuditHead.from_bytes(envelope.payload)


def check_log(entries: Iterable[AuditEntry], head: AuditHead, saved: Sequence[AuditHead] = ()) -> int:
    """How many entries there are, when they are all there and as they were written.

    Raises `Untrusted` that names the first entry that does not hold.
    """
    previous, seq, hashes = "", 0, dict.fromkeys((h.seq for h in (head, *saved)), "")
    for entry in entries:
        seq += 1
        if entry.seq != seq:
            raise Untrusted(f"audit entry {seq}: entry {entry.seq} stands in its place: it was deleted or moved")
        if entry.hash != entry.after(previous):
            raise Untrusted(f"audit entry {seq}: it does not fit its hash: it, or the one before it, was changed")
        previous = entry.hash
        if seq in hashes:
            hashes[seq] = previous
    for named in (*saved, head):
        _check_reached(named, seq, hashes[named.seq])
    if seq > head.seq:
        raise Untrusted(f"audit entry {head.seq + 1}: stands behind the signed head: it was added")
    return seq


def _check_reached(head: AuditHead, last: int, found: str) -> None:
    if head.seq > last:
        raise Untrusted(f"audit entry {last + 1}: missing: the head of {head.at} names entry {head.seq} as the last")
    if head.seq and found != head.hash:
        raise Untrusted(f"audit entry {head.seq}: not the one that the head of {head.at} names: it was written anew")


def _envelope(data: bytes) -> Envelope:
    value: Any = parse_json(data, what="audit head envelope", limit=AuditHead.LIMIT * 3 // 2 + 4096)
    try:
        envelope = Envelope.from_dict(value)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise Malformed(f"audit head envelope: not a DSSE envelope: {e}") from e
    if envelope.payload_type != _TYPE:
        raise Untrusted(f"audit head envelope: holds {str(envelope.payload_type)[:80]!r}, expected {_TYPE}")
    return envelope
