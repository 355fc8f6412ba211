"""The figures of a compile as measurements, and the model card that quotes them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from compiler.gates import Accuracy
from wire.evidence import Evidence, Kind, Measurement
from wire.units import show_size


def measurements(
    *, variant: Accuracy, source: Accuracy, ms: Sequence[float], size: int, source_size: int, kind: Kind
) -> tuple[Measurement, ...]:
    """What is known of a variant. Sizes are exact on any machine; the rest is of `kind`."""
    return (
        _fraction("accuracy", variant, kind),
        _fraction("source_accuracy", source, kind),
        *(
            Measurement(
                metric=f"latency_p{p}",
                value=percentile(ms, p),
                unit="ms",
                n=len(ms),
                kind=kind,
                extra={"clock": "text to scores"},
            )
            for p in (50, 99)
        ),
        Measurement(metric="size", value=float(size), unit="byte", n=1, kind="measured"),
        Measurement(metric="source_size", value=float(source_size), unit="byte", n=1, kind="measured"),
    )


def percentile(values: Sequence[float], p: float) -> float:
    """The nearest-rank percentile: a value that was really seen."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(p) // 100) - 1)]


def card(evidence: Evidence, named: Mapping[str, str]) -> str:
    """A Hugging Face model card: YAML front matter with the results, then the same for people."""
    accuracy = evidence.get("accuracy")
    dataset = evidence.dataset
    front = {
        "library_name": evidence.runtime,
        "pipeline_tag": "text-classification",
        "tags": ["shoal", evidence.precision, named["profile"]],
        "model-index": [
            {
                "name": named["name"],
                "results": [
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {"type": dataset["digest"], "name": dataset["name"], "split": "test"},
                        "metrics": [{"type": "accuracy", "value": accuracy.value}] if accuracy else [],
                    }
                ],
            }
        ],
    }
    # JSON is YAML: one value per key, no writer of our own.
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()), "---", ""]
    lines += [f"# {named['name']} {named['version']} for {named['profile']}", ""]
    lines += [f"Recipe `{evidence.recipe}`, runtime {evidence.runtime}, precision {evidence.precision}.", ""]
    lines += ["| metric | value | 95 % interval | n | how |", "| --- | --- | --- | --- | --- |"]
    lines += [_line(m) for m in evidence.measurements]
    lines += [
        "",
        f"Taken on {evidence.device}. `emulated`: on another machine than the profile's, with the same file.",
        "",
    ]
    lines += ["| recipe tried | outcome | why |", "| --- | --- | --- |"]
    lines += [f"| {a.recipe} | {a.outcome} | {_cell(a.reason)} |" for a in evidence.attempts]
    return "\n".join(lines) + "\n"


def _fraction(metric: str, found: Accuracy, kind: Kind) -> Measurement:
    low, high = found.interval
    return Measurement(metric=metric, value=found.value, unit="fraction", n=found.n, kind=kind, low=low, high=high)


def _cell(text: str) -> str:
    """Text of a tool in a table of Markdown: one line, no column of its own."""
    return " ".join(text.split()).replace("|", "\\|")


def _line(m: Measurement) -> str:
    value = show_size(m.value) if m.unit == "byte" else f"{m.value:.4g} {m.unit}"
    interval = "" if m.low is None or m.high is None else f"{m.low:.4g} to {m.high:.4g}"
    return f"| {m.metric} | {value} | {interval} | {m.n} | {m.kind} |"
