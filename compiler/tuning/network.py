"""Encoder and head as one torch module, its batches of token ids, its student, and its LoRA adapters."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compiler.errors import Incompatible, Malformed
from compiler.sources.huggingface import Sentence, load_model
from compiler.sources.source import HuggingFace
from compiler.tuning.encoder import Encoder

EMBEDDED = 32
"""Texts of a batch that is not learned from."""
TENTHS = 10
"""Lines of progress of a pass over the rows."""
_SPAN = 16
"""Batches whose texts are sorted by length together: little padding, and still another order in every epoch."""
_LORA: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    # Every linear layer, not attention alone: what comes closest to full training (Dettmers 2023, QLoRA).
    "target_modules": "all-linear",
    "exclude_modules": r".*pooler.*",
}
Ids = list[int]


class Tokens:
    """Texts as token ids, cut to the length of the training, and batches of them."""

    def __init__(self, encoder: Encoder) -> None:
        from tokenizers import Tokenizer  # type: ignore[import-untyped]  # noqa: PLC0415

        self._tokenizer = Tokenizer.from_file(str(encoder.folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(encoder.max_length)
        ids = (self._tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
        self._pad: int = next((i for i in ids if i is not None), 0)

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, without padding."""
        return [list(encoded.ids) for encoded in self._tokenizer.encode_batch(list(texts))]

    def batch(self, rows: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        """Ids and mask, int64 `[rows, tokens]`, as long as the longest."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad)
        mask = torch.zeros((len(rows), width), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return ids, mask


def load(encoder: Encoder, seed: int) -> Sentence:
    """The encoder with its pooling and no head. Raises `Malformed` or `Incompatible`."""
    torch.manual_seed(seed)  # weights that the folder leaves out, such as those of a pooler that nobody asks
    kind = HuggingFace(config=encoder.config, pooling=encoder.pooling)
    return Sentence(load_model(encoder.folder), kind, None)


def answers(network: Sentence, rows: Sequence[Ids], tokens: Tokens, tick: Callable[[], None] = lambda: None) -> Tensor:
    """What the network gives for each row, float32 `[rows, width]`; `tick` is called up to `TENTHS` times."""
    network.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts = [order[i : i + EMBEDDED] for i in range(0, len(order), EMBEDDED)]
    found: list[Tensor] = []
    with torch.no_grad():
        for n, part in enumerate(parts, 1):
            found.append(network(*tokens.batch([rows[i] for i in part])))
            if is_tenth(n, len(parts)):
                tick()
    back = torch.tensor(order).argsort()
    return torch.cat(found)[back]


def shuffled(rows: Sequence[Ids], size: int, order: random.Random) -> Iterator[list[int]]:
    """Places of the rows of each batch, in an order that is another one at each call."""
    places = list(range(len(rows)))
    order.shuffle(places)
    batches = []
    for start in range(0, len(places), size * _SPAN):
        span = sorted(places[start : start + size * _SPAN], key=lambda i: len(rows[i]))
        batches += [span[i : i + size] for i in range(0, len(span), size)]
    order.shuffle(batches)
    yield from batches


def is_tenth(done: int, total: int) -> bool:
    """Whether another tenth of the work is over: progress in lines that a person can read."""
    return done * TENTHS // total > (done - 1) * TENTHS // total


def student(teacher: Sentence, kind: HuggingFace, layers: int | None) -> Sentence:
    """A copy with `layers` of the teacher's layers, evenly chosen and the last among them (default: half).

    Raises `Malformed` for more layers than there are, `Incompatible` for a model whose layers cannot be told apart.
    """
    import copy  # noqa: PLC0415

    model: Any = copy.deepcopy(teacher.model)
    there = int(model.config.num_hidden_layers)
    wanted = layers or max(1, there // 2)
    if not 1 <= wanted < there:
        raise Malformed(f"tune student-layers {wanted}: expected 1 to {there - 1}: the teacher has {there}")
    stacks = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == there]
    if len(stacks) != 1:
        raise Incompatible(f"tune: {type(model).__name__} has no single stack of {there} layers to take some from")
    (name, stack) = stacks[0]
    above, _, attribute = name.rpartition(".")
    kept = [stack[(i + 1) * there // wanted - 1] for i in range(wanted)]
    setattr(model.get_submodule(above), attribute, nn.ModuleList(kept))
    model.config.num_hidden_layers = wanted
    return Sentence(model, kind, copy.deepcopy(teacher.dense))


def with_lora(network: Sentence) -> None:
    """Freeze the encoder and put adapters beside its linear layers."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415

    network.model = get_peft_model(network.model, LoraConfig(**_LORA))


def merge_lora(network: Sentence) -> None:
    """Add the adapters to the weights: what is left is a plain model."""
    network.model = network.model.merge_and_unload()  # type: ignore[operator]
