"""Where devices answered the requests to a model, and why, as they count it: kept by device, added up for each model.

    add(session, device, record.inference)
    by_digest(session)          # {digest: {"local sure": 900, "cloud unsure": 40}}

A device may make up words and digests: there is a bound to what one may say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import sqlalchemy
from sqlmodel import Session, col, func, select

from fleet.agreements import FULL, MOST_MODELS
from fleet.store.routed_table import RoutedRow
from wire.messages import InferenceStats

MOST_ROUTES: Final = 40
"""Of one model on one device: an agent knows some thirty."""
_ROUTE: Final = re.compile(r"[a-z]{1,20} [a-z-]{1,20}")


def add(session: Session, device: str, inference: Iterable[InferenceStats]) -> None:
    """Add what a new record of a device counted."""
    counted = [stats for stats in inference if stats.routes]
    if not counted:
        return
    known: dict[str, dict[str, RoutedRow]] = {}
    for row in session.exec(select(RoutedRow).where(RoutedRow.device == device)):
        known.setdefault(row.digest, {})[row.route] = row
    for stats in counted:
        if stats.digest not in known and len(known) >= MOST_MODELS:
            continue
        rows = known.setdefault(stats.digest, {})
        for route, requests in stats.routes.items():
            if route not in rows and (len(rows) >= MOST_ROUTES or not _ROUTE.fullmatch(route)):
                continue
            row = rows.setdefault(route, RoutedRow(device=device, digest=stats.digest, route=route))
            row.requests = min(row.requests + requests, FULL)
            session.add(row)
    session.flush()  # what reads the sums asks the database itself


def by_digest(session: Session) -> Mapping[str, dict[str, int]]:
    """Requests by where they were answered and why, of each model by the digest of its manifest."""
    r = RoutedRow
    query = (
        sqlalchemy.select(col(r.digest), col(r.route), func.sum(col(r.requests)))
        .group_by(col(r.digest), col(r.route))
        .order_by(col(r.digest), col(r.route))
    )
    found: dict[str, dict[str, int]] = {}
    for digest, route, requests in session.connection().execute(query):
        found.setdefault(digest, {})[route] = int(requests)
    return found
