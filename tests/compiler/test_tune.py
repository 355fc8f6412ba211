"""Training: what is held out, what every method writes, and that nothing is left when it does not finish."""

# ruff: noqa: PLC0415  torch takes seconds: only the tests that use it wait for it
from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from compiler_process import compiler, rows, write_rows

from compiler.errors import Malformed
from compiler.sources.read import read
from compiler.tuning.data import Labelled, normal, read_data, split
from compiler.tuning.job import TuneJob
from compiler.tuning.tracking import log
from wire.tune import Training, TuneReport

METHODS = ("head", "lora", "full", "distill")


def make_job(folder: Path, values: Sequence[dict[str, str]], **options: object) -> TuneJob:
    train = write_rows(folder / "train.jsonl", values)
    return replace(TuneJob(source=folder / "encoder", train=train, output=folder / "out"), **options)  # type: ignore[arg-type]


def texts(found: Sequence[Labelled]) -> list[str]:
    return [row.text for row in found]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- what is held out -------------------------------------------------------------------------------------------------


def test_the_order_of_the_file_decides_nothing_and_the_seed_does(tmp_path: Path) -> None:
    values = rows(0, 128)
    one = read_data(make_job(tmp_path, values))
    random.Random(1).shuffle(values)
    assert (read_data(make_job(tmp_path, values)).train, one.labels) == (one.train, ("heat", "light", "lock", "tune"))
    assert read_data(make_job(tmp_path, values, seed=1)).validation != one.validation


def test_every_label_is_held_out_by_its_share(tmp_path: Path) -> None:
    values = [{"text": f"{label} {i}", "label": label} for label, n in (("a", 100), ("b", 20)) for i in range(n)]
    data = read_data(make_job(tmp_path, values, split=0.2))
    assert Counter(row.label for row in data.validation) == {"a": 20, "b": 4}
    assert len(data.train) == 96


def test_the_same_text_is_never_on_both_sides(tmp_path: Path) -> None:
    """Accident: a file in which most texts stand several times, written a little differently."""
    written = ("{}", "  {}", "{} ", "\uff21 {}")
    values = [{"text": f.format(f"A {i}"), "label": "xy"[i % 2]} for i in range(40) for f in written[: 1 + i % 3]]
    data = read_data(make_job(tmp_path, values))
    assert not {normal(t) for t in texts(data.train)} & {normal(t) for t in texts(data.validation)}
    assert len(data.train) + len(data.validation) == 40
    assert data.duplicates == len(values) - 40


def test_a_text_with_two_labels_is_left_out_and_told(tmp_path: Path) -> None:
    values = [*rows(0), {"text": "Turn It", "label": "lock"}, {"text": "turn  it", "label": "heat"}]
    data = read_data(make_job(tmp_path, values))
    assert data.conflicts == ("Turn It",)
    assert "turn it" not in {normal(t) for t in texts([*data.train, *data.validation])}
    assert any("1 texts whose rows disagree" in note for note in data.notes)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_group_stays_together_also_over_a_text_that_two_share(tmp_path: Path, ending: str) -> None:
    """Accident: two templates make the same sentence, and each makes others that give it away."""
    values = [{"text": f"t{g} {i}", "label": "ab"[g % 2], "template": f"g{g}"} for g in range(24) for i in range(4)]
    values += [{"text": "shared", "label": "a", "template": f"g{g}"} for g in (0, 2)]
    job = make_job(tmp_path, values, group="template", split=0.25)
    if ending == "csv":
        lines = [f"{v['template']},{v['text']},{v['label']}\n" for v in values]
        job = replace(job, train=job.train.with_suffix(".csv"))
        job.train.write_text("template,text,label\n" + "".join(lines))
    data = read_data(job)
    first, second = ({text.split()[0] for text in texts(side)} for side in (data.train, data.validation))
    assert second
    assert not first & second
    assert len({"t0", "t2", "shared"} & first) in (0, 3)


def test_a_group_larger_than_the_share_is_held_out_when_a_label_has_no_other() -> None:
    found = [Labelled(f"{label}{g}{i}", label, f"{label}{g}") for label in "ab" for g in range(3) for i in range(10)]
    train, held = split(found, 0.1, seed=0)
    assert Counter(row.label for row in held) == {"a": 10, "b": 10}
    assert len(train) == 40


def test_rows_that_are_in_the_validation_file_are_not_learned(tmp_path: Path) -> None:
    held = write_rows(tmp_path / "held.jsonl", [{**v, "text": v["text"].upper()} for v in rows(0)[:8]])
    data = read_data(make_job(tmp_path, rows(0) + rows(1), validation=held))
    assert len(data.validation) == 8
    assert data.overlapping >= 8
    assert not {normal(t) for t in texts(data.train)} & {normal(t) for t in texts(data.validation)}
    assert [d.rows for d in data.datasets] == [128, 8]


def test_uneven_and_missing_labels_are_told(tmp_path: Path) -> None:
    values = [{"text": f"a {i}", "label": "a"} for i in range(200)] + [{"text": f"b {i}", "label": "b"} for i in (1, 2)]
    assert {note.split()[0] for note in read_data(make_job(tmp_path, values)).notes} == {"uneven:", "no"}


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], {}, "one label only"),
        ([{"text": "a"}, {"text": "b"}], {}, "no label"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], {}, "too few rows"),
        (rows(0), {"group": "template"}, "row 1 has no 'template'"),
        ([{"text": "a", "label": "x"}, {"text": "A", "label": "y"}, {"text": "b", "label": "x"}], {}, "label 'y'"),
    ],
)
def test_rows_that_cannot_be_learned_from_are_refused(
    tmp_path: Path, values: list[dict[str, str]], options: dict[str, str], message: str
) -> None:
    with pytest.raises(Malformed, match=message):
        read_data(make_job(tmp_path, values, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": 0.6}, "split 0.6"),
        ({"split": 0.0, "method": "full"}, "needs validation rows"),
        ({"epochs": 0}, "epochs 0"),
        ({"learning_rate": 0.0}, "learning-rate"),
        ({"student_layers": 2}, "for the method distill"),
        ({"max_length": 7}, "max-length 7"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(Malformed, match=message):
        make_job(tmp_path, rows(0), **options).check()


# --- what comes out ---------------------------------------------------------------------------------------------------


TRAIN_ALL = """
import sys
from dataclasses import replace
from pathlib import Path
from compiler.progress import Reporter
from compiler.tune import tune
from compiler.tuning.job import TuneJob
encoder, train, output, *methods = sys.argv[1:]
job = TuneJob(source=Path(encoder), train=Path(train), output=Path(output), epochs=2, seed=3, licence="CC0-1.0")
for method in methods:
    tune(replace(job, method=method, output=job.output / method), Reporter(sys.stdout.buffer))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)  # eight trainings
def test_each_method_writes_a_source_that_is_the_same_from_a_shuffled_file(encoder: Path, tmp_path: Path) -> None:
    """Another order of the rows, another process, another hash seed: none of them decides anything."""
    values = rows(0, 96)
    for name, ordered in (("1", values), ("2", values[::-1])):
        train = write_rows(tmp_path / f"{name}.jsonl", ordered)
        # One process for all methods: torch takes longer to load than they take.
        command = [sys.executable, "-c", TRAIN_ALL, str(encoder), str(train), str(tmp_path / name), *METHODS]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": name}, capture_output=True, check=False, text=True
        )
        assert done.returncode == 0, done.stderr
    for method in METHODS:
        one, two = contents(tmp_path / "1" / method), contents(tmp_path / "2" / method)
        told = {"training.json", "README.md"}  # they name the file of the rows and its digest
        assert {k: v for k, v in one.items() if k not in told} == {k: v for k, v in two.items() if k not in told}
        assert json.loads(one["config.json"])["num_hidden_layers"] == (1 if method == "distill" else 2)
        assert_is_as_reported(tmp_path / "1" / method, tmp_path / "1.jsonl", method)


def assert_is_as_reported(folder: Path, train: Path, method: str) -> None:
    source = read(str(folder), None)
    assert (source.task, source.labels) == ("text-classification", ("heat", "light", "lock", "tune"))
    report = TuneReport.from_bytes(folder.with_name(f"{method}.report.json").read_bytes())
    assert report.training == Training.from_bytes((folder / "training.json").read_bytes())
    assert [(d.name, d.use, d.licence) for d in report.training.datasets] == [("1.jsonl", "train", "CC0-1.0")]
    assert report.model == source.digest
    assert len(report.epochs) == (0 if method == "head" else 3)
    assert report.low is not None
    assert report.accuracy is not None
    assert 0 < report.low < report.accuracy
    assert_answers_as_reported(folder, report, train)


def assert_answers_as_reported(folder: Path, report: TuneReport, train: Path) -> None:
    """The written folder, loaded as a build loads it, is as good on the held-out rows as its report says."""
    import torch
    from tokenizers import Tokenizer

    from compiler.sources.module import load

    source = read(str(folder), None)
    module, tokenizer = load(source), Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    held = read_data(TuneJob(source=folder, train=train, output=folder, seed=3)).validation
    right = 0
    for row in held:
        ids = torch.tensor([tokenizer.encode(row.text).ids])
        feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        with torch.no_grad():
            logits = module(*(feeds[spec.name] for spec in source.inputs))
        right += source.labels[int(logits.argmax())] == row.label
    assert right / len(held) == report.accuracy


@pytest.mark.slow
def test_a_training_that_does_harm_is_not_kept(encoder: Path, tmp_path: Path) -> None:
    """Accident: a learning rate a thousand times too high."""
    train = write_rows(tmp_path / "train.jsonl", rows(0, 96))
    words = ["--source", str(encoder), "--train", str(train), "--output", str(tmp_path / "out"), "--method", "full"]
    run = compiler("tune", *words, "--learning-rate", "0.3", "--patience", "1")
    assert run.code == 0, run.errors
    report = TuneReport.from_bytes((tmp_path / "out.report.json").read_bytes())
    assert (report.epoch, len(report.epochs)) == (0, 2)
    assert report.accuracy == pytest.approx(report.epochs[0].accuracy)


@pytest.mark.slow
def test_too_little_memory_is_an_error_in_words_and_leaves_nothing(encoder: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", rows(0))
    words = ["--source", str(encoder), "--train", str(train), "--output", str(tmp_path / "out")]
    run = compiler("tune", *words, "--memory", f"{resource.getpagesize()} B")
    assert (run.code, run.last.error) == (1, "Unavailable")
    assert "not enough memory within" in run.last.message
    assert [p.name for p in tmp_path.iterdir()] == ["train.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_stopped_leaves_nothing(encoder: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Accident: Ctrl-C in the middle of an epoch."""
    train = write_rows(tmp_path / "train.jsonl", rows(0, 160) + rows(1, 160))
    words = ["--source", str(encoder), "--train", str(train), "--output", str(tmp_path / "out"), "--method", "full"]
    many = ["--epochs", "1000", "--patience", "1000"]
    command = [sys.executable, "-P", "-m", "compiler", "tune", *words, *many]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if "epoch 2" in json.loads(line)["message"]:
                break
        child.send_signal(number)
        child.stdout.read()
    assert child.returncode == 128 + number
    assert [p.name for p in tmp_path.iterdir()] == ["train.jsonl"]


# --- MLflow -----------------------------------------------------------------------------------------------------------


def make_report() -> TuneReport:
    parts = {
        "training": {
            "contract": "1.0",
            "method": "head",
            "parameters": {"seed": 0},
            "encoder": f"sha256:{'a' * 64}",
            "datasets": [],
            "tools": {},
        },
        "contract": "1.0",
        "model": f"sha256:{'b' * 64}",
        "train_rows": 8,
        "validation_rows": 4,
        "split_by": "text",
        "duplicates": 0,
        "conflicts": [],
        "overlapping": 0,
        "confidence": 0.95,
        "classes": [],
        "epochs": [{"number": n, "accuracy": 0.5 + n / 4, "validation_loss": 0.5, "seconds": 1.0} for n in (0, 1)],
        "notes": [],
        "seconds": 2.5,
        "memory": 1000,
        "accuracy": 0.75,
        "epoch": 1,
    }
    return TuneReport.from_value(parts)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # the file store is old, and all that a test needs
def test_a_training_is_a_run_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "intents")
    uri = (tmp_path / "runs").as_uri()
    run = log(make_report(), uri, "kitchen")
    client = MlflowClient(uri)
    found = client.get_run(run)
    assert (found.info.run_name, found.info.status) == ("kitchen", "FINISHED")
    assert client.get_experiment(found.info.experiment_id).name == "intents"
    assert found.data.params["method"] == "head"
    assert found.data.metrics["accuracy"] == 0.75
    assert [m.value for m in client.get_metric_history(run, "validation_accuracy")] == [0.5, 0.75]
    assert [f.path for f in client.list_artifacts(run)] == ["report.json"]
