from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import kit, messages, orders, topics
from wire.bundle import BundleConfig, BundleFile, BundleManifest, split_target
from wire.chunks import ChunkList, ChunkRef, digest, from_bitmap, to_bitmap
from wire.document import CONTRACT, Document
from wire.errors import Incompatible, Malformed, WireError
from wire.pipeline import Golden, GoldenCase
from wire.processing import Result, golden_fault, to_tensor
from wire.secrecy import KeyRing
from wire.sketch import Histogram, Sketch
from wire.units import instant, seconds, show_instant, size

DIGEST = digest(b"x")


@dataclass(frozen=True, kw_only=True)
class _Leaf(Document):
    text: str


@dataclass(frozen=True, kw_only=True)
class _Tree(Document):
    contract: str = CONTRACT
    leaves: tuple[_Leaf, ...]
    share: float = 0.0


# --- documents


def test_a_field_that_is_not_known_is_kept_at_every_depth() -> None:
    data = b'{"contract":"1.7","later":[1],"leaves":[{"new":true,"text":"a"}],"share":0.5}'
    assert json.loads(_Tree.from_bytes(data).to_bytes()) == json.loads(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"contract":"1.0","leaves":[{"text":3}]}', r"_tree\.leaves\[0\]\.text: expected str, got int"),
        (b'{"contract":"1.0"}', r"_tree\.leaves: missing"),
        (b'{"contract":"1.0","leaves":[],"share":NaN}', "NaN is not a JSON number"),
        (b'{"contract":"1.0","leaves":[],"leaves":[]}', "a key stands twice"),
        (b'{"contract":"1.0","leaves":[],"share":true}', "expected float, got bool"),
        (b"\xff", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b" " * 300_000, "the limit is 262144"),
    ],
)
def test_malformed_bytes_say_where_and_what(data: bytes, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        _Tree.from_bytes(data)


def test_another_major_of_the_contract_is_incompatible_and_says_to_update() -> None:
    with pytest.raises(Incompatible, match=r"contract 2\.0.*update"):
        _Tree.from_bytes(b'{"contract":"2.0","anything":1}')


KINDS: tuple[type[Document] | type[BundleManifest], ...] = (
    *(orders.Desired, orders.Ack, orders.Command, messages.Reply, messages.Renewal, kit.Claim, KeyRing),
    *(messages.TelemetryBatch, messages.Want, messages.Reported, kit.EnrolmentKit, BundleManifest),
)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_document_or_a_wire_error(data: bytes) -> None:
    for kind in KINDS:
        try:
            kind.from_bytes(data)
        except WireError:
            continue


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("contract", "device", "models", "seq", "epoch"), json_values)))
def test_any_json_value_is_a_desired_state_or_a_wire_error(value: dict[str, object]) -> None:
    try:
        orders.Desired.from_value(value)
    except WireError:
        return


# --- topics

devices = st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True)
every_topic = st.one_of(
    devices.flatmap(
        lambda d: st.sampled_from(
            [
                kind(d)
                for kind in (
                    *(topics.Desired, topics.Reported, topics.State, topics.Telemetry, topics.Ack, topics.Want),
                    *(topics.Command, topics.Reply),
                )
            ]
        )
    ),
    st.builds(topics.TrustRoot, st.integers(1, 10**9 - 1)),
    st.builds(topics.TrustRole, st.sampled_from(["timestamp", "snapshot", "targets", "release-intents"])),
    st.builds(topics.Chunk, st.binary(max_size=4).map(digest), st.integers(0, 10**9 - 1)),
    st.just(topics.FleetState()),
)


@given(every_topic)
def test_builder_and_parser_of_a_topic_are_inverse(topic: topics.Topic) -> None:
    assert topics.parse(topic.topic) == topic


@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from(["shoal", "1", "d", "a", "want", "blob", "01", "+", "#"])).map("/".join)
)
def test_a_string_that_no_builder_makes_is_malformed(text: str) -> None:
    try:
        parsed = topics.parse(text)
    except Malformed:
        return
    assert parsed.topic == text


@pytest.mark.parametrize("device", ["", "A", "a/b", "+", "#", "a" * 64, "_fleet", "é"])
def test_a_device_id_that_could_leave_its_topics_is_malformed(device: str) -> None:
    with pytest.raises(Malformed, match="device id"):
        topics.Want(device)


def test_the_access_rules_let_a_device_write_only_below_its_own_name() -> None:
    writes = [line for line in topics.access_rules().splitlines() if "write" in line and "_fleet" not in line]
    assert all(line.startswith(("pattern write shoal/1/d/%u/", "topic readwrite shoal/1/#")) for line in writes)
    assert not {f"pattern write shoal/1/d/%u/{order}" for order in ("desired", "ack", "cmd")} & set(writes)


def test_a_denied_device_has_a_rule_that_takes_everything_from_it() -> None:
    lines = topics.access_rules(["b-2", "a-1"]).splitlines()
    for device in ("a-1", "b-2"):
        assert lines[lines.index(f"user {device}") + 1] == "topic deny #"


@pytest.mark.parametrize("device", ["", "a\nuser _fleet", "+", "_fleet"])
def test_a_denied_name_that_could_write_rules_of_its_own_is_malformed(device: str) -> None:
    """Attack: a line break in a name becomes a line of the access list."""
    with pytest.raises(Malformed, match="denied device"):
        topics.access_rules([device])


# --- chunks, bundle, units, sketches


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.just(n), st.frozensets(st.integers(0, n - 1)))))
def test_a_bitmap_gives_back_the_indexes_it_was_made_of(case: tuple[int, frozenset[int]]) -> None:
    count, indexes = case
    assert from_bitmap(to_bitmap(indexes, count), count) == indexes


@pytest.mark.parametrize(("text", "count"), [("gA==", 7), ("AAA=", 7), ("!", 7), ("AA==", 0), ("AA==", 1 << 40)])
def test_a_bitmap_of_another_size_is_malformed(text: str, count: int) -> None:
    with pytest.raises(Malformed, match="bitmap"):
        from_bitmap(text, count)


def test_chunks_that_do_not_add_up_are_malformed() -> None:
    with pytest.raises(Malformed, match="do not add up"):
        ChunkList(blob=DIGEST, size=11, chunks=(ChunkRef(digest=DIGEST, size=10),))


def manifest(**changes: object) -> BundleManifest:
    values: dict[str, object] = {
        "family": "intents", "name": "kitchen", "version": "1.0.0", "profile": "x86-64", "runtime": "onnxruntime",
        "precision": "int8", "config": BundleConfig(digest=DIGEST, size=2), "annotations": {"org.later": "kept"},
        "files": (BundleFile(role="model", path="model.onnx", digest=DIGEST, size=1),),
    }  # fmt: skip
    return BundleManifest(**{**values, **changes})  # type: ignore[arg-type]


def test_a_manifest_comes_back_as_it_was_with_annotations_of_others() -> None:
    assert BundleManifest.from_bytes(manifest().to_bytes()) == manifest()


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/b", "", ".hidden", "a\x00b"])
def test_a_file_name_that_could_leave_the_bundle_is_malformed(path: str) -> None:
    """Attack: path traversal."""
    data = manifest().to_bytes().replace(b'"model.onnx"', json.dumps(path).encode())
    with pytest.raises(Malformed, match="plain file name"):
        BundleManifest.from_bytes(data)


def test_a_target_path_is_split_only_when_it_has_five_parts() -> None:
    assert split_target("models/intents/kitchen/1.0.0/x86-64") == ("intents", "kitchen", "1.0.0", "x86-64")
    for bad in ("models/a/b/c", "models/a/b/c/d/e", "other/a/b/c/d", "models/a/../c/d"):
        with pytest.raises(Malformed):
            split_target(bad)


def test_a_golden_case_fails_on_a_far_score_a_missing_class_nan_and_another_label() -> None:
    case = GoldenCase(text="lights on", outputs={"scores": to_tensor(np.float32([0.9, 0.1]))}, labels=("on",))

    def fault(*scores: float, label: str = "on") -> str:
        return str(golden_fault(case, Result({"scores": np.float32(scores)}, (label,)), 0.05))

    assert fault(0.88, 0.12) == "None"
    assert "away from" in fault(0.8, 0.2)
    assert "away from" in fault(float("nan"), 0.1)
    assert "expected [2]" in fault(0.9)
    assert fault(0.88, 0.12, label="off") == "label 'off' where 'on' is expected"


def test_a_label_may_change_where_the_two_best_scores_are_close() -> None:
    case = GoldenCase(text="a", outputs={"scores": to_tensor(np.float32([0.51, 0.49]))}, labels=("on",))
    assert golden_fault(case, Result({"scores": np.float32([0.49, 0.51])}, ("off",)), 0.05) is None


def test_an_empty_golden_set_is_malformed() -> None:
    with pytest.raises(Malformed, match="at least one case"):
        Golden(max_abs=0.1, cases=())


@pytest.mark.parametrize(("text", "value"), [("90 s", 90.0), ("5min", 300.0), ("250 ms", 0.25), ("1.5 h", 5400.0)])
def test_durations_carry_their_unit(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["90", "90 MiB", "-1 s", "s", "", "1e3 s", "90 S"])
def test_a_duration_without_its_unit_is_malformed_and_names_the_units(text: str) -> None:
    with pytest.raises(Malformed, match="ms, s, min, h, d"):
        seconds(text)


def test_sizes_and_times_round_trip() -> None:
    assert size("64 MiB") == 64 * 1024 * 1024
    assert show_instant(instant("2026-11-22T08:00:00.250Z")) == "2026-11-22T08:00:00.250Z"
    for bad in ("2026-11-22T08:00:00", "yesterday", "2026-11-22T08:00:00+01:00"):
        with pytest.raises(Malformed):
            instant(bad)


positive = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=200)


@given(positive, st.floats(0, 1))
def test_a_quantile_is_within_two_percent_of_the_true_one(values: list[float], q: float) -> None:
    true = sorted(values)[int(q * (len(values) - 1))]
    found = Sketch.of(values).quantile(q)
    assert found is not None
    assert abs(found - true) <= 0.0201 * true


@given(positive, positive)
def test_merging_sketches_is_the_sketch_of_all_values(a: list[float], b: list[float]) -> None:
    assert Sketch.of(a).merge(Sketch.of(b)) == Sketch.of(a + b)


@given(st.lists(st.floats(1e-6, 1e9), min_size=1), st.lists(st.floats(1e-6, 1e9)), st.floats(1e-6, 1e9))
def test_what_a_sketch_adds_up_is_that_of_the_values_and_comes_off_again(
    a: list[float], b: list[float], limit: float
) -> None:
    one, both = Sketch.of(a), Sketch.of(a + b)
    logs = np.log(a).sum()
    assert logs <= one.log_sum + 1e-6
    assert one.log_sum <= logs + len(a) * np.log(1.04) + 1e-6
    assert both.log_sum - Sketch.of(b).log_sum == pytest.approx(one.log_sum, abs=1e-6)
    assert sum(v > limit * 1.04 for v in a) <= one.above(limit) <= sum(v > limit for v in a)
    assert both.above(limit) - Sketch.of(b).above(limit) == one.above(limit)
    shares = [v / 1e6 for v in a], [v / 1e6 for v in b]
    assert Histogram.of(shares[0]).merge(Histogram.of(shares[1])) == Histogram.of(shares[0] + shares[1])
