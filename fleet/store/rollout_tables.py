"""The tables of rollouts beside `RolloutRow` and `RolloutDevice`; a change needs a migration.

`rollout_event` is the history: what changed when and why, by whom. Nothing in it is ever changed or removed.
"""

from __future__ import annotations

from sqlalchemy import Index, Text
from sqlmodel import Field, SQLModel


class RolloutProfile(SQLModel, table=True):
    """One profile in a rollout. `state`: open, or aborted: then its devices were brought back and no more are reached.

    `verdict`, `reasons` and `numbers` are the gates' newest judgement, made at `judged` in `wave`; `history` is theirs.
    """

    __tablename__ = "rollout_profile"

    rollout: str = Field(primary_key=True, foreign_key="rollout.id")
    profile: str = Field(primary_key=True)
    state: str = "open"
    verdict: str = "HOLD"
    reasons: str = Field(default="[]", sa_type=Text)
    numbers: str = Field(default="{}", sa_type=Text)
    history: str = Field(default="", sa_type=Text)
    judged: str = ""
    wave: int = 0


class RolloutEvent(SQLModel, table=True):
    """Something that happened in a rollout: to one device, to one profile, or to all of it (neither is named).

    `who` is a caller's name, a device, or `fleet`. `what`: created, approved, paused, resumed, overdue, wave, sent,
    retried, committed, failed, left, returned, stuck, aborted, done, rolled-back or awaiting.
    """

    __tablename__ = "rollout_event"
    __table_args__ = (
        Index("ix_rollout_event_device", "device", "id"),
        Index("ix_rollout_event_rollout", "rollout", "id"),
    )

    id: int | None = Field(default=None, primary_key=True)
    rollout: str = Field(foreign_key="rollout.id")
    at: str
    who: str
    device: str | None = None
    profile: str | None = None
    what: str
    reason: str = Field(default="", sa_type=Text)


class LeaseRow(SQLModel, table=True):
    """Who may act (`fleet.lease`). `term` rises whenever somebody takes it; `holder` keeps it until `expires`."""

    __tablename__ = "lease"

    name: str = Field(primary_key=True)
    holder: str = ""
    term: int = 0
    expires: str = ""
