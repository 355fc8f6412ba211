"""Language models out of the compiler: GGUF files and Hugging Face folders, judged by the last words of texts."""

# ruff: noqa: PLC0415  torch takes seconds: only the test that needs it waits for it
from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_language import LIKELY, TEMPLATE, byte_tokens, write_gguf

from compiler.build import build
from compiler.bundle.layout import Layout
from compiler.errors import Incompatible, Infeasible, Malformed, Untrusted
from compiler.language.judge import GUESS, bare
from compiler.language.scramble import scramble
from compiler.language.session import Session
from compiler.passes import genai
from compiler.passes.job import PassJob
from compiler.plan.recipes import RECIPES
from compiler.progress import Reporter
from compiler.sources.read import read
from compiler.verify import verify
from wire.build import BuildJob, Data, VerifyJob
from wire.bundle import LANGUAGE_RUNTIMES, Runtime
from wire.evidence import Evidence
from wire.pipeline import MARGINS, TOKENS, Golden, GoldenCase, Language, Pipeline
from wire.processing import Result, golden_fault, to_tensor
from wire.profile import Profile

CONTEXT = 256
TEXTS = 40
X86 = Profile.from_toml(Path(__file__).parents[2].joinpath("firmware-profiles/x86-64.toml").read_bytes())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", context=CONTEXT)


@pytest.fixture(scope="module")
def texts(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts whose last word the tiny model knows: it is its own."""
    folder = tmp_path_factory.mktemp("asked")
    shutil.copy(tiny, folder / "model.gguf")
    return texts_of(folder, "gguf")


def texts_of(folder: Path, runtime: Runtime) -> Path:
    before = ["".join(chr(LIKELY[(i * 7 + j * 5) % 26]) for j in range(5)) for i in range(4 * TEXTS)]
    with Session(folder, runtime, Language(context=CONTEXT), None) as session:
        words = [next(iter(session.complete(text, GUESS).text.split()), "") for text in before]
    rows = [f"{text} {word}" for text, word in zip(before, words, strict=True) if bare(word)][:TEXTS]
    assert len(rows) == TEXTS
    path = folder.parent / f"{folder.name}.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def job(source: Path, test: Path, folder: Path, **changes: Any) -> BuildJob:
    return BuildJob(
        family="talk",
        name="assistant",
        version="1.0.0",
        source=str(source),
        test=Data(path=str(test)),
        output=str(folder / "layout"),
        cache=str(folder / "cache"),
        profiles=(X86,),
        **{"max_drop": 20.0, **changes},
    )


def built(made: BuildJob) -> tuple[Layout, Evidence]:
    build(made, Reporter(io.BytesIO()))
    layout = Layout(Path(made.output))
    evidence = layout.evidence(layout.bundles()[0].digest)
    assert evidence is not None
    return layout, evidence


def test_a_gguf_file_ships_as_it_came_with_a_golden_set_that_it_repeats(
    tiny: Path, texts: Path, tmp_path: Path
) -> None:
    layout, evidence = built(job(tiny, texts, tmp_path))
    manifest = layout.bundles()[0].manifest
    assert (manifest.runtime, manifest.precision) == ("gguf", "fp32")
    assert layout.read(manifest.file("model").digest) == tiny.read_bytes()
    pipeline = Pipeline.from_bytes(layout.read(manifest.file("pipeline").digest))
    assert pipeline.language == Language(context=CONTEXT, chat_template=TEMPLATE)
    golden = Golden.from_bytes(layout.read(manifest.file("golden").digest))
    assert len(golden.cases) > 1
    accuracy = evidence.get("accuracy")
    assert accuracy is not None
    assert accuracy.value == 1.0
    (saboteur,) = evidence.sabotage
    assert "golden case" in saboteur.golden
    assert "accuracy drops" in saboteur.accuracy


def test_the_same_build_gives_the_same_bytes_and_is_verified(tiny: Path, texts: Path, tmp_path: Path) -> None:
    made = job(tiny, texts, tmp_path)
    layout, _ = built(made)
    again, _ = built(job(tiny, texts, tmp_path / "again"))
    assert again.bundles()[0].digest == layout.bundles()[0].digest
    target = layout.bundles()[0].manifest.target
    verify(
        VerifyJob(layout=made.output, target=target, source=made.source, test=made.test, profile=X86),
        Reporter(io.BytesIO()),
    )


def test_a_limit_that_no_candidate_holds_gives_no_bundle(tiny: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(Infeasible, match="gguf"):
        built(job(tiny, texts, tmp_path, max_mb=0.1))
    assert not (tmp_path / "layout").exists()


def test_a_model_that_guesses_nothing_proves_nothing(tiny: Path, tmp_path: Path) -> None:
    """The accuracy gate cannot refuse a scrambled copy of a model that is never right."""
    rows = [f"hello number {i} zebra" for i in range(TEXTS)]
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    with pytest.raises(Untrusted, match="no better than chance"):
        built(job(tiny, test, tmp_path))


def test_the_context_is_what_the_description_says(tiny: Path, tmp_path: Path) -> None:
    describe = tmp_path / "describe.toml"
    describe.write_text("max_length = 64\n")
    language = read(str(tiny), describe).language
    assert language is not None
    assert language.context == 64
    describe.write_text("max_length = 100000\n")
    with pytest.raises(Malformed, match=f"takes up to {CONTEXT}"):
        read(str(tiny), describe)


@pytest.mark.parametrize("data", [b"", b"GGUF", b"GGUF\3\0\0\0" + b"\xff" * 16, b"no such thing"])
def test_a_broken_gguf_file_is_malformed_and_names_the_file(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    with pytest.raises(Malformed, match="broken"):
        read(str(path), None)


def test_a_gguf_file_is_not_taken_from_somebody_else(tiny: Path) -> None:
    with pytest.raises(Incompatible, match="llama"):
        read(str(tiny), None, safe=True)


def test_texts_of_one_word_are_refused_with_their_line(tiny: Path, tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text('{"text": "two words"}\n{"text": "one"}\n')
    with pytest.raises(Malformed, match=r"test\.jsonl:2"):
        built(job(tiny, test, tmp_path))


def test_scrambling_changes_a_matrix_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny, tmp_path / "model.gguf")
    scramble(tmp_path, "gguf")
    old, new = tiny.read_bytes(), (tmp_path / "model.gguf").read_bytes()
    assert len(old) == len(new)
    assert sorted(old) == sorted(new)
    assert old != new


# --- the rule of a golden case ----------------------------------------------------------------------------------------


def continued(tokens: Sequence[int], logprobs: Sequence[float], margins: Sequence[float] = ()) -> dict[str, Any]:
    return {
        "tokens": np.asarray(tokens, np.int64),
        "logprobs": np.asarray(logprobs, np.float32),
        MARGINS: np.asarray(margins or [1.0] * len(tokens), np.float32),
    }


EXPECTED = GoldenCase(
    text="a",
    outputs={k: to_tensor(v) for k, v in continued([5, 6, 7], [-0.1, -0.7, -0.2], [2.0, 0.05, 1.0]).items()},
)


@pytest.mark.parametrize(
    ("tokens", "logprobs", "fault"),
    [
        ([5, 6, 7], [-0.1, -0.7, -0.2], None),
        ([5, 6, 7], [-0.15, -0.65, -0.2], None),
        ([5, 9, 1], [-0.1, -0.71, -9.0], None),  # a near tie, and another text from there on
        ([4, 6, 7], [-0.1, -0.7, -0.2], "token 1"),
        ([5, 6, 8], [-0.1, -0.7, -0.2], "token 3"),
        ([5, 6, 7], [-0.5, -0.7, -0.2], "token 1 .* log probability"),
        ([5, 6, 7], [float("nan"), -0.7, -0.2], "token 1 .* log probability"),
        ([5, 6], [-0.1, -0.7], "token 3"),
        ([], [], "token 1"),
    ],
)
def test_a_continuation_holds_up_to_a_near_tie(tokens: list[int], logprobs: list[float], fault: str | None) -> None:
    found = golden_fault(EXPECTED, Result(continued(tokens, logprobs)), 0.1)
    assert (found is None) if fault is None else re.search(fault, found or "")


# --- a Hugging Face folder --------------------------------------------------------------------------------------------


def tiny_folder(folder: Path) -> Path:
    """A Llama of the same kind as the tiny GGUF file, made by transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=256,
        eos_token_id=257,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        likely = torch.zeros(258)
        likely[list(LIKELY)] = 1.0
        model.lm_head.weight.normal_(0, 1).mul_(likely[:, None])
        model.model.embed_tokens.weight.normal_(0, 1)
    model.save_pretrained(folder)
    added = [
        {"id": 256 + i, "content": t, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for i, t in enumerate(("<|im_start|>", "<|im_end|>"))
    ]
    tokens = [*byte_tokens(), "<|im_start|>", "<|im_end|>"]
    bpe = {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": []}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    value = {"version": "1.0", "added_tokens": added, "pre_tokenizer": level, "decoder": level, "model": bpe}
    (folder / "tokenizer.json").write_text(json.dumps(value))
    told = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    told |= {"unk_token": "<|im_end|>", "model_max_length": CONTEXT, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_folder_becomes_int4_of_onnxruntime_genai(tmp_path: Path) -> None:
    """float32 stands for the source; the texts are what it says itself, which random weights in int4 seldom do."""
    source = tiny_folder(tmp_path / "source")
    assert read(str(source), None).language == Language(context=CONTEXT, chat_template=TEMPLATE)
    asked = PassJob(name="genai.fp32", source=str(source), made=str(tmp_path / "made"))
    subprocess.run([sys.executable, "-P", "-m", "compiler", "pass"], input=asked.to_bytes(), check=True)
    folder = tmp_path / "fp32"
    folder.mkdir()
    genai.unpack(tmp_path / "made", folder)
    test = texts_of(folder, "onnxruntime-genai")
    layout, evidence = built(job(source, test, tmp_path, max_drop=90.0, recipes=("genai-int4",), confidence=0.8))
    manifest = layout.bundles()[0].manifest
    assert (manifest.runtime, manifest.precision) == ("onnxruntime-genai", "int4")
    assert {f.path for f in manifest.loaded} >= {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"}
    assert evidence.get("latency_p50") is not None
    assert TOKENS in Golden.from_bytes(layout.read(manifest.file("golden").digest)).cases[0].outputs


def test_the_recipes_of_language_runtimes_generate_and_no_others_do() -> None:
    assert {r.runtime for r in RECIPES.values() if r.generates} == set(LANGUAGE_RUNTIMES)
