"""The tables of fleet health: alerts, what is sent of them, and what happened to devices.

As with `fleet.store.tables`, a change needs a migration.
"""

from __future__ import annotations

from sqlalchemy import Index, Text
from sqlmodel import Field, SQLModel


class DeviceHistoryRow(SQLModel, table=True):
    """Something that happened to a device: `what` is model, state, group, profile, tags or note.

    `subject` is which (the name of a model), `before` and `after` are digests or words, `why` is a sentence.
    """

    __tablename__ = "device_history"
    __table_args__ = (Index("ix_device_history_device", "device", "id"),)

    id: int | None = Field(default=None, primary_key=True)
    device: str
    at: str
    what: str
    subject: str = ""
    before: str = ""
    after: str = ""
    why: str = Field(default="", sa_type=Text)
    who: str = ""


class AlertRow(SQLModel, table=True):
    """An alert that is pending, open, or ended and not told yet: `fleet.health.alerting.Alert` says what they are."""

    __tablename__ = "alert"

    rule: str = Field(primary_key=True)
    subject: str = Field(primary_key=True)
    id: str
    text: str = Field(sa_type=Text)
    began: str
    opened: str | None = None
    told: str | None = None
    quiet: str | None = None
    ended: str | None = None
    acknowledged: str = ""


class AlertSilence(SQLModel, table=True):
    """Nothing is told of alerts of a rule, of one subject or of all ("" is any), until `until`."""

    __tablename__ = "alert_silence"

    id: str = Field(primary_key=True)
    rule: str
    subject: str
    until: str
    who: str
    reason: str = Field(sa_type=Text)


class AlertMessage(SQLModel, table=True):
    """A message on its way to a channel, or one that arrived or was given up. `state`: waiting, sent or failed."""

    __tablename__ = "alert_message"
    __table_args__ = (Index("ix_alert_message_due", "state", "due"),)

    id: str = Field(primary_key=True)
    channel: str
    created: str
    document: str = Field(sa_type=Text)
    state: str = "waiting"
    due: str
    attempts: int = 0
    fault: str = Field(default="", sa_type=Text)
    ended: str | None = None
