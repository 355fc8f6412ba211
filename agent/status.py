"""How a device looks to people and programs beside it: what `GET /shoal/status` answers."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from agent.line.link import Link
from agent.store.state import StateFile
from agent.trust.clock import Clock
from agent.trust.freshness import Frozen
from wire.units import show_instant

if TYPE_CHECKING:
    from agent.core import Core


def view(
    core: Core, state: StateFile, link: Link, *, line_since: float | None, frozen: Frozen | None
) -> dict[str, Any]:
    """Everything that the core knows of itself. `line_since` is a moment of the monotonic clock."""
    epoch, seq = state.last_desired()
    return {
        "device": core.about.device,
        "profile": core.about.profile,
        "emulated": core.about.emulated,
        "hardware": core.about.hardware,
        "agent": core.about.agent,
        "boot": core.boot,
        "link": {
            "up": link.up,
            "fleet": core.outbox.open,
            "since": _shown(core.clock, line_since),
            "why": link.fault,
        },
        "disk": state.fault,
        "desired": {"epoch": epoch, "seq": seq},
        "trust": {
            "heard": _shown(core.clock, core.freshness.heard),
            "frozen_since": _shown(core.clock, frozen.since if frozen else None),
            "why": frozen.why if frozen else "",
            "time": "signed" if core.clock.learnt else "clock",
            "versions": core.keeper.trusted.versions(),
        },
        "slots": [slot.to_value() for slot in core.installer.slots()],
        "updates": [report.to_value() for report in core.installer.updates()],
        "measured": [report.to_value() for report in core.installer.measurer.reports()],
        "shadows": core.installer.shadows.view(),
        "telemetry": state.telemetry(),
        "ledger": [stream.to_value() for stream in state.ledger()],
        "restarts": dict(core.life.restarts),
        "requests": core.service.requests,
        "security": [event.to_value() for event in state.security()],
    }


def _shown(clock: Clock, at: float | None) -> str | None:
    """A moment of the monotonic clock as a time."""
    if at is None:
        return None
    return show_instant(clock.now() - timedelta(seconds=clock.uptime() - at))
