"""Does what `agent.routing` decides: answers here, asks the cloud, waits for the line, or refuses.

    admitted = router.admit(headers, served, texts)      # at once, and refused at once
    routed = await router.classification(admitted, request_id, ask)
    reply = await router.chat(request, local=None)

The app says what it wants by headers (`Shoal-Data`, `Shoal-Route`, `Shoal-Deadline-Ms`, `Shoal-Queue`), and is told
what became of it by `Shoal-Route`. Of each decision the features are kept, never the input.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from agent.errors import AgentError, Busy, TooLong, Unavailable
from agent.life.agreement import AgreementMeter, Key
from agent.routing import Bucket, Decision, Features, Pace, Wish, decide, lowest, wish
from agent.serving.cloud import Cloud, Late, first_bytes
from agent.serving.exchange import Reply, Request
from agent.serving.labels import LONGEST, label_in, question
from agent.serving.routed import Admitted, LocalChat, Routed, Said, refused
from agent.serving.service import Answer, Served
from agent.settings import AgentSettings
from wire.agreement import stratum
from wire.document import dump_json

if TYPE_CHECKING:
    from wire.processing import Example

CHAT: Final = "/v1/chat/completions"
KEPT: Final = 100
"""Decisions that `GET /shoal/routing` shows, the newest."""
CHECKS: Final = 4
"""Checks under way at one time: the cloud is for the apps."""
HEADER: Final = "Shoal-Route"
log = logging.getLogger("agent.serving.router")


class Router:
    """`online()`: whether the fleet can be reached; `now()` in seconds, never going back."""

    def __init__(
        self,
        cloud: Cloud,
        online: Callable[[], bool],
        meter: AgreementMeter,
        settings: AgentSettings,
        *,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._cloud = cloud
        self._online = online
        self._meter = meter
        self._settings = settings
        self._now = now
        self._chance = chance
        most = max(1.0, settings.escalations / 6) if settings.escalations else 0.0
        self._bucket = Bucket(settings.escalations / 3600, most, most, now())
        self._pace = Pace()
        self._counts: Counter[str] = Counter()
        self._newest: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._checks: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Future[None]] = set()

    # --- classification -------------------------------------------------------------------------------------------

    def concerns(self, headers: Mapping[str, str]) -> bool:
        """Whether there is anything to decide: without a model in the cloud or a wish everything is answered here."""
        return bool(self._settings.cloud_model) or "\nshoal-" in "\n".join(("", *headers))

    def admit(self, headers: Mapping[str, str], served: Served, examples: Sequence[Example]) -> Admitted:
        """What is decided before the device answers. One text goes up, never a batch of them.

        Raises `Offline`, `Withheld`, `Busy` where as many wait for the line as may.
        """
        started = self._now()
        text = examples[0] if len(examples) == 1 and served.pipeline.task == "text-classification" else None
        text = text if isinstance(text, str) else None
        target = bool(self._settings.cloud_model) and text is not None
        features = self._features(self._wish(headers), started, here=True, target=target)
        self._refuse(features, served.target)
        return Admitted(served, text, features, started)

    async def classification(self, admitted: Admitted, request_id: str, ask: Callable[[], Awaitable[Answer]]) -> Routed:
        """The device answers in any case: fast, and what the cloud says is told beside its scores.

        Raises `Offline` where the line did not come back, and as `ask` does.
        """
        served, text, started = admitted.served, admitted.text, admitted.started
        local = await ask()
        features = await self._settled(self._again(admitted.features, started), started, served.target)
        features = replace(features, **_sureness(local, self._settings.unsure_below))
        decision = decide(features)
        given = local
        if decision.where == "cloud":
            assert text is not None
            given, decision = await self._ask_up(text, local, features, decision)
        self._count(local, features, decision, request_id, given)
        self._note(served.target, features, decision)
        self._meter.routed(local.model, local.digest, decision.where, decision.reason)
        if text is not None and self._to_check(features, decision):
            self._check(text, local, _key(local, features), request_id)
        return Routed(given, local, {HEADER: f"{decision.where}; reason={decision.reason}"})

    async def _ask_up(self, text: str, local: Answer, f: Features, decision: Decision) -> tuple[Answer, Decision]:
        """The cloud's label in place of the device's; the device's own where none comes in time."""
        if decision.reason != "asked":
            self._spend()
        await self._cloud.room(f.wish.queue_s)
        try:
            label = await self._label(text, local, self._left(f))
        except AgentError as e:
            if decision.reason == "asked":
                raise
            log.info("the device's own answer is given: %s", e)
            return local, Decision("local", "late" if isinstance(e, Late) else "failed")
        if label is None and decision.reason == "asked":
            raise Unavailable(f"{self._settings.cloud_model}: its answer is none of the labels: ask this device")
        if label is None:
            return local, Decision("local", "unclear")
        return replace(local, results=(replace(local.results[0], labels=(label,)),)), decision

    async def _label(self, text: str, local: Answer, within: float) -> str | None:
        """What the cloud says, None when that is no label. Raises `Late`, `Unavailable`, `Untrusted`."""
        labels = local.served.labels
        body = question(self._settings.cloud_model, text, labels)
        began = self._now()
        try:
            answer = await self._cloud.ask(CHAT, body, within=within, most=LONGEST)
        except Late:
            self._took(began)
            raise
        self._took(began)
        return label_in(answer, labels)

    def _took(self, began: float) -> None:
        now = self._now()
        self._pace = self._pace.seen((now - began) * 1000, now)

    # --- agreement ------------------------------------------------------------------------------------------------

    def _count(self, local: Answer, f: Features, decision: Decision, request_id: str, given: Answer) -> None:
        if len(local.results) != 1 or f.wish.private or f.wish.route == "local":
            return  # what is never compared with the reference says nothing of how often both agree
        self._meter.answered(_key(local, f))
        if decision.where == "cloud":
            self._meter.checked(request_id, _key(local, f), agreed=given.results[0].labels == local.results[0].labels)

    def _to_check(self, f: Features, decision: Decision) -> bool:
        """A share of the answers that the device is sure of; never private ones, and within the same cap."""
        if decision.where != "local" or decision.reason not in ("sure", "unknown"):
            return False  # private, offline, late: nothing goes up
        chosen = self._chance() * 100 < self._settings.checked
        return chosen and f.online and len(self._checks) < CHECKS and self._bucket.has(self._now())

    def _check(self, text: str, local: Answer, key: Key, request_id: str) -> None:
        self._spend()
        task = asyncio.create_task(self._checked(text, local, key, request_id), name="check")
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    async def _checked(self, text: str, local: Answer, key: Key, request_id: str) -> None:
        try:
            label = await self._label(text, local, self._settings.cloud_answer)
        except AgentError as e:
            log.info("an answer is not checked: %s", e)
            return
        if label is not None:
            self._meter.checked(request_id, key, agreed=(label,) == local.results[0].labels)

    # --- chat -----------------------------------------------------------------------------------------------------

    async def chat(self, request: Request, local: LocalChat | None = None) -> Reply:
        """Answer a request for text, by a language model of this device where `local` is one.

        Without, the cloud is asked for the model that the request names. Raises `Offline`, `Withheld`, `Unavailable`,
        and what `local` raises or lacks.
        """
        started, lacks = self._now(), None if local is None else local.lacks
        features = self._features(
            self._wish(request.headers),
            started,
            here=local is not None and lacks is None,
            target=local is None or bool(self._settings.cloud_model),
        )
        features, said = await self._settled(features, started, "chat", lacks), None
        if local is not None and decide(features).where == "local":
            features, said = await self._said(local, features, started)
        decision = decide(features)
        if decision.where == "cloud":
            body = request.body
            if local is not None:
                body = dump_json({**json.loads(body), "model": self._settings.cloud_model})
            reply, decision = await self._chat_up(request.path, body, features, decision, said)
        else:
            assert said is not None
            reply = said.reply
        self._note("chat", features, decision)
        if local is not None:
            self._meter.routed(local.model, local.digest, decision.where, decision.reason)
        return replace(reply, headers={**reply.headers, HEADER: f"{decision.where}; reason={decision.reason}"})

    async def _said(self, local: LocalChat, f: Features, started: float) -> tuple[Features, Said | None]:
        """What the device says and how sure it is; None where it goes up for being too long, or it busy."""
        assert local.answer is not None
        below = self._settings.words_below / 100
        # A stream that stays whatever comes is not held back.
        judged = decide(replace(f, confidence=0.0, threshold=below)).where == "cloud"
        try:
            said = await local.answer(judged)
        except TooLong as e:
            f = replace(self._again(f, started), tokens=e.tokens, context=e.context)
            return await self._settled(f, started, "chat", e), None
        except Busy as e:
            return await self._settled(replace(self._again(f, started), busy=True), started, "chat", e), None
        return replace(self._again(f, started), confidence=lowest(said.probabilities), threshold=below), said

    async def _chat_up(
        self, path: str, body: bytes, f: Features, decision: Decision, said: Said | None
    ) -> tuple[Reply, Decision]:
        """The cloud's reply; the device's own, where there is one, when it does not begin in time."""
        if decision.reason in ("unsure", "context", "busy"):
            self._spend()
        try:
            await self._cloud.room(f.wish.queue_s)
            # Without a deadline of its own an answer that nobody else can give takes the time that it takes.
            within = self._left(f) if said is not None or f.wish.deadline_ms is not None else None
            came = await self._cloud.forward(path, body, within)
            if said is not None and came.status >= 400:  # a refusal is no better answer
                await first_bytes(came.body, 1)
                return said.reply, Decision("local", "failed")
        except AgentError as e:
            if said is None:
                raise
            log.info("the device's own answer is given: %s", e)
            return said.reply, Decision("local", "late" if isinstance(e, Late) else "failed")
        except BaseException:
            await _drop(said)
            raise
        await _drop(said)
        return Reply(came.status, came.content_type, came.body), decision

    # --- deciding -------------------------------------------------------------------------------------------------

    def _wish(self, headers: Mapping[str, str]) -> Wish:
        private = self._settings.data == "private"
        return wish(headers, private=private, longest_queue=self._settings.queue_longest)

    def _features(self, wished: Wish, started: float, *, here: bool, target: bool) -> Features:
        return self._again(Features(wish=wished, here=here, target=target), started)

    def _again(self, f: Features, started: float) -> Features:
        """The same with what changes while a request waits or is answered."""
        now = self._now()
        left = None if f.wish.deadline_ms is None else f.wish.deadline_ms - (now - started) * 1000
        return replace(
            f,
            online=self._online(),
            cloud_ms=self._pace.expected(now),
            left_ms=left,
            budget=self._bucket.has(now),
        )

    def _refuse(self, f: Features, what: str, lacks: AgentError | None = None) -> None:
        """Raise the refusal of a request that is not worth waiting for; `lacks` is why no model here answers it."""
        decision = decide(f)
        if decision.where == "refuse":
            self._note(what, f, decision)
            raise refused(decision.reason, f, lacks)
        if decision.where == "wait" and len(self._waiting) >= self._settings.queue_requests:
            self._note(what, f, Decision("refuse", "offline"))
            raise Busy(f"this device is offline, and {len(self._waiting)} requests wait for the line: ask later")

    async def _settled(self, f: Features, started: float, what: str, lacks: AgentError | None = None) -> Features:
        """The features once the request need not wait any more. Raises its refusal, `Busy` when as many wait as may."""
        self._refuse(f, what, lacks)
        if decide(f).where == "wait":
            await self._wait(f, started)
            f = self._again(f, started)
            decision = decide(f)
            if decision.where in ("wait", "refuse"):
                self._note(what, f, Decision("refuse", decision.reason))
                raise refused(decision.reason, f, lacks)
        return f

    async def _wait(self, f: Features, started: float) -> None:
        """Until the line is back, or the request's time is up."""
        seconds = f.wish.queue_s if f.wish.deadline_ms is None else min(f.wish.queue_s, f.wish.deadline_ms / 1000)
        back: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(back)
        try:
            async with asyncio.timeout(max(0.0, seconds - (self._now() - started))):
                await back
        except TimeoutError:
            pass  # what is decided next says so
        finally:
            self._waiting.discard(back)

    def line_is_up(self) -> None:
        """The fleet can be reached: what waits goes on."""
        for back in self._waiting:
            if not back.done():
                back.set_result(None)

    def _left(self, f: Features) -> float:
        """Seconds that the cloud has for one answer."""
        return self._settings.cloud_answer if f.left_ms is None else max(0.0, f.left_ms / 1000)

    def _spend(self) -> None:
        self._bucket = self._bucket.take(self._now())

    # --- telling --------------------------------------------------------------------------------------------------

    def _note(self, what: str, f: Features, decision: Decision) -> None:
        self._counts[f"{decision.where} {decision.reason}"] += 1
        self._newest.append(
            {
                "of": what,
                "where": decision.where,
                "reason": decision.reason,
                "private": f.wish.private,
                "asked": f.wish.route,
                "online": f.online,
                "left_ms": _rounded(f.left_ms, 1),
                "cloud_ms": _rounded(f.cloud_ms, 1),
                "budget": f.budget,
                "tokens": f.tokens,
                "busy": f.busy,
                "confidence": _rounded(f.confidence, 3),
                "threshold": f.threshold,
            }
        )

    def view(self) -> dict[str, Any]:
        """What `GET /shoal/routing` answers: policy, counts by where and why, and the newest decisions."""
        settings = self._settings
        return {
            "policy": {
                "cloud_model": settings.cloud_model,
                "data": settings.data,
                "escalations_per_hour": settings.escalations,
                "escalations_left": int(self._bucket.filled(self._now()).left),
                "checked_percent": settings.checked,
            },
            "waiting": len(self._waiting),
            "decisions": dict(sorted(self._counts.items())),
            "newest": list(self._newest),
        }

    async def stop(self) -> None:
        """End what is under way."""
        for task in self._checks:
            task.cancel()
        await asyncio.gather(*self._checks, return_exceptions=True)


def _sureness(local: Answer, below: int) -> dict[str, Any]:
    """Confidence and threshold of an answer to one example: the bundle's, or the device's setting in percent."""
    calibration = local.served.pipeline.calibration
    confidence = local.results[0].confidence if len(local.results) == 1 else None
    return {
        "confidence": confidence,
        "threshold": below / 100 if below else calibration.threshold if calibration else 0.0,
    }


def _key(local: Answer, f: Features) -> Key:
    return local.model, local.digest, stratum(f.confidence, f.threshold)


async def _drop(said: Said | None) -> None:
    if said is not None:
        await said.drop()


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
