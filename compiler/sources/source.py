"""A source model, checked and described. Reading one imports nothing heavy.

source = read("model.onnx", describe=None)       # compiler/sources/read.py
source.kind, source.task, source.labels, source.digest
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wire.lineage import Dataset
from wire.pipeline import Audio, Image, Language, Task, TensorSpec

Kind = Literal["huggingface", "torch-module", "torchscript", "onnx", "tflite", "gguf"]
TORCH_KINDS: tuple[Kind, ...] = ("huggingface", "torch-module", "torchscript")
"""Sources whose graph is traced from a torch module; the others are graphs already."""


@dataclass(frozen=True)
class Text:
    """What a text task needs: the source's `tokenizer.json`, the most tokens of a text, the graph's inputs in order."""

    tokenizer: bytes
    max_length: int
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class HuggingFace:
    """What `compiler/sources/huggingface.py` needs to load the folder as one torch module.

    `pooling` is None when the model's own class has the head (`*ForSequenceClassification`); `dense` is the folder of
    the head on a pooled encoder, None for a plain sentence embedding.
    """

    config: Mapping[str, Any]
    pooling: Literal["mean", "cls"] | None = None
    normalize: bool = False
    dense: Path | None = None

    @property
    def plain_bert(self) -> bool:
        """Whether it is an encoder of BERT's own structure, with pooling: what `compiler.passes` knows from inside."""
        expected = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
        as_expected = all(self.config.get(key, value) == value for key, value in expected.items())
        return self.pooling is not None and self.config.get("model_type") == "bert" and as_expected


@dataclass(frozen=True)
class Source:
    """A checked source.

    `place` is the folder, the file or `package.module:function`. `inputs` and `outputs` are the tensors of the graph
    that is, or that a torch source will be traced to: batch axis first, -1 for a size that may change. The first output
    is the one that labels and activation apply to. `digest` is over everything that decides its answers, `describe`
    included; `size` is in bytes. `search` is where the code of a torch module is looked for first. `trained` are the
    data sets that it learned from, where it says so (`wire.tune`). `registered` is the version of a registry that it is
    (`models:/name/3`), where it came from one.
    """

    kind: Kind
    place: str
    digest: str
    size: int
    architecture: str
    task: Task
    labels: tuple[str, ...]
    activation: Literal["softmax", "sigmoid", "normalize", "none"]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    text: Text | None = None
    image: Image | None = None
    audio: Audio | None = None
    language: Language | None = None
    huggingface: HuggingFace | None = None
    search: Path | None = None
    trained: tuple[Dataset, ...] = ()
    registered: str = ""

    @property
    def reference(self) -> str:
        """What reads this source again in another process: a registered model is not downloaded twice."""
        return f"python:{self.place}" if self.kind == "torch-module" else self.place
