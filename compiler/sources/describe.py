"""The description of a source: a TOML file that says what the source does not say itself.

`shoal compile --describe FILE` names it; without that, `model.toml` beside `model.onnx` (`.tflite`, `.pt`) is taken
where it exists. An ONNX or TFLite file without a description is a model of plain tensors. All keys, each optional where
the source needs none:

    task = "text-classification"      # token-classification, sentence-embedding, image-classification,
                                      # audio-frames, or tensors, which is meant where nothing is said
    labels = ["cat", "dog"]           # class names in the order of the last axis of the first output
    activation = "softmax"            # what follows the first output: softmax, sigmoid, normalize, none. Without it:
                                      # softmax for a classification, none elsewhere. A graph that ends in a softmax
                                      # of its own needs "none".
    tokenizer = "tokenizer.json"      # text tasks: a file of the `tokenizers` library beside this one
    max_length = 128                  # text tasks: most tokens of a text, frame tokens included
    files = ["weights.safetensors"]   # python: sources: what the function reads, so that a change of it is seen

    [image]                           # image-classification; layout NHWC or NCHW
    height = 96
    width = 96
    channels = 3
    layout = "NCHW"
    scale = 0.00392156862745098       # 1/255 where nothing is said
    mean = [0.485, 0.456, 0.406]
    std = [0.229, 0.224, 0.225]

    [audio]                           # audio-frames: samples per second, per frame, and between the starts of two
    rate = 16000
    frame = 1280
    hop = 1280
    scale = 1.0

    [[inputs]]                        # torch modules and TorchScript, in the order of forward's arguments:
    name = "x"                        # the batch axis first, -1 for a size that may change
    dtype = "float32"
    shape = [1, 3, 96, 96]

    [[outputs]]                       # torch: in the order that forward returns; ONNX and TFLite: by name, a choice
    name = "logits"                   # and an order of the graph's own. The first is the one that labels and
    dtype = "float32"                 # activation apply to; dtype and shape are the graph's own where there is a graph.
    shape = [1, 2]

A Hugging Face folder describes itself: only `labels`, `activation`, `max_length` and `[image]` may say otherwise.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from compiler.errors import Malformed
from compiler.sources.files import inside, read_bytes
from wire.document import Document
from wire.errors import WireError
from wire.pipeline import Audio, DataType, Image, Task, TensorSpec

Activation = Literal["softmax", "sigmoid", "normalize", "none"]
_LIMIT = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Slot(Document):
    """A tensor as the description names it: dtype and shape may be left to the graph."""

    name: str
    dtype: DataType | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Description(Document):
    """The keys of the file. All of them are absent where a source has no description."""

    task: Task | None = None
    labels: tuple[str, ...] | None = None
    activation: Activation | None = None
    tokenizer: str | None = None
    max_length: int | None = None
    files: tuple[str, ...] = ()
    image: Image | None = None
    audio: Audio | None = None
    inputs: tuple[Slot, ...] = ()
    outputs: tuple[Slot, ...] = ()


@dataclass(frozen=True)
class Described:
    """A description with the file that it was read from, None where there is none."""

    says: Description
    path: Path | None = None

    @property
    def where(self) -> str:
        """The file for people."""
        return f"description {self.path}" if self.path else "description: none was given"

    def file(self, name: str) -> Path:
        """A file that the description names. Raises `Malformed` when it leaves the description's folder."""
        assert self.path is not None
        found = inside(self.path.parent, name, self.where)
        if not found.is_file():
            raise Malformed(f"{self.where}: {name[:200]}: no such file beside it")
        return found

    def refuse(self, allowed: Collection[str], why: str) -> None:
        """Raises `Malformed` for a key that means nothing for this kind of source."""
        for name in _keys(Description):
            if name not in allowed and getattr(self.says, name) not in (None, ()):
                raise Malformed(f"{self.where}: {name}: {why}; leave it out (allowed: {', '.join(allowed)})")

    def parts(self) -> list[tuple[str, Path | bytes]]:
        """What of it decides the source's answers: its own keys and the files that it names."""
        if self.path is None:
            return []
        named = [*self.says.files, *([self.says.tokenizer] if self.says.tokenizer else [])]
        return [("description", self.says.to_bytes()), *((f"file {name}", self.file(name)) for name in sorted(named))]


def find(given: Path | None, source: Path | None) -> Described:
    """The description that was given, or the one that lies beside the file `source`, or an empty one."""
    if given is None and source is not None and source.with_suffix(".toml").is_file():
        given = source.with_suffix(".toml")
    return Described(_parse(given), given) if given else Described(Description())


def spec(slot: Slot, where: str) -> TensorSpec:
    """A described tensor in full. Raises `Malformed` when dtype or shape are missing or the batch axis is not 1."""
    if slot.dtype is None or not slot.shape:
        raise Malformed(f"{where}: tensor {slot.name[:80]!r}: dtype and shape are needed, the batch axis first")
    if slot.shape[0] not in (1, -1):
        raise Malformed(f"{where}: tensor {slot.name[:80]!r}: shape {list(slot.shape)}: the first is the batch, 1")
    try:
        return TensorSpec(name=slot.name, dtype=slot.dtype, shape=(1, *slot.shape[1:]))
    except WireError as e:
        raise Malformed(f"{where}: {e}") from e


def _parse(path: Path) -> Description:
    data = read_bytes(path, "name a TOML file that describes the source")
    if len(data) > _LIMIT:
        raise Malformed(f"description {path}: {len(data)} bytes, the limit is {_LIMIT}")
    try:
        value = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as e:
        raise Malformed(f"description {path}: not valid TOML: {e}") from e
    try:
        says = Description.from_value(value)
    except WireError as e:
        raise Malformed(f"description {path}: {e}") from e
    _check(says, f"description {path}")
    return says


def _check(says: Description, where: str) -> None:
    _refuse_unknown(says, where)
    for section in (says.image, says.audio, *says.inputs, *says.outputs):
        if section is not None:
            _refuse_unknown(section, f"{where}: {type(section).__name__.lower()}")
    if says.labels is not None and (not says.labels or len(set(says.labels)) != len(says.labels)):
        raise Malformed(f"{where}: labels: empty, or a label stands twice")
    if says.max_length is not None and says.max_length < 3:
        raise Malformed(f"{where}: max_length: {says.max_length} leaves no room for a text")
    numbers = [*_numbers(says.image, "scale", "mean", "std"), *_numbers(says.audio, "scale")]
    if not all(math.isfinite(number) for number in numbers):
        raise Malformed(f"{where}: scale, mean and std are finite numbers")
    for name, slots in (("inputs", says.inputs), ("outputs", says.outputs)):
        if len({slot.name for slot in slots}) != len(slots):
            raise Malformed(f"{where}: {name}: a name stands twice")


def _refuse_unknown(document: Document, where: str) -> None:
    if document.extra:
        known = ", ".join(_keys(type(document)))
        raise Malformed(f"{where}: unknown key {next(iter(document.extra))!r}; known: {known}")


def _keys(document: type[Document]) -> list[str]:
    return [f.name for f in fields(document) if f.name != "extra"]


def _numbers(section: Image | Audio | None, *names: str) -> list[float]:
    found: list[Any] = [getattr(section, name) for name in names] if section else []
    return [number for value in found for number in (value if isinstance(value, tuple) else (value,))]
