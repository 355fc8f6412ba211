"""The table of tags (`fleet.tags`); as with `fleet.store.tables`, a change needs a migration."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class DeviceTag(SQLModel, table=True):
    """A tag of a device."""

    __tablename__ = "device_tag"

    device: str = Field(primary_key=True, foreign_key="device.id")
    tag: str = Field(primary_key=True, index=True)
