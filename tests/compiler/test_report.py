"""What is told of a bundle: card, ML-BOM and page, from evidence made by hand with every outcome."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from evidence_of import DEVICE, DIGESTS, evidence, manifest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from compiler.report.bom import bom
from compiler.report.card import card
from compiler.report.page import page
from compiler.report.plot import Line, Point, frontier, scatter
from wire.evidence import Decision, Measurement

NAMED = {"family": "intents", "name": "home", "version": "1.0.0", "profile": "raspberry-pi-4"}
VOID = ("meta", "br")


class Parsed(HTMLParser):
    """The page as a browser reads it: its text, and what it asks for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


# --- card ---------------------------------------------------------------------------------------------------------


def test_the_card_is_read_by_the_hub_with_its_result() -> None:
    read = ModelCard(card(evidence(), NAMED))
    (result,) = read.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.9536, "held-out.jsonl")
    assert (read.data.pipeline_tag, read.data.library_name) == ("text-classification", "onnxruntime")


@pytest.mark.parametrize(
    ("task", "tag"),
    [
        ("sentence-embedding", "sentence-similarity"),
        ("image-classification", "image-classification"),
        ("audio-frames", None),
        ("tensors", None),
    ],
)
def test_the_card_names_a_task_as_the_hub_does_or_not_at_all(task: str, tag: str | None) -> None:
    assert ModelCard(card(evidence(task=task), NAMED)).data.pipeline_tag == tag


def test_every_table_of_the_card_has_as_many_cells_as_columns() -> None:
    """The attack: a reason with a column and markup of its own."""
    text = card(evidence(), NAMED)
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "<b>" not in text


def test_the_card_says_how_sure_the_decision_is() -> None:
    text = card(evidence(), NAMED)
    assert "accuracy drops by 0.24 points (95 % interval -0.16 to 0.64, at most 1 allowed): pass" in text


# --- ML-BOM -------------------------------------------------------------------------------------------------------


def test_the_bom_is_a_cyclonedx_document_whose_references_lead_somewhere() -> None:
    value = json.loads(bom(evidence(), manifest()))
    model = value["metadata"]["component"]
    assert (value["bomFormat"], value["specVersion"]) == ("CycloneDX", "1.6")
    assert (model["type"], model["group"], model["name"], model["version"]) == (
        *("machine-learning-model", "intents", "home", "1.0.0"),
    )
    assert model["hashes"] == [{"alg": "SHA-256", "content": DIGESTS[7].removeprefix("sha256:")}]
    everything = [model, *model["components"], *value["components"], *value["formulation"][0]["components"]]
    refs = [c["bom-ref"] for c in everything]
    assert len(refs) == len(set(refs))
    used = [d["ref"] for d in model["modelCard"]["modelParameters"]["datasets"]]
    assert {*used, *value["dependencies"][0]["dependsOn"], value["dependencies"][0]["ref"]} <= set(refs)


def test_the_bom_names_data_sets_with_their_licence_and_tools_that_are_there() -> None:
    value = json.loads(bom(evidence(), manifest()))
    assert [c.get("licenses") for c in value["components"]] == [[{"expression": "CC-BY-4.0"}], None]
    assert [c["name"] for c in value["formulation"][0]["components"]] == ["onnxruntime", "torch"]


def test_the_bom_has_no_time_and_the_same_bytes_for_the_same_evidence() -> None:
    first = bom(evidence(), manifest())
    assert first == bom(evidence(), manifest())
    assert b"timestamp" not in first
    assert first != bom(evidence(subject=DIGESTS[8]), manifest())


# --- page ---------------------------------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_and_runs_nothing() -> None:
    html = page([evidence()])
    parsed = Parsed(html)
    assert parsed.open == []
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "img", "iframe", "object", "form"}
    addresses = [v for _, attrs in parsed.tags for k, v in attrs.items() if k in ("src", "href", "action")]
    assert all(str(v).startswith("#") for v in addresses)
    assert not [k for _, attrs in parsed.tags for k in attrs if k.startswith("on")]
    assert not re.search(r"url\(|@import|https?:", html)


def test_what_comes_from_outside_is_text_on_the_page() -> None:
    """The attack: a label and a reason with markup."""
    parsed = Parsed(page([evidence()]))
    assert "<script>alert(1)</script>" in parsed.text
    assert "it crashed: <b>signal</b> | 11" in parsed.text


def test_the_page_says_what_was_tried_and_why_it_lost() -> None:
    record = evidence()
    text = " ".join(Parsed(page([record])).text.split())
    for attempt in record.attempts:
        assert attempt.reason in text
    assert "the profile has no tensorrt runtime" in text
    assert "litert-int8-dynamic (layer.0, head in float)" in text
    assert "LayerNorm \N{MULTIPLICATION SIGN} 13, Softmax \N{MULTIPLICATION SIGN} 6" in text
    assert "golden case 0: scores off by 0.9" in text
    assert "n = 1995 of about 2600" in text
    assert all(d.digest in text and d.licence in text for d in record.datasets)


def test_only_labels_that_changed_stand_in_the_open() -> None:
    html = page([evidence()])
    before, _, folded = html.partition("<details><summary>All 3 labels")
    assert "HassTurnOn" in before
    assert "HassGetState" not in before
    assert "HassGetState" in folded


def test_measured_and_emulated_latency_never_share_a_drawing() -> None:
    emulated, measured = evidence(), evidence("measured", "x86-64")
    mixed = replace(emulated, attempts=(*emulated.attempts[:3], *measured.attempts[3:]))
    drawings = re.findall(r'<figure class="(\w+)">(.*?)</figure>', page([mixed]), re.DOTALL)
    told = {kind: re.findall(r"<title>([\w-]+)", svg) for kind, svg in drawings if "median latency" in svg}
    assert told == {
        "measured": [a.recipe for a in mixed.attempts[3:8]],
        "emulated": [a.recipe for a in mixed.attempts[:3]],
    }
    assert [kind for kind, svg in drawings if f"on {DEVICE}" in svg] == ["measured", "emulated"]


def test_doubts_of_a_figure_and_an_unseen_runtime_are_told() -> None:
    record = evidence("measured", "x86-64")
    unseen = replace(record, compile_only=True)
    html = page([unseen])
    assert "other work took 12 % of the processor" in html
    assert "never seen working" in html
    assert "never seen working" not in page([record])
    named = {"family": "intents", "name": "home", "version": "1.0.0", "profile": "x86-64"}
    assert "never seen working on x86-64" in card(unseen, named)
    assert "Compile-only" not in card(record, named)
    told = {p["name"]: p["value"] for p in json.loads(bom(unseen, manifest()))["metadata"]["component"]["properties"]}
    assert told["shoal:seen-working"] == "false"


def test_what_devices_measured_stands_apart_from_what_the_build_emulated() -> None:
    record = evidence()
    taken = Measurement(
        metric="latency_p50", value=31.5, unit="ms", n=300, kind="measured", device="kitchen-1", runtime="litert 2.3.0"
    )
    text = " ".join(
        Parsed(page([record], {record.subject: [taken, replace(taken, kind="emulated", device="other")]})).text.split()
    )
    assert "Measured on devices" in text
    assert "31.5 ms" in text
    assert "kitchen-1" in text
    assert "other" not in text.partition("Measured on devices")[2].partition("Every figure")[0].split()
    assert "Measured on devices" not in page([record])


def test_agreement_is_shown_against_a_source_that_agrees_with_itself() -> None:
    decision = replace(evidence().decision, metric="agreement")
    figure = Measurement(metric="agreement", value=0.998, unit="fraction", n=50, kind="emulated")
    record = evidence(decision=decision, measurements=(figure,), classes=(), sabotage=(), attempts=())
    assert "source 1.0000" in " ".join(Parsed(page([record])).text.split())


# --- drawing ------------------------------------------------------------------------------------------------------

points = st.builds(
    Point,
    label=st.just("1"),
    title=st.just("t"),
    outcome=st.sampled_from(["chosen", "pass", "fail", "inconclusive"]),
    x=st.floats(1e-3, 1e9),
    y=st.floats(0, 100),
)


@given(st.lists(points, min_size=1, max_size=12))
def test_a_point_is_on_the_frontier_or_beaten_by_one_that_is(found: list[Point]) -> None:
    best = frontier(found)
    assert all(any(b.x <= p.x and b.y >= p.y for b in best) for p in found)
    assert not any(a.x <= b.x and a.y >= b.y for a in best for b in best if a is not b)


@given(st.lists(points, min_size=1, max_size=12), st.sampled_from([0.0, 1.0, 30.0]))
def test_every_point_is_drawn_inside_the_drawing(found: list[Point], max_drop: float) -> None:
    lines = [Line("source", 95.0), Line("limit", 95.0 - max_drop)]
    svg = scatter(found, lines, x="ms", y="accuracy", show="{:g}".format)
    places = [(float(x), float(y)) for x, y in re.findall(r'<g transform="translate\((\S+) (\S+)\)">', svg)]
    assert len(places) == len(found)
    assert all(0 < x < 420 and 0 < y < 300 for x, y in places)
    assert svg.count('class="grid"') >= 4


def test_a_decision_that_is_open_is_told_as_such() -> None:
    open_: Decision = replace(evidence().decision, outcome="inconclusive", high=1.4)
    assert '<span class="unsure">inconclusive</span>' in page([evidence(decision=open_)])
