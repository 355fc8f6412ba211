"""The models that answer. A request pins its model: a switch under load drops nothing.

service.place("kitchen", served)          # the active model, at start
service.try_out("kitchen", candidate)     # answers from now on; the active one stays loaded
service.commit("kitchen") | service.roll_back("kitchen")
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from agent.errors import Malformed, NotFound, Unavailable
from agent.probation import Figures
from agent.serving.bundles import Bundle, Model

if TYPE_CHECKING:
    from wire.processing import Example, Result


class Meter(Protocol):
    """Who counts what the models do. Latency in milliseconds."""

    def answered(self, model: str, digest: str, latency_ms: float, results: tuple[Result, ...]) -> None:
        """A request got its answer."""

    def failed(self, model: str, digest: str) -> None:
        """A request got none, by the model's fault."""


@dataclass(frozen=True)
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

    def __init__(self, bundle: Bundle, model: Model) -> None:
        self.digest = bundle.digest
        self.target = bundle.manifest.target
        self.runtime = bundle.manifest.runtime
        self.pipeline = bundle.pipeline
        self.labels = bundle.labels
        self.on_outcome: Callable[[str | None], None] | None = None
        """Hears of every request while the model is on probation, after it is counted: None, or what went wrong."""
        self.figures = Figures()
        self._model = model
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"model-{bundle.manifest.name}")

    @classmethod
    def load(cls, bundle: Bundle, workers: Mapping[str, str]) -> Served:
        """Load and warm up, so that the first request is no slower. Blocking. Raises `Incompatible`."""
        from wire.processing import example_of  # noqa: PLC0415  numpy comes with the first model, not with the agent

        model = Model.load(bundle, workers)
        try:
            model.answer(example_of(bundle.golden.cases[0]))
        except BaseException:  # whatever it is, no worker process stays behind
            model.close()
            raise
        return cls(bundle, model)

    async def answer(self, examples: tuple[Example, ...]) -> tuple[Result, ...]:
        """In the worker thread. Raises as `Model.answer`."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._answer, examples)

    def _answer(self, examples: tuple[Example, ...]) -> tuple[Result, ...]:
        return tuple(self._model.answer(example) for example in examples)

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


class Service:
    """Models by name. Everything but `infer` is called by the installer alone."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._standing: dict[str, _Standing] = {}
        self.requests = {"answered": 0, "failed": 0}

    # --- for the product app ----------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Models that answer now."""
        return sorted(self._standing)

    def answering(self, name: str) -> Served:
        """The model that answers under a name. Raises `Unavailable` when none does yet, `NotFound` for another name."""
        if name in self._standing:
            return self._standing[name].answering
        if not self._standing:
            raise Unavailable("no model is installed yet: roll one out to this device")
        raise NotFound(f"model {name[:80]!r}: not on this device, there are: {', '.join(self.names())}")

    async def infer(self, name: str, examples: tuple[Example, ...]) -> Answer:
        """Answer one request of at least one example. Raises as `answering` and `Model.answer` do."""
        served = self.answering(name)
        started = time.perf_counter()
        try:
            results = await served.answer(examples)
        except Malformed:
            raise  # the caller's fault, and nothing against the model
        except Exception as e:  # whatever it is, it counts against the model, and goes on to the caller
            self.requests["failed"] += 1
            self._meter.failed(name, served.digest)
            served.note(0.0, str(e) or type(e).__name__)
            raise
        latency = (time.perf_counter() - started) * 1000
        self.requests["answered"] += 1
        self._meter.answered(name, served.digest, latency, results)
        served.note(latency)
        return Answer(name, served, results)

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


def _trim() -> None:
    """Give freed memory back: 60 switches grew an agent from 69 to 124 MB without, and stayed at 70 with it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc only
        trim(0)
