"""The models that answer. A request pins its model: a switch under load drops nothing.

service.place("kitchen", served)          # the active model, at start
service.try_out("kitchen", candidate)     # answers from now on; the active one stays loaded
service.commit("kitchen") | service.roll_back("kitchen")

A model whose p99 is under a millisecond answers on the thread of the loop, where nothing has to be handed over; any
other, and any input larger than those that were timed, has the model's one worker thread. What waits is bounded.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from agent.errors import Busy, Malformed, NotFound, Unavailable
from agent.probation import Figures
from agent.serving.bundles import Bundle, Loaded, load_model
from agent.serving.exchange import Fields
from agent.serving.interface import Interface
from agent.serving.tally import Tally
from agent.settings import WORKERS

if TYPE_CHECKING:
    from agent.serving.oip import Layout
    from agent.serving.shadow import Beside
    from wire.processing import Example, Result


T = TypeVar("T")
INLINE_MS: Final = 1.0
"""A model whose p99 is below may run on the loop's thread."""
SLOW_MS: Final = 10 * INLINE_MS
SLOW: Final = 3
"""Answers on that thread that took longer of its CPU time, after which the model has none there any more ..."""
SLOW_WITHIN: Final = 60.0
"""... when they came within so many seconds."""
TIMED: Final = 100
"""Answers that the p99 is taken of, fewer when `TIMING` seconds are over before."""
TIMING: Final = 0.1
TRIES: Final = 3


Job = Future["tuple[Result, ...]"]


class Meter(Protocol):
    """Who counts what the models do. Latency in milliseconds."""

    def answered(self, model: str, digest: str, latency_ms: float, results: tuple[Result, ...]) -> None:
        """A request got its answer."""

    def failed(self, model: str, digest: str) -> None:
        """A request got none, by the model's fault."""


@dataclass(frozen=True)
class Bounds:
    """What one model takes on: requests that run or wait at one time, and seconds that one of them may take."""

    queue: int = 64
    seconds: float = 30.0


@dataclass(slots=True)
class Answer:
    """The results for the examples of one request, and the model that gave them."""

    model: str
    served: Served
    results: tuple[Result, ...]

    @property
    def digest(self) -> str:
        """Digest of the model's manifest."""
        return self.served.digest


class Served:
    """A loaded model with its one worker thread."""

    def __init__(self, bundle: Bundle, model: Loaded) -> None:
        self.digest = bundle.digest
        self.target = bundle.manifest.target
        self.runtime = bundle.manifest.runtime
        self.pipeline = bundle.pipeline
        self.labels = bundle.labels
        self.on_outcome: Callable[[str | None], None] | None = None
        """Hears of every request while the model is on probation, after it is counted: None, or what went wrong."""
        self.figures = Figures()
        self.tally = Tally()
        self.names = Fields({"shoal-model-version": bundle.manifest.version, "shoal-model-digest": bundle.digest})
        """Header fields of every answer of this model."""
        self.layouts: dict[object, Layout] = {}
        """Forms of requests that were read before: `agent.serving.oip`."""
        self.heads: dict[tuple[object, ...], tuple[bytes, bytes, Fields]] = {}
        """The JSON of answers in raw bytes that were given before, up to their id and behind it; header fields."""
        self.in_hand = 0
        """Requests that wait for the worker thread, or that it runs."""
        self.watched = 0.0
        """Until then the CPU time of its answers on the loop's thread is looked at."""
        self._largest = 0
        self._slow: deque[float] = deque(maxlen=SLOW)
        self._model = model
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"model-{bundle.manifest.name}")
        self._counting = threading.Lock()

    @classmethod
    def load(cls, bundle: Bundle, workers: Mapping[str, str]) -> Served:
        """Load and warm up, so that the first request is no slower. Blocking. Raises `Incompatible`."""
        from wire.processing import example_of  # noqa: PLC0415  numpy comes with the first model, not with the agent

        model = load_model(bundle, workers)
        try:
            examples = [example_of(case) for case in bundle.golden.cases]
            model.answer(examples[0])
            # A runtime in a process of its own can hang, and the loop with it.
            quick = bundle.manifest.runtime not in WORKERS and _is_quick(model, examples)
        except BaseException:  # whatever it is, no worker process stays behind
            model.close()
            raise
        served = cls(bundle, model)
        if quick:
            served._largest = max(map(_size, examples))
        return served

    @cached_property
    def interface(self) -> Interface:
        """What it is asked and answers at the door."""
        return Interface.of(self.pipeline, self.labels)

    def is_quick(self, examples: tuple[Example, ...]) -> bool:
        """Whether `answer_here` may be asked: the model is quick, free, and the input no larger than those timed."""
        return not self.in_hand and 0 < self._largest >= _size(examples[0]) and len(examples) == 1

    def was_slow(self, now: float, ran: float | None) -> None:
        """An answer given here held up the loop; a model that does so again and again is not asked here any more.

        `ran`: seconds of CPU time that it took; None: the model is watched from here on. Only those count, as when it
        was timed: what a busy machine takes from this thread it would take from another too.
        """
        self.watched = now + SLOW_WITHIN
        if ran is None or ran * 1000 < SLOW_MS:
            return
        self._slow.append(now)
        if len(self._slow) == SLOW and now - self._slow[0] < SLOW_WITHIN:
            self._largest = 0

    def answer_here(self, examples: tuple[Example, ...]) -> tuple[Result, ...]:
        """On this thread. Raises as `Model.answer`."""
        if len(examples) == 1:
            return (self._model.answer(examples[0]),)
        return tuple([self._model.answer(example) for example in examples])

    async def answer(self, examples: tuple[Example, ...]) -> tuple[Result, ...]:
        """In the worker thread. Raises as `Model.answer`. Cancelled before its turn, it is never run."""
        return await asyncio.wrap_future(self.begin(examples))

    def begin(self, examples: tuple[Example, ...]) -> Job:
        """Queue it for the worker thread."""
        with self._counting:
            self.in_hand += 1
        job = self._worker.submit(self._answer, examples, time.perf_counter())
        job.add_done_callback(self._done)
        return job

    def _answer(self, examples: tuple[Example, ...], since: float) -> tuple[Result, ...]:
        self.tally.queued += time.perf_counter() - since
        return self.answer_here(examples)

    def _done(self, _job: Future[tuple[Result, ...]]) -> None:
        with self._counting:
            self.in_hand -= 1

    def submit(self, work: Callable[[Loaded], T]) -> Future[T]:
        """Have something done with the model in the worker thread, in its turn."""
        return self._worker.submit(lambda: work(self._model))

    def note(self, latency_ms: float, fault: str | None = None) -> None:
        """Count a request; `fault` is what went wrong, by the model's fault."""
        if fault is None:
            self.figures.answered(latency_ms)
        else:
            self.figures.failed(fault)
        if self.on_outcome is not None:
            self.on_outcome(fault)

    def retire(self) -> None:
        """Answer what is queued, then give the memory back."""
        self._worker.submit(self._model.close)
        self._worker.submit(_trim)
        self._worker.shutdown(wait=False)


@dataclass
class _Standing:
    answering: Served
    active: Served | None


@dataclass(frozen=True, slots=True)
class Begun:
    """A request in the queue of the model that it was read for."""

    name: str
    served: Served
    examples: tuple[Example, ...]
    job: Job
    started: float


class Service:
    """Models by name. Everything but `infer` is called by the installer alone."""

    def __init__(self, meter: Meter, bounds: Bounds = Bounds()) -> None:
        self._meter = meter
        self._bounds = bounds
        self._standing: dict[str, _Standing] = {}
        self.requests = {"answered": 0, "failed": 0}
        self.beside: dict[str, Beside] = {}
        """What runs in shadow of a model, by its name: it hears of every answer, once that is there."""

    # --- for the product app ----------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Models that answer now."""
        return sorted(self._standing)

    def answering(self, name: str) -> Served:
        """The model that answers under a name. Raises `Unavailable` when none does yet, `NotFound` for another name."""
        standing = self._standing.get(name)
        if standing is not None:
            return standing.answering
        if not self._standing:
            raise Unavailable("no model is installed yet: roll one out to this device")
        raise NotFound(f"model {name[:80]!r}: not on this device, there are: {', '.join(self.names())}")

    def at_once(self, name: str, served: Served, examples: tuple[Example, ...]) -> Answer | None:
        """Answer one request if nothing has to be waited for; None: `begin` it. Raises as `Model.answer`."""
        if not served.is_quick(examples):
            return None
        started = time.perf_counter()
        ran = time.thread_time() if started < served.watched else 0.0  # slow to ask: only for who was slow
        try:
            results = served.answer_here(examples)
        except Exception as e:  # whatever it is, it counts, and goes on to the caller
            self._failed(name, served, time.perf_counter() - started, e)
            raise
        answer = self._answered(name, served, seconds := time.perf_counter() - started, examples, results)
        if seconds * 1000 > SLOW_MS:
            served.was_slow(started, time.thread_time() - ran if ran else None)
        return answer

    def begin(self, name: str, served: Served, examples: tuple[Example, ...]) -> Begun:
        """Queue one request of at least one example with the model that it was read for. Raises `Busy`."""
        if served.in_hand >= self._bounds.queue:
            served.tally.outcomes["busy"] += 1
            raise Busy(f"model {name}: {served.in_hand} requests wait already: ask again in {Busy.retry_after} s")
        return Begun(name, served, examples, served.begin(examples), time.perf_counter())

    async def infer(self, name: str, examples: tuple[Example, ...]) -> Answer:
        """Answer one request by whatever answers under a name. Raises as `answering`, `begin` and `finish` do."""
        return await self.finish(self.begin(name, self.answering(name), examples))

    async def finish(self, begun: Begun) -> Answer:
        """The answer to a request. Raises as `Model.answer`, and `Busy` over its time.

        A request that is cancelled, or over its time, before its turn comes is never run. One that the model has begun
        on by then is the model's failure.
        """
        name, served = begun.name, begun.served
        try:
            async with asyncio.timeout(self._bounds.seconds):
                results = await asyncio.wrap_future(begun.job)
        except TimeoutError as e:
            served.tally.outcomes["late"] += 1
            self._overdue(begun)
            raise Busy(f"model {name}: no answer within {self._bounds.seconds:g} s: ask again later, or less") from e
        except asyncio.CancelledError:
            served.tally.outcomes["left"] += 1
            if begun.job.running():  # the client did not wait for it, and it may still be the model's failure
                left = begun.started + self._bounds.seconds - time.perf_counter()
                asyncio.get_running_loop().call_later(max(0.0, left), self._overdue, begun)
            raise
        except Exception as e:  # as above
            self._failed(name, served, time.perf_counter() - begun.started, e)
            raise
        return self._answered(name, served, time.perf_counter() - begun.started, begun.examples, results)

    def _overdue(self, begun: Begun) -> None:
        """The time of a request is up, and nobody waits for it: what runs yet hangs."""
        if begun.job.running():
            self._failed(begun.name, begun.served, self._bounds.seconds, TimeoutError())

    def _answered(
        self,
        name: str,
        served: Served,
        seconds: float,
        examples: tuple[Example, ...],
        results: tuple[Result, ...],
    ) -> Answer:
        self.requests["answered"] += 1
        served.tally.answered(seconds, len(results))
        self._meter.answered(name, served.digest, seconds * 1000, results)
        served.note(seconds * 1000)
        beside = self.beside.get(name)
        if beside is not None:
            beside.take(examples, results)
        return Answer(name, served, results)

    def _failed(self, name: str, served: Served, seconds: float, error: Exception) -> None:
        """Count it against the model, unless it is the caller's fault."""
        if isinstance(error, Malformed):
            served.tally.outcomes["malformed"] += 1
            return
        self.requests["failed"] += 1
        served.tally.failed(seconds)
        self._meter.failed(name, served.digest)
        # The fleet hears of it, and what a runtime says may quote the input: the caller alone reads that.
        served.note(0.0, f"{served.runtime}: {type(error.__cause__ or error).__name__}")

    def generated(self, name: str, served: Served, seconds: float, tokens: int, asked: Result) -> None:
        """Count the answer of a language model; its latency is the time for each token.

        `asked` has no outputs: it says what is known of the prompt.
        """
        self.requests["answered"] += 1
        served.tally.answered(seconds, 1)
        self._meter.answered(name, served.digest, seconds * 1000 / tokens, (asked,))
        served.note(seconds * 1000 / tokens)

    def generated_nothing(self, name: str, served: Served, started: float, error: Exception) -> None:
        """Count an answer that a language model did not give."""
        self._failed(name, served, time.perf_counter() - started, error)

    # --- for the installer ------------------------------------------------------------------------------------

    def place(self, name: str, served: Served) -> None:
        """The active model of a name, at start."""
        self._standing[name] = _Standing(served, served)

    def try_out(self, name: str, candidate: Served) -> None:
        """Let a candidate answer; the active model stays loaded until it is committed."""
        standing = self._standing.get(name)
        self._standing[name] = _Standing(candidate, standing.active if standing else None)

    def before(self, name: str) -> Served | None:
        """The active model that a candidate was put in front of; None when there is none."""
        standing = self._standing[name]
        return standing.active if standing.active is not standing.answering else None

    def commit(self, name: str) -> None:
        """The candidate is the active model from here."""
        standing = self._standing[name]
        old, standing.active = standing.active, standing.answering
        if old is not None and old is not standing.active:
            old.retire()

    def roll_back(self, name: str) -> None:
        """The active model answers again; without one the name is gone."""
        standing = self._standing.get(name)
        if standing is None or standing.answering is standing.active:
            return
        standing.answering.retire()
        if standing.active is None:
            del self._standing[name]
        else:
            standing.answering = standing.active

    def remove(self, name: str) -> None:
        """Stop answering under a name."""
        self.roll_back(name)
        standing = self._standing.pop(name, None)
        if standing is not None:
            standing.answering.retire()

    def close(self) -> None:
        """At the end of the agent."""
        for name in self.names():
            self.remove(name)


def _is_quick(model: Loaded, examples: Sequence[Example]) -> bool:
    """Whether its p99 is below `INLINE_MS`. Where a busy machine may have lengthened a few, they are timed again."""
    for _ in range(TRIES):
        times = _times(model, examples)
        if times[(99 * len(times) + 99) // 100 - 1] < INLINE_MS:
            return True
        if times[len(times) // 2] >= INLINE_MS:
            return False
    return False


def _times(model: Loaded, examples: Sequence[Example]) -> list[float]:
    """Milliseconds for the golden inputs in turn, shortest first: CPU time of this thread."""
    times: list[float] = []
    until = time.perf_counter() + TIMING
    while len(times) < TIMED and time.perf_counter() < until:
        started = time.thread_time()
        model.answer(examples[len(times) % len(examples)])
        times.append((time.thread_time() - started) * 1000)
    return sorted(times)


def _size(example: Example) -> int:
    """Bytes of an input."""
    if isinstance(example, str):
        return len(example.encode())
    return sum([array.nbytes for array in example.values()])


def _trim() -> None:
    """Give freed memory back: 60 switches grew an agent from 69 to 124 MB without, and stayed at 70 with it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc only
        trim(0)
