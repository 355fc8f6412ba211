"""Each bad input has its own error, and nothing is written."""

# ruff: noqa: PLC0415  only the tests that change weights load a library for it
from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from compiler_process import build, compiler, profile, rows, write_rows

from compiler import source, testset
from compiler.errors import Incompatible, Malformed
from wire.build import BuildJob


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def garble_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"x" * 100)


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_architectures(folder: Path) -> None:
    (folder / "modules.json").unlink()
    edit(folder / "config.json", architectures=5)


def strange_offsets(folder: Path) -> None:
    header = b'{"a": {"data_offsets": [0, "x"]}, "b": {"data_offsets": [0, 1]}}'
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"x")


BAD: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "weights cut short": (cut_weights, Malformed, "its header asks for"),
    "weights that are no safetensors": (garble_weights, Malformed, "not a safetensors file"),
    "pickled weights": (pickle_weights, Malformed, "never read"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), Malformed, "no model.safetensors"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), Malformed, "tokenizer.json: missing"),
    "no config": (lambda f: (f / "config.json").unlink(), Malformed, "config.json: missing"),
    "config that is no JSON": (lambda f: (f / "config.json").write_text("{"), Malformed, "not valid JSON"),
    "one label": (lambda f: edit(f / "config.json", id2label={"0": "a"}), Malformed, "at least two labels"),
    "config that is too deep": (lambda f: (f / "config.json").write_text("[" * 10**5), Malformed, "not valid JSON"),
    "architectures that are no list": (no_architectures, Incompatible, "tune a classifier"),
    "offsets that are no numbers": (strange_offsets, Malformed, "header is corrupt"),
    "a label twice": (lambda f: edit(f / "config.json", id2label={"0": "a", "1": "a"}), Malformed, "a label twice"),
    "labels from 1": (lambda f: edit(f / "config.json", id2label={"1": "a", "2": "b"}), Malformed, "counts from 0"),
    "no head": (lambda f: (f / "modules.json").unlink(), Incompatible, "tune a classifier"),
    "no weights of the head": (lambda f: (f / "2_Dense" / "model.safetensors").unlink(), Malformed, "2_Dense"),
    "another activation": (
        lambda f: edit(f / "2_Dense" / "config.json", activation_function="Tanh"),
        Incompatible,
        "Tanh",
    ),
    "another pooling": (
        lambda f: edit(f / "1_Pooling" / "config.json", pooling_mode_max_tokens=True),
        Incompatible,
        "pooling_mode_max_tokens",
    ),
    "a module outside": (
        lambda f: (f / "modules.json").write_text('[{"type": "Pooling", "path": "../../x"}]'),
        Malformed,
        "leaves the folder",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_source_is_told_with_its_path_and_what_to_do(case: str, source: Path, tmp_path: Path) -> None:
    breaking, error, message = BAD[case]
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    breaking(folder)
    with pytest.raises(error, match=message) as caught:
        read_source(folder)
    assert str(folder) in str(caught.value)


def read_source(folder: Path) -> source.Source:
    return source.read(folder)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="no such folder"):
        read_source(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("{", ":1: "),
        ('{"text": "a", "label": "b"}\n{"text": 1, "label": "b"}', ":2: "),
        ('{"text": "a"}', "expected"),
        ('{"text": "\\ud800", "label": "b"}', "surrogate"),
    ],
)
def test_a_bad_row_is_told_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(text)
    with pytest.raises(Malformed, match=message):
        testset.read(path)


def test_a_selection_takes_every_label_in_turn(test_set: Path) -> None:
    chosen = testset.read(test_set).spread(16)
    assert len(chosen) == 16
    assert {label: sum(r.label == label for r in chosen) for label in {r.label for r in chosen}} == dict.fromkeys(
        ("heat", "light", "lock", "tune"), 4
    )


def nan_weights(job: BuildJob, folder: Path) -> BuildJob:
    from safetensors.numpy import load_file, save_file

    copy = Path(shutil.copytree(job.source, folder / "nan"))
    weights = load_file(copy / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return replace(job, source=str(copy))


def missing_weight(job: BuildJob, folder: Path) -> BuildJob:
    from safetensors.numpy import load_file, save_file

    copy = Path(shutil.copytree(job.source, folder / "missing"))
    weights = load_file(copy / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return replace(job, source=str(copy))


def other_labels(job: BuildJob, folder: Path) -> BuildJob:
    return replace(job, test_set=str(write_rows(folder / "x.jsonl", [{"text": "a", "label": "stranger"}])))


def empty_test_set(job: BuildJob, folder: Path) -> BuildJob:
    return replace(job, test_set=str(write_rows(folder / "empty.jsonl", [])))


def one_label(job: BuildJob, folder: Path) -> BuildJob:
    return replace(job, test_set=str(write_rows(folder / "one.jsonl", [{"text": "lamp", "label": "light"}] * 3)))


def unknown_recipe(job: BuildJob, folder: Path) -> BuildJob:
    return replace(job, profiles=(profile(recipes=("onnx-int2",)),))


JOBS: dict[str, tuple[Callable[[BuildJob, Path], BuildJob], str, str]] = {
    "NaN weights": (nan_weights, "Malformed", "NaN"),
    "a weight that is missing": (missing_weight, "Malformed", "encoder.layer.1.output.dense.weight"),
    "labels that do not match": (other_labels, "Malformed", "stranger"),
    "an empty test set": (empty_test_set, "Malformed", "no rows"),
    "a test set of one label": (one_label, "Malformed", "every row has the label 'light'"),
    "an unknown recipe": (unknown_recipe, "Incompatible", "onnx-int2"),
}


@pytest.mark.parametrize("case", JOBS)
def test_a_bad_job_fails_with_a_reason_and_leaves_the_output_alone(case: str, job: BuildJob, tmp_path: Path) -> None:
    change, error, message = JOBS[case]
    run = build(change(job, tmp_path))
    assert run.code == 1
    assert (run.last.event, run.last.error) == ("failed", error), run.errors
    assert message in run.last.message
    assert not Path(job.output).exists()
    assert [p.name for p in Path(job.output).parent.iterdir() if p.name.startswith(".")] == []


def test_a_job_that_is_no_job_is_told() -> None:
    run = compiler("build", given=b"{}")
    assert (run.code, run.last.event, run.last.error) == (1, "failed", "Malformed")


def test_tune_refuses_one_label_and_a_full_folder(encoder: Path, tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one.jsonl", [{"text": "lamp", "label": "light"}] * 3)
    run = compiler("tune", "--source", str(encoder), "--train", str(one), "--output", str(tmp_path / "model"))
    assert (run.code, run.last.error) == (1, "Malformed")
    assert "one label" in run.last.message
    good = write_rows(tmp_path / "good.jsonl", rows(0))
    run = compiler("tune", "--source", str(encoder), "--train", str(good), "--output", str(tmp_path))
    assert "not empty" in run.last.message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.jsonl", "one.jsonl"]
