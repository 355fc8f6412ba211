"""The history of rollouts: what changed when and why, by whom. Only ever added to.

note(session, row.id, now, "sent", who="fleet", device="kitchen-1", reason="wave 1 of 3")
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlmodel import Session, col, select

from fleet.store.rollout_tables import RolloutEvent
from wire.units import show_instant

FLEET: Final = "fleet"
"""Who decides what time and evidence bring."""
LONGEST: Final = 1000
SHOWN: Final = 50


def note(
    session: Session,
    rollout: str,
    now: datetime,
    what: str,
    *,
    who: str = FLEET,
    device: str | None = None,
    profile: str | None = None,
    reason: str = "",
) -> None:
    """Add what happened to a device, to a profile, or, where neither is named, to all of a rollout."""
    session.add(
        RolloutEvent(
            rollout=rollout,
            at=show_instant(now),
            who=who,
            device=device,
            profile=profile,
            what=what,
            reason=reason[:LONGEST],
        )
    )


def who(session: Session, rollout: str, what: str, reason: str) -> frozenset[str]:
    """Who did something to all of a rollout for a reason."""
    mine = select(RolloutEvent.who).where(RolloutEvent.rollout == rollout, RolloutEvent.what == what)
    return frozenset(session.exec(mine.where(RolloutEvent.reason == reason)).all())


def of_rollout(session: Session, rollout: str) -> list[dict[str, Any]]:
    """The newest that happened to all of a rollout or to a profile, the oldest of them first."""
    mine = select(RolloutEvent).where(RolloutEvent.rollout == rollout, col(RolloutEvent.device).is_(None))
    rows = session.exec(mine.order_by(col(RolloutEvent.id).desc()).limit(SHOWN)).all()
    return views(list(reversed(rows)))


def views(events: Sequence[RolloutEvent]) -> list[dict[str, Any]]:
    """Events as the API shows them."""
    names = ("at", "who", "device", "profile", "what", "reason")
    return [{name: getattr(event, name) for name in names} for event in events]
