"""The lean form of a BERT encoder and the pruned one: the same numbers by fewer operations, and fewer neurons."""

# ruff: noqa: PLC0415  torch takes seconds: only the tests that ask it wait for it
from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from compiler_process import build, compiler, make_job, make_source, rows
from litert_sources import Sources, add_encoder, made, make_sources

from compiler.bundle.layout import Layout
from compiler.errors import Incompatible, Malformed
from compiler.passes.job import PassJob
from compiler.sources.read import read
from compiler.sources.source import HuggingFace
from wire.build import Data, VerifyJob
from wire.evidence import Attempt
from wire.lineage import Lineage

pytestmark = pytest.mark.timeout(600)
"""A build starts a dozen processes, and the libraries of a pass alone take ten seconds."""
HALF = "onnx-int8-dynamic-half"
BERT = {"model_type": "bert"}
CONFIGS: list[tuple[dict[str, Any], str, bool, int]] = [
    ({}, "mean", False, 4),
    ({"num_attention_heads": 4, "type_vocab_size": 1}, "mean", True, 3),
    ({"num_hidden_layers": 3, "intermediate_size": 40}, "cls", False, 2),
    ({"hidden_size": 24, "layer_norm_eps": 1e-5}, "cls", True, 0),
]
"""Changes to the configuration, pooling, whether it normalizes, classes (0 for an embedding)."""


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return add_encoder(make_sources(tmp_path_factory.mktemp("prune") / "sources"))


def sentence(config: dict[str, Any], pooling: Any, normalize: bool, classes: int) -> Any:
    """An encoder with random weights, biases and norms included."""
    import torch
    from transformers import BertConfig, BertModel

    from compiler.sources.huggingface import Sentence

    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    chosen = BertConfig(vocab_size=300, max_position_embeddings=24, attn_implementation="eager", **{**sizes, **config})
    model = BertModel(chosen)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=0.05, std=0.2)
    dense = torch.nn.Linear(chosen.hidden_size, classes) if classes else None
    return Sentence(model, HuggingFace(BERT, pooling, normalize), dense).eval()


def answer(module: Any, texts: list[Any]) -> Any:
    import torch

    with torch.no_grad():
        return torch.cat([module(ids, torch.ones_like(ids)) for ids in texts])


def texts_of(sources: Sources, seed: int) -> list[Any]:
    """Token ids of some texts, as the encoder's own tokenizer cuts them."""
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(sources.folder / "encoder" / "tokenizer.json"))
    tokenizer.no_padding()
    return [torch.tensor([tokenizer.encode(row["text"]).ids]) for row in rows(seed, 160)]


@contextmanager
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("config", "pooling", "normalize", "classes"), CONFIGS)
def test_the_lean_form_says_what_the_module_says(
    config: dict[str, Any], pooling: str, normalize: bool, classes: int
) -> None:
    import torch

    from compiler.passes.lean_bert import LeanBert

    module = sentence(config, pooling, normalize, classes)
    lean = LeanBert(module).eval()
    for tokens, padding in ((1, 0), (7, 0), (24, 9)):
        ids = torch.randint(0, 100, (1, tokens))
        mask = (torch.arange(tokens) < tokens - padding).long()[None]
        with torch.no_grad():
            expected, got = module(ids, mask, torch.zeros_like(ids)), lean(ids, mask, torch.zeros_like(ids))
        assert got.shape == expected.shape
        assert float((got - expected).abs().max()) < 1e-5


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "roberta"},
        {**BERT, "hidden_act": "relu"},
        {**BERT, "position_embedding_type": "relative_key"},
        {**BERT, "is_decoder": True},
    ],
)
def test_another_structure_is_not_taken_for_a_plain_bert(config: dict[str, Any]) -> None:
    assert not HuggingFace(config, "mean").plain_bert
    assert HuggingFace(BERT, "mean").plain_bert
    assert not HuggingFace(BERT).plain_bert


@pytest.mark.slow
@pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch has no wheel for this machine")
def test_litert_gets_the_lean_form_of_a_plain_bert_and_any_other_as_it_is(sources: Sources, tmp_path: Path) -> None:
    """The names of the layers tell which one was traced; the pass has compared the answers of both with the source."""
    from compiler.passes.litert_quantize import groups

    other = shutil.copytree(sources.folder / "encoder", tmp_path / "relu")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    plain = made(sources.job("litert.convert", "encoder", tmp_path / "a", parameters={"lengths": [8]}))
    unknown = made(PassJob(name="litert.convert", source=str(other), made=str(tmp_path / "b")))
    assert groups(plain) == ["words", "layer.0", "layer.1", "dense"]
    assert "words" not in groups(unknown)


def test_pruning_leaves_every_shape_but_the_width_of_the_blocks(sources: Sources) -> None:
    from compiler.passes.prune import prune

    with one_thread():
        whole = sentence({}, "mean", True, 4)
        half = prune(whole, texts_of(sources, 3)[:8], 0.5)
    before = {name: tuple(weight.shape) for name, weight in whole.state_dict().items()}
    after = {name: tuple(weight.shape) for name, weight in half.state_dict().items()}
    changed = {name: shape for name, shape in after.items() if shape != before[name]}
    blocks = [f"model.encoder.layer.{i}" for i in range(2)]
    assert changed == {
        **{f"{block}.intermediate.dense.weight": (32, 32) for block in blocks},
        **{f"{block}.intermediate.dense.bias": (32,) for block in blocks},
        **{f"{block}.output.dense.weight": (32, 32) for block in blocks},
    }
    assert {weight.dtype for weight in half.state_dict().values()} == {w.dtype for w in whole.state_dict().values()}


def test_a_refitted_half_answers_closer_to_the_source_than_one_that_was_only_cut(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On texts that the fit has not seen."""
    from compiler.passes import prune

    with one_thread():
        whole = prune.load(read(str(sources.folder / "encoder"), None), sources.job("", "encoder", Path()))
        texts, unseen = texts_of(sources, 3), texts_of(sources, 2)
        expected = answer(whole, unseen)
        refitted = answer(prune.prune(whole, texts, 0.5), unseen)  # type: ignore[arg-type]
        monkeypatch.setattr(prune, "RIDGE", 1e9)  # the old weights are believed, whatever is seen
        cut = answer(prune.prune(whole, texts, 0.5), unseen)  # type: ignore[arg-type]
    error, without = (float((found - expected).abs().mean()) for found in (refitted, cut))
    assert 0 < error < 0.5 * without


def test_pruning_asks_for_calibration_examples_and_for_a_plain_bert(sources: Sources) -> None:
    from compiler.passes.prune import load

    half = {"parameters": {"keep": 0.5}}
    with pytest.raises(Malformed, match=r"pass onnx\.export: it fits what it prunes: give calibration examples"):
        load(read(str(sources.folder / "encoder"), None), sources.job("onnx.export", "encoder", Path(), **half))
    net = sources.job("onnx.export", "net", Path(), calibration=str(sources.folder / "pictures.npz"), **half)
    with pytest.raises(Incompatible, match="no plain BERT encoder with pooling: nothing of it is pruned"):
        load(read(net.source, Path(str(net.describe))), net)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "onnx.export",
        pytest.param(
            "litert.convert",
            marks=pytest.mark.skipif(find_spec("litert_torch") is None, reason="no wheel for this machine"),
        ),
    ],
)
def test_the_same_pruning_gives_the_same_bytes(sources: Sources, tmp_path: Path, name: str) -> None:
    """Another hash seed, another number of threads; and other bytes than those of the whole model."""
    calibration = str(sources.folder / "texts.jsonl")
    whole = made(sources.job(name, "encoder", tmp_path / "whole"))
    found = [
        made(
            sources.job(name, "encoder", tmp_path / seed, parameters={"keep": 0.5}, calibration=calibration),
            PYTHONHASHSEED=seed,
            OMP_NUM_THREADS=threads,
        )
        for seed, threads in (("1", "1"), ("2", "4"))
    ]
    assert found[0].read_bytes() == found[1].read_bytes()
    assert found[0].stat().st_size < whole.stat().st_size


@pytest.mark.slow
def test_a_pruned_recipe_comes_out_of_a_build_with_its_data_named_and_is_made_again(
    encoder: Path, test_set: Path, calibration: Path, tmp_path: Path
) -> None:
    source = make_source(encoder, tmp_path / "model")
    plain = make_job(source, test_set, tmp_path)
    job = replace(plain, recipes=(HALF,), calibration=Data(path=str(calibration)), max_drop=20.0)
    run = build(job)
    assert run.code == 0, (run.last, run.errors[-2000:])
    layout = Layout(Path(job.output))
    (bundle,) = layout.bundles()
    lineage = Lineage.from_bytes(layout.read(bundle.manifest.file("lineage").digest))
    assert (lineage.recipe, lineage.passes[0].parameters["keep"]) == (HALF, 0.5)
    assert {d.use for d in lineage.datasets} == {"test", "calibration"}
    evidence = layout.evidence(bundle.digest)
    assert evidence
    assert {d.use for d in evidence.datasets} == {"test", "calibration"}
    again = VerifyJob(
        layout=job.output,
        target=bundle.manifest.target,
        source=job.source,
        test=job.test,
        calibration=job.calibration,
        profile=job.profiles[0],
    )
    run = compiler("verify", given=again.to_bytes(), environment={"PYTHONHASHSEED": "11", "OMP_NUM_THREADS": "4"})
    assert run.code == 0, (run.last, run.errors[-2000:])
    assert run.last.digest == bundle.digest


@pytest.mark.slow
def test_without_calibration_examples_the_rule_says_why_no_pruned_recipe_was_tried(
    source: Path, test_set: Path, tmp_path: Path
) -> None:
    job = replace(make_job(source, test_set, tmp_path), recipes=("onnx-fp32", HALF))
    assert build(job).code == 0
    layout = Layout(Path(job.output))
    evidence = layout.evidence(layout.bundles()[0].digest)
    assert evidence
    refused: list[Attempt] = [a for a in evidence.attempts if a.recipe == HALF]
    assert [(a.outcome, a.rule) for a in refused] == [("refused", "no-calibration-data")]
