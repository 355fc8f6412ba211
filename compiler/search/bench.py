"""Makes candidates, has them answer the test examples, and compares them with the source: each once in a build.

bench.try_all(candidates)        # a Trial for each
bench.timed(trials)              # the same with their times, of one interleaved run
"""

# ruff: noqa: PLC0415  numpy comes with what is imported late: a cached build must not wait for it
from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import CompilerError, Incompatible, Malformed, Unavailable
from compiler.inputs import Inputs
from compiler.plan.candidates import Candidate, references, token_counts
from compiler.progress import Reporter
from compiler.search.choose import Times, Trial
from compiler.variant import GOLDEN, LINEAGE, Around, Variant, device_tokenizer, lay_out, pipeline_of
from compiler.workshop.cache import tool_versions
from compiler.workshop.children import Failed
from compiler.workshop.workshop import Product, Scored, Workshop
from wire.build import BuildJob
from wire.chunks import AVERAGE, WHOLE
from wire.document import dump_json
from wire.evidence import ClassChange, Decision
from wire.lineage import Lineage

if TYPE_CHECKING:
    from compiler.workshop.timing import Timed
    from wire.processing import Result

_CHUNK_ENTRY = 110
"""Bytes that one chunk takes in a chunk list."""
_FAULTS: dict[str, type[CompilerError]] = {"Malformed": Malformed, "Incompatible": Incompatible}


@dataclass(frozen=True)
class Reference:
    """The source itself: the graph that stands for it, its answers and their values by the metric."""

    candidate: Candidate
    results: tuple[Result, ...]
    metric: str
    values: tuple[float, ...]


@dataclass
class Bench:
    """The candidates of one build. `scratch` is a folder for variants."""

    inputs: Inputs
    job: BuildJob
    shop: Workshop
    report: Reporter
    scratch: Path
    _variants: dict[str, Variant] = field(default_factory=dict)
    _trials: dict[str, Trial] = field(default_factory=dict)
    _values: dict[str, tuple[float, ...]] = field(default_factory=dict)
    _held: dict[str, tuple[Result, ...]] = field(default_factory=dict)

    # --- the source -------------------------------------------------------------------------------------------

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Token counts of graphs without dynamic shapes; () for a source that takes no text."""
        source = self.inputs.source
        if not source.text:
            return ()
        from compiler.bundle.tokenizer import DeviceTokenizer

        made = device_tokenizer(source)
        assert made is not None
        device = DeviceTokenizer(made.data, made.tokenizer(source.text.max_length))
        return token_counts(source.text.max_length, max(len(device.row(text)) for text in self._texts))

    def check_tokenizer(self) -> None:
        """Raises `Incompatible` when the device reads a text otherwise than the source does."""
        from compiler.bundle import tokenizer

        source = self.inputs.source
        made = device_tokenizer(source)
        if made and source.text:
            by_word = source.task == "token-classification"
            texts = [*tokenizer.HARD_TEXTS, *self._texts]
            tokenizer.check_parity(source.text.tokenizer, made, texts, by_word=by_word)

    @property
    def _texts(self) -> list[str]:
        return [row.example for row in self.inputs.test.rows if isinstance(row.example, str)]

    def ahead(self, candidates: Sequence[Candidate]) -> None:
        """Make and ask the source's graph and all candidates at once; `reference` and `try_all` find it in the cache.

        One after the other, the source alone would keep the other processors waiting.
        """
        wanted = [self._references[0], *candidates]
        products = self.shop.make([c.passes for c in wanted])
        made = {c.key: (c, p) for c, p in zip(wanted, products, strict=True) if isinstance(p, Product)}
        if wanted[0].key in made:
            self._ask(*zip(*made.values(), strict=True))

    @property
    def _references(self) -> list[Candidate]:
        return references(self.inputs.source, self.lengths, self.job.workers.keys())

    @cached_property
    def reference(self) -> Reference:
        """Made and asked at the first use. Raises a `CompilerError` when nothing can stand for the source."""
        from compiler.judge import metrics

        faults: list[Failed] = []
        for candidate in self._references:
            (made,) = self.shop.make([candidate.passes])
            scored = made if isinstance(made, Failed) else self._ask([candidate], [made])[0]
            if isinstance(scored, Failed):
                faults.append(scored)
                continue
            rows = self.inputs.test.rows
            values = tuple(metrics.values(scored.results, rows, scored.results))
            return Reference(candidate, scored.results, metrics.name(rows), values)
        # The first way is the usual one: what is wrong with the source is said there best.
        raise _error(self.inputs.source.place, faults[0])

    # --- candidates -------------------------------------------------------------------------------------------

    def try_all(self, candidates: Sequence[Candidate]) -> list[Trial]:
        """Make, ask and judge; what several ask for once."""
        new = list({c.key: c for c in candidates if c.key not in self._trials}.values())
        products = self.shop.make([c.passes for c in new])
        made = [(c, p) for c, p in zip(new, products, strict=True) if isinstance(p, Product)]
        scored = dict(zip((c.key for c, _ in made), self._ask(*zip(*made, strict=True)) if made else [], strict=True))
        for candidate, product in zip(new, products, strict=True):
            found = product if isinstance(product, Failed) else scored[candidate.key]
            self._trials[candidate.key] = self._judge(candidate, found)
        return [self._trials[c.key] for c in candidates]

    def steps(self, candidates: Sequence[Candidate]) -> int:
        """How many passes and askings there are in `ahead`, what the cache holds included."""
        wanted = [self._references[0], *candidates]
        beginnings = {
            dump_json([p.to_value() for p in c.passes[: n + 1]]) for c in wanted for n in range(len(c.passes))
        }
        return len(beginnings) + len({c.key for c in wanted})

    def answers(self, candidates: Sequence[Candidate], rows: Sequence[int]) -> list[tuple[Result, ...] | Failed]:
        """What candidates answer to some of the test examples; they are made for it, and not judged."""
        products = self.shop.make([c.passes for c in candidates])
        found: list[tuple[Result, ...] | Failed] = []
        made = [(c, p) for c, p in zip(candidates, products, strict=True) if isinstance(p, Product)]
        scored = iter(self.shop.score([self._lay_out(c, p) for c, p in made], self.inputs.test_path, rows=rows))
        for product in products:
            answer = product if isinstance(product, Failed) else next(scored)
            found.append(answer if isinstance(answer, Failed) else answer.results)
        return found

    def results(
        self, variants: Sequence[Variant], rows: Sequence[int] | None = None, *, fresh: bool = False
    ) -> list[tuple[Result, ...]]:
        """What variants answer to test examples; `fresh`: now, in a process of their own. Raises `CompilerError`."""
        scored = self.shop.score(variants, self.inputs.test_path, rows=rows, fresh=fresh)
        for variant, found in zip(variants, scored, strict=True):
            if isinstance(found, Failed):
                raise _error(f"variant {variant.folder.name}", found)
        return [found.results for found in scored if isinstance(found, Scored)]

    def timed(self, trials: Sequence[Trial], *, samples: int) -> list[Trial]:
        """The same trials with their times. One that does not run when it is timed is broken."""
        from compiler.workshop.timing import time_variants

        running = [t for t in trials if t.decision]
        variants = [self.variant(t.candidate) for t in running]
        times = time_variants(self.shop, variants, self.inputs.test_path, samples=samples) if variants else []
        by_key = {t.candidate.key: found for t, found in zip(running, times, strict=True)}
        return [_with_times(t, by_key.get(t.candidate.key)) for t in trials]

    def product(self, candidate: Candidate) -> Path:
        """The file of a candidate that is not to be judged. Raises what kept it from being made."""
        (made,) = self.shop.make([candidate.passes])
        if isinstance(made, Failed):
            raise _error(f"recipe {candidate.name}", made)
        return made.path

    def decide(self, results: Sequence[Result]) -> Decision:
        """The paired comparison of answers to all test examples with those of the source."""
        from compiler.judge import metrics, paired

        reference, job = self.reference, self.job
        values = metrics.values(results, self.inputs.test.rows, reference.results)
        return paired.decide(reference.values, values, job.max_drop, job.confidence, reference.metric)

    @property
    def decidable(self) -> bool:
        """Whether there are examples enough to accept a variant that answers exactly as the source does."""
        return self.decide(self.reference.results).outcome == "pass"

    def classes(self, candidate: Candidate) -> tuple[ClassChange, ...]:
        """What changed for each label."""
        from compiler.judge import metrics

        return metrics.class_changes(self.reference.results, self.held(candidate), self.inputs.test.rows)

    def held(self, candidate: Candidate) -> tuple[Result, ...]:
        """The answers to all test examples of a candidate that holds the accuracy."""
        return self._held[candidate.key]

    def variant(self, candidate: Candidate) -> Variant:
        """Where a candidate that was tried lies."""
        return self._variants[candidate.key]

    def values(self, candidate: Candidate) -> tuple[float, ...]:
        """The metric's value for each test example of a candidate that was tried."""
        return self._values[candidate.key]

    def around(self, candidate: Candidate) -> Around:
        """What stands around a candidate's graph."""
        return pipeline_of(self.inputs.source, candidate.recipe.runtime, candidate.lengths)

    def _judge(self, candidate: Candidate, found: Scored | Failed) -> Trial:
        from compiler.judge import metrics

        if isinstance(found, Failed):
            return Trial(candidate, fault=f"{found.name}: {found.reason}")
        reference, rows = self.reference, self.inputs.test.rows
        values = tuple(metrics.values(found.results, rows, reference.results))
        self._values[candidate.key] = values
        variant = self.variant(candidate)
        try:
            complete(variant.folder, self.inputs, candidate, found.results)
        except Incompatible as e:
            return Trial(candidate, fault=str(e))
        decision = self.decide(found.results)
        if decision.outcome == "pass":
            self._held[candidate.key] = found.results
        return Trial(
            candidate,
            size=variant.model.stat().st_size,
            footprint=footprint(variant.folder),
            decision=decision,
            memory=found.memory,
            runtime=found.runtime,
            fell_back=found.fell_back,
        )

    def _ask(self, candidates: Sequence[Candidate], products: Sequence[Product]) -> list[Scored | Failed]:
        """The answers of candidates to all test examples."""
        variants = [self._lay_out(c, p) for c, p in zip(candidates, products, strict=True)]
        return self.shop.score(variants, self.inputs.test_path, precisions=[c.recipe.precision for c in candidates])

    def _lay_out(self, candidate: Candidate, made: Product) -> Variant:
        if candidate.key not in self._variants:
            recipe = candidate.recipe
            folder = self.scratch / f"{recipe.name}-{len(self._variants)}"
            lay_out(folder, made.path, recipe.runtime, self.around(candidate))
            self._variants[candidate.key] = Variant(folder, recipe.runtime, self.job.workers.get(recipe.runtime))
        return self._variants[candidate.key]


def complete(folder: Path, inputs: Inputs, candidate: Candidate, results: Sequence[Result]) -> None:
    """Add what a bundle has besides: the golden set, of the variant's `results` for all test examples, and lineage.

    Raises `Incompatible` for results of which there is none: NaN, or nothing but zeros.
    """
    from compiler.judge import gates

    golden = gates.golden_set(inputs.test.rows, results, candidate.recipe.tolerance)
    (folder / GOLDEN).write_bytes(golden.to_bytes())
    (folder / LINEAGE).write_bytes(lineage(inputs, candidate).to_bytes())


def lineage(inputs: Inputs, candidate: Candidate) -> Lineage:
    """What a candidate is made of."""
    source = inputs.source
    return Lineage(
        source=source.digest,
        source_kind=source.kind,
        architecture=source.architecture,
        recipe=candidate.recipe.name,
        passes=candidate.passes,
        datasets=inputs.datasets(candidate),
        tools=tool_versions(),
        machine=platform.machine(),
    )


def footprint(folder: Path) -> int:
    """Bytes of everything that a device stores of a variant: the files, and the chunk lists of the large ones."""
    sizes = [path.stat().st_size for path in folder.iterdir()]
    return sum(sizes) + sum(n // AVERAGE * _CHUNK_ENTRY for n in sizes if n > WHOLE)


def _with_times(trial: Trial, found: Timed | Failed | None) -> Trial:
    if found is None:
        return trial
    if isinstance(found, Failed):
        return Trial(trial.candidate, fault=f"{found.name}: {found.reason}")
    return replace(trial, times=Times(found.ms, found.doubts))


def _error(what: str, failed: Failed) -> CompilerError:
    """What failed in a child, as the error that it was."""
    message = failed.reason if what in failed.reason else f"{what}: {failed.name}: {failed.reason}"
    return _FAULTS.get(failed.kind, Unavailable)(message)
