"""The gateway: what becomes of one request, in order.

    call = gateway.begin(caller, "/chat/completions")
    answer = await gateway.ask(call, body)      # raises `FleetError`
    gateway.end(call, outcome, status)          # in any case, once: settles the budget, writes the audit

Nobody passes by: the first token of an admin goes the same way as a device.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from fleet.access import Caller
from fleet.errors import Blocked, FleetError, Malformed, NotFound, Unavailable
from fleet.gateway import cache, filters
from fleet.gateway.asked import CHAT, LOGPROBS, Asked, has_numbers, read, texts_below
from fleet.gateway.book import Book
from fleet.gateway.budgets import Budgets
from fleet.gateway.cache import Cache, Kept
from fleet.gateway.calls import Answer, Call
from fleet.gateway.classifier import Classifier
from fleet.gateway.config import ANY, GatewayConfig, Route, check_limits
from fleet.gateway.customers import Customer, customer_of
from fleet.gateway.document import parsed, written
from fleet.gateway.filters import check_text
from fleet.gateway.limits import Limits
from fleet.gateway.metrics import Metrics
from fleet.gateway.presidio import Presidio
from fleet.gateway.pricing import FREE, Usage, usage_of
from fleet.gateway.records import ANSWERED, BLOCKED, CACHED, FAILED, MOST, REFUSED, Record
from fleet.gateway.sending import Sender, Sent
from fleet.gateway.store import GatewayStore
from fleet.gateway.upstreams import Failed, Upstream
from fleet.serial import Serial
from wire.units import show_instant

WRITE_EVERY: Final = 0.5
"""Seconds between two writes of the audit and the budgets."""
_FORGET_EVERY: Final = 3600.0
_CUSTOMERS: Final = 10_000
_SAFE: Final = 200
"""Characters of a header of ours."""
_ANSWERED: Final = ("text", "content", "reasoning_content", "reasoning", "refusal", "arguments")
_log = logging.getLogger(__name__)


class Gateway:
    """One gateway on one event loop."""

    def __init__(
        self,
        config: GatewayConfig,
        store: GatewayStore,
        serial: Serial,
        clock: Callable[[], datetime],
        tick: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.metrics, self.budgets, self.cache = Metrics(), Budgets(), Cache(config.cache_size)
        self._presidio = Presidio(config.presidio, self.metrics.looked) if config.uses_presidio else None
        self.config = config if self._presidio is None else config.found_by(self._presidio)
        self.store = store
        self._serial, self._clock, self._tick = serial, clock, tick
        self.upstreams = {name: Upstream(one, tick) for name, one in config.upstreams.items()}
        self._sender = Sender(self.upstreams, self.metrics, tick, draw)
        self._classifiers = {name: Classifier(one) for name, one in config.classifiers.items()}
        self._keys: dict[str, Limits] = {}
        self._customers: dict[Caller, Customer] = {}
        self._book = Book(store, serial, self.budgets)

    # --- one request --------------------------------------------------------------------------------------------

    def begin(self, caller: Caller, path: str) -> Call:
        """A request of somebody who may ask the gateway. Raises `Unavailable` when it could not be recorded."""
        if self._book.is_full:
            raise Unavailable(f"gateway: {MOST} records wait for the database: look at the disk of the fleet")
        customer = self._customer(caller)
        at = show_instant(self._clock())
        record = Record(at=at, who=customer.who, tenant=customer.tenant, groups=customer.groups, path=path)
        return Call(customer, record, self._tick())

    async def ask(self, call: Call, body: bytes) -> Answer:
        """What the client gets. Raises `FleetError` with what is in the way."""
        asked, route = self._read(call, body)
        call.customer.check_model(asked.model)
        self.budgets.admit(call.customer.accounts, self._tick())
        await self._filter(call, asked)
        customer = call.customer
        key = cache.key_of(customer.tenant, asked, customer.filters) if cache.may_keep(route, asked) else ""
        if key and (kept := self.cache.get(key, self._tick())):
            return _from_cache(call, kept)
        self._reserve(call, route, asked)
        sent = await self._sender.send(call, route, asked)
        call.record.upstream, call.record.model = sent.target.upstream, sent.target.model or asked.model
        call.record.fallback = bool(sent.fallback)
        return await self._answer(call, route, sent, key)

    def end(self, call: Call, outcome: str, status: int, detail: str = "") -> None:
        """What came of it. Only the first end counts."""
        if call.ended:
            return
        call.ended = True
        record, usage = call.record, call.used(outcome)
        nanos = call.price.cost(usage)
        if call.reservation is not None:
            self.budgets.settle(call.reservation, usage.total, nanos)
        record.use(usage, nanos)
        record.outcome, record.status = outcome, status
        record.detail = (detail or record.detail)[:400]
        record.total_ms = (self._tick() - call.started) * 1000
        record.verdicts = json.dumps(call.verdicts.counts) if call.verdicts.counts else ""
        if self.config.audit_text:
            record.text = call.text()
        self.metrics.count(record, call.verdicts.counts)
        self._book.keep(record)

    def first_byte(self, call: Call) -> None:
        """The client gets the first byte of its answer now."""
        call.record.first_ms = (self._tick() - call.started) * 1000

    def _read(self, call: Call, body: bytes) -> tuple[Asked, Route]:
        if not self.config.routes:
            raise Unavailable(
                "cloud tier: none is configured: set upstream in fleet.toml to the address of an OpenAI-compatible "
                "endpoint, such as https://host/v1, and upstream_key_file if it needs a key; or write a gateway.toml"
            )
        asked = call.asked = read(call.record.path, body)
        call.record.stream = asked.stream
        route = self.config.route(asked.model)
        if route is None:
            raise NotFound(f"model {asked.model!r}: there is no route of that name: GET /v1/models lists them")
        call.record.route = route.name
        return asked, route

    async def _filter(self, call: Call, asked: Asked) -> None:
        """Raises `Blocked`; what is redacted is so from here on."""
        if not call.customer.filters:
            return
        if has_numbers(asked):
            raise Malformed(f"{asked.path}: tokens as numbers cannot be filtered: send text")
        if any(asked.value.get(name) for name in LOGPROBS) and any(f.checks_answers for f in call.customer.filters):
            raise Malformed(f"{asked.path}: logprobs: the tokens in them cannot be filtered: ask without them")
        check = partial(filters.check, call.customer.filters, asked, call.verdicts)
        finder = filters.finder_of(call.customer.filters)
        check() if finder is None else await finder.run(check)
        texts = [place.get() for place in asked.texts] + (["\n".join(asked.names)] if asked.names else [])
        for rules in call.customer.filters:
            if rules.classifier:
                started = self._tick()
                try:
                    await self._classifiers[rules.classifier].look(texts, call.verdicts, rules.name)
                finally:
                    self.metrics.judged(rules.classifier, self._tick() - started)

    def _reserve(self, call: Call, route: Route, asked: Asked) -> None:
        """Set aside the most that it can use, at the dearest target that may answer. Raises `OverBudget`."""
        most = Usage(asked.prompt, asked.most_output(route.max_output))
        prices = [self.config.price(t.upstream, t.model or asked.model) or FREE for t in route.targets]
        nanos = max(price.cost(most) for price in prices)
        call.reservation = self.budgets.reserve(call.customer.accounts, most.total, nanos, self._clock())
        call.price = max(prices, key=lambda price: price.cost(most))

    async def _answer(self, call: Call, route: Route, sent: Sent, key: str) -> Answer:
        call.price = self.config.price(sent.target.upstream, call.record.model) or FREE
        headers = _headers(call, sent, "miss" if key else "")
        if sent.status != 200:
            # The upstream's own refusal: what it did not do is not paid for, only a try before that it may have done.
            call.record.detail = f"{sent.target.upstream} answered {sent.status}"
            extra = {"Retry-After": _plain(sent.retry_after)} if sent.retry_after else {}
            return Answer(sent.status, headers | extra, sent.body, outcome=FAILED)
        if sent.stream is not None:
            headers["Content-Type"] = "text/event-stream"
            silence = self.upstreams[sent.target.upstream].config.timeout
            headers["Cache-Control"] = "no-cache"
            return Answer(200, headers, events=sent.stream.events(), silence=silence)
        check = partial(self._checked, call, sent.body)
        finder = filters.finder_of(rules for rules in call.customer.filters if rules.checks_answers)
        body = check() if finder is None else await finder.run(check)
        if key:
            kept = Kept(body, call.record.upstream, call.record.model)
            self.cache.put(key, kept, self._tick() + route.cache)
        return Answer(200, headers, body, outcome=ANSWERED)

    def _checked(self, call: Call, body: bytes) -> bytes:
        """A whole answer: its usage is heard, and its texts pass the filters. Raises `Blocked`, `Unavailable`.

        In a thread, where a filter asks Presidio: it touches this one call alone.
        """
        value = _parsed(body, call.record.upstream)
        call.usage = usage_of(value)
        if call.usage is None:
            call.pieces = 1
            call.size = sum(len(holder[name].encode("utf-8", "surrogatepass")) for holder, name in _answer_texts(value))
        rules_of = [rules for rules in call.customer.filters if rules.checks_answers]
        if not rules_of or call.record.path not in (CHAT, "/completions"):
            return body
        changed = False
        for place in texts_below(value.get("choices")):
            holder, name, text = place.holder, place.key, place.get()
            for rules in rules_of:
                holder[name] = check_text(rules, holder[name], call.verdicts, "the answer")
            changed = changed or holder[name] is not text
        return written(value) if changed else body

    # --- who asks -----------------------------------------------------------------------------------------------

    def _customer(self, caller: Caller) -> Customer:
        found = self._customers.get(caller)
        if found is None:
            if len(self._customers) >= _CUSTOMERS:
                self._customers.clear()
            found = self._customers[caller] = customer_of(caller, self.config, self._keys)
        return found

    def limits_changed(self, token: str, limits: Limits) -> None:
        """A key has other limits from now on."""
        self._keys[token] = limits
        self._customers.clear()

    async def models(self, caller: Caller) -> list[dict[str, Any]]:
        """The models that somebody may ask for; a route for any model shows those of its first upstream."""
        customer = self._customer(caller)
        shown = [
            {"id": n, "object": "model", "created": 0, "owned_by": "shoal"} for n in self.config.routes if n != ANY
        ]
        if ANY in self.config.routes:
            upstream = self.upstreams[self.config.routes[ANY].targets[0].upstream]
            try:
                listed = _parsed(await upstream.get("/models"), upstream.config.name).get("data")
            except Failed as e:
                raise e.error from e
            shown += [m for m in listed if isinstance(m, dict)] if isinstance(listed, list) else []
        elif not self.config.routes:
            self._read(Call(customer, Record("", "", "", "", ""), 0.0), b"")
        return [model for model in shown if customer.may_ask(str(model.get("id")))]

    # --- its life -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while this is entered; at its end everything that was recorded is on the disk."""
        self.budgets.load(await self._serial.run(self.store.spent))
        self._keys = await self._serial.run(self.store.key_limits)
        for key, limits in self._keys.items():
            check_limits(self.config, limits, f"the limits of key {key}")
        async with AsyncExitStack() as stack:
            if self._presidio is not None:
                stack.push_async_callback(self._presidio.close)
                await self._presidio.start()
            for upstream in self.upstreams.values():
                stack.push_async_callback(upstream.close)
            for classifier in self._classifiers.values():
                stack.push_async_callback(classifier.close)
            tasks = [asyncio.create_task(self._write_for_ever(), name="gateway records")]
            tasks += [asyncio.create_task(one.watch(), name="gateway health") for one in self.upstreams.values()]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self.write()

    async def write(self) -> bool:
        """Write what waits; whether the database took it."""
        return await self._book.write()

    async def _write_for_ever(self) -> None:
        forget_at = self._tick()
        while True:
            await asyncio.sleep(WRITE_EVERY)
            await self.write()
            if self._tick() >= forget_at:
                forget_at = self._tick() + _FORGET_EVERY
                self.budgets.forget(self._clock())
                try:
                    await self._serial.run(self.store.forget, timedelta(seconds=self.config.audit_kept))
                except Exception as e:  # noqa: BLE001  this task must not end: nothing would be written any more
                    _log.error("gateway: old records are still there: %s", type(e).__name__)

    def metrics_text(self) -> str:
        """For Prometheus."""
        now = self._tick()
        states = {name: one.breaker.state(now) for name, one in self.upstreams.items()}
        queues = {name: one.waiting for name, one in self.upstreams.items()}
        return self.metrics.text(states, queues, self._book.waiting, self.cache.held)

    def routes_view(self) -> list[dict[str, Any]]:
        """Every route with its targets and how their upstreams are."""
        now = self._tick()
        return [
            {
                "route": route.name,
                "targets": [
                    {
                        "upstream": t.upstream,
                        "url": self.upstreams[t.upstream].config.url,
                        "model": t.model,
                        "weight": t.weight,
                        "fallback": t.fallback,
                        "state": self.upstreams[t.upstream].breaker.state(now),
                    }
                    for t in route.targets
                ],
            }
            for route in self.config.routes.values()
        ]


def outcome_of(error: FleetError) -> str:
    """What the audit calls a request that ended in an error."""
    if isinstance(error, Blocked):
        return BLOCKED
    return FAILED if isinstance(error, Unavailable) else REFUSED


def _from_cache(call: Call, kept: Kept) -> Answer:
    call.record.upstream, call.record.model = kept.upstream, kept.model
    headers = {"Content-Type": "application/json", "Shoal-Upstream": kept.upstream, "Shoal-Cache": "hit"}
    return Answer(200, headers | _filtered(call), kept.body, outcome=CACHED)


def _headers(call: Call, sent: Sent, cached: str) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "Shoal-Upstream": sent.target.upstream,
        "Shoal-Model": _plain(call.record.model),
        "Shoal-Attempts": str(sent.tries),
    }
    if sent.fallback:
        headers["Shoal-Fallback"] = _plain(sent.fallback)
    if cached:
        headers["Shoal-Cache"] = cached
    return headers | _filtered(call)


def _filtered(call: Call) -> dict[str, str]:
    """What the filters did to the request, so that nobody wonders about an answer to another text."""
    if not call.verdicts.counts:
        return {}
    return {"Shoal-Filtered": _plain(", ".join(f"{rule} {n}" for rule, n in call.verdicts.counts.items()))}


def _plain(text: str) -> str:
    if text.isascii() and text.isprintable() and len(text) <= _SAFE:
        return text
    return "".join(c if " " <= c <= "~" else "?" for c in text[:_SAFE])


def _parsed(body: bytes, upstream: str) -> dict[str, Any]:
    try:
        value = parsed(body)
    except ValueError as e:
        raise Unavailable(f"cloud tier: {upstream}: its answer is not JSON: check its address") from e
    if not isinstance(value, dict):
        raise Unavailable(f"cloud tier: {upstream}: its answer is no JSON object: check its address")
    return value


def _answer_texts(value: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Every text of a whole answer."""
    return [(h, name) for h in _holders(value) for name in _ANSWERED if isinstance(h.get(name), str)]


def _holders(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    choices = value.get("choices")
    for choice in _objects(choices):
        yield choice
        for message in _objects([choice.get("message")]):
            yield message
            for call in _objects(message.get("tool_calls")):
                yield from _objects([call.get("function")])


def _objects(values: object) -> Iterator[dict[str, Any]]:
    return (v for v in values if isinstance(v, dict)) if isinstance(values, list) else iter(())
