"""What of a device may be put in the place of the real thing: `shoal simulate` has thousands on one machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.install.installer import Installer
from agent.life.telemetry import WindowMeter
from agent.serving.service import Bounds, Service
from wire.messages import Health


@dataclass(frozen=True)
class Parts:
    """Who loads and tests models, who counts what they answer, how the machine is (None: as this one is)."""

    installer: Callable[..., Installer] = Installer
    service: Callable[[WindowMeter, Bounds], Service] = Service
    health: Callable[[], Health] | None = None
