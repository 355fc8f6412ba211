"""A BERT encoder with pooling as the module that LiteRT runs fastest: the same numbers by fewer operations.

    if source.huggingface.plain_bert: traced = LeanBert(module)

One text at a time, so there is no batch dimension; positions and the first token type are one table; the scale of
attention is inside the weights of the query; the norm is written in the operations that LiteRT has kernels for.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from compiler.sources.huggingface import Sentence

_HIDDEN = -1e4
"""What a masked token adds to a score of attention: its share is 0 in float32."""


class LeanBert(nn.Module):
    """Takes integers `[1, tokens]`, returns what the module does: float32 `[1, classes]` or `[1, width]`.

    `module` is of a source whose `plain_bert` holds; weights that need no change are shared with it. Token types are
    taken and not looked at: a text has the first one only.
    """

    def __init__(self, module: Sentence) -> None:
        super().__init__()
        encoder: Any = module.model
        embeddings = encoder.embeddings
        self.words = embeddings.word_embeddings
        table = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        self.places: Tensor
        self.register_buffer("places", table.detach().clone())
        self.norm = Norm(embeddings.LayerNorm)
        self.layer = Layers(Layer(layer) for layer in encoder.encoder.layer)
        self.pooling, self.normalize, self.dense = module.pooling, module.normalize, module.dense

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The answer for one text."""
        shown = attention_mask.to(torch.float32)
        hide = ((1.0 - shown) * _HIDDEN).unsqueeze(0)
        x = self.layer(self.norm(self.words(input_ids)[0] + self.places[: input_ids.shape[1]]), hide)
        pooled = x[:1] if self.pooling == "cls" else (shown @ x) / shown.sum(1, keepdim=True).clamp(min=1.0)
        if self.normalize:
            pooled = nn.functional.normalize(pooled, p=2.0, dim=1)
        answer: Tensor = self.dense(pooled) if self.dense is not None else pooled
        return answer


class Layers(nn.ModuleList):
    """All layers, in order; a module that is called gives the layers their names in the flatbuffer: `layer.3`."""

    def forward(self, x: Tensor, hide: Tensor) -> Tensor:
        """The states after the last one."""
        for layer in self:
            x = layer(x, hide)
        return x


class Layer(nn.Module):
    """A layer of a BERT encoder: states `[tokens, width]` and what hides padding `[1, 1, tokens]` in, states out."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.attention
        self.heads: int = attention.self.num_attention_heads
        self.query = _scaled(attention.self.query, 1 / math.sqrt(attention.self.attention_head_size))
        self.key, self.value = attention.self.key, attention.self.value
        self.out, self.norm_attention = attention.output.dense, Norm(attention.output.LayerNorm)
        self.up, self.down = layer.intermediate.dense, layer.output.dense
        self.norm_output = Norm(layer.output.LayerNorm)

    def forward(self, x: Tensor, hide: Tensor) -> Tensor:
        """The states after the layer."""
        query, key, value = (self._by_head(part(x)) for part in (self.query, self.key, self.value))
        shares = torch.softmax(query @ key.transpose(1, 2) + hide, -1)
        mixed = (shares @ value).transpose(0, 1).reshape(x.shape)
        x = self.norm_attention(self.out(mixed) + x)
        after: Tensor = self.norm_output(self.down(nn.functional.gelu(self.up(x))) + x)
        return after

    def _by_head(self, x: Tensor) -> Tensor:
        """`[tokens, width]` as `[heads, tokens, width of a head]`."""
        return x.view(x.shape[0], self.heads, -1).transpose(0, 1)


class Norm(nn.Module):
    """Layer normalization of the last dimension."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """The converter's own decomposition of LayerNorm has more and smaller operations."""
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


def _scaled(linear: nn.Linear, factor: float) -> nn.Linear:
    made = nn.Linear(linear.in_features, linear.out_features)
    made.load_state_dict({"weight": linear.weight * factor, "bias": linear.bias * factor})
    return made
