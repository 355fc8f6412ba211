"""How the machine is: CPU, memory, disk and temperature."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from wire.messages import Health

ZONES: Final = Path("/sys/class/thermal")


class HealthMeter:
    """CPU is counted since the last sample; the rest is of this moment. `folder` says whose disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._self = psutil.Process()
        psutil.cpu_percent(None)  # starts counting: the first sample of psutil means nothing

    def sample(self) -> Health:
        """The machine now."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._folder))
        return Health(
            cpu_percent=psutil.cpu_percent(None),
            memory_used=memory.total - memory.available,
            memory_total=memory.total,
            agent_memory=self._self.memory_info().rss,
            disk_free=disk.free,
            disk_total=disk.total,
            temperature_c=temperature(ZONES),
        )


def temperature(folder: Path) -> float | None:
    """The warmest thermal zone in degrees Celsius; None without a sensor. The kernel gives thousandths of a degree."""
    found = []
    for zone in folder.glob("thermal_zone*/temp"):
        with suppress(OSError, ValueError):
            found.append(int(zone.read_text()) / 1000)
    return max(found, default=None)
