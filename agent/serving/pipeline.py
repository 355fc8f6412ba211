"""From text to labels: what stands around the graph, read from the documents of a bundle.

encoder = Encoder(pipeline, tokenizer_bytes)
encoder(["turn the light on"])    # {"input_ids": int64 [1, 6], "attention_mask": int64 [1, 6]}
softmax(logits)                   # float32 [batch, classes], rows add up to 1
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from kitoken import Kitoken
from numpy.typing import NDArray

from agent.errors import Incompatible
from wire.bundle import Pipeline

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Encoder:
    """Text to the graph's inputs, int64 `[texts, tokens]` each. Raises `Incompatible` for a bad tokenizer file."""

    def __init__(self, pipeline: Pipeline, tokenizer: bytes) -> None:
        self._pipeline = pipeline
        try:
            self._kitoken = Kitoken.from_tokenizers(tokenizer)
        except ValueError as e:
            raise Incompatible(f"{pipeline.tokenizer.file}: not a tokenizer that this agent reads: {e}") from e

    def __call__(self, texts: Sequence[str]) -> dict[str, Ints]:
        """Encode at least one text, padded to the longest or to `pad_to`."""
        rows = [self._ids(text) for text in texts]
        width = self._pipeline.pad_to or max(len(row) for row in rows)
        ids = np.full((len(rows), width), self._pipeline.tokenizer.pad, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row[:width]
            mask[i, : len(row)] = 1
        made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {name: made[name] for name in self._pipeline.inputs}

    def _ids(self, text: str) -> list[int]:
        tokenizer = self._pipeline.tokenizer
        room = tokenizer.max_length - len(tokenizer.before) - len(tokenizer.after)
        return [*tokenizer.before, *self._kitoken.encode(text, True)[:room], *tokenizer.after]


def softmax(logits: Floats) -> Floats:
    """Scores of each row `[batch, classes]`."""
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True), np.float32)
