"""The model card: a Hugging Face model card with what evidence says. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from wire.evidence import Attempt, Decision, Evidence, Measurement
from wire.units import show_size

_PIPELINE_TAGS = {
    "text-classification": "text-classification",
    "token-classification": "token-classification",
    "sentence-embedding": "sentence-similarity",
    "image-classification": "image-classification",
    "text-generation": "text-generation",
}
"""The hub's names of tasks. Frames of sound and plain tensors have none."""


def card(evidence: Evidence, named: Mapping[str, str]) -> str:
    """YAML front matter with the results, then the same for people. `named` is family, name, version and profile."""
    front = _front(evidence, named)
    # JSON is YAML: one value per key, no writer of our own.
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()), "---", ""]
    lines += [f"# {named['name']} {named['version']} for {named['profile']}", ""]
    lines += [f"Recipe `{evidence.recipe}`, runtime {evidence.runtime}, precision {evidence.precision}.", ""]
    if evidence.compile_only:
        lines += [f"**Compile-only**: {evidence.runtime} was never seen working on {named['profile']}.", ""]
    lines += [told_decision(evidence.decision), ""]
    for part in (_figures(evidence), _attempts(evidence), _datasets(evidence), _sabotage(evidence)):
        lines += [*part, ""]
    return "\n".join(lines)


def told_decision(decision: Decision) -> str:
    """The paired comparison in a sentence."""
    return (
        f"Against its source, on the same {decision.n} examples, {decision.metric} drops by {decision.drop:.2f} points "
        f"({decision.confidence * 100:g} % interval {decision.low:.2f} to {decision.high:.2f}, at most "
        f"{decision.max_drop:g} allowed): {decision.outcome}. About {decision.needed} examples decide that question "
        f"when {decision.changed_planned * 100:.2g} % of the answers change."
    )


def told_value(m: Measurement) -> str:
    """A figure with its unit."""
    return show_size(m.value) if m.unit == "byte" else f"{m.value:.4g} {m.unit}"


def told_interval(m: Measurement) -> str:
    """The interval of a figure, or nothing."""
    return "" if m.low is None or m.high is None else f"{m.low:.4g} to {m.high:.4g}"


def doubts(m: Measurement) -> list[str]:
    """What may be wrong with a figure, in words."""
    return [str(doubt) for doubt in m.extra.get("doubts", ())]


def _front(evidence: Evidence, named: Mapping[str, str]) -> dict[str, Any]:
    tag = _PIPELINE_TAGS.get(evidence.task)
    results = list(_results(evidence))
    return {
        "library_name": evidence.runtime,
        **({"pipeline_tag": tag} if tag else {}),
        "tags": [
            *("shoal", evidence.task, evidence.precision, named["profile"]),
            *(["compile-only"] if evidence.compile_only else []),
        ],
        **({"model-index": [{"name": named["name"], "results": results}]} if results else {}),
    }


def _results(evidence: Evidence) -> Iterator[dict[str, Any]]:
    metric, dataset = evidence.get(evidence.decision.metric), evidence.dataset("test")
    if metric and dataset:
        yield {
            "task": {"type": evidence.task},
            "dataset": {"type": dataset.digest, "name": dataset.name, "split": "test"},
            "metrics": [{"type": metric.metric, "value": metric.value}],
        }


def _figures(evidence: Evidence) -> Iterator[str]:
    confidence = f"{evidence.decision.confidence * 100:g} % interval"
    yield from _head("metric", "value", confidence, "n", "how", "on", "runtime")
    for m in evidence.measurements:
        yield _row(m.metric, told_value(m), told_interval(m), m.n, m.kind, m.device, m.runtime)
    yield ""
    yield "`emulated`: on another machine than the profile's, with the same file."
    for doubt in sorted({f"{m.metric}: {doubt}" for m in evidence.measurements for doubt in doubts(m)}):
        yield f"Doubtful: {_cell(doubt)}."


def _attempts(evidence: Evidence) -> Iterator[str]:
    yield from _head("recipe tried", "outcome", "why")
    for a in evidence.attempts:
        rule = f" [{a.rule}]" if a.rule else ""
        yield _row(told_recipe(a), a.outcome, a.reason + rule)


def told_recipe(attempt: Attempt) -> str:
    """A recipe, and the groups of layers that stayed in float."""
    return f"{attempt.recipe} ({', '.join(attempt.kept_float)} in float)" if attempt.kept_float else attempt.recipe


def _datasets(evidence: Evidence) -> Iterator[str]:
    yield from _head("examples", "use", "rows", "licence", "digest")
    for d in evidence.datasets:
        yield _row(d.name, d.use, d.rows, d.licence, d.digest)


def _sabotage(evidence: Evidence) -> Iterator[str]:
    yield from _head("broken on purpose", "the golden set said", "the accuracy gate said")
    for s in evidence.sabotage:
        yield _row(s.name, s.golden, s.accuracy)


def _head(*names: str) -> list[str]:
    return [_row(*names), _row(*("---" for _ in names))]


def _row(*cells: object) -> str:
    return f"| {' | '.join(_cell(str(cell)) for cell in cells)} |"


def _cell(text: str) -> str:
    """Text of a tool in a table of Markdown: one line, no column or markup of its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
