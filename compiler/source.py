"""The source model: a Hugging Face folder with safetensors, checked before anything heavy is imported.

Two layouts are read: sentence-transformers (`modules.json`: encoder, pooling, optional normalisation, dense head),
which `tune` writes, and a plain `*ForSequenceClassification` folder. Nothing is unpickled, no code of the folder runs.

    source = source.read(Path("model"))
    source.labels, source.max_length, source.digest
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compiler.errors import Incompatible, Malformed

TOKENS = 512
"""Largest accepted length of a text in tokens."""
_HEADER = 100 * 1024 * 1024


@dataclass(frozen=True)
class Head:
    """What stands on the encoder in the sentence-transformers layout."""

    pooling: Literal["mean", "cls"]
    normalize: bool
    dense: Path


@dataclass(frozen=True)
class Source:
    """A checked source model. `head` is None when the classifier is part of the model's own class."""

    folder: Path
    config: Mapping[str, Any]
    tokenizer: bytes
    labels: tuple[str, ...]
    max_length: int
    head: Head | None
    digest: str

    @property
    def architecture(self) -> str:
        """The model class, for people and the ModelPack config."""
        return next(iter(_architectures(self.config)), str(self.config.get("model_type", "unknown")))


def read(folder: Path) -> Source:
    """Check and describe a folder. Raises `Malformed` for a bad file, `Incompatible` for another kind of model."""
    check_folder(folder)
    config = read_json(folder / "config.json")
    tokenizer = _read_bytes(folder / "tokenizer.json", "save the model with a fast tokenizer")
    return Source(
        folder=folder,
        config=config,
        tokenizer=tokenizer,
        labels=_labels(config, folder),
        max_length=_max_length(folder, config),
        head=_head(folder, config),
        digest=_digest(folder),
    )


def check_folder(folder: Path) -> None:
    """Raises `Malformed` unless the folder holds sound safetensors and a tokenizer."""
    if not folder.is_dir():
        raise Malformed(
            f"source {folder}: no such folder; give the folder that holds config.json and model.safetensors"
        )
    if not (folder / "tokenizer.json").is_file():
        raise Malformed(f"source {folder}/tokenizer.json: missing: save the model with a fast tokenizer")
    _check_weights(folder)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `Malformed`."""
    try:
        value = json.loads(_read_bytes(path, "a source model holds this file"))
    except (ValueError, RecursionError) as e:
        raise Malformed(f"source {path}: not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise Malformed(f"source {path}: expected a JSON object")
    return value


def check_safetensors(path: Path) -> None:
    """Raises `Malformed` when header and length of a safetensors file do not agree.

    The format: 8 bytes little-endian header length, JSON header, data; offsets end exactly at the end of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_HEADER, size - 8):
            raise Malformed(f"source {path}: not a safetensors file, or cut short: copy it again")
        try:
            header = json.loads(file.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as e:
            raise Malformed(f"source {path}: its safetensors header is corrupt: copy it again") from e
    if not ends or max(ends) != size - 8 - length:
        raise Malformed(
            f"source {path}: {size} bytes, its header asks for {8 + length + max(ends, default=0)}: copy it again"
        )


def _check_weights(folder: Path) -> None:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        hint = "its pickled weights are never read; save it again with safe_serialization=True" if pickled else "add it"
        raise Malformed(f"source {folder}: no model.safetensors: {hint}")
    for path in weights:
        check_safetensors(path)


def _head(folder: Path, config: Mapping[str, Any]) -> Head | None:
    if (folder / "modules.json").is_file():
        return _sentence_head(folder)
    if not any(name.endswith("ForSequenceClassification") for name in _architectures(config)):
        raise Incompatible(
            f"source {folder}: neither modules.json nor a *ForSequenceClassification architecture "
            f"(it says {config.get('architectures')}): tune a classifier on it first"
        )
    return None


def _architectures(config: Mapping[str, Any]) -> list[str]:
    listed = config.get("architectures")
    return [str(name) for name in listed] if isinstance(listed, list) else []


def _sentence_head(folder: Path) -> Head:
    kinds, pooling, dense = [], None, None
    for module in _modules(folder):
        kind, path = str(module.get("type", "")).rsplit(".", 1)[-1], folder / str(module.get("path", ""))
        if not path.resolve().is_relative_to(folder.resolve()):
            raise Malformed(f"source {folder}/modules.json: path {module.get('path')!r} leaves the folder")
        kinds.append(kind)
        pooling = _pooling(path) if kind == "Pooling" else pooling
        dense = path if kind == "Dense" else dense
    if (
        kinds not in (["Transformer", "Pooling", "Dense"], ["Transformer", "Pooling", "Normalize", "Dense"])
        or not pooling
        or not dense
    ):
        raise Incompatible(
            f"source {folder}/modules.json: modules {', '.join(kinds) or 'none'}; expected Transformer, Pooling, "
            "optionally Normalize, and a Dense head with one output per label: tune a classifier on it first"
        )
    activation = str(read_json(dense / "config.json").get("activation_function", ""))
    if not activation.endswith("Identity"):
        raise Incompatible(
            f"source {dense}/config.json: activation {activation!r}, expected torch.nn.modules.linear.Identity"
        )
    weights = dense / "model.safetensors"
    if not weights.is_file():
        raise Malformed(f"source {weights}: missing")
    check_safetensors(weights)
    return Head(pooling=pooling, normalize="Normalize" in kinds, dense=dense)


def _modules(folder: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads((folder / "modules.json").read_bytes())
    except (ValueError, RecursionError) as e:
        raise Malformed(f"source {folder}/modules.json: not valid JSON: {e}") from e
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise Malformed(f"source {folder}/modules.json: expected a list of objects")
    return modules


def _pooling(path: Path) -> Literal["mean", "cls"]:
    config = read_json(path / "config.json")
    on = sorted(k for k, v in config.items() if k.startswith("pooling_mode_") and v is True)
    if on == ["pooling_mode_mean_tokens"]:
        return "mean"
    if on == ["pooling_mode_cls_token"]:
        return "cls"
    raise Incompatible(f"source {path}/config.json: pooling {', '.join(on) or 'none'}; mean and cls are supported")


def _labels(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    table = config.get("id2label")
    if not isinstance(table, dict) or len(table) < 2:
        raise Malformed(f"source {folder}/config.json: id2label needs at least two labels")
    try:
        labels = tuple(str(table[str(i)]) for i in range(len(table)))
    except KeyError as e:
        raise Malformed(f"source {folder}/config.json: id2label has no entry {e}; it counts from 0") from e
    if len(set(labels)) != len(labels):
        raise Malformed(f"source {folder}/config.json: id2label names a label twice")
    return labels


def _max_length(folder: Path, config: Mapping[str, Any]) -> int:
    """The smallest of what the files say, in tokens with the frame."""
    limits: list[Any] = [config.get("max_position_embeddings"), TOKENS]
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if (folder / name).is_file():
            limits.append(read_json(folder / name).get(key))
    return int(min(n for n in limits if isinstance(n, (int, float)) and math.isfinite(n) and n > 2))


def _digest(folder: Path) -> str:
    """One digest over names and contents of all files."""
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def _read_bytes(path: Path, hint: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as e:
        raise Malformed(f"source {path}: missing: {hint}") from e
    except OSError as e:
        raise Malformed(f"source {path}: cannot be read: {e.strerror}") from e
