"""The laws of every format: what is read can be written, what is not known is kept, and no bytes do anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from compiler_process import profile
from hypothesis import given
from hypothesis import strategies as st

from wire import delta, kit, ledger, life, messages, orders
from wire.agreement import Agreement
from wire.build import BuildJob, Data, Progress
from wire.bundle import BundleConfig, BundleFile, BundleManifest
from wire.chunks import WHOLE, ChunkList, ChunkRef, digest
from wire.document import Document
from wire.errors import Malformed, WireError
from wire.evidence import Attempt, ClassChange, Decision, Evidence, Measurement, Sabotage, Wanted
from wire.lineage import Dataset, Lineage, PassRecord
from wire.pipeline import Audio, Calibration, Golden, GoldenCase, Image, Labels, Pipeline, Tensor, TensorSpec, Tokenizer
from wire.processing import Result, golden_fault, to_tensor
from wire.profile import Profile
from wire.secrecy import KeyRing
from wire.shadow import ShadowModel, ShadowReport
from wire.signing import release_role
from wire.sketch import LAST, Histogram, Sketch

DIGEST, TARGET, TIME = digest(b"x"), "models/home/tiny/1.0.0/board", "2026-11-22T08:00:00.000Z"
STATS = messages.InferenceStats(
    model="tiny", digest=DIGEST, requests=3, errors=1, latency_ms=Sketch.of([1.0, 2.5]),
    confidence=Histogram.of([0.2, 1.0]), labels={"on": 2},
    agreement=(Agreement(stratum=10, answers=2, checked=1),), routes={"local sure": 1},
)  # fmt: skip
STATE = messages.MachineState(at=TIME, throttled=False, throttle_bits=5, cpu_mhz=600.0, power="battery")
HEALTH = messages.Health(
    cpu_percent=1.5, memory_used=1, memory_total=2, agent_memory=1, disk_free=1, disk_total=2, temperature_c=40.5,
    machine=STATE, line=life.LineState(rtt_ms=12.5, rtt_worst_ms=90.0, reconnects=2), restarts={"watchdog": 1},
    uptime_s=60.5, clock_offset_s=-0.5, golden={DIGEST: True},
)  # fmt: skip
TIMING = messages.Timing(
    runtime="r 1", rounds=3, n=3, p50_ms=1.5, p50_low=1.0, p50_high=2.0, p99_ms=2.0, p99_low=1.5, p99_high=2.5,
    confidence=0.95, load_ms=3.5, memory=1, before=STATE, after=STATE,
)  # fmt: skip

SURE = Calibration(method="isotonic", scores=(0.4, 0.9), confidences=(0.3, 0.8), threshold=0.6, target_error=0.5)

SAMPLES: dict[str, Document] = {
    "calibration": SURE,
    "agreement": Agreement(stratum=3, answers=9, checked=5, agreed=4, right_agreed=2, wrong_differed=1),
    "pipeline": Pipeline(
        task="text-classification", activation="softmax", labels="labels.json", lengths=(8, 16),
        inputs=(TensorSpec(name="input_ids", dtype="int32", shape=(1, -1)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, 2)),),
        tokenizer=Tokenizer(kind="huggingface-json", file="tokenizer.json", max_length=8, before=(1,)),
    ),
    "picture pipeline": Pipeline(
        task="image-classification", activation="softmax", labels="labels.json",
        inputs=(TensorSpec(name="pixels", dtype="float32", shape=(1, 3, 8, 8)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, 2)),),
        image=Image(height=8, width=8, channels=3, layout="NCHW", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
    ),
    "sound pipeline": Pipeline(
        task="audio-frames", activation="none", audio=Audio(rate=16000, frame=400, hop=160),
        inputs=(TensorSpec(name="frame", dtype="float32", shape=(1, 400)),),
        outputs=(TensorSpec(name="features", dtype="float32", shape=(1, 32)),),
    ),
    "lineage": Lineage(
        source=DIGEST, source_kind="onnx", architecture="ConvNet", recipe="onnx-int8-static", machine="x86_64",
        passes=(PassRecord(name="onnx.export", parameters={"opset": 17, "keep_float": ["head"]}),),
        datasets=(Dataset(name="test.jsonl", digest=DIGEST, use="test", rows=3, licence="MIT"),), tools={"onnx": "1"},
    ),
    "labels": Labels(labels=("off", "on")),
    "golden": Golden(max_abs=0.05, cases=(
        GoldenCase(text="é 🙂", outputs={"scores": to_tensor(np.float32([0.25, 0.75]))}, labels=("on",)),
        GoldenCase(inputs={"a": to_tensor(np.int64([[1]]))}, outputs={"b": Tensor(dtype="bool", shape=(0,), data="")}),
    )),
    "profile": profile(),
    "evidence": Evidence(
        subject=DIGEST, target=TARGET, task="text-classification", recipe="r", runtime="onnxruntime", precision="int8",
        source=DIGEST, architecture="Net", tools={"torch": "2"},
        datasets=(Dataset(name="t", digest=DIGEST, use="test", rows=2),),
        wanted=Wanted(max_drop=1.0, max_ms=0.0, max_mb=0.0, minimise="latency", confidence=0.95),
        decision=Decision(
            metric="accuracy", max_drop=1.0, confidence=0.95, n=2, needed=700, changed_planned=0.02,
            drop=0.5, low=-1.0, high=2.0, outcome="inconclusive",
        ),
        attempts=(Attempt(recipe="r", outcome="chosen", reason="", kept_float=("head",), fell_back={"Softmax": 6}),),
        measurements=(Measurement(metric="accuracy", value=0.5, unit="fraction", n=2, kind="measured", low=0.1),),
        classes=(ClassChange(label="on", n=2, source=2, variant=1, both=1),),
        sabotage=(Sabotage(name="scrambled weights", golden="refused", accuracy="refused"),),
    ),
    "chunk list": ChunkList(blob=DIGEST, size=3, chunks=(ChunkRef(digest=DIGEST, size=3),)),
    "kit": kit.EnrolmentKit(
        device="a", token="t", issued=TIME, expires=TIME, fleet="https://f", broker="b:1", ca="c",
        trust={"root/1": "{}"}, profile=profile(),
    ),
    "batch kit": kit.EnrolmentKit(
        claim=kit.Claim(batch="b", certificate="c", key="k"), issued=TIME, expires=TIME, fleet="https://f",
        broker="b:1", ca="c", trust={"root/1": "{}"}, profile=profile(),
    ),
    "telemetry": messages.TelemetryBatch(
        device="a", boot="b", starts=1, sent=2, nonce="n",
        records=(
            messages.TelemetryRecord(seq=1, start=TIME, end=TIME, inference=(STATS,), health=HEALTH),
            messages.TelemetryRecord(seq=5, start=TIME, end=TIME, stream="inference", first=2, merged=2),
            messages.TelemetryRecord(
                seq=6, start=TIME, end=TIME, stream="event",
                events=(life.DeviceEvent(at=TIME, kind="watchdog", text="t"),),
            ),
        ),
        memory="m", ledger=(ledger.StreamLedger(stream="event", produced=3, delivered=1, waiting=2),),
    ),
    "desired": orders.Desired(
        device="a", epoch=1, seq=2, issued=TIME, expires=TIME,
        models=(orders.DesiredModel(target=TARGET, digest=DIGEST, rollout="r"),), keys="AA==",
        measure=(orders.MeasureJob(id="m", target=TARGET, digest=DIGEST, rounds=3),),
        offers=(
            orders.DeltaOffer(blob=DIGEST, base=DIGEST, delta=DIGEST, size=WHOLE + 1, chunks=DIGEST, chunks_size=9),
        ),
        shadows=(ShadowModel(target=TARGET, digest=DIGEST, rollout="r", share=5, cpu=7, memory=9, max_c=60.5),),
    ),
    "delta header": delta.DeltaHeader(
        base=DIGEST, base_size=9, target=DIGEST, target_size=9, width=4,
        parts=(delta.Part(size=4, start=5), delta.Part(size=5)),
    ),
    "reported": messages.Reported(
        device="a", boot="b", starts=1, seq=1, nonce="n", time=TIME, sealing_key="k", agent="1", profile="board",
        hardware="h", emulated=True, desired_epoch=1, desired_seq=2,
        slots=(messages.SlotReport(model="tiny", slot="active", target=TARGET, digest=DIGEST),),
        updates=(messages.UpdateReport(target=TARGET, digest=DIGEST, phase="failed", reason="r"),),
        measured=(messages.MeasureReport(id="m", target=TARGET, digest=DIGEST, phase="done", timing=TIMING),),
        shadows=(ShadowReport(target=TARGET, digest=DIGEST, rollout="r", phase="paused", reason="hot", memory=1),),
        security=(messages.SecurityEvent(at=TIME, subject="s", reason="r"),),
    ),
    "ack": orders.Ack(
        device="a", epoch=1, seq=1, issued=TIME, expires=TIME, nonce="n", boot="b", stored=1,
        desired_epoch=1, desired_seq=2,
    ),
    "command": orders.Command(device="a", epoch=1, seq=1, issued=TIME, expires=TIME, action="report"),
    "reply": messages.Reply(device="a", epoch=1, seq=1, outcome="refused", reason="r"),
    "full reply": messages.Reply(
        device="a", epoch=1, seq=1, outcome="done", log=("a line",),
        tests=(life.ModelTest(model="tiny", digest=DIGEST, fault="f", load_ms=1.5),),
    ),
    "renewal": messages.Renewal(device="a", certificate="c", request="r"),
    "key ring": KeyRing(keys={DIGEST: "AA=="}),
    "want": messages.Want(digest=DIGEST, count=1, missing="AQ=="),
    "presence": messages.Presence(session="s", online=True),
    "job": BuildJob(
        family="f", name="n", version="1", source="s", test=Data(path="t", licence="MIT"), output="o", cache="c",
        profiles=(profile(),), workers={"torchscript": "/usr/bin/python3"},
    ),
    "progress": Progress(event="step", message="m", done=1, total=2, seconds_left=0.5),
}  # fmt: skip
MANIFEST = BundleManifest(
    family="f", name="n", version="1", profile="p", runtime="onnxruntime", precision="int8", annotations={"a": "b"},
    config=BundleConfig(digest=DIGEST, size=2),
    files=(BundleFile(role="model", path="model.onnx", digest=DIGEST, size=WHOLE + 1, chunks=DIGEST),),
)  # fmt: skip
TABLES = (
    "buckets",
    "labels",
    "tools",
    "trust",
    "keys",
    "inputs",
    "outputs",
    "parameters",
    "fell_back",
    "workers",
    "restarts",
    "routes",
    "languages",
    "golden",
)
"""Fields that are tables of one type, not documents: a new key there is an entry, not an unknown field."""

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2**63, 10**400, 1e308])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["", "../x", DIGEST, "1.0", TIME]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every member of a JSON value, at every depth: its container and its key."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, inner in pairs:
        yield value, key
        yield from places(inner)


def documents(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON value that is a document."""
    if isinstance(value, dict):
        yield value
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, (dict, list)) and key not in TABLES:
            yield from documents(inner)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_document_comes_back_as_it_was(name: str) -> None:
    assert type(SAMPLES[name]).from_bytes(SAMPLES[name].to_bytes()) == SAMPLES[name]


@given(st.data(), st.sampled_from(sorted(SAMPLES)), json_values)
def test_a_field_that_is_not_known_is_written_again_wherever_it_stands(
    data: st.DataObject, name: str, new: Any
) -> None:
    value = SAMPLES[name].to_value()
    data.draw(st.sampled_from(list(documents(value))))["later"] = new
    again = type(SAMPLES[name]).from_value(json.loads(json.dumps(value)))
    assert json.loads(again.to_bytes()) == json.loads(json.dumps(value))


@given(st.data(), st.sampled_from(sorted(SAMPLES)), json_values)
def test_any_value_in_any_place_is_a_document_that_can_be_written_or_a_wire_error(
    data: st.DataObject, name: str, new: Any
) -> None:
    value = SAMPLES[name].to_value()
    container, key = data.draw(st.sampled_from(list(places(value))))
    container[key] = new
    kind = type(SAMPLES[name])
    try:
        read = kind.from_bytes(json.dumps(value).encode())
    except WireError:
        return
    assert kind.from_bytes(read.to_bytes()) == read


@given(st.sampled_from(sorted(SAMPLES)), st.binary(max_size=200), st.integers(0, 2000))
def test_bytes_put_anywhere_give_a_document_or_a_wire_error(name: str, noise: bytes, at: int) -> None:
    whole = SAMPLES[name].to_bytes()
    for data in (noise, whole[:at], whole[:at] + noise + whole[at + len(noise) :]):
        try:
            type(SAMPLES[name]).from_bytes(data)
        except WireError:
            continue


@given(st.data(), json_values)
def test_any_value_in_any_place_of_a_manifest_is_a_manifest_or_a_wire_error(data: st.DataObject, new: Any) -> None:
    value = json.loads(MANIFEST.to_bytes())
    container, key = data.draw(st.sampled_from(list(places(value))))
    container[key] = new
    try:
        read = BundleManifest.from_bytes(json.dumps(value).encode())
    except WireError:
        return
    assert BundleManifest.from_bytes(read.to_bytes()) == read


def test_a_manifest_keeps_members_and_annotations_that_it_does_not_know() -> None:
    value = json.loads(MANIFEST.to_bytes()) | {"subject": {"digest": DIGEST}}
    value["layers"][0]["annotations"]["org.later"] = "kept"
    value["annotations"]["org.later"] = "kept"
    assert json.loads(BundleManifest.from_bytes(json.dumps(value).encode()).to_bytes()) == value


@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
def test_any_bytes_are_a_profile_or_a_wire_error(data: bytes) -> None:
    try:
        Profile.from_toml(data)
    except WireError:
        return


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("64 MB/s", r"profile\.limits\.disk: expected a number with one of the units B, KB"),
        ("64", "units"),
        ("64 ms", "units"),
    ],
)
def test_a_wrong_unit_in_a_profile_names_the_field_and_the_units(limit: str, message: str) -> None:
    value = profile().to_value()
    value["limits"]["disk"] = limit
    with pytest.raises(Malformed, match=message):
        Profile.from_value(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"text":"a","scores":[1e999]}', "1e999 is too large a number"),
        (b'{"text":"\\ud800","scores":[1]}', "half of a surrogate pair"),
        (b'{"text":"a","outputs":{}}', "no outputs"),
    ],
)
def test_what_could_not_be_written_again_or_compared_is_not_read(data: bytes, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        GoldenCase.from_bytes(data)


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert Progress.from_bytes(b'{"event":"step","message":"\\ud83d\\ude42"}').message == "🙂"


@pytest.mark.parametrize("key", ["007", "-0", "٣", str(LAST + 1), "99999", "", "-", "1.0"])
def test_a_bucket_whose_value_could_not_be_computed_is_malformed(key: str) -> None:
    """Attack: telemetry whose quantiles overflow or are missing where the fleet adds them up."""
    with pytest.raises(Malformed, match="sketch"):
        Sketch.from_value({"buckets": {key: 1}})


def test_every_bucket_that_is_read_has_a_value_and_every_value_has_a_bucket() -> None:
    for i in (-LAST, 0, LAST):
        assert Sketch.from_value({"buckets": {str(i): 1}}).quantile(1.0)
    extreme = Sketch.of([0.0, -5.0, 1e-300, 1e300, float("inf")])
    assert Sketch.from_bytes(extreme.to_bytes()).count == 5


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("want", {"count": 0}),
        ("ack", {"stored": -1}),
        ("ack", {"issued": "soon"}),
        ("ack", {"nonce": ""}),
        ("ack", {"seq": -1}),
        ("command", {"action": "rm -rf"}),
        ("command", {"expires": "never"}),
        ("reply", {"outcome": "perhaps"}),
        ("reported", {"starts": -1}),
        ("reported", {"nonce": "a b"}),
        ("telemetry", {"sent": -1}),
        ("telemetry", {"ledger": [{"stream": "event"}] * 2}),
        ("telemetry", {"ledger": [{"stream": "event", "waiting": -1}]}),
        ("telemetry", {"records": [{"seq": 5, "start": TIME, "end": TIME, "first": 6}]}),
        ("telemetry", {"records": [{"seq": 5, "start": TIME, "end": TIME, "first": 4, "merged": 2}]}),
        ("telemetry", {"records": [{"seq": 5, "start": TIME, "end": TIME, "merged": 1}]}),
        ("telemetry", {"records": [{"seq": 5, "start": TIME, "end": TIME, "stream": "a stream"}]}),
        ("kit", {"issued": "now"}),
        ("kit", {"claim": {"batch": "b", "certificate": "c", "key": "k"}}),
        ("batch kit", {"claim": {"batch": "../b", "certificate": "c", "key": "k"}}),
        ("presence", {"session": "a b"}),
        ("kit", {"expires": "never"}),
        ("desired", {"seq": -1}),
        ("telemetry", {"boot": ""}),
        ("pipeline", {"labels": "../../labels.json"}),
        ("pipeline", {"inputs": []}),
        ("pipeline", {"lengths": [4]}),
        ("pipeline", {"lengths": [16, 8]}),
        ("pipeline", {"image": {"height": 1, "width": 1, "channels": 1, "layout": "NHWC"}}),
        ("pipeline", {"outputs": [{"name": "a", "dtype": "float32", "shape": [0]}]}),
        ("pipeline", {"inputs": [{"name": "pixels", "dtype": "float32", "shape": [1]}]}),
        ("picture pipeline", {"labels": None}),
        ("picture pipeline", {"lengths": [8]}),
        ("sound pipeline", {"audio": {"rate": 16000, "frame": 100, "hop": 200}}),
        ("job", {"profiles": [profile().to_value()] * 2}),
    ],
)
def test_a_value_out_of_its_bounds_is_malformed(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        type(SAMPLES[name]).from_value(SAMPLES[name].to_value() | changes)


@pytest.mark.parametrize("changes", [{"file": "../x"}, {"max_length": 1}])
def test_a_tokenizer_that_leaves_the_bundle_or_no_room_is_malformed(changes: dict[str, Any]) -> None:
    value = SAMPLES["pipeline"].to_value()
    with pytest.raises(Malformed, match="tokenizer"):
        Pipeline.from_value(value | {"tokenizer": value["tokenizer"] | changes})


@pytest.mark.parametrize("size", [0, -1, WHOLE + 1])
def test_a_config_blob_that_does_not_travel_whole_is_malformed(size: int) -> None:
    with pytest.raises(Malformed, match="manifest config"):
        replace(MANIFEST, config=BundleConfig(digest=DIGEST, size=size))


def test_a_family_whose_release_role_is_too_long_for_its_topic_is_malformed() -> None:
    assert release_role("f" * 56)
    with pytest.raises(Malformed, match="release role of family"):
        release_role("f" * 57)


@given(st.lists(st.floats(), min_size=1, max_size=3))
def test_scores_that_hold_are_numbers_near_the_expected_ones(scores: list[float]) -> None:
    case = GoldenCase(text="a", outputs={"scores": to_tensor(np.full(len(scores), 0.5))})
    fault = golden_fault(case, Result({"scores": np.asarray(scores, np.float64)}), 0.1)
    assert (fault is None) == all(0.4 <= s <= 0.6 for s in scores)
