"""Models that answer without being run: what they are is real, verified and staged; how fast they are, the plan says.

The installer is the real one up to the runtime: it verifies, fetches, stages, switches and watches. The self-test and
the loading of a graph are simulated, and an answer takes no time here: the latency drawn for it is what is counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent.errors import Incompatible
from agent.install.installer import Installer
from agent.life.beside import Said
from agent.serving.bundles import Bundle, Model
from agent.serving.selftest import Outcome
from agent.serving.service import Job, Meter, Served
from agent.serving.shadow import Runner
from agent.shadowing import Sampler, Shadow
from wire.pipeline import SCORES
from wire.processing import Example, Result, example_of, to_array
from wire.shadow import ShadowModel

EXAMPLE = "simulated"
"""What the models are asked: they do not look at it."""


@dataclass(frozen=True)
class DrawnResult(Result):
    """An answer and the time that it took, in milliseconds."""

    latency_ms: float = 0.0


@dataclass
class Behaviour:
    """How the models of one device do. `latency` in seconds is the median, `spread` the deviation of its logarithm."""

    chance: random.Random
    latency: float
    spread: float
    selftest: float
    failing: bool
    agreement: float = 0.98
    """Share of its answers in shadow that agree with those of the active model."""
    failed: dict[str, int] = field(default_factory=dict)
    """Self-tests that were made to fail, by digest."""

    def answer(self, labels: tuple[str, ...], drift: float) -> DrawnResult:
        """Draw one. `drift` makes models differ in how sure they are."""
        latency = self.latency * math.exp(self.chance.gauss(0.0, self.spread))
        best = min(0.999, max(0.4, self.chance.gauss(0.85 + drift, 0.08)))
        names = labels or ("",)
        scores = np.array([best, *[(1 - best) / max(1, len(names) - 1)] * (len(names) - 1)], np.float32)
        label = (self.chance.choice(names),) if labels else ()
        return DrawnResult(outputs={SCORES: scores}, labels=label, latency_ms=1000 * latency)

    def agrees(self) -> bool:
        """Draw whether an answer in shadow agrees."""
        return self.chance.random() < self.agreement


class _NoGraph(Model):
    """What is loaded of a simulated model."""

    def __init__(self) -> None:
        """Nothing."""


class SimulatedServed(Served):
    """A model that is here, and answers by its device's behaviour; its golden set as that says."""

    def __init__(self, bundle: Bundle, behaviour: Behaviour) -> None:
        super().__init__(bundle, _NoGraph())
        self._behaviour = behaviour
        self._golden = {_key(example_of(case)): case for case in bundle.golden.cases}
        self._drift = int(hashlib.sha256(bundle.digest.encode()).hexdigest()[:4], 16) / 0xFFFF * 0.06 - 0.03
        self._drawn_ms = 0.0

    def answer_here(self, examples: tuple[Example, ...]) -> tuple[Result, ...]:
        """Drawn."""
        results = tuple(self._answer_one(example) for example in examples)
        self._drawn_ms = sum(result.latency_ms for result in results)
        return results

    def begin(self, examples: tuple[Example, ...]) -> Job:
        """Done at once: there is no thread to wait for."""
        job: Job = Future()
        try:
            job.set_result(self.answer_here(examples))
        except Exception as e:  # noqa: BLE001  as a thread does: it is raised where the answer is waited for
            job.set_exception(e)
        return job

    def note(self, latency_ms: float, fault: str | None = None) -> None:
        """Count the time that was drawn, not the one that passed."""
        super().note(self._drawn_ms if fault is None else latency_ms, fault)

    def retire(self) -> None:
        """There is nothing to give back, and no thread."""

    def _answer_one(self, example: Example) -> DrawnResult:
        case = self._golden.get(_key(example))
        if case is None:
            return self._behaviour.answer(self.labels, self._drift)
        return DrawnResult(outputs={name: to_array(t) for name, t in case.outputs.items()}, labels=case.labels)


def _key(example: Example) -> object:
    if isinstance(example, str):
        return example
    return tuple((name, array.tobytes()) for name, array in sorted(example.items()))


class DrawnMeter:
    """Counts the latency that was drawn in the place of the time that passed."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def answered(self, model: str, digest: str, latency_ms: float, results: tuple[Result, ...]) -> None:
        """A request got its answer."""
        drawn = sum(result.latency_ms for result in results if isinstance(result, DrawnResult))
        self._meter.answered(model, digest, drawn or latency_ms, results)

    def failed(self, model: str, digest: str) -> None:
        """A request got none."""
        self._meter.failed(model, digest)


class SimulatedRunner(Runner):
    """A model in shadow without a process: what it says, and whether it agrees, is drawn as soon as it is asked."""

    def __init__(self, wanted: ShadowModel, say: Callable[[Sequence[Said]], None], behaviour: Behaviour) -> None:
        self.digest, self.wanted = wanted.digest, wanted
        self.counts = Counter()
        self.memory, self.fault = 0, ""
        self.ended = asyncio.get_running_loop().create_future()
        self._say = say
        self._sampler = Sampler(wanted.share)
        self._behaviour = behaviour

    def take(self, examples: Sequence[Example], results: Sequence[Result]) -> None:  # noqa: ARG002  the real one's words
        """Draw it for one of the examples, if the request is in the share."""
        if not self._sampler.takes():
            return
        drawn, agreed = self._behaviour.answer((), 0.0), self._behaviour.agrees()
        self.counts.update(run=1, compared=1, agreed=int(agreed))
        labels = results[0].labels if agreed else ("another",)
        self._say([Said(ms=drawn.latency_ms, agreed=agreed, labels=labels)])

    def allow(self, wanted: ShadowModel) -> None:
        """Another share from here on."""
        self.wanted, self._sampler = wanted, Sampler(wanted.share)

    async def close(self) -> None:
        """There is nothing to end."""


class SimulatedInstaller(Installer):
    """The real installer, but for the process of the self-test and the runtime."""

    def __init__(self, behaviour: Behaviour, **wiring: Any) -> None:
        super().__init__(**wiring)
        self._behaviour = behaviour

    async def _load(self, digest: str) -> Served:
        return SimulatedServed(await asyncio.to_thread(Bundle.open, self._store, digest), self._behaviour)

    async def _start_shadow(self, shadow: Shadow, say: Callable[[Sequence[Said]], None]) -> Runner:
        return SimulatedRunner(shadow.wanted, say, self._behaviour)

    async def _self_test(self, digest: str) -> Outcome:
        await asyncio.sleep(self._behaviour.selftest)
        if self._behaviour.failing:
            self._behaviour.failed[digest] = self._behaviour.failed.get(digest, 0) + 1
            raise Incompatible("self-test: this simulated device fails it, by plan")
        return Outcome(fault=None)
