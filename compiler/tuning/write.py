"""The folder of a source model, in the layout of sentence-transformers: encoder, pooling, dense head."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from compiler.errors import Unavailable
from compiler.sources.huggingface import Sentence
from compiler.tuning.encoder import Encoder

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_SAYS_NOTHING = ("_name_or_path",)
"""Keys of `config.json` that tell where the encoder once was."""


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill: it becomes `output` as a whole when all went well, and is gone otherwise.

    Raises `Unavailable` when the disk does not take it.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            folder = Path(scratch) / "model"
            folder.mkdir()
            yield folder
            if output.exists():
                output.rmdir()
            folder.rename(output)
    except OSError as e:
        raise Unavailable(f"tune output {output}: cannot be written: {e}") from e


def write_model(folder: Path, encoder: Encoder, network: Sentence, labels: Sequence[str], *, frozen: bool) -> None:
    """Weights, tokenizer and configuration. `frozen`: the encoder's weights are copied, bit for bit."""
    config = encoder.config
    if frozen:
        _copy(encoder.folder, folder, [path.name for path in encoder.folder.glob("*.safetensors*")])
    else:
        network.model.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _copy(encoder.folder, folder, _TOKENIZER)
    dense = network.dense
    assert isinstance(dense, nn.Linear)
    for name, value in _described(config, encoder, labels, dense).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    tensors = {f"linear.{name}": value.detach().contiguous() for name, value in dense.state_dict().items()}
    save_file(tensors, folder / "2_Dense" / "model.safetensors")


def _described(config: Mapping[str, Any], encoder: Encoder, labels: Sequence[str], head: nn.Linear) -> dict[str, Any]:
    """The JSON files by their path."""
    classes, width = head.out_features, head.in_features
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    pooling = {
        "word_embedding_dimension": width,
        "pooling_mode_mean_tokens": encoder.pooling == "mean",
        "pooling_mode_cls_token": encoder.pooling == "cls",
    }
    identity = "torch.nn.modules.linear.Identity"
    dense = {"in_features": width, "out_features": classes, "bias": True, "activation_function": identity}
    return {
        "config.json": {k: v for k, v in config.items() if k not in _SAYS_NOTHING} | names,
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": encoder.max_length, "do_lower_case": False},
        "1_Pooling/config.json": pooling,
        "2_Dense/config.json": dense,
    }


def _copy(source: Path, folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
