"""What compiler tests share: texts, a tiny encoder, profiles, and the compiler as the process that it is."""

# ruff: noqa: PLC0415  torch takes seconds: only the tests that make a model wait for it
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compiler.bundle.layout import Layout
from wire.build import BuildJob, Data, Progress
from wire.profile import Detect, Hardware, Limits, Profile, ProfileRuntime

HAS_LITERT = find_spec("litert_torch") is not None
FAST = ("onnx-fp32", "onnx-int8-dynamic")
"""Recipes that take a second each."""
SECONDS = 540
"""After which a compiler hangs; pytest's own limit for a test ends most before that."""
WORDS = {
    "light": "lamp bulb lamps lights",
    "heat": "heater warm heating stove",
    "lock": "door lock bolt gate",
    "tune": "song radio music band",
}
VERBS = ("turn", "set", "check", "stop", "start", "watch", "please", "now", "quick", "do")


def rows(seed: int, n: int = 64) -> list[dict[str, str]]:
    """`n` texts of four labels, different for every seed."""
    labels = sorted(WORDS)
    found = []
    for i in range(n):
        words = WORDS[labels[i % 4]].split()
        verb, other = VERBS[(i * 7 + seed) % len(VERBS)], VERBS[(i // 4 + 3 * seed) % len(VERBS)]
        found.append(
            {
                "text": f"{verb} {words[(i // 4 + seed) % 4]} {other} {words[(i // 16 + seed) % 4]}",
                "label": labels[i % 4],
            }
        )
    return found


def write_rows(path: Path, values: Sequence[Mapping[str, str]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(v) + "\n" for v in values))
    return path


@dataclass(frozen=True)
class Run:
    """A finished compiler process: its exit code, progress lines and standard error."""

    code: int
    lines: tuple[Progress, ...]
    errors: str

    @property
    def last(self) -> Progress:
        return self.lines[-1]


@dataclass(frozen=True)
class Built:
    """A job with the run that finished it."""

    job: BuildJob
    run: Run

    @property
    def layout(self) -> Layout:
        return Layout(Path(self.job.output))


def compiler(*arguments: str, given: bytes = b"", environment: Mapping[str, str] | None = None) -> Run:
    """Run `python -m compiler`; every line of its standard output must be progress."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "compiler", *arguments],
        input=given,
        capture_output=True,
        check=False,
        timeout=SECONDS,
        env={**os.environ, **(environment or {})},
    )
    lines = tuple(Progress.from_bytes(line) for line in done.stdout.splitlines())
    return Run(done.returncode, lines, done.stderr.decode())


def make_encoder(folder: Path, **config: Any) -> Path:
    """A sentence encoder with random weights: two layers, 32 wide; it knows the words above and single letters."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    letters = [chr(c) for c in range(33, 127)]
    words = sorted({w for group in WORDS.values() for w in group.split()} | set(VERBS))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *words]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    tokenizer.enable_padding(length=64)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(
        BertConfig(vocab_size=len(ids), max_position_embeddings=64, initializer_range=0.2, **sizes, **config)
    )
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def make_source(encoder: Path, folder: Path, max_length: int = 32) -> Path:
    """A text classifier: the encoder with mean pooling and a head that was really trained, so accuracy means something.

    The layout is that of sentence-transformers, as `tune` writes it.
    """
    import torch
    from safetensors.numpy import save_file
    from sklearn.linear_model import LogisticRegression
    from tokenizers import Tokenizer
    from transformers import BertModel

    train, labels = rows(0, 160) + rows(1, 160), sorted(WORDS)
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.no_padding()
    model = BertModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        ids = [torch.tensor([tokenizer.encode(row["text"]).ids]) for row in train]
        embedded = [model(i).last_hidden_state.mean(1)[0].numpy() for i in ids]
    head = LogisticRegression(C=100.0, max_iter=1000).fit(embedded, [labels.index(row["label"]) for row in train])
    for name in ("1_Pooling", "2_Dense"):
        (folder / name).mkdir(parents=True)
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes((encoder / name).read_bytes())
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))
    written = {
        "config.json": {
            **json.loads((encoder / "config.json").read_text()),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds)
        ],
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
        "2_Dense/config.json": {
            "in_features": 32,
            "out_features": len(labels),
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    }
    for name, value in written.items():
        (folder / name).write_text(json.dumps(value))
    weights = {"linear.weight": head.coef_, "linear.bias": head.intercept_}
    # In C order: the writer of safetensors takes the numbers as they lie in memory.
    save_file(
        {name: values.astype("float32", order="C") for name, values in weights.items()},
        folder / "2_Dense" / "model.safetensors",
    )
    return folder


def profile(name: str = "board", **changes: Any) -> Profile:
    """A profile of this test's own."""
    base = Profile(
        name=name,
        title="A board",
        status="supported",
        hardware=Hardware(machine="aarch64", cpu="any", features=(), memory="1 GiB"),
        detect=Detect(machines=("a-machine-that-is-not-here",)),
        runtimes=(
            ProfileRuntime(name="onnxruntime", version="1.31.1", opset=17, ir=8, seen_working=True),
            ProfileRuntime(name="litert", version="2.3.0", seen_working=True),
        ),
        limits=Limits(disk="64 MiB", memory="64 MiB"),
        sources=(),
    )
    return replace(base, **changes)


def make_job(source: Path, test_set: Path, folder: Path) -> BuildJob:
    """A job for one profile, with an output and a cache in the folder."""
    return BuildJob(
        family="home",
        name="tiny",
        version="1.0.0",
        source=str(source),
        test=Data(path=str(test_set), licence="CC0-1.0"),
        output=str(folder / "out"),
        cache=str(folder / "cache"),
        profiles=(profile(),),
        recipes=FAST,
        max_drop=10.0,
    )


def build(job: BuildJob, **environment: str) -> Run:
    """Run one build as the fleet and the command do: a job on standard input."""
    return compiler("build", given=job.to_bytes(), environment=environment)
