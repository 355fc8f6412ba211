"""The table of models in shadow (`fleet.trust.desired`)."""

from __future__ import annotations

from sqlalchemy import Text
from sqlmodel import Field, SQLModel


class DeviceShadow(SQLModel, table=True):
    """What runs beside one model of a device's desired state: `document` is a `wire.shadow.ShadowModel`."""

    __tablename__ = "device_shadow"

    device: str = Field(primary_key=True, foreign_key="device.id")
    model: str = Field(primary_key=True)
    document: str = Field(sa_type=Text)
