"""The source model as one torch module: token ids in, logits out, pooling and head inside."""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from compiler.errors import Incompatible, Malformed
from compiler.source import Head, Source

InputName = Literal["input_ids", "attention_mask", "token_type_ids"]


class Classifier(nn.Module):
    """Takes integer `[batch, tokens]` tensors in the order of `inputs`, returns float32 logits `[batch, classes]`."""

    def __init__(self, model: nn.Module, inputs: tuple[InputName, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits of a batch; without `token_type_ids` for a model that knows none."""
        return self._logits(self._call(input_ids, attention_mask, token_type_ids), attention_mask)

    def _call(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        out: Sequence[Tensor] = self.model(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=False, **types
        )
        return out[0]

    def _logits(self, out: Tensor, attention_mask: Tensor) -> Tensor:  # noqa: ARG002  a sentence head pools by it
        return out


class SentenceClassifier(Classifier):
    """An encoder with pooling and a dense head."""

    def __init__(self, model: nn.Module, inputs: tuple[InputName, ...], head: Head, dense: nn.Module) -> None:
        super().__init__(model, inputs)
        self.head = head
        self.dense = dense

    def _logits(self, out: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.dense(pool(out, attention_mask, self.head.pooling, normalize=self.head.normalize))
        return logits


def load(source: Source) -> Classifier:
    """Raises `Malformed` for weights that are missing, NaN or do not fit, `Incompatible` for an unknown model."""
    import transformers

    kind = transformers.AutoModel if source.head else transformers.AutoModelForSequenceClassification
    model = load_model(source.folder, kind)
    inputs = _inputs(model)
    module = (
        SentenceClassifier(model, inputs, source.head, _dense(source.head, source))
        if source.head
        else Classifier(model, inputs)
    )
    _check_weights(module, source)
    return module.eval()


def load_model(folder: Any, kind: Any) -> nn.Module:
    """A transformers model from safetensors only, with every weight found. Raises `Malformed` or `Incompatible`."""
    try:
        model, report = kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="eager",
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (SafetensorError, RuntimeError, OSError) as e:
        raise Malformed(f"source {folder}: its weights do not load: {_first_line(e)}") from e
    except (ValueError, KeyError, AttributeError) as e:
        raise Incompatible(f"source {folder}: transformers does not know this model: {_first_line(e)}") from e
    missing = sorted(k for k in report["missing_keys"] if ".pooler." not in f".{k}")
    if missing or report["mismatched_keys"]:
        names = missing or sorted(str(k[0]) for k in report["mismatched_keys"])
        raise Malformed(
            f"source {folder}: weight {names[0]} ({len(names)} such) is missing, or of another shape "
            "than config.json says: save the whole model again"
        )
    loaded: nn.Module = model.eval()
    return loaded


def pool(hidden: Tensor, attention_mask: Tensor, pooling: str, *, normalize: bool) -> Tensor:
    """Sentence embedding `[batch, width]` of token states `[batch, tokens, width]`, as sentence-transformers pools."""
    if pooling == "cls":
        pooled = hidden[:, 0]
    else:
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return nn.functional.normalize(pooled, p=2.0, dim=1) if normalize else pooled


def _inputs(model: nn.Module) -> tuple[InputName, ...]:
    typed = "token_type_ids" in signature(model.forward).parameters
    return ("input_ids", "attention_mask", "token_type_ids") if typed else ("input_ids", "attention_mask")


def _dense(head: Head, source: Source) -> nn.Linear:
    path = head.dense / "model.safetensors"
    try:
        weights = load_file(path)
    except SafetensorError as e:
        raise Malformed(f"source {path}: {e}") from e
    width, classes = int(source.config.get("hidden_size", 0)), len(source.labels)
    expected = {"linear.weight": (classes, width), "linear.bias": (classes,)}
    if {k: tuple(v.shape) for k, v in weights.items()} != expected:
        raise Malformed(
            f"source {path}: expected linear.weight [{classes}, {width}] and linear.bias [{classes}], labels by width"
        )
    dense = nn.Linear(width, classes)
    dense.load_state_dict({k.removeprefix("linear."): v.float() for k, v in weights.items()})
    return dense


def _check_weights(module: nn.Module, source: Source) -> None:
    for name, weight in module.state_dict().items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise Malformed(
                f"source {source.folder}: weight {name} holds NaN or infinite numbers: train or copy it again"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
