"""The tables of the gateway; as with `fleet.store.tables`, a change needs a migration."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, Text
from sqlmodel import Field, SQLModel


class GatewayRequest(SQLModel, table=True):
    """One request to the gateway: `fleet.gateway.records.Record` says what the columns are."""

    __tablename__ = "gateway_request"
    __table_args__ = (Index("ix_gateway_request_at", "at"),)

    id: int | None = Field(default=None, primary_key=True)
    at: str
    who: str
    tenant: str
    groups: str
    path: str
    stream: bool
    route: str
    upstream: str
    model: str
    outcome: str
    status: int
    attempts: int
    fallback: bool
    prompt_tokens: int
    completion_tokens: int
    estimated: bool
    nanos: int = Field(sa_type=BigInteger)
    verdicts: str = Field(sa_type=Text)
    sent: int
    first_ms: float | None = None
    total_ms: float
    detail: str = Field(sa_type=Text)
    text: str | None = Field(default=None, sa_type=Text)


class GatewaySpend(SQLModel, table=True):
    """What an account of the gateway used in a day (`2026-11-23`) or a month (`2026-11`), with what is under way."""

    __tablename__ = "gateway_spend"

    account: str = Field(primary_key=True)
    window: str = Field(primary_key=True, index=True)
    requests: int
    tokens: int = Field(sa_type=BigInteger)
    nanos: int = Field(sa_type=BigInteger)


class GatewayKey(SQLModel, table=True):
    """Limits of one token of its own: JSON, as `fleet.gateway.limits` reads it."""

    __tablename__ = "gateway_key"

    token: str = Field(primary_key=True, foreign_key="api_token.id", ondelete="CASCADE")
    limits: str = Field(sa_type=Text)
