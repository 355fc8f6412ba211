"""The folder that a training starts from, checked before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compiler.errors import Malformed
from compiler.sources import folder as folders
from compiler.sources.describe import find
from compiler.sources.files import digest_of, read_json


@dataclass(frozen=True)
class Encoder:
    """A sentence encoder. `max_length` is what it takes and was asked for; `labels` and `dense` those of its head."""

    folder: Path
    digest: str
    config: Mapping[str, Any]
    pooling: Literal["mean", "cls"]
    max_length: int
    labels: tuple[str, ...] = ()
    dense: Path | None = None


def read_encoder(folder: Path, max_length: int) -> Encoder:
    """Raises `Malformed` or `Incompatible` for a folder that holds no sound sentence encoder.

    A folder that says how it pools is pooled so, any other by the mean. What normalises after it is left out: a head
    follows.
    """
    folders.check_folder(folder)
    config = read_json(folder / "config.json")
    if not isinstance(config.get("hidden_size", config.get("dim")), int):
        raise Malformed(f"source {folder}/config.json: no hidden_size: give the folder of a sentence encoder")
    folders.read_tokenizer(folder)
    if (folder / "modules.json").is_file():
        source = folders.read(folder, find(None, None))
        loading, text = source.huggingface, source.text
        assert loading is not None
        assert text is not None
        return Encoder(
            folder=folder,
            digest=source.digest,
            config=config,
            pooling=loading.pooling or "mean",
            max_length=min(max_length, text.max_length),
            labels=source.labels,
            dense=loading.dense,
        )
    return Encoder(
        folder=folder,
        digest=digest_of(folders._files(folder)),  # noqa: SLF001  the same meaning of a folder's digest and length
        config=config,
        pooling="mean",
        max_length=min(max_length, folders._max_length(folder, config)),  # noqa: SLF001
    )
