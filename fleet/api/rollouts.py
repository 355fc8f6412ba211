"""Routes for rollouts: plan, start, approve, pause, resume, retry, abort, roll back, watch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, Field
from sqlmodel import Session

from fleet.api.auth import caller_of, tell
from fleet.rollout import reading
from fleet.rollout.requests import RolloutRequest
from fleet.rollout.views import plan_view, view
from fleet.services import Services, services_of
from fleet.store.tables import RolloutRow

router = APIRouter(prefix="/api/v1/rollouts")

Act = Callable[[Session], tuple[RolloutRow, list[str]]]


class RolloutTerms(BaseModel):
    """The devices that `target` means, in waves that end at 100%; of one group, if it is named.

    In a list of `waves` a number is a percentage; a text is `10%` or `5` (devices). `gates` is `measured`, `install`,
    or limits by name. `soak` is a duration, `deadline` a time in RFC 3339.
    """

    group: str | None = None
    target: str = "all"
    waves: str | list[int | str] = Field(default="25,100", max_length=1000)
    soak: str = "0 s"
    gates: str | dict[str, Any] = "measured"
    windows: list[str] = Field(default=[], max_length=50)
    per_hour: int | None = None
    mains: bool = False
    battery_above: int | None = None
    load_below: float | None = None
    online: bool = False
    deadline: str | None = None
    approval: Literal["none", "start", "every-wave"] = "none"

    def of(
        self, family: str, name: str, version: str, *, plan: str | None = None, key: str | None = None
    ) -> RolloutRequest:
        """What the service takes, for a version of a model."""
        terms = self.model_dump(include=set(RolloutTerms.model_fields) - {"group"})
        return RolloutRequest(
            family=family, name=name, version=version, group=self.group, plan=plan, key=key, terms=terms
        )


class NewRollout(RolloutTerms):
    """A version, or an alias such as `@production`, and how it is sent. `plan`: id of a plan, whose order it keeps."""

    family: str
    name: str
    version: str
    plan: str | None = None

    def request(self, key: str | None = None) -> RolloutRequest:
        """What the service takes."""
        return self.of(self.family, self.name, self.version, plan=self.plan, key=key)


class Reason(BaseModel):
    """Why; it is kept with the rollout."""

    reason: str


class Approval(BaseModel):
    """Which `wave` was looked at, as the rollout shows it (the first is 0); left out: whichever waits."""

    wave: int | None = Field(default=None, ge=0, le=1000)


@router.post("", status_code=201)
async def start_rollout(
    request: Request, new: NewRollout, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, Any]:
    """Start a rollout to every enrolled device that is meant and whose profile has a release."""
    services, caller = services_of(request), caller_of(request)
    tell(request, subject=f"rollout of {new.family}/{new.name} {new.version}")
    asked = new.request(idempotency_key)
    return await _do(services, lambda session: services.rollouts.start(session, asked, caller))


@router.post("/plan")
async def plan_rollout(request: Request, new: NewRollout) -> dict[str, Any]:
    """What the same request would start: who gets what in which wave, and when at the earliest. Nothing is changed."""
    services, caller = services_of(request), caller_of(request)
    tell(request, news=False)
    return await services.serial.run(_plan, services, new.request(), caller)


@router.get("")
async def list_rollouts(request: Request) -> list[dict[str, Any]]:
    """Every rollout, the newest first."""
    services = services_of(request)
    return await services.serial.run(_list, services)


@router.get("/{rollout}")
async def show_rollout(request: Request, rollout: str) -> dict[str, Any]:
    """One rollout, with its history."""
    services = services_of(request)
    return await services.serial.run(_show, services, rollout)


@router.post("/{rollout}/approve")
async def approve_rollout(request: Request, rollout: str, seen: Approval | None = None) -> dict[str, Any]:
    """Let a rollout start, or go on to its next wave. A person other than its author can.

    With a `wave` no other one is approved, also when the request is sent again.
    """
    services, caller = services_of(request), caller_of(request)
    wave = seen.wave if seen else None
    return await _do(services, lambda session: services.rollouts.approve(session, rollout, caller, wave))


@router.post("/{rollout}/pause")
async def pause_rollout(request: Request, rollout: str, why: Reason) -> dict[str, Any]:
    """Reach nobody new until the rollout is resumed."""
    services, caller = services_of(request), caller_of(request)
    return await _do(services, lambda session: services.rollouts.pause(session, rollout, why.reason, caller))


@router.post("/{rollout}/resume")
async def resume_rollout(request: Request, rollout: str) -> dict[str, Any]:
    """Go on with a rollout that was paused."""
    services, caller = services_of(request), caller_of(request)
    return await _do(services, lambda session: services.rollouts.resume(session, rollout, caller))


@router.post("/{rollout}/retry")
async def retry_rollout(request: Request, rollout: str) -> dict[str, Any]:
    """Have the devices that failed try again."""
    services, caller = services_of(request), caller_of(request)
    return await _do(services, lambda session: services.rollouts.retry(session, rollout, caller))


@router.post("/{rollout}/abort")
async def abort_rollout(request: Request, rollout: str, why: Reason) -> dict[str, Any]:
    """End a rollout and bring every touched device back to what it ran before.

    Asked again for the same reason, as after a lost answer, it gives the same answer.
    """
    services, caller = services_of(request), caller_of(request)
    return await _do(services, lambda session: services.rollouts.abort(session, rollout, why.reason, caller))


@router.post("/{rollout}/rollback")
async def roll_back_rollout(request: Request, rollout: str, why: Reason) -> dict[str, Any]:
    """Bring every device of a rollout that is done back to what it ran before it."""
    services, caller = services_of(request), caller_of(request)
    return await _do(services, lambda session: services.rollouts.roll_back(session, rollout, why.reason, caller))


async def _do(services: Services, act: Act) -> dict[str, Any]:
    return await services.serial.run(_done, services, act)


def _done(services: Services, act: Act) -> dict[str, Any]:
    with services.database.transaction() as session:
        row, changed = act(session)
        shown = view(session, row)
    services.outbox.desired(changed)
    return shown


def _plan(services: Services, asked: RolloutRequest, caller: Any) -> dict[str, Any]:
    with services.database.transaction() as session:
        planned = services.rollouts.plan(session, asked, caller)
    return plan_view(planned.id, planned.plan, planned.releases, planned.excluded)


def _list(services: Services) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        return [view(session, row, whole=False) for row in reading.all_rollouts(session)]


def _show(services: Services, rollout: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        return view(session, reading.find(session, rollout))
