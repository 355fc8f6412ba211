"""Measuring jobs as values, and what a newer desired state makes of them. Pure; `agent.install.measure` does them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from wire.document import Document
from wire.messages import MeasurePhase, MeasureReport, Timing
from wire.orders import MeasureJob

MAX_STARTS: Final = 3
"""Times that the agent may end while it does one job: the job itself may be what kills it."""
KEPT: Final = 64
"""Jobs remembered that the fleet does not list any more: none of them is done a second time."""


@dataclass(frozen=True, kw_only=True)
class Task(Document):
    """A job and how it goes. `starts` counts how often it began; `listed`: the newest desired state names it."""

    job: MeasureJob
    phase: MeasurePhase = "waiting"
    reason: str = ""
    starts: int = 0
    listed: bool = True
    timing: Timing | None = None

    @property
    def open(self) -> bool:
        """Whether it is still to be done."""
        return self.listed and not self.report().ended

    def report(self) -> MeasureReport:
        """It in the words of the wire."""
        job = self.job
        return MeasureReport(
            id=job.id, target=job.target, digest=job.digest, phase=self.phase, reason=self.reason, timing=self.timing
        )


def desire(tasks: Mapping[str, Task], jobs: Iterable[MeasureJob]) -> dict[str, Task]:
    """The tasks of a newer desired state. What was done stays done, for the newest `KEPT` that it does not name."""
    listed = {job.id: replace(tasks[job.id], listed=True) if job.id in tasks else Task(job=job) for job in jobs}
    others = [replace(task, listed=False) for id_, task in tasks.items() if id_ not in listed and task.report().ended]
    return {task.job.id: task for task in (*others[-KEPT:], *listed.values())}
