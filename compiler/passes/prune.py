"""Structured pruning: a BERT encoder with a share of each feed-forward block's neurons, refitted on examples.

    module = load(source, job)       # what a pass traces: the source's module, pruned where `keep` asks for it

The neurons of a block that carry least go. The product after it is fitted anew (ridge regression towards the old
weights) to what the whole encoder has at that place, so that a block also makes up for the blocks before it. Nothing is
trained and labels are not looked at. The fit is in float64: the same examples give the same weights on one thread.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compiler.errors import Incompatible, Malformed
from compiler.examples.examples import read as read_examples
from compiler.passes.job import PassJob
from compiler.sources import module
from compiler.sources.huggingface import Sentence
from compiler.sources.source import Source
from compiler.variant import pipeline_of
from wire.processing import Processor

TOKENS = 20_000
"""Tokens that the fit sees: two dozen for each number that it finds for an output of MiniLM's blocks."""
RIDGE = 1e-4
"""How much the old weights are believed, as a share of the mean square of a neuron."""
_ROWS = 1024
"""Tokens at a time whose neurons are in memory."""


def load(source: Source, job: PassJob) -> nn.Module:
    """The source's module with the `pooling` and the share of neurons (`keep`) of a pass.

    Raises `Malformed` or `Incompatible`: for a source that does not load, for one without blocks to prune, and for
    pruning without calibration examples.
    """
    whole = module.load(source, pooling=job.parameters.get("pooling"))
    keep = job.parameters.get("keep", 1.0)
    if keep == 1:
        return whole
    if not isinstance(whole, Sentence) or source.huggingface is None or not source.huggingface.plain_bert:
        raise Incompatible(f"source {source.place}: it is no plain BERT encoder with pooling: nothing of it is pruned")
    return prune(whole, _texts(source, job), keep)


@torch.no_grad()
def prune(whole: Sentence, texts: Sequence[Tensor], keep: float) -> Sentence:
    """A copy with that share of the neurons of each feed-forward block; `texts` are ids `[1, tokens]`, unpadded."""
    made = copy.deepcopy(whole)
    encoder: Any = made.model
    lengths = [ids.shape[1] for ids in texts]
    before = now = torch.cat([encoder.embeddings(input_ids=ids)[0] for ids in texts])
    for layer in encoder.encoder.layer:
        old, new = (_attended(layer, states, lengths) for states in (before, now))
        wanted = _through(layer, old)
        refit(layer, new, wanted - new, keep)
        before, now = (layer.output.LayerNorm(states) for states in (wanted, _through(layer, new)))
    return made


def refit(layer: Any, given: Tensor, wanted: Tensor, keep: float) -> None:
    """Leave the feed-forward block of a layer that share of its neurons, and fit its second product to `wanted`.

    `given` is what goes into the block, `wanted` what it should add to that: `[tokens, width]`.
    """
    up, down = layer.intermediate.dense, layer.output.dense
    squares, products = _sums(layer, given, wanted)
    weight = squares.diagonal()[:-1].sqrt() * down.weight.double().norm(dim=0)
    kept = weight.topk(max(1, round(keep * len(weight)))).indices.sort().values
    # The last row and column stand for the bias.
    places = torch.cat([kept, torch.tensor([len(weight)])])
    old = torch.cat([down.weight.T, down.bias[None]])[places].double()
    square = squares[places][:, places]
    ridge = torch.eye(len(places), dtype=square.dtype) * RIDGE * square.diagonal().mean()
    new = old + torch.linalg.solve(square + ridge, products[places] - square @ old)
    layer.intermediate.dense = _linear(up.weight[kept], up.bias[kept])
    layer.output.dense = _linear(new[:-1].T, new[-1])


def _sums(layer: Any, given: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of products of the block's neurons with each other, and with what is wanted; the last one is always 1.

    They are all that a fit on any of the neurons needs, and small: `[neurons + 1, neurons + 1]` and `[..., width]`.
    """
    size, width = layer.intermediate.dense.out_features + 1, wanted.shape[1]
    squares, products = (torch.zeros(size, wide, dtype=torch.float64) for wide in (size, width))
    for x, y in zip(torch.split(given, _ROWS), torch.split(wanted, _ROWS), strict=True):
        neurons = nn.functional.pad(layer.intermediate(x).double(), (0, 1), value=1.0)
        squares += neurons.T @ neurons
        products += neurons.T @ y.double()
    return squares, products


def _attended(layer: Any, states: Tensor, lengths: Sequence[int]) -> Tensor:
    """States `[tokens of all texts, width]` after the layer's attention: each text sees itself."""
    return torch.cat([layer.attention(text[None])[0][0] for text in torch.split(states, list(lengths))])


def _through(layer: Any, states: Tensor) -> Tensor:
    """What the layer's last norm is given."""
    return torch.cat([layer.output.dense(layer.intermediate(x)) + x for x in torch.split(states, _ROWS)])


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return made


def _texts(source: Source, job: PassJob) -> list[Tensor]:
    """Ids of calibration texts until there are `TOKENS`, from every label in turn."""
    if job.calibration is None:
        raise Malformed(f"pass {job.name}: it fits what it prunes: give calibration examples")
    rows = read_examples(Path(job.calibration), source)
    processor = Processor(*pipeline_of(source, "onnxruntime"))
    found: list[Tensor] = []
    tokens = 0
    for row in rows.spread(len(rows.rows)):
        for feed in processor.feeds(row.example):
            found.append(torch.from_numpy(feed["input_ids"].astype("int64")))
            tokens += found[-1].shape[1]
        if tokens >= TOKENS:
            break
    return found
