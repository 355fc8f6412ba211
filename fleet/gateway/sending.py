"""Sending a request: which upstream, again or elsewhere when it fails, never for longer than the route's deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fleet.errors import UpstreamShut, UpstreamSlow
from fleet.gateway.asked import Asked
from fleet.gateway.calls import Call
from fleet.gateway.config import Route, Target
from fleet.gateway.metrics import Metrics
from fleet.gateway.routes import pause, plan
from fleet.gateway.streams import Stream
from fleet.gateway.upstreams import Busy, Failed, Said, Upstream


@dataclass(frozen=True)
class Sent:
    """An answer, whole or begun, and how it was come by."""

    target: Target
    tries: int
    fallback: str
    """Why it is not from where it would be from; empty when it is."""
    status: int = 200
    body: bytes = b""
    stream: Stream | None = None
    retry_after: str = ""


@dataclass(frozen=True)
class Sender:
    """All upstreams. `tick` is monotonic, `draw` gives numbers from 0 to 1."""

    upstreams: Mapping[str, Upstream]
    metrics: Metrics
    tick: Callable[[], float]
    draw: Callable[[], float]

    async def send(self, call: Call, route: Route, asked: Asked) -> Sent:
        """An answer of the first upstream that gives one; the last one's own error when none does.

        Raises `UpstreamDown`, `UpstreamSlow`, `TooMany` when all are full, `UpstreamShut` when all are left alone.
        """
        now = self.tick()
        until = now + route.deadline
        admitted = {name for name in {t.upstream for t in route.targets} if self.upstreams[name].breaker.admits(now)}
        tries = plan(route, admitted, (self.draw() for _ in route.targets))
        if not tries:
            raise self._none(route, now)
        try:
            async with asyncio.timeout(route.deadline):
                return await self._one_of(call, route, asked, tries, until)
        except TimeoutError as e:
            raise UpstreamSlow(
                f"cloud tier: no answer for {asked.model!r} within {route.deadline:g} s: retry, or raise the deadline"
            ) from e

    async def _one_of(self, call: Call, route: Route, asked: Asked, tries: list[Target], until: float) -> Sent:
        failures: list[tuple[Target, Failed]] = []
        for number, target in enumerate(tries):
            upstream = self.upstreams[target.upstream]
            if number and not upstream.breaker.admits(self.tick()):
                continue
            if any(target is tried for tried, _ in failures):
                await asyncio.sleep(pause(number, self.draw()))
            call.record.attempts, call.record.upstream = number + 1, target.upstream
            call.record.model = target.model or asked.model
            try:
                body, stream = await self._try(call, route, asked, target, upstream, until)
            except Failed as e:
                if e.why == "shut" and failures:
                    continue  # the failure before it says more
                self._note(call, upstream, e)
                failures.append((target, e))
                if not e.again:
                    break
                continue
            return Sent(target, number + 1, self._fallback(route, target, failures), body=body, stream=stream)
        return self._last(route, *failures[-1], len(failures), failures)

    async def _try(
        self, call: Call, route: Route, asked: Asked, target: Target, upstream: Upstream, until: float
    ) -> tuple[bytes, Stream | None]:
        """The whole answer, or a stream whose first bytes are there and which holds its place. Raises `Failed`."""
        config = upstream.config
        data = asked.body_for(target.model, config.kind, route.max_output, usage=config.stream_usage)
        await upstream.take(until)
        if not upstream.breaker.admits(self.tick()):  # it opened while this waited
            upstream.give_back()
            raise Failed("shut", self._none(route, self.tick()), broken=False)
        upstream.breaker.begin(self.tick())
        answered = upstream.answered
        stream: Stream | None = None
        kept = known = False
        sent_before, call.sent = call.sent, True
        try:
            answer = await upstream.post(asked.path, data)
            if asked.stream and answer.content_type == "text/event-stream":
                stream = Stream(call, upstream, answer, self.metrics, self.tick)
                await stream.start()
                kept = known = True
                upstream.well()
                return b"", stream
            body = await upstream.whole(answer)
            known = True
            upstream.well()
        except Failed as e:
            known = True
            call.sent = sent_before or e.sent
            # One answer that takes long is not an upstream that is down: others were answered meanwhile.
            e.broken = e.broken and not (e.why == "slow" and upstream.answered > answered)
            raise
        else:
            return body, None
        finally:
            if not known:
                self._given_up(call, upstream, well=upstream.answered > answered)
            if stream is not None and not kept:
                stream.close()
            elif not kept:
                upstream.give_back()

    def _note(self, call: Call, upstream: Upstream, failed: Failed) -> None:
        self.metrics.failed(upstream.config.name, failed.why)
        call.record.detail = f"{upstream.config.name}: {failed.why}"
        if failed.broken:
            upstream.breaker.failed(self.tick())
        elif isinstance(failed, Said):
            upstream.well()
        elif not isinstance(failed, Busy) and failed.why != "shut":  # those never went out: they are not the trial
            upstream.breaker.given_up()

    def _given_up(self, call: Call, upstream: Upstream, *, well: bool) -> None:
        """Nobody waits any more: a client that left says nothing of the upstream, a deadline that passed does.

        Not where it answered others meanwhile: one long answer must not shut it for everybody.
        """
        if call.left or well:
            upstream.breaker.given_up()
        else:
            upstream.breaker.failed(self.tick())
            self.metrics.failed(upstream.config.name, "deadline")

    def _last(
        self, route: Route, target: Target, failed: Failed, tries: int, failures: list[tuple[Target, Failed]]
    ) -> Sent:
        """The upstream's own words where it has some; else our error."""
        if not isinstance(failed, Said):
            raise failed.error
        status, body, retry_after = failed.answer
        fallback = self._fallback(route, target, failures[:-1])
        return Sent(target, tries, fallback, status=status, body=body, retry_after=retry_after)

    def _fallback(self, route: Route, target: Target, failures: list[tuple[Target, Failed]]) -> str:
        """`vllm-1 unreachable`: who should have answered, and why they did not."""
        reasons = dict.fromkeys(f"{t.upstream} {e.why}" for t, e in failures if t is not target)
        if not reasons and target.fallback:
            now = self.tick()
            shut = (t.upstream for t in route.targets if not t.fallback)
            reasons = dict.fromkeys(f"{name} {self.upstreams[name].breaker.state(now)}" for name in shut)
        return ", ".join(reasons)

    def _none(self, route: Route, now: float) -> UpstreamShut:
        wait = max(min(self.upstreams[t.upstream].breaker.wait(now) for t in route.targets), 1.0)
        return UpstreamShut(
            f"cloud tier: every upstream of {route.name!r} failed lately and is left alone: try again in {wait:.0f} s",
            wait,
        )
