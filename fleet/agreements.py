"""Agreement with the reference, as devices count it: kept by device, model and stratum, added up for each model.

A device is believed no more than its share: counts that cannot be (more agreed than checked) are left out whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy
from sqlmodel import Session, col, func, select

from fleet.agreement import Estimate, accuracy, agreement
from fleet.store.agreement_table import AgreementRow
from wire.agreement import COUNTS, Agreement
from wire.messages import InferenceStats

FULL = 1 << 50
"""Where a sum of one device stops rising: those of all devices must not overflow the database."""
MOST_MODELS = 200
"""Models that one device may speak of: a liar makes up digests."""


def add(session: Session, device: str, inference: Iterable[InferenceStats]) -> None:
    """Add what a new record of a device counted."""
    known = set(session.exec(select(AgreementRow.digest).where(AgreementRow.device == device).distinct()))
    for stats in (one for one in inference if one.agreement):
        if stats.digest not in known and len(known) >= MOST_MODELS:
            continue
        known.add(stats.digest)
        for one in stats.agreement:
            key = (device, stats.digest, one.stratum)
            row = session.get(AgreementRow, key) or AgreementRow(device=key[0], digest=key[1], stratum=key[2])
            for name in COUNTS:
                setattr(row, name, min(getattr(row, name) + getattr(one, name), FULL))
            session.add(row)
            session.flush()  # the same stratum may stand twice in one record


def by_digest(session: Session) -> Mapping[str, dict[str, Any]]:
    """What is known of each model, by the digest of its manifest: see `view`."""
    r = AgreementRow
    sums = (func.sum(getattr(r, name)) for name in COUNTS)
    query = (
        sqlalchemy.select(col(r.digest), col(r.stratum), *sums)
        .where(
            col(r.right_agreed) + col(r.wrong_agreed) <= col(r.agreed),
            col(r.right_differed) + col(r.wrong_differed) <= col(r.checked) - col(r.agreed),
            col(r.checked) <= col(r.answers),
        )
        .group_by(col(r.digest), col(r.stratum))
    )
    found: dict[str, list[Agreement]] = {}
    for digest, stratum, *values in session.connection().execute(query):
        counts = {name: int(value) for name, value in zip(COUNTS, values, strict=True)}
        found.setdefault(digest, []).append(Agreement.from_value({"stratum": stratum, **counts}))
    return {digest: view(counts) for digest, counts in found.items()}


def view(counts: Iterable[Agreement]) -> dict[str, Any]:
    """`agreement` with the reference, and `accuracy`: None until enough answers have a true label beside it."""
    listed = list(counts)
    return {
        "answers": sum(one.answers for one in listed),
        "checked": sum(one.checked for one in listed),
        "labelled": sum(one.labelled for one in listed),
        "agreement": _shown(agreement(listed)),
        "accuracy": _shown(accuracy(listed)),
    }


def _shown(estimate: Estimate | None) -> dict[str, float] | None:
    return asdict(estimate) if estimate else None
