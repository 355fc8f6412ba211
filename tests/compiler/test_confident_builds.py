"""Builds that learn how sure a variant is: the calibration in the bundle, its evidence, and the same bytes again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from compiler_process import Built, build, compiler, rows, write_rows

from wire.build import BuildJob, Data, VerifyJob
from wire.lineage import Lineage
from wire.pipeline import Pipeline
from wire.tune import TRAINING

pytestmark = pytest.mark.timeout(600)
TARGET = "models/home/tiny/1.0.0/board"
INT8 = ("onnx-int8-dynamic",)


def held_out(path: Path, n: int = 400) -> Path:
    """Rows that no test set has: a word more in each. Every seventh label is wrong, so that nothing can be certain."""
    found = rows(5, n)
    labels = sorted({row["label"] for row in found})
    changed = [
        {"text": f"{row['text']} {'abcdefgh'[i % 8]} {i}", "label": labels[i % 4 - 1] if i % 7 == 0 else row["label"]}
        for i, row in enumerate(found)
    ]
    return write_rows(path, changed)


@pytest.fixture(scope="module")
def sure(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("sure")
    calibration = Data(path=str(held_out(folder / "held-out.jsonl")), licence="CC0-1.0")
    job = replace(built.job, output=str(folder / "out"), calibration=calibration, recipes=INT8)
    run = build(job)
    assert run.code == 0, (run.last, run.errors[-2000:])
    return Built(job, run)


def pipeline_of(built: Built) -> Pipeline:
    found = built.layout.find(TARGET)
    return Pipeline.from_bytes(built.layout.read(found.manifest.file("pipeline").digest))


def test_a_build_with_held_out_labels_says_how_sure_its_answers_are(sure: Built) -> None:
    calibration = pipeline_of(sure).calibration
    assert calibration is not None
    assert calibration.target_error == 0.5
    evidence = sure.layout.evidence(sure.layout.find(TARGET).digest)
    assert evidence is not None
    before, after, escalated = (
        evidence.get(name) for name in ("calibration_error_before", "calibration_error", "escalated")
    )
    assert before is not None
    assert after is not None
    assert escalated is not None
    assert (before.n, after.n, escalated.n) == (400, 400, 400)
    assert after.value < before.value  # a seventh of the labels is wrong, and the scores do not know it
    assert escalated.low is not None
    assert escalated.low <= escalated.value


def test_the_examples_stand_in_the_lineage_and_the_figures_not_in_the_bundle(sure: Built) -> None:
    found = sure.layout.find(TARGET)
    lineage = Lineage.from_bytes(sure.layout.read(found.manifest.file("lineage").digest))
    assert [(d.use, d.rows, d.licence) for d in lineage.datasets if d.use == "calibration"] == [
        ("calibration", 400, "CC0-1.0")
    ]
    assert b"calibration_error" not in sure.layout.read(found.manifest.file("pipeline").digest)


@pytest.mark.slow
def test_a_calibrated_bundle_is_made_again_with_the_same_bytes(sure: Built) -> None:
    job = VerifyJob(
        layout=sure.job.output,
        target=TARGET,
        source=sure.job.source,
        test=sure.job.test,
        calibration=sure.job.calibration,
        profile=sure.job.profiles[0],
    )
    run = compiler("verify", given=job.to_bytes(), environment={"PYTHONHASHSEED": "5"})
    assert run.code == 0, (run.last, run.errors[-2000:])
    assert run.last.digest == sure.layout.find(TARGET).digest


@pytest.mark.slow
def test_another_target_error_is_another_result_and_the_same_one_is_in_the_cache(sure: Built, tmp_path: Path) -> None:
    again = build(replace(sure.job, output=str(tmp_path / "again")))
    assert [line.cached for line in again.lines if line.event == "variant"] == [True]
    other = Built(replace(sure.job, output=str(tmp_path / "other"), target_error=30.0), again)
    assert build(other.job).code == 0
    calibration = pipeline_of(other).calibration
    assert calibration is not None
    assert (calibration.target_error, calibration.threshold) == (30.0, 0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("few", "has 64 rows, 200 are needed"),
        ("bare", "have no labels"),
        ("strange", "has the label 'jazz'"),
    ],
)
def test_rows_that_teach_nothing_leave_a_bundle_uncalibrated_and_a_note_says_why(
    built: Built, tmp_path: Path, change: str, said: str
) -> None:
    found = rows(7, 64 if change == "few" else 240)
    values = [{"text": f"{row['text']} {i}", "label": row["label"]} for i, row in enumerate(found)]
    if change == "bare":
        values = [{"text": row["text"]} for row in values]
    if change == "strange":
        values[3]["label"] = "jazz"
    path = write_rows(tmp_path / "rows.jsonl", values)
    job = replace(built.job, output=str(tmp_path / "out"), calibration=Data(path=str(path)), recipes=INT8)
    run = build(job)
    assert run.code == 0, (run.last, run.errors[-2000:])
    assert [line.message for line in run.lines if line.event == "note" and said in line.message]
    assert pipeline_of(Built(job, run)).calibration is None


def test_rows_that_the_source_learned_from_do_not_teach_it_how_sure_it_is(built: Built, tmp_path: Path) -> None:
    """On what it knows by heart a model is surer than it should be."""
    import shutil  # noqa: PLC0415

    from compiler.workshop.cache import file_digest  # noqa: PLC0415
    from wire.lineage import Dataset  # noqa: PLC0415
    from wire.tune import Training  # noqa: PLC0415

    path = held_out(tmp_path / "train.jsonl")
    source = shutil.copytree(built.job.source, tmp_path / "tuned")
    learned = Dataset(name="train.jsonl", digest=file_digest(path), use="train", rows=400, licence="CC0-1.0")
    training = Training(method="head", parameters={}, encoder="sha256:" + "2" * 64, datasets=(learned,), tools={})
    (source / TRAINING).write_bytes(training.to_bytes())
    job: BuildJob = replace(
        built.job, source=str(source), output=str(tmp_path / "out"), calibration=Data(path=str(path)), recipes=INT8
    )
    run = build(job)
    assert run.code == 0, (run.last, run.errors[-2000:])
    assert [line for line in run.lines if "the source learned from train.jsonl" in line.message]
    assert pipeline_of(Built(job, run)).calibration is None
