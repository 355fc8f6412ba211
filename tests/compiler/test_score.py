"""Scoring: a variant answers every example in a process of its own, and the answers come back as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from workshop_tools import make_examples, make_onnx, make_variant, shop

from compiler.errors import Incompatible
from compiler.sources.read import read
from compiler.workshop.cache import Cache
from compiler.workshop.children import COMMAND, Failed
from compiler.workshop.score import read_results, write_results
from compiler.workshop.workshop import Scored, Workshop
from wire.processing import Array, Result


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_onnx(tmp_path / "m.onnx")


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    return make_examples(tmp_path / "test.npz")


def real_shop(model: Path, scratch: Path, **changes: object) -> Workshop:
    around = {"reference": str(model), "source": read(str(model), None), "command": COMMAND}
    return shop(Cache(scratch / "cache"), scratch, **{**around, **changes})


def scored(found: Scored | Failed) -> Scored:
    assert isinstance(found, Scored), found
    return found


def expected(model: Path, examples: Path) -> Array:
    import onnxruntime  # noqa: PLC0415  takes a second

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (values,) = session.run(None, {"x": np.load(examples)["x"]})
    return np.asarray(values)


def test_answers_are_those_of_the_runtime_for_every_row_and_come_from_the_cache_the_second_time(
    model: Path, examples: Path, tmp_path: Path
) -> None:
    bench = real_shop(model, tmp_path)
    variant = make_variant(tmp_path / "v", model, bench.source)
    (first,) = bench.score([variant], examples, precisions=["fp32"])
    answers = np.stack([result.outputs["y"] for result in scored(first).results])
    assert answers.shape == (24, 4)
    np.testing.assert_allclose(answers, expected(model, examples), rtol=1e-5)
    assert scored(first).runtime.startswith("onnxruntime ")
    assert 1 << 20 < scored(first).memory < 1 << 30
    (again,) = bench.score([variant], examples, precisions=["fp32"])
    assert scored(again).cached
    assert not scored(first).cached
    assert np.stack([r.outputs["y"] for r in scored(again).results]).tobytes() == answers.tobytes()
    (fresh,) = bench.score([variant], examples, precisions=["fp32"], fresh=True)
    assert not scored(fresh).cached


def test_some_rows_may_be_asked_for_in_any_order(model: Path, examples: Path, tmp_path: Path) -> None:
    bench = real_shop(model, tmp_path)
    variant = make_variant(tmp_path / "v", model, bench.source)
    (found,) = bench.score([variant], examples, rows=[5, 0, 5])
    answers = np.stack([result.outputs["y"] for result in scored(found).results])
    np.testing.assert_allclose(answers, expected(model, examples)[[5, 0, 5]], rtol=1e-5)


def test_a_variant_that_no_runtime_reads_fails_with_a_reason_and_the_others_answer(
    model: Path, examples: Path, tmp_path: Path
) -> None:
    bench = real_shop(model, tmp_path)
    good = make_variant(tmp_path / "good", model, bench.source)
    (tmp_path / "rubbish").write_bytes(b"no graph at all")
    bad = make_variant(tmp_path / "bad", tmp_path / "rubbish", bench.source)
    elsewhere = replace(good, runtime="tflite-runtime", worker="/no/such/python")
    found = bench.score([bad, good, elsewhere], examples)
    assert isinstance(found[0], Failed)
    assert (found[0].kind, found[0].name) == ("Incompatible", "scoring bad")
    assert "ONNX Runtime refuses it" in found[0].reason
    assert len(scored(found[1]).results) == 24
    assert isinstance(found[2], Failed)
    assert "/no/such/python" in found[2].reason


def test_another_file_of_the_variant_or_of_examples_is_another_answer(
    model: Path, examples: Path, tmp_path: Path
) -> None:
    bench = real_shop(model, tmp_path)
    variant = make_variant(tmp_path / "v", model, bench.source)
    bench.score([variant], examples)
    other = make_variant(tmp_path / "w", make_onnx(tmp_path / "n.onnx", seed=3), bench.source)
    more = make_examples(tmp_path / "more.npz", rows=25)
    assert not scored(bench.score([other], examples)[0]).cached
    assert not scored(bench.score([variant], more)[0]).cached
    assert scored(bench.score([variant], examples)[0]).cached


def test_answers_of_any_shape_travel_unchanged_and_labels_are_found_in_the_scores(tmp_path: Path) -> None:
    """Words and frames differ in number from row to row; one row has none."""
    random = np.random.default_rng(0)
    rows = [
        Result({"scores": random.normal(size=(n, 3)).astype(np.float32)}, length=length, language=language)
        for n, length, language in ((2, 7, "en"), (0, None, ""), (5, 0, "und"))
    ]
    with (tmp_path / "a").open("wb") as file:
        names = write_results(file, rows)
    back = read_results(tmp_path / "a", names, ("x", "y", "z"))
    for old, new in zip(rows, back, strict=True):
        assert new.outputs["scores"].dtype == np.float32
        assert new.outputs["scores"].shape == old.outputs["scores"].shape
        assert new.outputs["scores"].tobytes() == old.outputs["scores"].tobytes()
        assert new.labels == tuple("xyz"[i] for i in old.outputs["scores"].argmax(-1))
        assert (new.length, new.language) == (old.length, old.language)


def test_several_outputs_keep_their_names_types_and_places(tmp_path: Path) -> None:
    rows = [
        Result({"a/b:0": np.arange(i, i + 4, dtype=np.int64).reshape(2, 2), "c": np.float32([i, np.nan])})
        for i in range(3)
    ]
    with (tmp_path / "a").open("wb") as file:
        names = write_results(file, rows)
    back = read_results(tmp_path / "a", names, ())
    assert [list(r.outputs) for r in back] == [["a/b:0", "c"]] * 3
    np.testing.assert_array_equal(back[2].outputs["a/b:0"], [[2, 3], [4, 5]])
    np.testing.assert_array_equal(back[1].outputs["c"], np.float32([1, np.nan]))
    assert [r.labels for r in back] == [()] * 3


def test_an_output_that_comes_for_some_examples_only_is_refused(tmp_path: Path) -> None:
    rows = [Result({"a": np.zeros(2, np.float32)}), Result({"b": np.zeros(2, np.float32)})]
    with (tmp_path / "a").open("wb") as file, pytest.raises(Incompatible, match="output a: missing"):
        write_results(file, rows)
