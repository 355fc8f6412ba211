"""What happened to a device: what ran on it when, and why it changed; who put it where.

take_report(session, row, last, report, now)       # with every new report: a model came, went or was replaced
note(session, row.id, now, "group", before="lab", after="kitchen", who=caller.name)
of_device(session, row, limit=200)                 # with rollouts, commands, certificates and security events
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlmodel import Session, col, delete, select

from fleet.commands import newest
from fleet.store.health_tables import DeviceHistoryRow
from fleet.store.rollout_tables import RolloutEvent
from fleet.store.tables import Device, SecurityRow
from fleet.trust.certificates import certificates_of
from wire.messages import Reported, SlotReport, UpdateReport
from wire.units import show_instant

HELD: Final = 500
"""Entries kept of one device: one that reports another model every second must not fill the disk."""
MODEL: Final = "model"
_LONGEST: Final = 500
_OPEN: Final = ("fetching", "self-test", "probation")


@dataclass(frozen=True)
class Change:
    """Another release answers for a model. None: there was none, or there is none any more."""

    model: str
    before: SlotReport | None
    after: SlotReport | None
    why: str


def changes(last: Reported | None, report: Reported, desired_models: str) -> tuple[Change, ...]:
    """What a report changes of the last one. `desired_models` is what the fleet wants now (JSON). Pure."""
    was, now = _active(last), _active(report)
    names = [name for name in sorted({*was, *now}) if _digest(was.get(name)) != _digest(now.get(name))]
    wanted = _wanted(desired_models) if names else {}
    return tuple(Change(n, was.get(n), now.get(n), _why(last, report, was.get(n), now.get(n), wanted)) for n in names)


def take_report(session: Session, row: Device, last: Reported | None, report: Reported, now: datetime) -> None:
    """Note what a new report changes. `row` still says what is desired."""
    found = changes(last, report, row.desired_models)
    for change in found:
        texts = {"before": _text(change.before), "after": _text(change.after), "why": change.why}
        note(session, row.id, now, MODEL, subject=change.model, **texts)


def note(
    session: Session,
    device: str,
    now: datetime,
    what: str,
    *,
    subject: str = "",
    before: str = "",
    after: str = "",
    why: str = "",
    who: str = "",
) -> None:
    """Add an entry, and forget the oldest beyond `HELD`."""
    row = DeviceHistoryRow(device=device, at=show_instant(now), what=what, subject=subject[:_LONGEST], who=who)
    row.before, row.after, row.why = before[:_LONGEST], after[:_LONGEST], why[:_LONGEST]
    session.add(row)
    session.flush()
    mine = select(DeviceHistoryRow.id).where(DeviceHistoryRow.device == device)
    oldest = session.exec(mine.order_by(col(DeviceHistoryRow.id).desc()).offset(HELD - 1).limit(1)).first()
    if oldest is not None:
        h = DeviceHistoryRow
        session.exec(delete(h).where(col(h.device) == device, col(h.id) < oldest))


def of_device(session: Session, device: Device, limit: int) -> dict[str, Any]:
    """`models`: what ran from when until when, and why; `entries`: all that happened, the newest first."""
    mine = select(DeviceHistoryRow).where(DeviceHistoryRow.device == device.id).order_by(col(DeviceHistoryRow.id))
    rows = session.exec(mine).all()
    entries = [
        *(_entry(row.at, row.what, _told(row), row.who or device.id) for row in rows),
        *_of_rollouts(session, device.id, limit),
        *_of_others(session, device),
    ]
    entries.sort(key=lambda entry: entry["at"], reverse=True)
    return {"device": device.id, "models": _runs(rows), "entries": entries[:limit]}


# --- what a report says -----------------------------------------------------------------------------------------------


def _wanted(desired_models: str) -> dict[str, str]:
    """The digests that are desired, and by which rollout; "": by none."""
    return {m["digest"]: m.get("rollout") or "" for m in json.loads(desired_models)}


def _active(report: Reported | None) -> dict[str, SlotReport]:
    return {s.model: s for s in report.slots if s.slot == "active"} if report else {}


def _digest(slot: SlotReport | None) -> str:
    return slot.digest if slot else ""


def _text(slot: SlotReport | None) -> str:
    return f"{slot.target} {slot.digest}" if slot else ""


def _why(
    last: Reported | None,
    report: Reported,
    before: SlotReport | None,
    after: SlotReport | None,
    wanted: Mapping[str, str],
) -> str:
    """The reason in words: the device's own report of its update first, then what the fleet wants of it."""
    if after is None:
        return "it is not desired any more, or the device lost it"
    mine = next((u for u in report.updates if u.digest == after.digest), None)
    failed = next((u for u in report.updates if before is not None and u.digest == before.digest), None)
    if failed is not None and failed.phase in ("failed", "refused"):
        return _sentence("went back", failed)
    if mine is not None and (mine.phase == "committed" or mine.phase in _OPEN):
        return _sentence("updated" if mine.phase == "committed" else f"in {mine.phase}", mine)
    if after.digest in wanted:
        return f"rollout {wanted[after.digest]} asked for it" if wanted[after.digest] else "the fleet asked for it"
    return "the device's first report" if last is None else "the device changed it by itself"


def _sentence(word: str, update: UpdateReport) -> str:
    by = f" by rollout {update.rollout}" if update.rollout else ""
    return f"{word}{by}" + (f": {update.reason}" if update.reason else "")


# --- what is shown ----------------------------------------------------------------------------------------------------


def _entry(at: str, what: str, text: str, who: str) -> dict[str, Any]:
    return {"at": at, "what": what, "text": text, "who": who}


def _told(row: DeviceHistoryRow) -> str:
    names = [_name(text) for text in (row.before, row.after)]
    moved = f"{names[0] or 'nothing'} -> {names[1] or 'nothing'}"
    return f"{row.subject}: {moved}: {row.why}" if row.what == MODEL else moved


def _name(text: str) -> str:
    """The version of a release, with the beginning of its digest; any other text as it is."""
    target, _, digest = text.partition(" sha256:")
    return f"{target.split('/')[3]} ({digest[:8]})" if digest and target.count("/") == 4 else text


def _runs(rows: Sequence[DeviceHistoryRow]) -> list[dict[str, Any]]:
    """One a stretch of time, the newest first; `until` None: it runs now, as far as is known."""
    runs: list[dict[str, Any]] = []
    running: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.what != MODEL:
            continue
        ended = running.pop(row.subject, None)
        if ended is not None:
            ended["until"], ended["ended"] = row.at, row.why
        if row.after:
            target, _, digest = row.after.partition(" ")
            run = {"model": row.subject, "target": target, "digest": digest, "since": row.at, "until": None}
            running[row.subject] = run | {"why": row.why, "ended": ""}
            runs.append(running[row.subject])
    return runs[::-1]


def _of_rollouts(session: Session, device: str, limit: int) -> Iterator[dict[str, Any]]:
    mine = select(RolloutEvent).where(RolloutEvent.device == device).order_by(col(RolloutEvent.id).desc()).limit(limit)
    for e in session.exec(mine):
        yield _entry(e.at, "rollout", f"{e.rollout}: {e.what}" + (f": {e.reason}" if e.reason else ""), e.who)


def _of_others(session: Session, device: Device) -> Iterator[dict[str, Any]]:
    yield _entry(device.created, "enrolment", "its first kit was made, or it asked with its batch's", "")
    if device.enrolled:
        yield _entry(device.enrolled, "enrolment", "admitted", "")
    for c in newest(session, device.id):
        yield _entry(c.issued, "command", f"{c.action}: {c.state}", "")
    for row in certificates_of(session, device):
        yield _entry(row.issued, "certificate", f"{row.serial[:16]} was issued", "")
        if row.revoked:
            yield _entry(row.revoked, "certificate", f"{row.serial[:16]} was revoked: {row.reason}", "")
    for refused in session.exec(select(SecurityRow).where(SecurityRow.device == device.id)):
        yield _entry(refused.at, "security", f"{refused.subject}: {refused.reason}", "")
