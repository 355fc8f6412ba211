"""What the steps of an update need beside the store: deadlines, probation, and how the last run ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from agent.errors import AgentError, Incompatible, Unavailable
from agent.probation import Figures, Rules, is_enough, judge
from agent.serving.service import Served
from agent.store.state import StateFile
from agent.update import Event

if TYPE_CHECKING:
    from agent.serving.bundles import Bundle

log = logging.getLogger("agent.install.steps")


@asynccontextmanager
async def deadline(step: str, seconds: float) -> AsyncIterator[None]:
    """Raises `Incompatible` when a step takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as e:
        raise Incompatible(f"{step}: not done within {seconds:g} s") from e


async def loaded(load: Callable[[], Served]) -> Served:
    """Load a model in a thread. One that comes after a deadline, or after a newer desired state, is let go again."""
    loading = asyncio.ensure_future(asyncio.to_thread(load))
    try:
        return await asyncio.shield(loading)
    except asyncio.CancelledError:
        loading.add_done_callback(_let_go)
        raise


def _let_go(loading: asyncio.Future[Served]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result().retire()


def how_it_ended(state: StateFile) -> Event:
    """The end of the last run: as somebody asked, or not."""
    try:
        return Event.STOPPED if state.take_clean_stop() else Event.KILLED
    except Unavailable as e:
        log.error("the last end counts as a crash: %s", e)  # noqa: TRY400  a full disk, not a bug
        return Event.KILLED


def note_clean_stop(state: StateFile) -> None:
    """This run ends as somebody asked."""
    try:
        state.note_clean_stop()
    except Unavailable as e:
        log.error("this end will count as a crash: %s", e)  # noqa: TRY400  as above


async def watch(candidate: Served, active: Figures | None, rules: Rules, seconds: float) -> None:
    """Return when it was asked often enough, or its time is over. Raises `Incompatible` as soon as it is not good.

    `active`: what the model before it did.
    """
    probation: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hear(_fault: str | None) -> None:
        if probation.done():
            return
        reason = judge(candidate.figures, active, rules)
        if reason is not None:
            probation.set_exception(Incompatible(f"probation: {reason}"))
        elif is_enough(candidate.figures, rules):
            probation.set_result(None)

    candidate.on_outcome = hear
    try:
        await asyncio.wait([probation], timeout=seconds)
        if probation.done():
            probation.result()
    finally:
        candidate.on_outcome = None
        probation.cancel()


async def golden_again(candidate: Served, bundle: Bundle) -> None:
    """Its golden set in the process that serves, among the requests. Raises `Incompatible` where it does not hold."""
    from wire.processing import example_of, golden_fault  # noqa: PLC0415  numpy comes with a model, not with the agent

    for case in bundle.golden.cases:
        try:
            (result,) = await candidate.answer((example_of(case),))
        except AgentError as e:
            raise Incompatible(f"probation: a golden case fails where it serves: {e}") from e
        fault = golden_fault(case, result, bundle.golden.max_abs)
        if fault is not None:
            raise Incompatible(f"probation: a golden case does not hold where it serves: {fault}")
