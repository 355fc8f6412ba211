"""Where devices answered the requests to a model, and why, as they count it: kept by device, added up for each model.

    add(session, {device: record.inference})
    by_digest(session)          # {digest: {"local sure": 900, "cloud unsure": 40}}

A device may make up words and digests: there is a bound to what one may say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import sqlalchemy
from sqlmodel import Session, col, func

from fleet.agreements import FULL, MOST_MODELS
from fleet.evidence.rows import parts
from fleet.store.routed_table import RoutedRow
from fleet.store.upsert import upsert
from wire.messages import InferenceStats

MOST_ROUTES: Final = 40
"""Of one model on one device: an agent knows some thirty."""
_ROUTE: Final = re.compile(r"[a-z]{1,20} [a-z-]{1,20}")


def add(session: Session, counted: Mapping[str, Iterable[InferenceStats]]) -> None:
    """Add what new records of devices counted."""
    counted = {device: routed for device, every in counted.items() if (routed := [s for s in every if s.routes])}
    known = _known(session, sorted(counted))
    rows = []
    for device, every in counted.items():
        mine, changed = known.setdefault(device, {}), set()
        for stats in every:
            if stats.digest not in mine and len(mine) >= MOST_MODELS:
                continue
            sums = mine.setdefault(stats.digest, {})
            for route, requests in stats.routes.items():
                if route not in sums and (len(sums) >= MOST_ROUTES or not _ROUTE.fullmatch(route)):
                    continue
                sums[route] = min(sums.get(route, 0) + requests, FULL)
                changed.add((stats.digest, route))
        rows += [
            {"device": device, "digest": digest, "route": route, "requests": mine[digest][route]}
            for digest, route in sorted(changed)
        ]
    upsert(session, RoutedRow, rows)


def _known(session: Session, devices: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
    """The sums of devices, by device, digest and route."""
    r, found = RoutedRow, dict[str, dict[str, dict[str, int]]]()
    for some in parts(devices):
        query = sqlalchemy.select(col(r.device), col(r.digest), col(r.route), col(r.requests))
        for device, digest, route, requests in session.connection().execute(query.where(col(r.device).in_(some))):
            found.setdefault(device, {}).setdefault(digest, {})[route] = requests
    return found


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
