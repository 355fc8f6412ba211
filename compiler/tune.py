"""Fine-tuning in its thin form: a linear head on a frozen sentence encoder.

    source model = tune(encoder folder, rows of text and label)

Deterministic: the same encoder, rows and seed give the same files.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler import source, testset
from compiler.errors import Malformed, Unavailable
from compiler.progress import Reporter

BATCH = 32
REGULARISATION = 10.0
"""Inverse strength C of the logistic head; embeddings are not normalised."""
_ENCODER_FILES = (
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class TuneJob:
    """What `tune` is asked for. `max_length` in tokens, frame included."""

    source: Path
    train: Path
    output: Path
    seed: int
    max_length: int


def tune(job: TuneJob, report: Reporter) -> None:
    """Write a source model folder at `job.output`. Raises `Malformed` and writes nothing for bad input."""
    report.total = 4
    report.step("reading the encoder and the training rows")
    config, rows = _check(job)
    report.step(f"embedding {len(rows)} texts")
    embeddings = _embed(job, [row.text for row in rows], int(config["hidden_size"]))
    report.step("training the head")
    labels = sorted({row.label for row in rows})
    weight, bias = _train(embeddings, [labels.index(row.label) for row in rows], job.seed)
    report.step("writing the source model")
    _write(job, config, labels, weight, bias)
    report.finish(f"source model with {len(labels)} labels written to {job.output}")


def _check(job: TuneJob) -> tuple[dict[str, Any], Sequence[testset.Row]]:
    if job.output.exists() and any(job.output.iterdir()):
        raise Malformed(f"tune output {job.output}: not empty; remove it or name another folder")
    if not 8 <= job.max_length <= source.TOKENS:
        raise Malformed(f"tune max-length {job.max_length}: expected 8 to {source.TOKENS} tokens")
    config = source.read_json(job.source / "config.json")
    if not isinstance(config.get("hidden_size"), int):
        raise Malformed(f"source {job.source}/config.json: no hidden_size: give the folder of a sentence encoder")
    source.check_folder(job.source)
    rows = testset.read(job.train).rows
    labels = {row.label for row in rows}
    if len(labels) < 2:
        raise Malformed(f"training set {job.train}: one label only ({next(iter(labels))!r}); a classifier needs two")
    return config, rows


def _embed(job: TuneJob, texts: Sequence[str], width: int) -> Any:
    """Mean-pooled embeddings, float32 `[texts, width]`."""
    import numpy as np
    import torch
    import transformers
    from tokenizers import Tokenizer  # type: ignore[import-untyped]

    from compiler.module import load_model, pool

    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    model = load_model(job.source, transformers.AutoModel)
    tokenizer = Tokenizer.from_file(str(job.source / "tokenizer.json"))
    tokenizer.enable_truncation(job.max_length)
    # Neighbours in length share a batch: little padding, and the order of the rows is restored below.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = np.zeros((len(texts), width), np.float32)
    with torch.no_grad():
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            tokenizer.enable_padding()
            encoded = tokenizer.encode_batch([texts[i] for i in part])
            ids = torch.tensor([e.ids for e in encoded])
            mask = torch.tensor([e.attention_mask for e in encoded])
            hidden = model(input_ids=ids, attention_mask=mask, return_dict=False)[0]
            found[part] = pool(hidden, mask, "mean", normalize=False).numpy()
    return found


def _train(embeddings: Any, classes: Sequence[int], seed: int) -> tuple[Any, Any]:
    """Weight `[classes, width]` and bias `[classes]` of a multinomial logistic regression, float32."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    head = LogisticRegression(C=REGULARISATION, max_iter=1000, random_state=seed).fit(embeddings, classes)
    weight, bias = head.coef_, head.intercept_
    if len(weight) == 1:  # two classes: scikit-learn keeps one row, whose opposite is the other class
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight.astype(np.float32), bias.astype(np.float32)


def _write(job: TuneJob, config: dict[str, Any], labels: Sequence[str], weight: Any, bias: Any) -> None:
    try:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{job.output.name}.", dir=job.output.parent) as scratch:
            folder = Path(scratch) / "model"
            _write_files(job, folder, config, labels, weight, bias)
            if job.output.exists():
                job.output.rmdir()
            folder.rename(job.output)
    except OSError as e:
        raise Unavailable(f"tune output {job.output}: cannot be written: {e}") from e


def _write_files(
    job: TuneJob, folder: Path, config: dict[str, Any], labels: Sequence[str], weight: Any, bias: Any
) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "2_Dense").mkdir()
    for name in _ENCODER_FILES:
        if (job.source / name).is_file():
            shutil.copyfile(job.source / name, folder / name)
    classes, width = weight.shape
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    identity = "torch.nn.modules.linear.Identity"
    dense = {"in_features": width, "out_features": classes, "bias": True, "activation_function": identity}
    written = {
        "config.json": {k: v for k, v in config.items() if k != "_name_or_path"} | names,
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": job.max_length, "do_lower_case": False},
        "1_Pooling/config.json": pooling,
        "2_Dense/config.json": dense,
    }
    for name, value in written.items():
        (folder / name).write_text(
            json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    tensors = {"linear.weight": np.ascontiguousarray(weight), "linear.bias": np.ascontiguousarray(bias)}
    save_file(tensors, folder / "2_Dense" / "model.safetensors")
