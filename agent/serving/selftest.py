"""The self-test of a bundle, in a process of its own: an illegal instruction must not kill the agent.

`python -m agent.serving.selftest STORE DIGEST WORKERS` loads the bundle in the runtime that will serve it, runs every
golden case and prints one line of JSON: `{"fault": null, "load_ms": 310.2, "p50_ms": 1.4, "p99_ms": 2.0, "memory":
31000000}`; `fault` says in words what does not hold.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from agent.errors import AgentError, Incompatible
from agent.serving.bundles import Bundle, Loaded, load_model
from agent.serving.runtimes import import_runtime
from agent.settings import AgentSettings
from agent.store.blobs import Blobs
from wire.errors import WireError
from wire.life import ModelTest
from wire.messages import SlotReport
from wire.sketch import Sketch

LONGEST_FAULT: Final = 400
"""Characters of what does not hold, in the answer to a command."""


@dataclass(frozen=True)
class Outcome:
    """What the self-test found; times in milliseconds, None where it did not come so far.

    `memory`: bytes by which the process grew from before the model was loaded to after its golden set, the runtime's
    own library not among them where it is in the agent already: it stays when another model comes.
    """

    fault: str | None
    load_ms: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    memory: int = 0


def run_golden_set(bundle: Bundle, workers: Mapping[str, str]) -> Outcome:
    """Load the bundle and run its golden set in this process."""
    import_runtime(bundle.manifest.runtime)
    before, started = resident(), time.perf_counter()
    model = load_model(bundle, workers)
    load_ms = (time.perf_counter() - started) * 1000
    try:
        times, faults = _cases(model, bundle)
        memory = max(resident() - before, 0)
    finally:
        model.close()
    sketch = Sketch.of(times)
    words = f"{len(faults)} of {len(times)} golden cases do not hold: {faults[0]}" if faults else None
    return Outcome(words, load_ms, sketch.quantile(0.5), sketch.quantile(0.99), memory)


def resident() -> int:
    """Bytes in memory of this process and of a runtime's worker."""
    this = psutil.Process()
    return sum(process.memory_info().rss for process in (this, *this.children(recursive=True)))


def _cases(model: Loaded, bundle: Bundle) -> tuple[list[float], list[str]]:
    """Milliseconds of every golden case, and what does not hold."""
    from wire.processing import example_of, golden_fault  # noqa: PLC0415  numpy comes with a model, not with the agent

    times, faults = [], []
    for case in bundle.golden.cases:
        example = example_of(case)
        started = time.perf_counter()
        result = model.answer(example)
        times.append((time.perf_counter() - started) * 1000)
        fault = golden_fault(case, result, bundle.golden.max_abs)
        if fault is not None:
            faults.append(fault)
    return times, faults


async def self_test(
    store: Path,
    digest: str,
    timeout: float,  # noqa: ASYNC109  the child is killed at it
    workers: Mapping[str, str],
) -> Outcome:
    """Run it in a child process. Raises `Incompatible` when the golden set does not hold or the child dies."""
    arguments = [str(store), digest, json.dumps(dict(workers))]
    outcome = Outcome(**await in_child("self-test", "agent.serving.selftest", arguments, timeout))
    if outcome.fault is not None:
        raise Incompatible(f"self-test: {outcome.fault}")
    return outcome


async def tests_of(slots: Iterable[SlotReport], store: Path, settings: AgentSettings) -> tuple[ModelTest, ...]:
    """The active models, one after the other; what does not hold stands in the result."""
    return tuple(
        [
            await _test_of(slot, self_test(store, slot.digest, settings.selftest_timeout, settings.workers))
            for slot in slots
            if slot.slot == "active"
        ]
    )


async def _test_of(slot: SlotReport, test: Awaitable[Outcome]) -> ModelTest:
    try:
        outcome = await test
    except AgentError as e:
        return ModelTest(model=slot.model, digest=slot.digest, fault=str(e)[:LONGEST_FAULT])
    return ModelTest(
        model=slot.model,
        digest=slot.digest,
        load_ms=outcome.load_ms,
        p50_ms=outcome.p50_ms,
        p99_ms=outcome.p99_ms,
    )


async def in_child(
    what: str,
    module: str,
    arguments: Sequence[str],
    timeout: float,  # noqa: ASYNC109  as above
) -> dict[str, Any]:
    """The JSON object of the last line that a module prints, run as a process.

    Raises `Incompatible` when it does not start, dies, or says nothing of the kind.
    """
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", module, *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the agent: a child that died of it would speak against the bundle
        )
    except OSError as e:
        raise Incompatible(f"{what}: its process does not start: {e.strerror}") from e
    try:
        async with asyncio.timeout(timeout):
            said, complained = await child.communicate()
    except TimeoutError as e:
        raise Incompatible(f"{what}: no result within {timeout:.0f} s") from e
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _told(what, child.returncode or 0, said, complained)


def _told(what: str, code: int, said: bytes, complained: bytes) -> dict[str, Any]:
    if code < 0:
        raise Incompatible(f"{what}: the runtime died of {_signal(-code)} on this hardware")
    if code > 0:
        last = complained.decode(errors="replace").strip().splitlines() or ["no message"]
        raise Incompatible(f"{what}: its process ended with code {code}: {last[-1][:200]}")
    try:
        told = json.loads(said.splitlines()[-1])  # a runtime may print before it
    except (ValueError, IndexError):
        told = None
    if not isinstance(told, dict):
        raise Incompatible(f"{what}: its process ended without a result: {said[-200:].decode(errors='replace')!r}")
    return told


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def main() -> int:
    """Entry point of the child."""
    be_a_child()
    folder, digest, workers = sys.argv[1:]
    try:
        outcome = run_golden_set(Bundle.open(Blobs(Path(folder), min_free=0), digest), json.loads(workers))
    except (AgentError, WireError) as e:
        outcome = Outcome(str(e))
    sys.stdout.write(f"\n{json.dumps(asdict(outcome))}\n")
    return 0


def be_a_child() -> None:
    """Out of memory, the kernel ends this process and not the agent."""
    # systemd's SIGTERM goes to the whole control group: the agent decides what becomes of this process, and kills it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(main())
