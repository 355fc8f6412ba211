"""What a device tells of its own life: how it is, once a window, and events at once, before everything else.

    life.event("update", "kitchen 2.0.0 failed: ...")
    life.close_window()

A disk that takes nothing does not stop it: what could not be kept is held for the next time (`agent.life.telemetry`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from agent.errors import Unavailable
from agent.life import power
from agent.life.health import ZONES, HealthMeter, temperature
from agent.life.restarts import Run
from agent.life.telemetry import Recorder, WindowMeter
from agent.line.meter import LineMeter
from agent.settings import AgentSettings
from agent.store.state import StateFile
from agent.trust.clock import Clock
from wire.messages import Health, MachineState, UpdateReport
from wire.units import show_instant

log = logging.getLogger("agent.life.life")


class Life:
    """Health and events of one run. `sample` says how the machine is; None: as this one is."""

    def __init__(
        self,
        state: StateFile,
        meter: WindowMeter,
        clock: Clock,
        settings: AgentSettings,
        *,
        boot: str,
        run: Run,
        sample: Callable[[], Health] | None,
    ) -> None:
        self.line = LineMeter()
        self.golden: Callable[[], Mapping[str, bool]] = dict
        """Whether the golden sets of the models held when they were run last, by digest; the core says who knows."""
        self.recorder = Recorder(
            *(state, meter),
            boot=boot,
            limit=settings.queue,
            now=clock.now,
            health=self.health,
            sure=lambda: clock.learnt,
            shapes=settings.shapes,
        )
        self._state = state
        self._clock = clock
        self._run, self.restarts = run, run.counts
        self._real, self._window = sample is None, settings.window
        self._sample = sample or HealthMeter(settings.state).sample
        self._began = clock.uptime()
        self._machine: MachineState | None = None
        self._failed: frozenset[tuple[str, str]] | None = None

    def look(self) -> None:
        """Ask the machine for heat and power. Blocking: a vendor's program may take seconds."""
        if self._real:
            self._machine = power.look(show_instant(self._clock.now()))

    def health(self) -> Health:
        """The device now; heat and power as of the last look."""
        return replace(
            self._sample(),
            machine=self._machine,
            line=self.line.close(),
            restarts=self.restarts,
            uptime_s=round(self._clock.uptime() - self._began, 1),
            clock_offset_s=self._clock.offset(),
            window_s=self._window,
            golden=self.golden(),
        )

    def heat(self) -> tuple[float | None, bool | None]:
        """Degrees Celsius now, and whether the processor's clock was held down at the last look."""
        warm = temperature(ZONES) if self._real else self._sample().temperature_c
        return warm, self._machine.throttled if self._machine is not None else None

    def close_window(self) -> None:
        """End a telemetry window."""
        try:
            self.recorder.close_window()
        except Unavailable as e:
            log.error("no telemetry record now: %s", e)  # noqa: TRY400  a full disk, not a bug: models go on

    def event(self, kind: str, text: str) -> None:
        """Something that people should know of."""
        try:
            self.recorder.event(kind, text)
        except Unavailable as e:
            log.error("an event is not kept now: %s", e)  # noqa: TRY400  a full disk, not a bug

    def begin(self, updates: Iterable[UpdateReport]) -> None:
        """Say how the last run ended. Updates that had failed before were told then."""
        self._failed = _failed(updates)
        if self._run.alarm:
            self.event(self._run.cause, self._run.alarm)
        self.look_at_memory()

    def look_at_memory(self) -> None:
        """Say once that the state file was damaged, and what became of it."""
        damage = self._state.take_rebuilt()
        if damage:
            self.event("memory", f"made again from its spare, without the telemetry that waited: {damage}")

    def updates_changed(self, updates: Iterable[UpdateReport]) -> bool:
        """Tell of updates that failed since. Whether there were any."""
        if self._failed is None:
            return False
        before, self._failed = self._failed, _failed(updates)
        for target, reason in sorted(self._failed - before):
            self.event("update", f"{target}: {reason}")
        return bool(self._failed - before)


def _failed(updates: Iterable[UpdateReport]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (one.target, f"{one.phase}: {one.reason}") for one in updates if one.phase in ("failed", "refused")
    )
