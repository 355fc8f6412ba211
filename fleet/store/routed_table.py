"""The table of where requests were answered (`fleet.routed`)."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index
from sqlmodel import Field, SQLModel


class RoutedRow(SQLModel, table=True):
    """Requests to one model that one device had answered there and for that reason: `route` is such as `local sure`."""

    __tablename__ = "routed"
    __table_args__ = (Index("ix_routed_digest", "digest"),)

    device: str = Field(primary_key=True, foreign_key="device.id")
    digest: str = Field(primary_key=True)
    route: str = Field(primary_key=True)
    requests: int = Field(default=0, sa_type=BigInteger)
