"""What is known of drift, for programs: JSON-ready."""

from __future__ import annotations

import json
from typing import Any, Final

from sqlmodel import Session, col, func, select

from fleet.drift.values import ALL
from fleet.errors import NotFound
from fleet.store.drift_tables import DriftAlarm, DriftDay

SHOWN: Final = 100
"""Alarms of one model that are over, the newest."""


def open_alarms(session: Session) -> list[dict[str, Any]]:
    """The alarms that are open now, the newest first: see `alarm`."""
    rows = select(DriftAlarm).where(DriftAlarm.state == "open")
    return [alarm(row) for row in session.exec(rows.order_by(col(DriftAlarm.first).desc(), col(DriftAlarm.id)))]


def alarm(row: DriftAlarm) -> dict[str, Any]:
    """An alarm: `what` says in words and numbers what moved, `first_seen` is the window of the first sign."""
    score = json.loads(row.score)
    named = {name: getattr(row, name) for name in ("id", "digest", "model", "stratum", "subject", "against", "state")}
    times = {"first_seen": row.first, "last_seen": row.last, "ended": row.ended}
    return {**named, **times, **{k: v for k, v in score.items() if k != "words"}, "what": score["words"]}


def drifting(session: Session) -> dict[str, str]:
    """What drifts now, in words how, for rules of alerts: one line for each model, subject and stratum.

    An alarm against the past and one against the reference are one line: it is over when both are. Bias is among them.
    """
    found: dict[str, str] = {}
    for row in session.exec(select(DriftAlarm).where(DriftAlarm.state == "open").order_by(col(DriftAlarm.id))):
        place = "all devices" if row.stratum == ALL else row.stratum
        words: str = json.loads(row.score)["words"]
        found.setdefault(f"{row.model} {row.digest[:19]} {row.subject}, {place}", words)
    return found


def overview(session: Session, groups: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Open alarms, and for each model the scores of all its devices in its newest window.

    `groups`: those that the caller is given, none for all. What is of another group is left out.
    """
    newest = select(DriftDay.digest, func.max(DriftDay.window)).where(DriftDay.stratum == ALL)
    found = session.exec(newest.group_by(DriftDay.digest)).all()
    rows = [session.get_one(DriftDay, (digest, ALL, window)) for digest, window in found]
    models = [
        {"digest": d.digest, "model": d.model, "window": d.window, "devices": d.devices, "scores": json.loads(d.scores)}
        for d in sorted(rows, key=lambda d: (d.model, d.digest))
    ]
    return {"alarms": [one for one in open_alarms(session) if _may_see(one["stratum"], groups)], "models": models}


def model(session: Session, digest: str, groups: frozenset[str] = frozenset()) -> dict[str, Any]:
    """One model: the scores of every stratum in its newest window, those of all devices before, its alarms.

    `groups`: those that the caller is given, none for all. What is of another group is left out.
    Raises `NotFound` for a model of which nothing was told yet.
    """
    mine = select(DriftDay).where(DriftDay.digest == digest)
    days = list(session.exec(mine.where(DriftDay.stratum == ALL).order_by(col(DriftDay.window).desc())))
    if not days:
        raise NotFound(
            f"drift of {digest[:80]}: no window of it was judged yet: a day must end, and 90 minutes pass; "
            "`shoal drift list` shows the models that were"
        )
    newest = days[0]
    strata = session.exec(mine.where(DriftDay.window == newest.window).order_by(DriftDay.stratum))
    kept = col(DriftAlarm.state) != "suspected"
    alarms = (
        select(DriftAlarm).where(DriftAlarm.digest == digest, kept).order_by(col(DriftAlarm.id).desc()).limit(SHOWN)
    )
    return {
        "digest": digest,
        "model": newest.model,
        "window": newest.window,
        "devices": newest.devices,
        "strata": [
            {"stratum": d.stratum, "devices": d.devices, "scores": json.loads(d.scores)}
            for d in strata
            if _may_see(d.stratum, groups)
        ],
        "history": [
            {"window": d.window, "devices": d.devices, "calm": d.calm, "scores": json.loads(d.scores)} for d in days
        ],
        "alarms": [alarm(row) for row in session.exec(alarms) if _may_see(row.stratum, groups)],
    }


def _may_see(stratum: str, groups: frozenset[str]) -> bool:
    return not groups or not stratum.startswith("group:") or stratum.removeprefix("group:") in groups
