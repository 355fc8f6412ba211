"""What compiler tests share: texts, a tiny encoder, profiles, and the compiler as the process that it is."""

# ruff: noqa: PLC0415  torch takes seconds: only the tests that make a model wait for it
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler.layout import Layout
from wire.build import BuildJob, Progress
from wire.profile import Detect, Hardware, Limits, Profile, ProfileRuntime

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
        timeout=110,
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


def profile(name: str = "board", **changes: Any) -> Profile:
    """A profile of this test's own."""
    base = Profile(
        name=name,
        title="A board",
        status="supported",
        hardware=Hardware(machine="aarch64", cpu="any", features=(), memory="1 GiB"),
        detect=Detect(machines=("a-machine-that-is-not-here",)),
        runtimes=(
            ProfileRuntime(name="onnxruntime", version="1.31.1", opset=17, ir=8),
            ProfileRuntime(name="litert", version="2.3.0"),
        ),
        recipes=("onnx-int8-dynamic", "onnx-fp32"),
        choose="first",
        limits=Limits(disk="64 MiB", memory="64 MiB"),
        sources=(),
    )
    return replace(base, **changes)


def build(job: BuildJob, **environment: str) -> Run:
    """Run one build as the fleet and the command do: a job on standard input."""
    return compiler("build", given=job.to_bytes(), environment=environment)
