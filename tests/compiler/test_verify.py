"""A bundle is made again by its recorded recipe: the same bytes, or the first file that differs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from compiler_process import Built, Run, build, compiler, make_source, rows, write_rows

from compiler.bundle.layout import Layout
from wire.build import Data, VerifyJob
from wire.lineage import Dataset
from wire.tune import TRAINING, Training

pytestmark = pytest.mark.timeout(600)
"""A build starts a dozen processes, and the first test waits for the one that all look at."""
TARGET = "models/home/tiny/1.0.0/board"


@pytest.fixture
def job(built: Built) -> VerifyJob:
    return VerifyJob(
        layout=built.job.output,
        target=TARGET,
        source=built.job.source,
        test=Data(path=built.job.test.path),
        profile=built.job.profiles[0],
    )


def verify(job: VerifyJob) -> Run:
    return compiler("verify", given=job.to_bytes(), environment={"PYTHONHASHSEED": "11"})


@pytest.mark.slow
def test_a_bundle_made_again_from_another_place_has_the_same_digest(
    built: Built, job: VerifyJob, tmp_path: Path
) -> None:
    """The licence of the data and the name of its file are the bundle's, not those of the copy."""
    source = shutil.copytree(job.source, tmp_path / "copy")
    test = shutil.copy(job.test.path, tmp_path / "other-name.jsonl")
    run = verify(replace(job, source=str(source), test=Data(path=str(test))))
    assert run.code == 0, (run.last, run.errors[-2000:])
    assert run.last.digest == built.layout.find(TARGET).digest


@pytest.mark.slow
def test_a_bundle_of_a_tuned_source_is_made_again_without_the_rows_that_it_learned_from(
    built: Built, tmp_path: Path
) -> None:
    source = shutil.copytree(built.job.source, tmp_path / "tuned")
    learned = Dataset(name="rows.csv", digest="sha256:" + "1" * 64, use="train", rows=9, licence="CC0-1.0")
    training = Training(method="head", parameters={}, encoder="sha256:" + "2" * 64, datasets=(learned,), tools={})
    (source / TRAINING).write_bytes(training.to_bytes())
    output = str(tmp_path / "out")
    made = build(replace(built.job, source=str(source), output=output, recipes=("onnx-fp32",)))
    assert made.code == 0, (made.last, made.errors[-2000:])
    test, board = Data(path=built.job.test.path), built.job.profiles[0]
    run = verify(VerifyJob(layout=output, target=TARGET, source=str(source), test=test, profile=board))
    assert run.code == 0, (run.last, run.errors[-2000:])


@pytest.mark.slow
def test_a_bundle_whose_model_was_changed_is_found_out_and_the_file_named(
    built: Built, job: VerifyJob, tmp_path: Path
) -> None:
    """The attack: a bundle that is whole and says that it was made of the source, with another model in it."""
    broken = tmp_path / "broken"
    named = ("--target", TARGET, "--version", "1.0.1", "--output", str(broken))
    assert compiler("sabotage", "--layout", built.job.output, *named).code == 0
    target = Layout(broken).bundles()[0].manifest.target
    run = verify(replace(job, layout=str(broken), target=target))
    assert (run.code, run.last.error) == (1, "Untrusted")
    assert "model.onnx has the digest" in run.last.message


def test_another_source_is_told_before_any_work(job: VerifyJob, encoder: Path, tmp_path: Path) -> None:
    other = make_source(encoder, tmp_path / "other", max_length=24)
    run = verify(replace(job, source=str(other)))
    assert (run.code, run.last.error) == (1, "Malformed")
    assert "the bundle was made of sha256:" in run.last.message


def test_other_examples_are_told_before_any_work(job: VerifyJob, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", rows(3, 160))
    run = verify(replace(job, test=Data(path=str(other))))
    assert (run.code, run.last.error) == (1, "Malformed")
    assert "test examples other.jsonl" in run.last.message


def test_a_target_that_is_not_there_is_told(job: VerifyJob) -> None:
    run = verify(replace(job, target="models/a/b/1/c"))
    assert (run.code, run.last.error) == (1, "Malformed")
