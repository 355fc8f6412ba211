"""The table of agreement with the reference (`fleet.agreements`)."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index
from sqlmodel import Field, SQLModel


class AgreementRow(SQLModel, table=True):
    """How often one device's answers agreed with the reference: sums of `wire.agreement.Agreement`."""

    __tablename__ = "agreement"
    __table_args__ = (Index("ix_agreement_digest", "digest"),)

    device: str = Field(primary_key=True, foreign_key="device.id")
    digest: str = Field(primary_key=True)
    stratum: int = Field(primary_key=True)
    answers: int = Field(default=0, sa_type=BigInteger)
    checked: int = Field(default=0, sa_type=BigInteger)
    agreed: int = Field(default=0, sa_type=BigInteger)
    right_agreed: int = Field(default=0, sa_type=BigInteger)
    right_differed: int = Field(default=0, sa_type=BigInteger)
    wrong_agreed: int = Field(default=0, sa_type=BigInteger)
    wrong_differed: int = Field(default=0, sa_type=BigInteger)
