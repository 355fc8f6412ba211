"""What this machine says of heat and power: throttling, clock, governor, power mode, mains or battery, and how full."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from agent.life.health import temperature
from wire.messages import MachineState

ASK_WITHIN: Final = 5.0
"""Seconds that a vendor's program may take to answer."""
HELD_NOW: Final = 0xF
"""Bits of a Raspberry Pi's firmware that are of this moment."""
_PI: Final = "sys/devices/platform/soc/soc:firmware/get_throttled"
_SUPPLY: Final = ("Mains", "USB")


def ask(command: Sequence[str]) -> str:
    """What a program prints; "" when it is not here, fails or hangs."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        answer = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=ASK_WITHIN, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def look(at: str, root: Path = Path("/"), ask: Callable[[Sequence[str]], str] = ask) -> MachineState:
    """The machine now; `at` is the time. Blocking."""
    bits, events = _throttle_bits(root, ask), _throttle_events(root)
    cpu = root / "sys/devices/system/cpu/cpu0/cpufreq"
    return MachineState(
        at=at,
        throttled=_throttled(bits, _cooling(root)),
        throttle_events=events,
        throttle_bits=bits,
        temperature_c=temperature(root / "sys/class/thermal"),
        cpu_mhz=_mhz(cpu / "scaling_cur_freq"),
        cpu_max_mhz=_mhz(cpu / "cpuinfo_max_freq"),
        governor=_text(cpu / "scaling_governor")[:40],
        power_mode=_power_mode(ask(["nvpmodel", "-q"])),
        power=_power(root / "sys/class/power_supply"),
        load=_load(root / "proc/loadavg"),
        battery_percent=_battery(root / "sys/class/power_supply"),
    )


def _throttled(bits: int | None, cooling: Sequence[int]) -> bool | None:
    said = [*([bool(bits & HELD_NOW)] if bits is not None else []), *(state > 0 for state in cooling)]
    return any(said) if said else None


def _throttle_bits(root: Path, ask: Callable[[Sequence[str]], str]) -> int | None:
    """`vcgencmd` prints `throttled=0x50005`, the kernel's file the same without 0x."""
    said = ask(["vcgencmd", "get_throttled"]).partition("=")[2].strip() or _text(root / _PI)
    try:
        return int(said, 16)
    except ValueError:
        return None


def _throttle_events(root: Path) -> int | None:
    """How often Intel's processors throttled since the start, over all cores."""
    found = [_number(p) for p in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")]
    known = [count for count in found if count is not None]
    return sum(known) if known else None


def _cooling(root: Path) -> list[int]:
    """States of the cooling devices that slow the processor down; 0 is full speed."""
    folders = (root / "sys/class/thermal").glob("cooling_device*")
    slowing = (f for f in folders if "cpufreq" in (kind := _text(f / "type")) or kind == "Processor")
    return [state for f in slowing if (state := _number(f / "cur_state")) is not None]


def _power_mode(said: str) -> str:
    """Of a Jetson: `NV Power Mode: 10W`."""
    names = (line.partition(":")[2].strip() for line in said.splitlines() if line.startswith("NV Power Mode"))
    return next(names, "")[:40]


def _power(folder: Path) -> Literal["mains", "battery", ""]:
    """Mains when a charger says that it is online, battery when one discharges."""
    supplies = list(folder.glob("*"))
    if any(_text(s / "type") in _SUPPLY and _text(s / "online") == "1" for s in supplies):
        return "mains"
    if any(_text(s / "type") == "Battery" and _text(s / "status") == "Discharging" for s in supplies):
        return "battery"
    return ""


def _battery(folder: Path) -> float | None:
    """Percent of the fullest battery; None without one, or with one that does not say."""
    batteries = (s for s in folder.glob("*") if _text(s / "type") == "Battery")
    known = [left for s in batteries if (left := _number(s / "capacity")) is not None and 0 <= left <= 100]
    return float(max(known)) if known else None


def _load(path: Path) -> float | None:
    with suppress(ValueError, IndexError):
        return float(_text(path).split()[0])
    return None


def _mhz(path: Path) -> float | None:
    khz = _number(path)
    return None if khz is None else khz / 1000


def _number(path: Path) -> int | None:
    with suppress(ValueError):
        return int(_text(path))
    return None


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""
