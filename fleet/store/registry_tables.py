"""The tables of the model registry (`fleet.registry`)."""

from __future__ import annotations

from sqlalchemy import Index, Text
from sqlmodel import Field, SQLModel


class AliasRow(SQLModel, table=True):
    """A name that stands for one version of a model, such as `production`. `model`: family and name."""

    __tablename__ = "model_alias"

    model: str = Field(primary_key=True)
    alias: str = Field(primary_key=True)
    version: str
    who: str
    at: str


class AliasMove(SQLModel, table=True):
    """An alias that was set, moved or removed, in the order of `id`. No `was`: it was new; no `version`: it is gone.

    `rollout` is the newest one that was begun with it; empty when none was.
    """

    __tablename__ = "model_alias_move"
    __table_args__ = (Index("ix_model_alias_move", "model", "id"),)

    id: int | None = Field(default=None, primary_key=True)
    model: str
    alias: str
    was: str = ""
    version: str = ""
    who: str
    at: str
    reason: str = Field(default="", sa_type=Text)
    rollout: str = ""
