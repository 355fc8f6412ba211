"""Proves what was chosen: a fresh process repeats its golden set, and both gates refuse the saboteurs.

A saboteur is the chosen variant broken on purpose: its weights scrambled, its labels shifted by one, its tokens pooled
in another way. It goes through the very functions that judged the candidates, on the same examples. A gate that can see
the fault and lets it pass proves nothing of the others: the build fails.
"""

# ruff: noqa: PLC0415  numpy comes with what is imported late: a cached build must not wait for it
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from compiler.errors import Untrusted
from compiler.search.bench import Bench
from compiler.search.choose import Trial
from compiler.sources.source import Source
from compiler.variant import GOLDEN, LABELS, LINEAGE, Variant, lay_out, link
from wire.evidence import Sabotage
from wire.pipeline import Golden, Labels
from wire.processing import Result

WEIGHTS = (1, 2, 4)
"""How many of the largest weights are scrambled: more where a model answers as before without one of them."""


def prove(trial: Trial, bench: Bench) -> tuple[Sabotage, ...]:
    """What each gate said of each saboteur. Raises `Untrusted` when a gate is blind, or a fresh process disagrees."""
    variant = bench.variant(trial.candidate)
    golden = Golden.from_bytes((variant.folder / GOLDEN).read_bytes())
    gate = Gate(bench, golden, _places(golden, bench))
    gate.repeat(variant)
    return (_scrambled(variant, gate), *_others(trial, variant, gate))


def ahead(trials: Iterable[Trial], bench: Bench) -> None:
    """Make at once what the proofs of several will need: each export of a source takes a processor for itself."""
    pooling = _other_pooling(bench.inputs.source)
    if pooling:
        bench.shop.make([t.candidate.pooled(pooling).passes for t in trials])


@dataclass(frozen=True)
class Gate:
    """Both gates, for the golden set of one variant; `places` are its cases among the test examples."""

    bench: Bench
    golden: Golden
    places: tuple[int, ...]

    def repeat(self, variant: Variant) -> None:
        """Raises `Untrusted` when a fresh process does not give the variant's own golden set again."""
        from compiler.judge import gates

        (again,) = self.bench.results([variant], self.places, fresh=True)
        fault = gates.golden_set_fault(self.golden, again)
        if fault:
            raise Untrusted(f"variant {variant.folder.name}: it does not repeat its own answers: {fault}")

    def ask(self, named: Mapping[str, Variant]) -> tuple[Sabotage, ...]:
        """What both say of saboteurs by name. Raises `Untrusted` when one of them is silent."""
        answers = self.bench.results(list(named.values()))
        return tuple(self.verdicts(name, found) for name, found in zip(named, answers, strict=True))

    def verdicts(self, name: str, answers: Sequence[Result]) -> Sabotage:
        """What both say of a saboteur by its answers to all test examples. Raises `Untrusted` as `ask` does."""
        from compiler.judge import gates

        return gates.saboteur_verdicts(name, self.golden, [answers[i] for i in self.places], self.bench.decide(answers))

    def sees(self, answers: Sequence[Result]) -> bool:
        """Whether these answers to all test examples are worse for certain: an undecided copy may be a sound one."""
        return self.bench.decide(answers).outcome == "fail"


def _places(golden: Golden, bench: Bench) -> tuple[int, ...]:
    from compiler.judge import gates

    places = gates.golden_places(bench.inputs.test.rows)
    return tuple(places[: len(golden.cases)])


def _scrambled(variant: Variant, gate: Gate) -> Sabotage:
    """As few weights as the accuracy gate is sure of: a copy that may be as good as the variant would prove nothing.

    The golden set is given no second chance: what accuracy refuses, it has to refuse as well.
    """
    for count in WEIGHTS:
        (answers,) = gate.bench.results([_scramble(variant, count)])
        if gate.sees(answers):
            break
    return gate.verdicts(f"scrambled weights (largest {count})", answers)


def _scramble(variant: Variant, count: int) -> Variant:
    from compiler.judge import sabotage

    broken = _copy(variant, f"scrambled-{count}")
    sabotage.scramble_file(variant.model, broken.model, count)
    return broken


def _others(trial: Trial, variant: Variant, gate: Gate) -> tuple[Sabotage, ...]:
    """Shifted labels, where there are some to shift, and the wrong pooling, where the source pools."""
    from compiler.judge import sabotage

    source = gate.bench.inputs.source
    broken: dict[str, Variant] = {}
    if len(source.labels) > 1:
        shifted = broken["shifted labels"] = _copy(variant, "shifted")
        link(variant.model, shifted.model)
        (shifted.folder / LABELS).unlink()  # a link: what lies in the variant must not change
        (shifted.folder / LABELS).write_bytes(Labels(labels=sabotage.shift_labels(source.labels)).to_bytes())
    pooling = _other_pooling(source)
    if pooling:
        broken["wrong pooling"] = _pooled(trial, variant, pooling, gate.bench)
    return gate.ask(broken) if broken else ()


def _other_pooling(source: Source) -> str | None:
    """One that the source does not use; None where it does not pool."""
    pooling = source.huggingface.pooling if source.huggingface else None
    return pooling and {"mean": "cls", "cls": "mean"}[pooling]


def _copy(variant: Variant, name: str) -> Variant:
    """Everything of a variant but its model."""
    folder = variant.folder.with_name(f"{variant.folder.name}-{name}")
    folder.mkdir()
    for path in variant.folder.iterdir():
        if path != variant.model and path.name not in (GOLDEN, LINEAGE):
            link(path, folder / path.name)
    return Variant(folder, variant.runtime, variant.worker)


def _pooled(trial: Trial, variant: Variant, pooling: str, bench: Bench) -> Variant:
    """The variant through all its passes again, of a source that pools otherwise."""
    candidate = trial.candidate.pooled(pooling)
    folder = variant.folder.with_name(f"{variant.folder.name}-pooled")
    lay_out(folder, bench.product(candidate), variant.runtime, bench.around(candidate))
    return Variant(folder, variant.runtime, variant.worker)
