"""Tags of devices: words that people choose, and that targets of rollouts ask for.

set_tags(session, "kitchen-1", {"kitchen", "floor-2"})
tags_of(session, ["kitchen-1", "kitchen-2"])      # {"kitchen-1": frozenset({"floor-2", "kitchen"})}
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from sqlmodel import Session, col, delete, select

from fleet.store.tag_table import DeviceTag
from wire.document import check_name

_TOGETHER = 500


def tags_of(session: Session, devices: Collection[str] | None = None) -> Mapping[str, frozenset[str]]:
    """The tags of some devices, or of all. A device without one is not in it."""
    found: dict[str, set[str]] = {}
    for device, tag in _rows(session, devices):
        found.setdefault(device, set()).add(tag)
    return {device: frozenset(tags) for device, tags in found.items()}


def set_tags(session: Session, device: str, tags: Iterable[str]) -> None:
    """Give a device exactly these tags. Raises wire's `Malformed` for what is no name."""
    checked = sorted({check_name(tag, f"tag of {device}") for tag in tags})
    session.exec(delete(DeviceTag).where(col(DeviceTag.device) == device))
    session.add_all(DeviceTag(device=device, tag=tag) for tag in checked)
    session.flush()


def _rows(session: Session, devices: Collection[str] | None) -> Iterable[tuple[str, str]]:
    every = select(DeviceTag.device, DeviceTag.tag)
    if devices is None:
        return session.exec(every).all()
    named = list(devices)
    groups = (named[i : i + _TOGETHER] for i in range(0, len(named), _TOGETHER))
    return (row for group in groups for row in session.exec(every.where(col(DeviceTag.device).in_(group))).all())
