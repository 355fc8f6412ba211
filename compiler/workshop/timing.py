"""Times variants against each other: one child with all of them loaded, in turns, while no other work runs.

    timed = time_variants(shop, variants, test_examples)      # Timed or Failed for each

A machine is faster in one minute than in the next, so variants take turns: every round each answers the same examples,
in an order that changes from round to round. A turn begins with one example that is not counted, because the variant
before left its own numbers in the processor's caches, and a device has one model at work. Times go from example to
answer: tokenizer, graph and activation, batch 1, one thread.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, TYPE_CHECKING, Any, ClassVar

from compiler.variant import Variant
from compiler.workshop.child import Lines
from compiler.workshop.children import Answer, Failed, Task
from compiler.workshop.machine import Moment
from compiler.workshop.score import Lying, Rows
from compiler.workshop.workshop import Workshop, memory_of
from wire.document import Document

if TYPE_CHECKING:
    from wire.processing import Example

SAMPLES, SECONDS = 200, 120.0
"""Times of each variant, and the seconds after which fewer must do."""
LEAST = 20
TURN = 4
"""Examples that count in one turn of a variant."""
WARM_UP = 3
"""Turns of every variant before anything counts: runtimes choose kernels and take memory on their first runs."""
OTHERS, SLOWER = 0.3, 1.15
"""Figures are in doubt where more processors are busy with other work, or late times exceed early ones by more."""
_LOAD_SECONDS = 300.0
"""How long loading and warming up may take on top of the seconds for timing."""


@dataclass(frozen=True)
class Timed:
    """Times in ms from example to answer. `doubts` say in words why they may not be the variant's own, if they may."""

    ms: tuple[float, ...]
    doubts: tuple[str, ...]

    @property
    def p50(self) -> float:
        """The median in ms."""
        return median(self.ms)


@dataclass(frozen=True, kw_only=True)
class TimeJob(Document):
    """Time variants on the same examples: `samples` of each, or at least `LEAST` where `seconds` do not allow it."""

    LIMIT: ClassVar[int] = 8 * 1024 * 1024

    variants: tuple[Lying, ...]
    examples: Rows
    samples: int
    seconds: float


def time_variants(
    shop: Workshop,
    variants: Sequence[Variant],
    examples: Path,
    *,
    rows: Sequence[int] | None = None,
    samples: int = SAMPLES,
    seconds: float = SECONDS,
) -> list[Timed | Failed]:
    """The times of each variant. `rows` picks examples of the file; `seconds` bounds the whole.

    A variant that crashes or hangs is `Failed`, and the others are timed again without it. Variants that do not fit
    into the shop's memory together are timed in groups, and the note says so.
    """
    asked = shop.rows(examples, rows)
    found: dict[int, Timed | Failed] = {}
    groups = _groups(variants, shop.memory)
    if len(groups) > 1:
        shop.note(f"{len(variants)} variants do not fit into the memory together: timed in {len(groups)} groups")
    for group in groups:
        share = seconds * len(group) / len(variants)
        found |= _time_group(shop, {i: variants[i] for i in group}, asked, samples, share)
    return [found[i] for i in range(len(variants))]


def time_all(question: IO[bytes], lines: Lines) -> Mapping[str, Any]:
    """The child: answer one question. Before each turn a line says whose it is: the last one when it crashes."""
    job = TimeJob.from_bytes(question.read())
    examples = _few(job.examples.read(), max(TURN, job.samples // 5))
    runs = []
    for at, variant in enumerate(job.variants):
        lines.write({"at": at})
        runs.append(variant.open())
    ms: list[list[float]] = [[] for _ in runs]
    rounds = -(-job.samples // TURN)
    shuffled = random.Random(0)  # noqa: S311  an order, not a secret
    before, started = Moment.now(), time.monotonic()
    for turn in range(-WARM_UP, rounds):
        if turn == 0:
            before, started = Moment.now(), time.monotonic()
        if turn * TURN >= LEAST and time.monotonic() - started > job.seconds:
            break
        for at in shuffled.sample(range(len(runs)), len(runs)):
            lines.write({"at": at, "done": max(turn, 0), "total": rounds})
            run = runs[at]
            run(examples[(turn * TURN - 1) % len(examples)])
            for i in range(turn * TURN, turn * TURN + TURN):
                example = examples[i % len(examples)]
                begun = time.perf_counter()
                run(example)
                if turn >= 0:
                    ms[at].append((time.perf_counter() - begun) * 1e3)
    after, spent = Moment.now(), time.monotonic() - started
    return {"ms": ms, "others": before.others(after, spent), "load": [before.load, after.load]}


def _time_group(
    shop: Workshop, variants: Mapping[int, Variant], examples: Rows, samples: int, seconds: float
) -> dict[int, Timed | Failed]:
    left, failed = dict(variants), dict[int, Failed]()
    while left:
        job = TimeJob(variants=tuple(map(Lying.of, left.values())), examples=examples, samples=samples, seconds=seconds)
        memory = sum(memory_of(v.model) for v in left.values())
        task = Task(f"timing {len(left)} variants", ("time",), job.to_bytes(), memory, _deadline(seconds, len(left)))
        ((_, ended),) = shop.run([task])
        if isinstance(ended, Answer):
            return {**failed, **_timed(shop, ended.facts, list(left))}
        if "at" not in ended.last:  # it never came to a variant: no other order would help
            return {**failed, **dict.fromkeys(left, ended)}
        culprit = list(left)[ended.last["at"]]
        failed[culprit] = Failed(f"timing {variants[culprit].folder.name}", ended.reason, ended.kind)
        del left[culprit]
    return dict(failed)


def _deadline(seconds: float, variants: int) -> float:
    return 2 * seconds + _LOAD_SECONDS * variants


def _timed(shop: Workshop, facts: Mapping[str, Any], order: Sequence[int]) -> dict[int, Timed]:
    doubts = tuple(_doubts(facts))
    for doubt in doubts:
        shop.note(doubt)
    return {i: Timed(tuple(ms), doubts) for i, ms in zip(order, facts["ms"], strict=True)}


def _doubts(facts: Mapping[str, Any]) -> Iterator[str]:
    others, load = facts["others"], facts["load"]
    if others > OTHERS:
        yield f"timed while other work ran: it took {others:.1f} processors, load {load[0]:.1f} to {load[1]:.1f}"
    slower = median(map(_slower, facts["ms"]))
    if slower > SLOWER:
        yield f"the machine slowed down by {100 * (slower - 1):.0f} % while it timed: it may have lowered its clock"


def _slower(ms: Sequence[float]) -> float:
    """How much longer the last third took than the first."""
    third = max(1, len(ms) // 3)
    return median(ms[-third:]) / median(ms[:third])


def _few(examples: Sequence[Example], n: int) -> Sequence[Example]:
    """Some from everywhere in the file. Each comes several times, so that early and late times are of the same ones."""
    return examples[:: max(1, len(examples) // n)][:n]


def _groups(variants: Sequence[Variant], memory: int) -> list[list[int]]:
    groups: list[list[int]] = []
    for i, variant in enumerate(variants):
        taken = sum(memory_of(variants[j].model) for j in groups[-1]) if groups else 0
        if groups and taken + memory_of(variant.model) <= memory:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
