"""Which of the wanted models fit on this device, before anything is fetched. Pure; the installer brings the figures.

    misfits([Need(model="kitchen", ...), Need(model="lock", ...)], room)      # {"lock": "needs 90 MiB of memory, ..."}

The order of the desired state decides: a model takes its room before those after it, and what stands in a slot has its
room already. So the answer never depends on which model was looked at first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from wire.units import show_size

MEMORY_FIXED: Final = 12 * 1024 * 1024
"""Bytes that a loaded model takes whatever its size: its tokenizer, and what the runtime keeps for each session."""
MEMORY_FACTOR: Final = 2
"""A runtime keeps the weights of its file and its own arrangement of them at once.

Measured with onnxruntime 1.31 on x86-64, 0.25 to 134 MB, float and dynamic int8: 10 MB + 1.6 to 2.0 times the file.
"""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one wanted model takes, in bytes.

    `held`: its files in slots; `coming`: what a new release adds to them; `fetch`: of that, what is still to be written
    to the disk; `memory`: loaded, the heavier of the active and the new one. `wants`: whether an update is under way.
    """

    model: str
    held: int = 0
    coming: int = 0
    fetch: int = 0
    memory: int = 0
    stays: int = 0
    """Bytes of memory of the active model, which stays when the new one is refused."""
    wants: bool = True


@dataclass(frozen=True, kw_only=True)
class Room:
    """What all models together may take, in bytes: of the disk, of what is free on it now, and of memory."""

    disk: int
    free: int
    memory: int


def estimated_memory(files: int) -> int:
    """Bytes that a bundle of this size takes when it is loaded, as long as nobody measured it."""
    return MEMORY_FIXED + MEMORY_FACTOR * files


def misfits(needs: Iterable[Need], room: Room) -> dict[str, str]:
    """The models for which there is no room, with the reason; `needs` in the order of the desired state."""
    needs = list(needs)
    left = replace(
        room,
        disk=room.disk - sum(need.held for need in needs),
        memory=room.memory - sum(need.stays for need in needs),
    )
    refused: dict[str, str] = {}
    for need in needs:
        if not need.wants:
            continue
        reason = _lacks(need, left, room)
        if reason:
            refused[need.model] = reason
        else:
            left = _after(left, need)
    return refused


def _after(left: Room, need: Need) -> Room:
    return Room(
        disk=left.disk - need.coming,
        free=left.free - need.fetch,
        memory=left.memory - max(0, need.memory - need.stays),
    )


def _lacks(need: Need, left: Room, room: Room) -> str:
    if need.fetch > left.free:
        return _words("free disk", need.fetch, left.free, "this device has now", "make room")
    if need.coming > left.disk:
        allowed = f"of the {show_size(room.disk)} that the profile gives to models"
        return _words("disk", need.coming, left.disk, allowed, "desire fewer or smaller models")
    more = max(0, need.memory - need.stays)
    if more > left.memory:
        allowed = f"of the {show_size(room.memory)} that the profile gives to models"
        return _words("memory", more, left.memory, allowed, "desire fewer or smaller models")
    return ""


def _words(what: str, needed: int, left: int, allowed: str, advice: str) -> str:
    return f"it needs {show_size(needed)} more {what}, {show_size(max(0, left))} {allowed} are left: {advice}"
