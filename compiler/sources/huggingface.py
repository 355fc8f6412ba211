"""A Hugging Face folder as one torch module: the one place that knows transformers and optimum.

Token ids or pixels in, logits or embeddings out; pooling and a dense head are inside. Weights come from safetensors
only, and no code of the folder runs.
"""

# ruff: noqa: PLC0415  transformers and optimum take seconds: sources of other kinds do not wait for them
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from compiler.errors import Incompatible, Malformed
from compiler.sources.source import HuggingFace, Source

_AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
}
"""The library's loader of each task whose head is part of the model's own class."""


class TextModel(nn.Module):
    """Takes integer `[batch, tokens]` tensors in the order of the source's inputs, returns float32 logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits of a batch; without `token_type_ids` for a model that knows none."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        out: Sequence[Tensor] = self.model(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=False, **types
        )
        return self._answer(out[0], attention_mask)

    def _answer(self, out: Tensor, attention_mask: Tensor) -> Tensor:  # noqa: ARG002  an encoder is pooled by it
        return out


class Sentence(TextModel):
    """An encoder with pooling, and a dense head where it is a classifier."""

    def __init__(self, model: nn.Module, kind: HuggingFace, dense: nn.Module | None) -> None:
        super().__init__(model)
        self.pooling = kind.pooling or "mean"
        self.normalize = kind.normalize
        self.dense = dense

    def _answer(self, out: Tensor, attention_mask: Tensor) -> Tensor:
        pooled = pool(out, attention_mask, self.pooling, normalize=self.normalize)
        answer: Tensor = self.dense(pooled) if self.dense is not None else pooled
        return answer


class ImageModel(nn.Module):
    """Takes float32 `[batch, channels, height, width]`, returns float32 logits `[batch, classes]`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits of a batch."""
        out: Sequence[Tensor] = self.model(pixel_values=pixel_values, return_dict=False)
        return out[0]


def load(source: Source, pooling: str | None = None) -> nn.Module:
    """Raises `Malformed` for weights that are missing or do not fit, `Incompatible` for an unknown model."""
    kind = source.huggingface
    assert kind is not None
    if pooling is not None:
        kind = _repooled(kind, pooling, source)
    if kind.pooling is not None:
        model = load_model(Path(source.place), "AutoModel")
        _check_inputs(model, source)
        return Sentence(model, kind, _dense(kind.dense, source) if kind.dense else None)
    model = load_model(Path(source.place), _AUTO[source.task])
    if source.text is None:
        return ImageModel(model)
    _check_inputs(model, source)
    return TextModel(model)


def load_model(folder: Path, auto: str = "AutoModel") -> nn.Module:
    """A transformers model from safetensors only, with every weight found; `auto` is the library's loader.

    Raises `Malformed` or `Incompatible`.
    """
    import transformers

    try:
        model, report = getattr(transformers, auto).from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
        )
    except (SafetensorError, RuntimeError, OSError) as e:
        raise Malformed(f"source {folder}: its weights do not load: {_first_line(e)}") from e
    except (ValueError, KeyError, AttributeError, ImportError) as e:
        raise Incompatible(f"source {folder}: unsupported architecture: {_first_line(e)}{_known(folder)}") from e
    missing = sorted(k for k in report["missing_keys"] if ".pooler." not in f".{k}")
    if missing or report["mismatched_keys"]:
        names = missing or sorted(map(str, report["mismatched_keys"]))
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


def _known(folder: Path) -> str:
    """What could be brought instead, for people: the model types that transformers and optimum's exporter know."""
    import optimum.exporters.onnx.model_configs  # type: ignore[import-untyped]  # noqa: F401  fills the table
    from optimum.exporters.tasks import TasksManager  # type: ignore[import-untyped]

    from compiler.sources.files import read_json

    named = read_json(folder / "config.json").get("model_type")
    types = TasksManager._SUPPORTED_MODEL_TYPE  # noqa: SLF001  the public functions answer for one type at a time
    known = sorted(name for name, exporters in types.items() if "onnx" in exporters)
    return f"; model_type {named!r}, known are {', '.join(known)}"


def _repooled(kind: HuggingFace, pooling: str, source: Source) -> HuggingFace:
    if kind.pooling is None:
        raise Incompatible(f"source {source.place}: it pools inside its own class: there is no other pooling for it")
    if pooling not in ("mean", "cls"):
        raise Incompatible(f"source {source.place}: pooling {pooling!r}; mean and cls are supported")
    return replace(kind, pooling="mean" if pooling == "mean" else "cls")


def _check_inputs(model: nn.Module, source: Source) -> None:
    taken = signature(model.forward).parameters
    for spec in source.inputs:
        if spec.name not in taken:
            raise Incompatible(
                f"source {source.place}: unsupported architecture: {type(model).__name__} takes no {spec.name}"
            )


def _dense(folder: Path, source: Source) -> nn.Linear:
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
    except SafetensorError as e:
        raise Malformed(f"source {path}: {e}") from e
    classes = len(source.labels)
    weight, bias = weights.get("linear.weight"), weights.get("linear.bias")
    fits = weight is not None and weight.dim() == 2 and bias is not None and len(weight) == len(bias) == classes
    if not fits or weight is None or bias is None:
        shapes = {name: list(value.shape) for name, value in weights.items()}
        raise Malformed(
            f"source {path}: expected linear.weight [{classes}, width] and linear.bias [{classes}], labels by width; "
            f"it holds {shapes}"
        )
    dense = nn.Linear(weight.shape[1], classes)
    dense.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return dense


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
