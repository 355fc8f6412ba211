"""What the search decides: which candidates there are, which one serves, and what it says when none does."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from compiler_process import profile

from compiler.errors import Infeasible
from compiler.judge.figures import Where, answers, percentile, speed
from compiler.plan.candidates import Candidate, Plan, candidate, token_counts
from compiler.plan.recipes import RECIPES
from compiler.progress import Reporter
from compiler.search.choose import Times, Trial, attempt, choose, limit_fault
from compiler.sources.source import Source, Text
from wire.evidence import Decision, Outcome, Wanted
from wire.pipeline import TensorSpec

SOURCE = Source(
    kind="huggingface",
    place="model",
    digest="sha256:" + "0" * 64,
    size=1000,
    architecture="BertModel",
    task="text-classification",
    labels=("a", "b"),
    activation="softmax",
    inputs=(TensorSpec(name="input_ids", dtype="int64", shape=(1, -1)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, 2)),),
    text=Text(tokenizer=b"{}", max_length=128, inputs=("input_ids",)),
)
WANTED = Wanted(max_drop=1.0, max_ms=0.0, max_mb=0.0, minimise="latency", confidence=0.95)
WHERE = Where("emulated", "a board", "onnxruntime 1", 0.95)


def made(recipe: str) -> Candidate:
    return candidate(RECIPES[recipe], SOURCE, (32,), opset=17, ir=8)


def decision(outcome: Outcome, drop: float = 0.0) -> Decision:
    ends = {"pass": (-0.5, 0.5), "fail": (2.0, 9.0), "inconclusive": (-1.0, 3.0)}[outcome]
    return Decision(
        metric="accuracy",
        max_drop=1.0,
        confidence=0.95,
        n=100,
        needed=3000,
        changed_planned=0.04,
        changed=0.05,
        needed_seen=4321,
        drop=drop,
        low=ends[0],
        high=ends[1],
        outcome=outcome,
    )


def trial(recipe: str, outcome: Outcome = "pass", *, ms: float = 1.0, size: int = 1000, drop: float = 0.0) -> Trial:
    return Trial(
        made(recipe), size=size, footprint=size, decision=decision(outcome, drop), memory=size, times=Times((ms,) * 5)
    )


def plan_of(*trials: Trial) -> Plan:
    return Plan(profile(), tuple(t.candidate for t in trials), ())


def test_the_fastest_the_smallest_or_the_leanest_that_holds_is_chosen() -> None:
    fast, small = trial("litert-int8-dynamic", ms=1.0, size=900), trial("onnx-int4-weights", ms=2.0, size=500)
    broken = trial("onnx-int8-static", "fail", ms=0.1, size=100)
    trials = (broken, fast, small)
    plan = plan_of(*trials)
    assert choose(plan, trials, WANTED) is fast
    assert choose(plan, trials, replace(WANTED, minimise="size")) is small
    lean = replace(fast, memory=1)
    assert choose(plan, (lean, small), replace(WANTED, minimise="memory")) is lean


def test_an_undecided_candidate_is_never_chosen() -> None:
    undecided, slow = trial("litert-int8-dynamic", "inconclusive", ms=0.1), trial("onnx-fp32", ms=9.0)
    assert choose(plan_of(undecided, slow), (undecided, slow), WANTED) is slow


def test_a_limit_rules_out_what_would_be_best() -> None:
    fast, small = trial("litert-int8-dynamic", ms=1.0, size=2_000_000), trial("onnx-fp32", ms=5.0, size=500_000)
    plan = plan_of(fast, small)
    assert choose(plan, (fast, small), replace(WANTED, max_mb=1.0)) is small
    assert limit_fault(small, plan, replace(WANTED, max_ms=4.0)) == (
        "its median answer takes 5.00 ms emulated on this machine, at most 4 are allowed"
    )


def test_a_latency_is_called_emulated_unless_machine_and_runtime_are_the_profiles_own() -> None:
    best, engine = trial("onnx-int8-dynamic"), trial("tensorrt-fp16", ms=9.0)
    other, wanted = plan_of(best, engine), replace(WANTED, max_ms=4.0)
    here = replace(other, here=True)
    assert attempt(best, best, here, wanted).reason == "holds every limit, that of 4 ms, with the smallest latency"
    assert "that of 4 ms emulated on this machine" in attempt(best, best, other, wanted).reason
    assert attempt(best, best, other, WANTED).reason == "holds every limit with the smallest latency"
    assert "takes 9.00 ms emulated on this machine" in attempt(engine, best, here, wanted).reason


def test_when_none_holds_the_three_nearest_are_told_with_what_would_decide() -> None:
    trials = (
        trial("onnx-int8-static", "fail", drop=60.0),
        trial("onnx-int8-dynamic", "inconclusive", drop=0.9),
        trial("litert-int8-dynamic", "inconclusive", drop=0.2, ms=1.5, size=2_000_000),
        trial("onnx-int4-weights", "fail", drop=3.0),
        Trial(made("litert-fp32"), fault="it crashed"),
    )
    with pytest.raises(Infeasible) as told:
        choose(plan_of(*trials), trials, WANTED)
    message = str(told.value)
    assert message.startswith("profile board: none of 5 candidates holds every limit; the nearest:\n  litert-int8-")
    assert "litert-int8-dynamic (2.00 MB, p50 1.50 ms): accuracy drops by 0.20 points" in message
    assert message.index("litert-int8-dynamic") < message.index("onnx-int8-dynamic") < message.index("onnx-int4")
    assert message.count("5 % of the answers changed, and then about 4321 show") == 2
    assert "onnx-int8-static" not in message


def test_when_nothing_even_runs_the_reasons_are_told() -> None:
    broken = Trial(made("onnx-fp32"), fault="onnx.export: out of memory")
    with pytest.raises(Infeasible, match=r"none runs:\n  onnx-fp32 onnx\.export: out of memory"):
        choose(plan_of(broken), (broken,), WANTED)


def test_evidence_says_of_each_attempt_why_it_lost() -> None:
    best, other = trial("litert-int8-dynamic", ms=1.0), trial("onnx-fp32", ms=5.0)
    mixed = replace(trial("onnx-int8-static", "fail"), candidate=made("onnx-int8-static").keeping(["head"]))
    broken = Trial(made("onnx-fp16"), fault="crashed (SIGILL)")
    plan = plan_of(best, other)
    told = {a.recipe: a for a in (attempt(t, best, plan, WANTED) for t in (best, other, mixed, broken))}
    assert {name: a.outcome for name, a in told.items()} == {
        "litert-int8-dynamic": "chosen",
        "onnx-fp32": "pass",
        "onnx-int8-static": "fail",
        "onnx-fp16": "broken",
    }
    assert told["onnx-fp32"].reason == "5.00 ms, litert-int8-dynamic takes 1.00"
    assert told["onnx-int8-static"].kept_float == ("head",)
    assert told["onnx-fp16"].reason == "crashed (SIGILL)"


def test_candidates_that_differ_in_what_stays_float_are_others_of_one_kind() -> None:
    base = made("onnx-int8-dynamic")
    mixed = base.keeping(["layer.0", "head"])
    assert mixed.key != base.key
    assert mixed.unmixed == base.unmixed
    assert mixed.name == "onnx-int8-dynamic with layer.0, head in float"
    assert base.pooled("cls").passes[0].parameters == {"opset": 17, "ir": 8, "pooling": "cls"}
    assert made("litert-fp32").key != made("tflite-fp32").key


def test_only_graphs_without_dynamic_shapes_have_lengths() -> None:
    assert made("onnx-fp32").lengths == ()
    assert made("litert-int8-static").lengths == (32,)
    assert made("litert-int8-static").passes[0].parameters == {"lengths": [32]}


def test_a_pruned_recipe_says_its_share_to_the_first_pass_alone() -> None:
    first, *rest = (p.parameters for p in made("onnx-int8-dynamic-half").passes)
    assert first == {"opset": 17, "ir": 8, "keep": 0.5}
    assert not [p for p in rest if "keep" in p]
    assert made("litert-int8-dynamic-half").passes[0].parameters == {"lengths": [32], "keep": 0.5}
    assert made("litert-int8-dynamic-quarter").passes[0].parameters == {"lengths": [32], "keep": 0.25}
    assert made("onnx-int8-dynamic-half").key != made("onnx-int8-dynamic").key


@pytest.mark.parametrize(("longest", "last"), [(5, 16), (17, 64), (60, 128), (400, 128)])
def test_lengths_leave_room_for_texts_twice_as_long_and_none_for_more_than_the_source_takes(
    longest: int, last: int
) -> None:
    counts = token_counts(128, longest)
    assert counts[-1] == last
    assert list(counts) == sorted(set(counts))


def test_figures_carry_their_interval_n_device_and_runtime() -> None:
    accuracy, source, drop = answers(decision("pass"), [1.0] * 90 + [0.0] * 10, [1.0] * 100, WHERE)
    assert (accuracy.metric, source.metric, drop.metric) == ("accuracy", "source_accuracy", "drop")
    assert (round(accuracy.low or 0, 4), round(accuracy.high or 0, 4)) == (0.8256, 0.9448)  # Wilson
    assert (source.low or 1) < source.value == source.high == 1.0
    assert (accuracy.n, accuracy.device, accuracy.runtime, accuracy.kind) == (
        100,
        "a board",
        "onnxruntime 1",
        "emulated",
    )


def test_a_percentile_was_seen_and_its_interval_holds_it() -> None:
    ms = [float(i) for i in range(1, 201)]
    p50, p99 = speed(ms, ["other work ran"], WHERE)
    assert (p50.value, p99.value) == (percentile(ms, 50), percentile(ms, 99)) == (100.0, 198.0)
    assert (p50.low or 0) < p50.value < (p50.high or 0)
    assert (p99.low or 0) < p99.value <= (p99.high or 0)
    assert p50.extra == {"doubts": ["other work ran"]}


def test_progress_counts_what_ends_within_a_stage_and_estimates_the_rest() -> None:
    lines = Lines()
    report = Reporter(lines, total=4)  # type: ignore[arg-type]  it only writes
    with report.stage("making", 3):
        for name in ("one", "two", "three", "four"):
            report.tick(name)
    report.step("packing")
    told = [(line["message"], line["done"]) for line in lines.parsed]
    assert told == [("making", 0), ("one", 1), ("two", 2), ("three", 2), ("four", 2), ("packing", 3)]
    assert lines.parsed[-1]["seconds_left"] >= 0


class Lines:
    def __init__(self) -> None:
        self.parsed: list[dict[str, object]] = []

    def write(self, data: bytes) -> None:
        self.parsed.append(json.loads(data))
