"""What an operator decides about a device: let it in, turn it away, put it out, send it home.

Each works in the caller's transaction. The caller then publishes the desired states that changed and has the
revocations applied (`fleet.trust.revocation`).
"""

from __future__ import annotations

import base64
from datetime import datetime

from sqlmodel import Session

from fleet import devices, profiles
from fleet.errors import Conflict
from fleet.store.tables import ClaimRow, Device
from fleet.trust.ca import read_request
from fleet.trust.enrolment import SUBJECT, Enrolment
from fleet.trust.identity import LISTENED
from wire.document import check_name


def accept(session: Session, enrolment: Enrolment, row: Device, group: str | None, profile: str | None) -> bool:
    """Let a pending device in, or one that was rejected; False when it is in already, as asked for.

    Raises `Conflict` for a device that does not wait, and when its batch was revoked meanwhile.
    """
    group, profile = check_name(group or row.group, "group"), profiles.load(profile or row.profile).name
    if row.state == "enrolled" and row.batch is not None and (row.group, row.profile) == (group, profile):
        return False
    if row.state not in ("pending", "rejected") or not row.request:
        raise Conflict(f"device {row.id}: it is {devices.standing(row)} and does not wait to be accepted")
    claim = session.get(ClaimRow, row.batch)
    if claim is None or claim.revoked is not None:
        raise Conflict(f"device {row.id}: its batch {row.batch} was revoked: give the device a kit of its own")
    row.group, row.profile = group, profile
    enrolment.admit(session, row, read_request(base64.b64decode(row.request), row.id))
    return True


def reject(session: Session, row: Device, reason: str, now: datetime) -> bool:
    """Turn a pending device away; False when it was already. Raises `Conflict` for a device that does not wait."""
    if row.state == "rejected":
        return False
    if row.state != "pending":
        raise Conflict(f"device {row.id}: it is {devices.standing(row)} and does not wait: revoke it to put it out")
    row.state = "rejected"
    devices.record_refusal(session, row.id, SUBJECT, f"rejected by an operator: {reason}", now)
    session.add(row)
    return True


def revoke(session: Session, row: Device, reason: str, now: datetime) -> bool:
    """Put a device out for good, whatever it is; False when it was already."""
    if row.state == "revoked":
        return False
    devices.leave(session, row, "revoked", reason, now)
    return True


def retire(session: Session, row: Device, now: datetime, *, at_once: bool) -> bool:
    """Send a device home: True when it has to be told to wipe itself, and leaves when it says that it did.

    Asked again it is told again only if the order before expired, or the device could not. A device that never got in
    has nothing to wipe: it is retired at once, as it is when `at_once` is asked for.
    Raises `Conflict` for one that was revoked.
    """
    if row.state == "revoked":
        raise Conflict(f"device {row.id}: it is revoked: no order of ours reaches it any more")
    if row.state in LISTENED and not at_once:
        told = row.state == "retiring" and row.command_envelope != ""
        row.state = "retiring"
        session.add(row)
        return not told
    if row.state != "retired":
        devices.retired(session, row, now)
    return False
