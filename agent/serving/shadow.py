"""Runs a model in shadow: its process, what it is asked, and what came of that.

    runner = await Runner.start(store, wanted, workers, say)
    runner.take(examples, results)        # after an answer: keeps it if it is sampled, and there is room
    await runner.close()

The answer is given before, and nothing waits for the shadow. What is sampled waits, in memory alone, until the model
beside it is quiet, or for a turn under load that p99 does not show (`agent.shadowing.Budget`); what finds no room is
dropped and counted. One exchange carries several requests: the loop is woken for few of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from agent.errors import Incompatible, Unavailable
from agent.life.beside import Said
from agent.shadowing import LOADED, Budget, Sampler
from wire import frames
from wire.shadow import ShadowModel

if TYPE_CHECKING:
    from wire.processing import Array, Example, Result

log = logging.getLogger("agent.serving.shadow")

MOST: Final = 16
"""Requests that wait at one time,"""
MOST_BYTES: Final = 4 * 1024 * 1024
"""and bytes of their inputs."""
QUIET: Final = 0.05
"""Seconds without a request after which the model beside it counts as quiet."""
START: Final = 600.0
"""Seconds until the model must be loaded, which happens at the lowest priority, too."""
RUN: Final = 120.0
"""Seconds for one exchange; on a machine that is never idle it takes its time."""
LAST: Final = 1.0
"""Seconds in which the exit code of a process follows the end of its pipe."""
AT_ONCE: Final = 0.25
"""Most seconds of CPU time of one exchange."""


class Beside(Protocol):
    """What hears of every answer of the model that it runs beside."""

    digest: str
    counts: Counter[str]

    def take(self, examples: Sequence[Example], results: Sequence[Result]) -> None:
        """An answer was given. Returns at once."""


@dataclass(frozen=True, slots=True)
class _Sample:
    example: Example
    result: Result
    size: int
    turn: int


@dataclass
class _Waiting:
    samples: deque[_Sample] = field(default_factory=deque)
    size: int = 0

    def has_room(self, size: int) -> bool:
        return len(self.samples) < MOST and self.size + size <= MOST_BYTES

    def add(self, sample: _Sample) -> None:
        self.samples.append(sample)
        self.size += sample.size

    def drain(self) -> list[_Sample]:
        found = list(self.samples)
        self.samples.clear()
        self.size = 0
        return found


class Runner:
    """One process. `say(said)` hears what came of requests; `memory` is what the process took at most, in bytes."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        wanted: ShadowModel,
        say: Callable[[Sequence[Said]], None],
        memory: int,
    ) -> None:
        self.digest = wanted.digest
        self.counts: Counter[str] = Counter()
        """Requests that were `run`, `compared`, `agreed`, `failed`, and `dropped` for want of room or time."""
        self.memory = memory
        self.fault = ""
        """Why it ended by itself."""
        self._process = process
        self._say = say
        self.wanted = wanted
        self._sampler = Sampler(wanted.share)
        self._budget = Budget.of(wanted.cpu, time.monotonic())
        self._waiting = _Waiting()
        self._seen = 0
        self._news = asyncio.Event()
        self._turning = asyncio.create_task(self._turn(), name=f"shadow {wanted.model}")
        self.ended: asyncio.Future[None] = self._turning

    @classmethod
    async def start(
        cls, store: Path, wanted: ShadowModel, workers: Mapping[str, str], say: Callable[[Sequence[Said]], None]
    ) -> Self:
        """Start the process and load. Raises `Incompatible` when it does not load here, `Unavailable` for its files."""
        command = [sys.executable, "-P", "-m", "agent.serving.shadow_program"]
        try:
            process = await asyncio.create_subprocess_exec(
                *(*command, str(store), wanted.digest, json.dumps(dict(workers))),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,  # what a runtime says there may quote an input
                start_new_session=True,  # Ctrl-C is for the agent
            )
        except OSError as e:
            raise Unavailable(f"shadow: its process does not start: {e.strerror}") from e
        try:
            async with asyncio.timeout(START):
                told = await _hear(process)
        except BaseException as e:
            await _end(process)
            if isinstance(e, TimeoutError):
                raise Unavailable(f"shadow: not loaded within {START:.0f} s: this machine is never idle") from e
            raise
        if told.get("kind") == "ready":
            return cls(process, wanted, say, int(told["memory"]))
        await _end(process)
        kind = Unavailable if told.get("again") else Incompatible
        raise kind(f"shadow: {told.get('fault') or await _last_words(process)}"[:400])

    def take(self, examples: Sequence[Example], results: Sequence[Result]) -> None:
        """An answer was given; one of its examples may be run too, in turn. Costs a microsecond."""
        self._seen += 1
        if not self._sampler.takes():
            return
        turn = self.counts["sampled"]
        self.counts["sampled"] += 1
        at = turn % len(examples)
        size = _size(examples[at])
        if not self._waiting.has_room(size):
            self.counts["dropped"] += 1
            return
        self._waiting.add(_Sample(examples[at], results[at], size, turn // len(examples)))
        if not self._news.is_set():
            self._news.set()

    def allow(self, wanted: ShadowModel) -> None:
        """Another share or budget from here on."""
        if wanted != self.wanted:
            self.wanted = wanted
            self._sampler = Sampler(wanted.share)
            self._budget = Budget.of(wanted.cpu, time.monotonic())

    async def close(self) -> None:
        """End it, and forget what waits."""
        self._turning.cancel()
        await asyncio.gather(self._turning, return_exceptions=True)
        await _end(self._process)

    # --- turns ------------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        """Exchange after exchange until the process ends, or hangs: `fault` says why."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                loaded = await self._its_turn()
                await self._exchange(loaded=loaded)
        except TimeoutError:  # nobody's fault on a machine that is never idle: it counts as no answer
            self.fault = f"no answer within {RUN:.0f} s"
        except (Unavailable, OSError) as e:
            self.fault = str(e)
            self.counts["failed"] += 1
            self._say([Said(ms=0.0, fault="process")])

    async def _its_turn(self) -> bool:
        """Wait until a run may begin; whether requests come in meanwhile."""
        while True:
            seen = self._seen
            await asyncio.sleep(QUIET)
            loaded, now = self._seen != seen, time.monotonic()
            if self._budget.allows(now, loaded=loaded):
                return loaded

    async def _exchange(self, *, loaded: bool) -> None:
        samples = self._waiting.drain()
        packed = [frames.pack(_asked(sample)) for sample in samples]
        most = LOADED if loaded else AT_ONCE
        packed.append(frames.pack(frames.Frame("go", fields={"seconds": most})))
        assert self._process.stdin is not None
        self._process.stdin.write(b"".join(packed))
        async with asyncio.timeout(RUN):
            told = await _hear(self._process)
        if told.get("kind") != "done":
            raise Unavailable(await _last_words(self._process))
        self._budget = self._budget.spent(float(told["cpu_s"]), time.monotonic())
        self.memory = max(self.memory, int(told["memory"]))
        self._count([Said(**outcome) for outcome in told["outcomes"]], len(samples))

    def _count(self, said: Sequence[Said], asked: int) -> None:
        sound = [one for one in said if not one.fault]
        self.counts.update(
            run=len(said),
            compared=len(sound),
            agreed=sum(one.agreed for one in sound),
            failed=len(said) - len(sound),
            dropped=asked - len(said),
        )
        self._say(said)


def _asked(sample: _Sample) -> frames.Frame:
    """A request and its answer for the process: of an answer with labels these alone."""
    example, result = sample.example, sample.result
    given = {} if isinstance(example, str) else example
    outputs = {} if result.labels else result.outputs
    tensors = [_tensor(f"in:{name}", values) for name, values in given.items()]
    tensors += [_tensor(f"out:{name}", values) for name, values in outputs.items()]
    text = example if isinstance(example, str) else None
    return frames.Frame("run", tensors, {"text": text, "labels": list(result.labels), "turn": sample.turn})


def _tensor(name: str, values: Array) -> frames.Tensor:
    data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return frames.Tensor(name, str(values.dtype), tuple(values.shape), data)


def _size(example: Example) -> int:
    if isinstance(example, str):
        return len(example)
    return sum([values.nbytes for values in example.values()])


async def _hear(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """The header of the next frame, which has no tensors; {} when the process ended."""
    assert process.stdout is not None
    try:
        (length,) = struct.unpack(">I", await process.stdout.readexactly(4))
        if length > frames.HEADER:
            return {}
        told = json.loads(await process.stdout.readexactly(length))
    except (asyncio.IncompleteReadError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


async def _last_words(process: asyncio.subprocess.Process) -> str:
    """Its end is heard of a moment after that of its pipe."""
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), LAST)
    code = process.returncode
    return "its process ended" if code is None else f"its process ended with {code}"


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
