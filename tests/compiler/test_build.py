"""The compiler as a process: job in, bundles and progress out."""

# ruff: noqa: PLC0415  torch takes seconds: only the test that makes a model waits for it
from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from compiler_process import HAS_LITERT, Built, build, compiler, profile, rows, write_rows
from workshop_tools import make_examples, make_onnx

from compiler.bundle.layout import Layout, blob_path
from compiler.bundle.pack import bundle_files
from compiler.errors import Malformed, Untrusted
from compiler.inputs import Inputs
from compiler.variant import Variant
from compiler.workshop.cache import Cache, file_digest, processor
from compiler.workshop.score import Lying
from wire.build import BuildJob, Data
from wire.bundle import BundleManifest
from wire.chunks import WHOLE, ChunkList, digest
from wire.evidence import Evidence
from wire.lineage import Dataset, Lineage
from wire.pipeline import Golden, Labels, Pipeline
from wire.processing import example_of, golden_fault
from wire.profile import Detect, ProfileRuntime
from wire.tune import TRAINING, Training

pytestmark = pytest.mark.timeout(600)
"""A build starts a dozen processes, and the first test waits for the one that all look at."""
needs_litert = pytest.mark.skipif(
    not HAS_LITERT, reason="litert-torch has no build for this machine: its converter is x86-64 only"
)
SLOW_RECIPES = (
    *("onnx-int8-static", "onnx-int8-weights", "onnx-int4-weights"),
    *(("litert-fp32", "litert-int8-dynamic") if HAS_LITERT else ()),
)


@pytest.fixture
def job(built: Built, tmp_path: Path) -> BuildJob:
    """A job with an output of its own; what candidates are made of is in its cache already."""
    cache = shutil.copytree(built.job.cache, tmp_path / "cache")
    return replace(built.job, output=str(tmp_path / "out"), cache=str(cache))


@pytest.fixture(scope="module")
def slow(built: Built, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """One finished build with a profile for each recipe that takes long; each profile has its recipe's runtime only."""
    folder = tmp_path_factory.mktemp("slow")
    profiles = tuple(profile(name) for name in SLOW_RECIPES)
    job = replace(
        built.job,
        output=str(folder / "out"),
        cache=str(folder / "cache"),
        calibration=Data(path=str(calibration)),
        max_drop=30.0,
    )
    for one in profiles:
        run = build(replace(job, profiles=(one,), recipes=(one.name,)))
        assert run.code == 0, (run.last, run.errors[-2000:])
    return Built(replace(job, profiles=profiles), run)


def done(job: BuildJob) -> Built:
    run = build(job)
    assert run.code == 0, (run.last, run.errors[-2000:])
    return Built(job, run)


def only_evidence(built: Built) -> Evidence:
    (bundle,) = built.layout.bundles()
    evidence = built.layout.evidence(bundle.digest)
    assert evidence
    return evidence


def bundle_bytes(layout: Layout) -> dict[str, bytes]:
    """Everything that bundles are made of, by digest; evidence left out."""
    found = {}
    for bundle in layout.bundles():
        found[bundle.digest] = layout.read(bundle.digest)
        found |= {f.digest: layout.read(f.digest) for f in bundle.manifest.files}
        found[bundle.manifest.config.digest] = layout.read(bundle.manifest.config.digest)
    return found


def unpack(layout: Layout, manifest: BundleManifest, folder: Path) -> Path:
    folder.mkdir()
    for file in manifest.files:
        (folder / file.path).write_bytes(layout.read(file.digest))
    return folder


def golden_faults(folder: Path, manifest: BundleManifest) -> list[str]:
    """What the golden set says of a bundle that is run here."""
    run = Lying.of(Variant(folder, manifest.runtime)).open()  # type: ignore[arg-type]
    golden = Golden.from_bytes((folder / "golden.json").read_bytes())
    assert len(golden.cases) == 16
    found = (golden_fault(case, run(example_of(case)), golden.max_abs) for case in golden.cases)
    return [fault for fault in found if fault]


def test_a_build_writes_a_bundle_that_repeats_its_golden_set_and_evidence_beside_it(
    built: Built, tmp_path: Path
) -> None:
    run, layout = built.run, built.layout
    (bundle,) = layout.bundles()
    manifest = bundle.manifest
    assert [line.event for line in run.lines[-2:]] == ["variant", "done"]
    assert (run.lines[-2].digest, run.lines[-2].cached) == (bundle.digest, False)
    assert (manifest.target, manifest.runtime) == ("models/home/tiny/1.0.0/board", "onnxruntime")
    folder = unpack(layout, manifest, tmp_path / "bundle")
    assert golden_faults(folder, manifest) == []
    assert Labels.from_bytes((folder / "labels.json").read_bytes()).labels == ("heat", "light", "lock", "tune")
    pipeline = Pipeline.from_bytes((folder / "pipeline.json").read_bytes())
    assert pipeline.tokenizer
    assert (pipeline.task, pipeline.tokenizer.max_length, pipeline.lengths) == ("text-classification", 32, ())
    assert all(f.chunks for f in manifest.files if f.size > WHOLE)


def test_evidence_says_what_was_measured_where_and_how_sure_it_is(built: Built) -> None:
    evidence = only_evidence(built)
    accuracy, source = evidence.get("accuracy"), evidence.get("source_accuracy")
    assert accuracy
    assert source
    assert accuracy.n == source.n == evidence.decision.n == 160
    assert (accuracy.low or 1.0) < accuracy.value <= (accuracy.high or 0.0)
    assert source.value > 0.9
    assert (evidence.decision.outcome, evidence.decision.max_drop) == ("pass", 10.0)
    latency = [m for m in evidence.measurements if m.metric.startswith("latency")]
    assert {(m.kind, m.runtime, processor() in m.device) for m in latency} == {("emulated", "onnxruntime 1.31.1", True)}
    assert sorted(a.outcome for a in evidence.attempts if a.outcome != "refused") == ["chosen", "pass"]
    assert {c.label: c.n for c in evidence.classes} == dict.fromkeys(("heat", "light", "lock", "tune"), 40)
    assert [(d.use, d.rows, d.licence) for d in evidence.datasets] == [("test", 160, "CC0-1.0")]
    (bundle,) = built.layout.bundles()
    assert str(built.layout.card(bundle.digest)).startswith("---\nlibrary_name:")


def test_evidence_says_what_inputs_and_answers_of_the_test_examples_look_like(built: Built) -> None:
    """Drift on devices is held against it: counted as they count, and the same from the cache or another folder."""
    evidence = only_evidence(built)
    reference = evidence.reference
    assert reference is not None
    accuracy = evidence.get("accuracy")
    assert accuracy
    assert reference.dataset == evidence.datasets[0].digest
    assert reference.n == sum(reference.labels.values()) == sum(reference.confidence.bins) == 160
    assert reference.lengths.count == sum(reference.languages.values()) == 160
    wrong = sum(abs(reference.labels[label] - 40) for label in ("heat", "light", "lock", "tune")) / 2
    assert wrong <= 160 * (1 - accuracy.value), "the labels are those that the variant gave"
    assert only_evidence(done(built.job)).reference == reference


def test_every_gate_refused_every_saboteur_and_the_evidence_says_why(built: Built) -> None:
    told = {s.name: s for s in only_evidence(built).sabotage}
    assert set(told) == {"scrambled weights (largest 1)", "shifted labels", "wrong pooling"}
    assert all("golden case" in s.golden and "drops by" in s.accuracy for s in told.values())


def test_progress_says_first_how_many_examples_are_needed_and_then_how_long_it_takes(built: Built) -> None:
    first, *rest = built.run.lines
    assert (first.event, "there are 160" in first.message) == ("note", True)
    steps = [line for line in rest if line.event == "step"]
    assert [s.done for s in steps] == sorted(s.done or 0 for s in steps)
    assert all(s.seconds_left for s in steps if s.done and s.done != s.total)
    assert (rest[-1].done, rest[-1].total) == (steps[-1].total, steps[-1].total)


def test_lineage_in_the_bundle_names_no_folder_time_or_measurement(built: Built) -> None:
    (bundle,) = built.layout.bundles()
    data = built.layout.read(bundle.manifest.file("lineage").digest)
    lineage = Lineage.from_bytes(data)
    assert lineage.passes[0].name == "onnx.export"
    assert [(d.name, d.use) for d in lineage.datasets] == [("test.jsonl", "test")]
    assert not [word for word in (b"accuracy", b"latency", b"/") if word in data]


@pytest.mark.slow
def test_bundles_are_byte_identical_from_another_folder_hash_seed_and_thread_count(
    built: Built, tmp_path: Path
) -> None:
    """By recipe: which one is chosen is measured, and a busy machine may choose otherwise."""
    other = tmp_path / "some" / "other place"
    for recipe in ("onnx-fp32", "onnx-int8-dynamic"):
        first = replace(built.job, output=str(tmp_path / recipe), recipes=(recipe,))
        again = replace(first, output=str(other / recipe), cache=str(other / "cache"))
        done(first)
        assert build(again, PYTHONHASHSEED="7", OMP_NUM_THREADS="4").code == 0
        found = bundle_bytes(Layout(Path(first.output)))
        assert found == bundle_bytes(Layout(Path(again.output)))
        paths = (str(tmp_path).encode(), built.job.source.encode(), built.job.cache.encode())
        assert not [name for name, data in found.items() if any(path in data for path in paths)]


def test_a_repeated_build_comes_from_the_cache_and_imports_nothing_heavy(built: Built, tmp_path: Path) -> None:
    again = replace(built.job, output=str(tmp_path / "again"), version="1.0.1")
    run = build(again, PYTHONPROFILEIMPORTTIME="1")
    assert run.code == 0
    assert [line.cached for line in run.lines if line.event == "variant"] == [True]
    imported = {line.rpartition("|")[2].strip() for line in run.errors.splitlines() if line.startswith("import time:")}
    assert "compiler.build" in imported
    assert not imported & {"torch", "transformers", "onnx", "onnxruntime", "tokenizers", "sklearn", "ai_edge_litert"}
    first, second = built.layout.bundles()[0], Layout(Path(again.output)).bundles()[0]
    assert first.manifest.files == second.manifest.files


def test_a_damaged_result_is_as_good_as_none(built: Built, tmp_path: Path) -> None:
    """The accident: the last byte of a cached model turned over."""
    cache = Cache(Path(shutil.copytree(built.job.cache, tmp_path / "cache")))
    key = Inputs.read(built.job).key(built.job, built.job.profiles[0])
    made = cache.get(key)
    assert made
    model = next(f for f in made.files if f.role == "model")
    path = blob_path(cache.folder, model.digest)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert Cache(cache.folder).get(key) is None


def test_a_result_is_another_with_another_version_of_a_workers_runtime(job: BuildJob, tmp_path: Path) -> None:
    """The accident: tflite-runtime is upgraded in the environment that the worker's Python is of."""
    python = tmp_path / "python"
    asked = replace(job, workers={"tflite-runtime": str(python)})
    keys = set()
    for version in ("2.14.0", "2.17.0", "2.14.0"):
        python.write_text(f"#!/bin/sh\necho {version}\n")
        python.chmod(0o755)
        keys.add(Inputs.read(asked).key(asked, asked.profiles[0]))
    assert len(keys) == 2


def test_a_second_version_stands_beside_the_first_in_one_layout_and_shares_its_blobs(
    built: Built, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(built.job.output, tmp_path / "out"))
    blobs = len(list((output / "blobs" / "sha256").iterdir()))
    layout = done(replace(built.job, output=str(output), version="2.0.0")).layout
    assert [b.manifest.version for b in layout.bundles()] == ["1.0.0", "2.0.0"]
    # A manifest, a config and an evidence manifest with what it names are new; every file is the old one.
    (bundle,) = [b for b in layout.bundles() if b.manifest.version == "2.0.0"]
    known = {f.digest.removeprefix("sha256:") for f in bundle.manifest.files}
    assert all(f.digest in {g.digest for g in layout.bundles()[0].manifest.files} for f in bundle.manifest.files)
    assert len(list((output / "blobs" / "sha256").iterdir())) <= blobs + 6
    assert known


def test_the_smallest_that_holds_is_chosen_and_the_others_are_told(job: BuildJob) -> None:
    evidence = only_evidence(done(replace(job, minimise="size")))
    made = {a.recipe: a for a in evidence.attempts if a.measurements}
    sizes = {name: m.value for name, a in made.items() if (m := a.get("footprint"))}
    assert {name: a.outcome for name, a in made.items()} == {
        name: "chosen" if size == min(sizes.values()) else "pass" for name, size in sizes.items()
    }
    assert len(sizes) == 2


def test_latency_is_measured_only_on_a_machine_of_the_profile(job: BuildJob) -> None:
    import platform

    here = profile(detect=Detect(machines=(platform.machine(),)))
    evidence = only_evidence(done(replace(job, profiles=(here,))))
    assert {m.kind for a in evidence.attempts for m in a.measurements} == {"measured"}


def test_a_variant_for_a_runtime_that_was_never_seen_working_is_said_to_be_compile_only(job: BuildJob) -> None:
    unseen = ProfileRuntime(name="onnxruntime", version="1.31.1", opset=17, ir=8)
    built = done(replace(job, profiles=(profile(runtimes=(unseen,)),)))
    (line,) = [line for line in built.run.lines if line.event == "variant"]
    assert "(compile-only)" in line.message
    assert only_evidence(built).compile_only


def test_the_limit_of_the_disk_counts_the_whole_bundle_and_says_so(built: Built, job: BuildJob) -> None:
    """The model alone fits; its tokenizer does not fit beside it."""
    manifest = built.layout.bundles()[0].manifest
    room = manifest.file("model").size + manifest.file("tokenizer").size // 2
    limits = replace(profile().limits, disk=f"{room // 1024} KiB")
    recipe = only_evidence(built).recipe
    run = build(replace(job, recipes=(recipe,), profiles=(profile(limits=limits),)))
    assert (run.code, run.last.error) == (3, "Infeasible")
    assert f"device's disk, the profile allows {room // 1024} KiB" in run.last.message


@pytest.mark.parametrize(
    ("limit", "told"), [({"max_mb": 0.001}, "at most 0.001 are allowed"), ({"max_ms": 0.001}, "at most 0.001 are")]
)
def test_when_nothing_is_within_the_limits_the_nearest_are_named_and_nothing_is_written(
    limit: dict[str, float], told: str, job: BuildJob
) -> None:
    run = build(replace(job, **limit))  # type: ignore[arg-type]
    assert (run.code, run.last.event, run.last.error) == (3, "failed", "Infeasible")
    assert told in run.last.message
    notes = [line.message for line in run.lines if line.event == "note"]
    assert any("emulated on this machine, no promise for board" in note for note in notes) == ("max_ms" in limit)
    assert all(recipe in run.last.message for recipe in job.recipes)
    assert not Path(job.output).exists()


def test_too_few_examples_are_no_pass_and_the_message_says_how_many_would_decide(job: BuildJob, tmp_path: Path) -> None:
    few = write_rows(tmp_path / "few.jsonl", rows(2, 24))
    run = build(replace(job, test=Data(path=str(few)), max_drop=1.0))
    assert (run.code, run.last.error) == (3, "Infeasible")
    assert "24 examples do not decide that" in run.last.message
    assert "show that a variant is as good as its source" in run.last.message
    notes = [line.message for line in run.lines if line.event == "note"]
    assert any("too few examples to accept even the source itself" in note for note in notes)


def test_when_one_profile_fails_none_is_written(job: BuildJob) -> None:
    tight = profile("tight", limits=replace(profile().limits, disk="1 KiB"))
    run = build(replace(job, profiles=(profile(), tight)))
    assert (run.code, run.last.error) == (3, "Infeasible")
    assert "profile tight" in run.last.message
    assert not Path(job.output).exists()


def test_a_profile_whose_rules_refuse_every_recipe_is_told_before_any_work(job: BuildJob) -> None:
    run = build(replace(job, recipes=("tflite-fp32",)))
    assert (run.code, run.last.error) == (1, "Incompatible")
    assert "tflite-fp32" in run.last.message


def test_a_build_that_fails_prunes_the_cache_as_well(job: BuildJob) -> None:
    """The accident: builds that fill the cache and fail, one after the other."""
    forgotten = blob_path(Path(job.cache), "sha256:" + "0" * 64)
    forgotten.write_bytes(b"nobody names it")
    os.utime(forgotten, (0, 0))
    assert build(replace(job, recipes=("tflite-fp32",))).code == 1
    assert not forgotten.exists()


def test_an_unknown_recipe_is_told(job: BuildJob) -> None:
    run = build(replace(job, recipes=("onnx-int3",)))
    assert (run.code, run.last.error) == (1, "Incompatible")
    assert "onnx-int3" in run.last.message


def test_calibration_with_the_test_examples_is_refused(job: BuildJob) -> None:
    """The accident: a variant observes what it is judged on."""
    run = build(replace(job, calibration=job.test))
    assert (run.code, run.last.error) == (1, "Malformed")
    assert "not held out" in run.last.message


def test_calibration_with_one_test_example_in_it_is_refused_with_its_row(job: BuildJob, tmp_path: Path) -> None:
    """The accident: a few test rows in another file, written a little differently and without their labels."""
    leaked = rows(2, 160)[5]["text"]
    mixed = [{"text": row["text"]} for row in rows(1, 64)]
    mixed[8:8] = [{"text": f"  {leaked.upper()} "}, {"text": leaked}]
    path = write_rows(tmp_path / "calibration.jsonl", mixed)
    with pytest.raises(Malformed, match=r"calibration\.jsonl: 2 of its 66 rows are test examples too, .* row 9: "):
        Inputs.read(replace(job, calibration=Data(path=str(path))))


def test_arrays_that_are_observed_and_asked_are_found_too(job: BuildJob, tmp_path: Path) -> None:
    model = make_onnx(tmp_path / "model.onnx")
    few, many = (make_examples(tmp_path / f"{n}.npz", rows=n) for n in (3, 8))
    asked = replace(job, source=str(model), test=Data(path=str(few)), calibration=Data(path=str(many)))
    with pytest.raises(Malformed, match="3 of its 8 rows are test examples too, the first is row 1"):
        Inputs.read(asked)


def test_labels_of_calibration_are_not_looked_at(job: BuildJob, tmp_path: Path) -> None:
    strange = [{"text": row["text"], "label": "something else"} for row in rows(1, 64)]
    path = write_rows(tmp_path / "calibration.jsonl", strange)
    assert Inputs.read(replace(job, calibration=Data(path=str(path)))).calibration is not None


def test_a_test_set_from_which_a_tuned_source_learned_is_refused_and_another_is_named_beside_it(
    job: BuildJob, test_set: Path, calibration: Path, tmp_path: Path
) -> None:
    """Only the first is a leak: what the bundle was made of names both."""
    folder = tmp_path / "tuned"
    shutil.copytree(job.source, folder)
    used = [Dataset(name=p.name, digest=file_digest(p), use="train", rows=9) for p in (calibration, test_set)]
    training = Training(method="head", parameters={}, encoder="sha256:" + "2" * 64, datasets=tuple(used), tools={})
    (folder / TRAINING).write_bytes(training.to_bytes())
    run = build(replace(job, source=str(folder)))
    assert (run.code, run.last.error) == (1, "Malformed")
    assert "learned from these very examples" in run.last.message
    (folder / TRAINING).write_bytes(replace(training, datasets=(used[0],)).to_bytes())
    evidence = only_evidence(done(replace(job, source=str(folder), recipes=("onnx-fp32",))))
    assert [(d.name, d.use) for d in evidence.datasets] == [("train.jsonl", "train"), ("test.jsonl", "test")]


@pytest.mark.slow
def test_a_classifier_no_better_than_chance_compiles_and_is_not_packed_when_the_limit_is_wide(
    job: BuildJob, encoder: Path, tmp_path: Path
) -> None:
    """Its weights are random, so it compiles, and the accuracy gate cannot tell it from a saboteur: no bundle."""
    folder = sequence_classifier(encoder, tmp_path / "plain")
    run = build(replace(job, source=str(folder), recipes=("onnx-fp32",), max_drop=60.0))
    assert run.code == 1
    assert (run.last.error, "no better than chance" in run.last.message) == ("Untrusted", True), run.last.message
    assert not Path(job.output).exists()


def sequence_classifier(encoder: Path, folder: Path) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    labels = dict(enumerate(("heat", "light", "lock", "tune")))
    config = BertConfig.from_pretrained(encoder, id2label=labels, label2id={v: k for k, v in labels.items()})
    torch.manual_seed(1)
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((encoder / "tokenizer.json").read_bytes())
    return folder


def test_a_build_told_to_end_leaves_nothing_behind(job: BuildJob, tmp_path: Path) -> None:
    """The accident: SIGTERM in the middle of a build."""
    fresh = replace(job, cache=str(tmp_path / "fresh"))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "compiler", "build"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin
    assert process.stdout
    with process.stdin as given:
        given.write(fresh.to_bytes())
    with process.stdout as lines:
        while b"onnx.export" not in lines.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not Path(job.output).exists()
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("cache", "fresh")] == []
    assert [p for p in (tmp_path / "fresh" / "scratch").iterdir() if p.is_dir()] == []


@needs_litert
@pytest.mark.slow
def test_a_litert_variant_has_fixed_lengths_and_repeats_its_golden_set(slow: Built, tmp_path: Path) -> None:
    manifest = slow.layout.find("models/home/tiny/1.0.0/litert-int8-dynamic").manifest
    folder = unpack(slow.layout, manifest, tmp_path / "bundle")
    pipeline = Pipeline.from_bytes((folder / "pipeline.json").read_bytes())
    assert manifest.runtime == "litert"
    assert pipeline.lengths
    assert pipeline.tokenizer
    assert pipeline.lengths[-1] == pipeline.tokenizer.max_length == 16
    assert golden_faults(folder, manifest) == []


@pytest.mark.slow
def test_the_other_recipes_give_the_same_bytes_twice(slow: Built, tmp_path: Path) -> None:
    again = replace(slow.job, output=str(tmp_path / "out"), cache=str(tmp_path / "cache"))
    for one in slow.job.profiles:
        done(replace(again, profiles=(one,), recipes=(one.name,)))
    assert bundle_bytes(slow.layout) == bundle_bytes(Layout(Path(again.output)))


def test_a_sabotaged_bundle_loads_and_is_refused_by_its_golden_set(built: Built, tmp_path: Path) -> None:
    layout = built.layout
    target = layout.bundles()[0].manifest.target
    named = ("--target", target, "--version", "1.0.1", "--output", str(tmp_path / "broken"))
    run = compiler("sabotage", "--layout", built.job.output, *named)
    assert run.code == 0, run.errors
    broken = Layout(tmp_path / "broken")
    (bundle,) = broken.bundles()
    assert (bundle.manifest.version, bundle.digest) == ("1.0.1", run.last.digest)
    sound = layout.bundles()[0].manifest
    assert bundle.manifest.file("golden") == sound.file("golden")
    assert golden_faults(unpack(broken, bundle.manifest, tmp_path / "bundle"), bundle.manifest)


def test_sabotage_of_a_target_that_is_not_there_is_told(built: Built, tmp_path: Path) -> None:
    named = ("--target", "models/a/b/1/c", "--version", "2", "--output", str(tmp_path / "x"))
    run = compiler("sabotage", "--layout", built.job.output, *named)
    assert (run.code, run.last.error) == (1, "Malformed")
    assert not (tmp_path / "x").exists()


def test_a_large_file_gets_a_chunk_list_that_describes_it() -> None:
    data = random.Random(5).randbytes(3 * WHOLE)
    entries, blobs = bundle_files([("model", "model.onnx", data), ("labels", "labels.json", b"[]")])
    model = next(f for f in entries if f.role == "model")
    listed = ChunkList.from_bytes(blobs[str(model.chunks)])
    assert (listed.blob, listed.size) == (digest(data), len(data))
    assert {f.digest for f in entries} == set(blobs)
    assert [f.path for f in entries] == ["labels.json", "model.onnx", "model.onnx.chunks.json"]


def test_a_changed_blob_is_not_read(built: Built, tmp_path: Path) -> None:
    """The attack: a blob of the layout is changed on disk."""
    layout = Layout(Path(shutil.copytree(built.job.output, tmp_path / "out")))
    name = layout.bundles()[0].manifest.file("model").digest
    path = layout.blob(name)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(Untrusted, match=name.removeprefix("sha256:")):
        layout.read(name)


def test_a_folder_that_is_no_layout_is_told(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="oci-layout"):
        Layout(tmp_path)


def test_reading_a_layout_imports_nothing_heavy() -> None:
    program = "import sys, json, compiler.bundle.layout; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    assert not set(loaded) & {"numpy", "torch", "onnx", "onnxruntime", "tokenizers"}
