"""The tables of drift (`fleet.drift`); as with `fleet.store.tables`, a change needs a migration.

Windows are named by their beginning, looks are JSON (`fleet.drift.looks`).
"""

from __future__ import annotations

from sqlalchemy import Index, Text
from sqlmodel import Field, SQLModel


class DriftLook(SQLModel, table=True):
    """What one device saw and said with one model in one window; after a few windows it goes into its past."""

    __tablename__ = "drift_look"
    __table_args__ = (Index("ix_drift_look_device", "device", "window"),)

    window: str = Field(primary_key=True)
    digest: str = Field(primary_key=True)
    device: str = Field(primary_key=True, foreign_key="device.id")
    model: str
    look: str = Field(sa_type=Text)


class DriftPast(SQLModel, table=True):
    """The same for earlier weeks, fading. `window` is the last one that went in."""

    __tablename__ = "drift_past"

    digest: str = Field(primary_key=True)
    device: str = Field(primary_key=True, foreign_key="device.id")
    window: str = Field(index=True)
    look: str = Field(sa_type=Text)


class DriftDay(SQLModel, table=True):
    """What all devices of a stratum saw in one window, and its scores (JSON).

    `calm`: no alarm against the past was open, so that the window may become part of it.
    """

    __tablename__ = "drift_day"
    __table_args__ = (Index("ix_drift_day_window", "window"),)

    digest: str = Field(primary_key=True)
    stratum: str = Field(primary_key=True)
    window: str = Field(primary_key=True)
    model: str
    devices: int
    calm: bool
    look: str = Field(sa_type=Text)
    scores: str = Field(sa_type=Text)


class DriftAlarm(SQLModel, table=True):
    """An alarm (`fleet.drift.values.Alarm`); `score` is the newest with a sign, as JSON."""

    __tablename__ = "drift_alarm"
    __table_args__ = (Index("ix_drift_alarm_state", "state"),)

    id: int | None = Field(default=None, primary_key=True)
    digest: str = Field(index=True)
    model: str
    stratum: str
    subject: str
    against: str
    state: str
    signs: str
    first: str
    last: str
    ended: str | None = None
    score: str = Field(sa_type=Text)
