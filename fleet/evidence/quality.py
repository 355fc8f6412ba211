"""How good a version is on each profile: the figures of `fleet.gates.estimates`, for the page that people look at.

    quality(session, subject, total, since, until, devices=30)      # {kind: figure}, of one model on one profile

Accuracy and agreement in shadow have the device as their unit. To keep a page quick whatever the size of the fleet, at
most `DRAWN` devices of a version are added up, as many of each profile, drawn by a hash: a random sample, and the same
one each time, over at most the last `LONGEST` of the time that is shown. Where all devices together have no such
answer, none is read. What the cloud was asked is added up over all devices as it comes.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import func, select
from sqlmodel import Session, col

from fleet.evidence.windows import DAY, NUMBERS, SPANS, Window, begin
from fleet.gates.estimates import figures
from fleet.gates.values import Behaviour
from fleet.store.evidence_tables import EvidenceSubject, EvidenceWindow
from wire.agreement import COUNTS, Agreement
from wire.errors import Malformed

DRAWN: Final = 120
"""Devices of a version that accuracy and agreement are estimated from: each takes 3 ms of a cold disk."""
LONGEST: Final = 14 * DAY
"""Seconds before the end of the time shown that are read by device."""
_COUNTED: Final = ("feedback_total", "feedback_correct", "compared", "agreed")


def quality(
    session: Session, subject: EvidenceSubject, total: Window, since: int, until: int, *, devices: int
) -> dict[str, dict[str, Any]]:
    """Each figure that can be told of a model on a profile, or in shadow there, as JSON by its kind.

    `subject` is that of all devices, and `total` what they did from `since` on and before `until`, seconds since 1970.
    At most so many `devices` are read.
    """
    told = dict(zip(NUMBERS, total.numbers, strict=True))
    behaviours: Sequence[Behaviour] = ()
    if told["feedback_total"] or told["compared"]:
        low = max(since, begin(until - LONGEST, DAY))
        behaviours = _behaviours(session, subject, _drawn(session, subject, low, devices), low, until)
    return {kind: one.to_value() for kind, one in figures(behaviours, checked(total.checks)).items()}


def checked(checks: Mapping[str, int]) -> Iterator[Agreement]:
    """What a window counted of answers that the cloud was asked, too, by stratum."""
    strata: dict[str, dict[str, int]] = {}
    for key, n in checks.items():
        stratum, _, name = key.partition(".")
        if stratum.isdecimal() and name in COUNTS:
            strata.setdefault(stratum, {})[name] = n
    for stratum, counts in strata.items():
        try:
            yield Agreement.from_value({"stratum": int(stratum), **counts})
        except Malformed:  # a device made it up, or sums that stopped rising
            continue


def _drawn(session: Session, subject: EvidenceSubject, since: int, devices: int) -> list[int]:
    s = EvidenceSubject
    where = (
        col(s.digest) == subject.digest,
        col(s.profile) == subject.profile,
        col(s.shadow) == subject.shadow,
        col(s.device) != "",
        col(s.newest) >= since - DAY,
    )
    found: Any = session.connection().execute(select(col(s.id), col(s.device)).where(*where)).all()
    drawn = heapq.nsmallest(devices, found, key=lambda row: hashlib.sha256(row[1].encode()).digest())
    return [row[0] for row in drawn]


def _behaviours(
    session: Session, subject: EvidenceSubject, numbers: Sequence[int], since: int, until: int
) -> list[Behaviour]:
    w = EvidenceWindow
    where = (col(w.subject).in_(numbers), col(w.span).in_(SPANS), col(w.begins) >= since, col(w.begins) < until)
    sums = (func.sum(col(getattr(w, name))) for name in _COUNTED)
    blank = Behaviour(
        digest=subject.digest, begins=datetime.fromtimestamp(since, UTC), ends=datetime.fromtimestamp(until, UTC)
    )
    rows: Any = session.connection().execute(select(*sums).where(*where).group_by(col(w.subject)))
    return [
        replace(
            blank, feedback_total=int(total), feedback_correct=int(right), compared=int(compared), agreed=int(agreed)
        )
        for total, right, compared, agreed in rows
    ]
