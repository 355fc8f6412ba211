"""The compiler as a process: job in, bundles and progress out."""

# ruff: noqa: PLC0415  torch takes seconds: only the test that makes a model waits for it
from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from compiler_process import Built, build, compiler, profile, rows, write_rows

from compiler.build import Inputs
from compiler.cache import Cache
from compiler.errors import Malformed, Untrusted
from compiler.gates import golden_set_fault
from compiler.layout import Layout, blob_path
from compiler.pack import bundle_files
from compiler.sabotage import scramble
from compiler.score import score
from wire.build import BuildJob, Progress
from wire.bundle import BundleManifest, Golden, Labels, Pipeline
from wire.chunks import WHOLE, ChunkList, digest

needs_litert = pytest.mark.skipif(
    find_spec("litert_torch") is None, reason="litert-torch has no build for this machine: its converter is x86-64 only"
)


def done(job: BuildJob) -> Built:
    run = build(job)
    assert run.code == 0, (run.lines, run.errors[-2000:])
    return Built(job, run)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


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


def test_a_build_writes_a_bundle_that_repeats_its_golden_set_and_evidence_beside_it(
    built: Built, tmp_path: Path
) -> None:
    run, layout = built.run, built.layout
    (bundle,) = layout.bundles()
    manifest = bundle.manifest
    assert [line.event for line in run.lines[-2:]] == ["variant", "done"]
    assert (run.lines[-2].digest, run.lines[-2].cached) == (bundle.digest, False)
    assert (manifest.target, manifest.runtime, manifest.precision) == (
        "models/home/tiny/1.0.0/board",
        "onnxruntime",
        "int8",
    )
    folder = unpack(layout, manifest, tmp_path / "bundle")
    golden = Golden.from_bytes((folder / "golden.json").read_bytes())
    assert len(golden.cases) == 16
    assert golden_set_fault(golden, score(folder, [c.text for c in golden.cases]).scores) is None
    assert Labels.from_bytes((folder / "labels.json").read_bytes()).labels == ("heat", "light", "lock", "tune")
    assert Pipeline.from_bytes((folder / "pipeline.json").read_bytes()).tokenizer.max_length == 32
    assert all(f.chunks for f in manifest.files if f.size > WHOLE)

    evidence = layout.evidence(bundle.digest)
    assert evidence
    accuracy, source_accuracy = evidence.get("accuracy"), evidence.get("source_accuracy")
    assert accuracy
    assert source_accuracy
    assert accuracy.n == source_accuracy.n == 64
    assert (accuracy.low or 1.0) < accuracy.value <= (accuracy.high or 0.0)
    assert source_accuracy.value > 0.9
    assert {m.kind for m in evidence.measurements if m.metric.startswith("latency")} == {"emulated"}
    assert evidence.attempts[0].outcome == "chosen"
    assert str(layout.card(bundle.digest)).startswith("---\nlibrary_name:")


def test_bundles_are_byte_identical_from_another_folder_and_hash_seed(built: Built, tmp_path: Path) -> None:
    other = tmp_path / "some" / "other place"
    again = replace(built.job, output=str(other / "out"), cache=str(other / "cache"))
    assert build(again, PYTHONHASHSEED="7").code == 0
    first, second = bundle_bytes(built.layout), bundle_bytes(Layout(Path(again.output)))
    assert first == second
    paths = (str(tmp_path).encode(), built.job.output.encode(), built.job.source.encode())
    assert not [name for name, data in first.items() if any(path in data for path in paths)]


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
    key = Inputs.read(built.job).key(built.job.profiles[0])
    made = cache.get(key)
    assert made
    model = next(f for f in made.files if f.role == "model")
    path = blob_path(cache.folder, model.digest)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert cache.get(key) is None


def test_a_second_version_stands_beside_the_first_in_one_layout_and_shares_its_blobs(
    built: Built, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(built.job.output, tmp_path / "out"))
    blobs = len(list((output / "blobs" / "sha256").iterdir()))
    layout = done(replace(built.job, output=str(output), version="2.0.0")).layout
    assert [b.manifest.version for b in layout.bundles()] == ["1.0.0", "2.0.0"]
    # A manifest, a config, an evidence manifest, results and a card are new; every file is the old one.
    assert len(list((output / "blobs" / "sha256").iterdir())) == blobs + 5


def test_the_smallest_that_holds_is_chosen_and_the_others_are_told(job: BuildJob) -> None:
    smallest = profile(recipes=("onnx-fp32", "onnx-int4-weights", "onnx-int8-dynamic"), choose="smallest")
    layout = done(replace(job, profiles=(smallest,), max_drop=20.0)).layout
    evidence = layout.evidence(layout.bundles()[0].digest)
    assert evidence
    sizes = {a.recipe: a.bytes for a in evidence.attempts}
    outcomes = {a.recipe: a.outcome for a in evidence.attempts}
    assert outcomes[min(sizes, key=lambda r: sizes[r] or 0)] == "chosen"
    assert outcomes["onnx-fp32"] == "passed"


def test_the_limit_of_the_disk_counts_the_whole_bundle_and_says_so(built: Built, tmp_path: Path) -> None:
    """The model alone fits; its tokenizer does not fit beside it."""
    manifest = built.layout.bundles()[0].manifest
    room = manifest.file("model").size + manifest.file("tokenizer").size // 2
    only = profile(recipes=("onnx-int8-dynamic",), limits=replace(profile().limits, disk=f"{room} B"))
    run = build(replace(built.job, profiles=(only,), output=str(tmp_path / "out"), cache=str(tmp_path / "cache")))
    assert (run.code, run.last.error) == (3, "Infeasible")
    assert f"on the device's disk, the profile allows {room} B" in run.last.message


def test_a_disk_that_takes_no_more_is_told_with_its_folder_and_nothing_appears(built: Built, tmp_path: Path) -> None:
    """The accident: no file may grow over one block, so the first large blob fails."""
    job = replace(built.job, output=str(tmp_path / "out"))
    command = ["sh", "-c", 'ulimit -f 8; exec "$0" -P -m compiler build', sys.executable]
    run = subprocess.run(command, input=job.to_bytes(), capture_output=True, check=False)
    last = Progress.from_bytes(run.stdout.splitlines()[-1])
    assert (run.returncode, last.error) == (1, "Unavailable")
    assert f"output {tmp_path / 'out'}: cannot be written" in last.message
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_layout_is_told_before_the_work_begins(job: BuildJob) -> None:
    Path(job.output).mkdir()
    (Path(job.output) / "oci-layout").write_text("{}")
    (Path(job.output) / "index.json").write_text("{")
    run = build(job)
    assert (run.code, run.last.error) == (1, "Malformed")
    assert [line.event for line in run.lines] == ["failed"]


def test_a_package_that_is_not_there_is_told_with_what_to_install(built: Built) -> None:
    """The accident: the compiler's extra was not installed."""
    program = "import sys; sys.modules['numpy'] = None; from compiler.__main__ import main; sys.exit(main(['build']))"
    run = subprocess.run([sys.executable, "-c", program], input=built.job.to_bytes(), capture_output=True, check=False)
    last = Progress.from_bytes(run.stdout)
    assert (run.returncode, last.error) == (1, "Unavailable")
    assert "numpy" in last.message
    assert "extra 'compiler'" in last.message


def test_the_card_is_one_that_the_hub_reads(built: Built) -> None:
    from huggingface_hub import ModelCard

    layout = built.layout
    found = layout.bundles()[0].digest
    card, evidence = ModelCard(str(layout.card(found))), layout.evidence(found)
    assert evidence
    accuracy = evidence.get("accuracy")
    assert accuracy
    (result,) = card.data.eval_results
    assert (card.data.model_name, card.data.library_name, result.metric_type) == ("tiny", "onnxruntime", "accuracy")
    assert (result.metric_value, result.dataset_name) == (accuracy.value, "test.jsonl")


def test_no_recipe_that_holds_is_an_outcome_of_its_own_and_writes_no_model(job: BuildJob) -> None:
    run = build(
        replace(job, profiles=(profile(recipes=("onnx-fp32",), limits=replace(profile().limits, disk="1 KiB")),))
    )
    assert (run.code, run.last.error) == (3, "Infeasible")
    assert "the nearest, onnx-fp32" in run.last.message
    assert not Path(job.output).exists()


@pytest.mark.slow
def test_a_plain_sequence_classifier_no_better_than_chance_compiles_and_is_not_packed(
    job: BuildJob, encoder: Path, tmp_path: Path
) -> None:
    """Its weights are random, so it compiles, and the accuracy gate cannot tell it from a saboteur: no bundle."""
    folder = sequence_classifier(encoder, tmp_path / "plain")
    run = build(replace(job, source=str(folder), profiles=(profile(recipes=("onnx-fp32",)),)))
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


def test_a_build_told_to_end_leaves_nothing_behind(job: BuildJob) -> None:
    """The accident: SIGTERM in the middle of a build."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "compiler", "build"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin
    assert process.stdout
    with process.stdin as given:
        given.write(job.to_bytes())
    with process.stdout as lines:
        assert b'"step"' in lines.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert [p.name for p in Path(job.output).parent.iterdir() if p.name != "cache"] == []


@needs_litert
@pytest.mark.slow
def test_a_litert_variant_has_a_fixed_length_and_repeats_its_golden_set(slow_recipes: Built, tmp_path: Path) -> None:
    manifest = slow_recipes.layout.find("models/home/tiny/1.0.0/litert-int8-dynamic").manifest
    folder = unpack(slow_recipes.layout, manifest, tmp_path / "bundle")
    pipeline = Pipeline.from_bytes((folder / "pipeline.json").read_bytes())
    assert (manifest.runtime, pipeline.batch, pipeline.pad_to) == ("litert", 1, 16)
    golden = Golden.from_bytes((folder / "golden.json").read_bytes())
    assert golden_set_fault(golden, score(folder, [c.text for c in golden.cases]).scores) is None


@pytest.mark.slow
def test_the_other_recipes_give_the_same_bytes_twice(slow_recipes: Built, tmp_path: Path) -> None:
    again = replace(slow_recipes.job, output=str(tmp_path / "out"), cache=str(tmp_path / "cache"))
    assert bundle_bytes(slow_recipes.layout) == bundle_bytes(done(again).layout)


@needs_litert
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["litert-fp32", "litert-int8-dynamic"])
@pytest.mark.parametrize("place", ["inside the flatbuffer", "behind it"])
def test_the_scrambled_weight_of_a_litert_model_is_its_largest_one(
    recipe: str, place: str, slow_recipes: Built
) -> None:
    """The reference is LiteRT's own reader: one tensor differs, no other is larger, and it is the other way round."""
    manifest = slow_recipes.layout.find(f"models/home/tiny/1.0.0/{recipe}").manifest
    sound = slow_recipes.layout.read(manifest.file("model").digest)
    if place == "behind it":
        sound = with_buffers_behind(sound)
    broken = scramble(sound)
    before, after = constants(sound), constants(broken)
    changed = [i for i in before if not np.array_equal(before[i], after[i])]
    assert len(broken) == len(sound)
    assert [before[i].nbytes for i in changed] == [max(t.nbytes for t in before.values())]
    np.testing.assert_array_equal(after[changed[0]].ravel(), before[changed[0]].ravel()[::-1])


def with_buffers_behind(model: bytes) -> bytes:
    """The same model as the converter writes larger ones: numbers after the flatbuffer, named by offset and size."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    whole = schema.ModelT.InitFromPackedBuf(model, 0)
    moved = [(buffer, bytes(buffer.data)) for buffer in whole.buffers if buffer.data is not None and len(buffer.data)]
    for buffer, data in moved:
        buffer.data, buffer.offset, buffer.size = None, 2, len(data)  # a placeholder as wide as the real number
    for _ in range(2):  # the first round tells where the flatbuffer ends
        builder = flatbuffers.Builder()
        builder.Finish(whole.Pack(builder), b"TFL3")
        packed = bytes(builder.Output())
        end = len(packed)
        for buffer, data in moved:
            end += -end % 16
            buffer.offset, end = end, end + len(data)
    for buffer, data in moved:
        packed += bytes(buffer.offset - len(packed)) + data
    return packed


def constants(model: bytes) -> dict[int, npt.NDArray[Any]]:
    """The tensors of a flatbuffer that hold numbers before anything ran, by index."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    found = {}
    for detail in interpreter.get_tensor_details():
        # Without allocation only a constant has a value.
        with contextlib.suppress(ValueError):
            found[detail["index"]] = interpreter.get_tensor(detail["index"]).copy()
    return found


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
    assert bundle.manifest.file("model").size == sound.file("model").size
    folder = unpack(broken, bundle.manifest, tmp_path / "bundle")
    golden = Golden.from_bytes((folder / "golden.json").read_bytes())
    assert golden_set_fault(golden, score(folder, [c.text for c in golden.cases]).scores) is not None


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
    program = "import sys, json, compiler.layout; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    assert not set(loaded) & {"numpy", "torch", "onnx", "onnxruntime", "tokenizers"}


@pytest.mark.slow
def test_tune_gives_the_same_bytes_twice(encoder: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", rows(0))
    for name in ("one", "two"):
        run = compiler(
            "tune", "--source", str(encoder), "--train", str(train), "--output", str(tmp_path / name), "--seed", "3"
        )
        assert run.code == 0, run.errors
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
