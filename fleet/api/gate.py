"""The gate before every route: who asks, may they, and an entry in the audit log before they hear what came of it.

It stands before the routes read anything, so nobody's body is parsed for who may not send it. What changed something
is recorded before its answer goes out: nobody is told of a success that the log does not hold.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet.api.auth import Visit, authenticate, check_permission
from fleet.api.known import Known
from fleet.api.policy import rule_of
from fleet.audit import Deed
from fleet.errors import FleetError
from fleet.services import Services

READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS: Final = READING | {"POST", "PUT", "PATCH", "DELETE"}
_SHUT: Final = (401, 403)
NOBODY: Final = "-"
_log = logging.getLogger(__name__)

Answer = Callable[[Request, Exception], Awaitable[JSONResponse]]


class Gate:
    """Lets a request through to its route, or answers it itself. `answer` makes the response of an error.

    `direct` are routes that are asked without the framework, by their row of the policy.
    """

    def __init__(
        self, app: ASGIApp, *, services: Services, answer: Answer, direct: Mapping[tuple[str, str], ASGIApp]
    ) -> None:
        self._app, self._services, self._answer, self._direct = app, services, answer, direct
        self._known = Known()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, visit = Request(scope), Visit()
        scope.setdefault("state", {})["visit"] = visit
        record = _Recorded(self._services, request, visit, send, self._answer, self._known)
        try:
            await self._admit(request, visit)
            direct = self._direct.get((scope["method"], visit.template))
            if direct is not None and visit.caller is not None:
                await direct(scope, receive, record.send)
                return
        except FleetError as e:
            visit.fault = str(e)
            await (await self._answer(request, e))(scope, receive, record.send)
            return
        try:
            await self._app(scope, receive, record.send)
        finally:
            await record.end()

    async def _admit(self, request: Request, visit: Visit) -> None:
        # The scope's own path, as the router takes it: `request.url` is built with a header of the sender's.
        found = rule_of(request.method, request.scope["path"])
        if found is None:
            return  # the router has nothing there, or the lock on the route itself refuses
        visit.template, visit.rule = found
        if not visit.rule.public:
            visit.caller = await authenticate(request, visit.rule, self._known)
            check_permission(visit.caller, visit.rule)


class _Recorded:
    """A response whose first message waits until the audit log holds what was done."""

    def __init__(
        self, services: Services, request: Request, visit: Visit, send: Send, answer: Answer, known: Known
    ) -> None:
        self._services, self._request, self._visit = services, request, visit
        self._send, self._answer, self._known = send, answer, known
        self._status = 0
        self._replaced = False

    async def send(self, message: Message) -> None:
        """Pass a message of the response on."""
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._forget()
            if not await self._record(str(self._status)):
                return
        await self._send(message)

    async def end(self) -> None:
        """A request that changes something and was never answered, because it failed or its sender left, counts too."""
        if not self._status:
            self._forget()
            await self._record("no answer")

    def _forget(self) -> None:
        """Whatever may have changed who somebody is counts before anybody hears of it."""
        rule = self._visit.rule
        if self._request.method not in READING and not (rule is not None and rule.remembered):
            self._known.forget()

    async def _record(self, outcome: str) -> bool:
        """Whether the response may go out."""
        if not self._is_worth_it():
            return True
        try:
            await self._services.serial.run(self._services.audit.record, self._deed(outcome))
        except FleetError as e:
            _log.error("audit log: %s by %s was not recorded: %s", self._action(), self._who(), e)
            if 0 < self._status < 400:
                await self._replace(e)
                return False
        return True

    async def _replace(self, error: FleetError) -> None:
        """Not "done" but the error of the log: whoever asked looks again, and does not rely on what nobody recorded."""
        self._replaced = True
        response = await self._answer(self._request, error)
        await response(self._request.scope, self._request.receive, self._send)

    def _is_worth_it(self) -> bool:
        """Every change; of refusals the first ones in a minute; what devices repeat without end is folded."""
        visit, audit, refused = self._visit, self._services.audit, not 0 < self._status < 400
        if self._request.method in READING and self._status not in _SHUT:
            return False
        if visit.caller is not None and visit.caller.token:
            if refused:
                return audit.denied.is_first(self._who(), time.monotonic())
            return visit.rule is None or visit.rule.audited
        if refused or self._who() == NOBODY:
            return audit.refused.is_first(self._source(), time.monotonic())
        return visit.rule is not None and visit.rule.audited and audit.repeated.is_first(self._who(), time.monotonic())

    def _deed(self, outcome: str) -> Deed:
        visit = self._visit
        known = visit.caller is not None
        return Deed(
            who=self._who(),
            action=self._action(),
            subject=visit.subject or (self._request.scope["path"] if known else ""),
            source=self._source(),
            outcome=outcome,
            # What somebody unknown sent may come back in an error: it does not get into the log that way.
            detail=visit.fault if known else "",
        )

    def _who(self) -> str:
        return self._visit.caller.name if self._visit.caller else self._visit.who or NOBODY

    def _action(self) -> str:
        method = self._request.method if self._request.method in _METHODS else "other method"
        return f"{method} {self._visit.template or 'no route'}"

    def _source(self) -> str:
        return self._request.client.host if self._request.client else "unknown"
