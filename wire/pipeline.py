"""`pipeline.json`, labels and golden set: everything of a bundle that stands around the model's own graph.

One format for every task; `wire.processing` is its meaning, in numpy, for agent and compiler alike.

    pipeline = Pipeline.from_bytes(data)
    pipeline.task, pipeline.inputs, pipeline.outputs
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

from wire.document import CONTRACT, Document, check_file
from wire.errors import Malformed

Task = Literal[
    "text-classification",
    "token-classification",
    "sentence-embedding",
    "image-classification",
    "audio-frames",
    "tensors",
    "text-generation",
]
TEXT_TASKS: tuple[Task, ...] = ("text-classification", "token-classification", "sentence-embedding")
CALIBRATED_TASKS: tuple[Task, ...] = ("text-classification", "image-classification")
"""Tasks with one label for an example: only there one number says how sure the answer is."""
DataType = Literal["float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"]
IMAGE, AUDIO = "image", "audio"
"""What the one input of a picture or a sound is called by whoever gives it."""
SCORES, EMBEDDING = "scores", "embedding"
"""What the output is called where a task has one of its own; otherwise outputs keep the graph's names."""
TOKENS, LOGPROBS, MARGINS = "tokens", "logprobs", "margins"
"""What a continuation is made of, see `GoldenCase`."""
CONTINUATION = 16
"""Most tokens of the continuation that a golden case of a language model holds."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec(Document):
    """A tensor of a graph: its name, the type of its numbers, and its shape, -1 for a dimension of any size."""

    name: str
    dtype: DataType
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(size < -1 or size == 0 for size in self.shape):
            raise Malformed(f"tensor {self.name[:80]}: shape {self.shape}, expected sizes of 1 or more, or -1")


@dataclass(frozen=True, kw_only=True)
class Tensor(Document):
    """An array in a document: `data` is base64 of its numbers, little-endian, last dimension fastest."""

    dtype: DataType
    shape: tuple[int, ...]
    data: str


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Document):
    """How text becomes model input: `kind` names the reader of the tokenizer file.

    The ids of a text are `before`, the tokenizer's ids cut to `max_length - len(before) - len(after)`, and `after`:
    the frame tokens (`[CLS]`, `[SEP]`), which the file's reader does not add. Shorter rows of a batch are
    filled with `pad` on the right, mask 0.
    """

    kind: Literal["huggingface-json"]
    file: str
    max_length: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    pad: int = 0

    def __post_init__(self) -> None:
        check_file(self.file, "tokenizer.file")
        if self.max_length <= len(self.before) + len(self.after):
            raise Malformed(f"tokenizer.max_length: {self.max_length} leaves no room for a text")


@dataclass(frozen=True, kw_only=True)
class Image(Document):
    """How a picture becomes the graph's input, float32 or uint8.

    A picture is uint8 `[height, width, channels]`. It is resized (bilinear, half-pixel centres) where it has another
    size, each value becomes `(value * scale - mean[channel]) / std[channel]`, and the axes are laid out.
    """

    height: int
    width: int
    channels: int
    layout: Literal["NHWC", "NCHW"]
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.channels) < 1 or max(self.height, self.width) > 8192 or self.channels > 4:
            raise Malformed("image: expected a height and width of 1 to 8192 and 1 to 4 channels")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != self.channels:
                raise Malformed(f"image.{name}: expected none, or one for each of {self.channels} channels")
        if any(v <= 0 for v in self.std):
            raise Malformed("image.std: expected numbers above 0")


@dataclass(frozen=True, kw_only=True)
class Audio(Document):
    """How sound becomes the graph's input, one frame at a time.

    Sound is mono float32 `[samples]` from -1 to 1 at `rate` Hz. Frames of `frame` samples start every `hop` samples,
    each sample multiplied by `scale`; a shorter sound is filled with zeros to one frame, and an unfinished last frame
    is left out.
    """

    rate: int
    frame: int
    hop: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.frame or self.rate < 1:
            raise Malformed("audio: expected a rate above 0, and 0 < hop <= frame")


@dataclass(frozen=True, kw_only=True)
class Language(Document):
    """How a language model is asked. Its runtime brings tokenizer, search and the tokens that end an answer.

    `context` is the most tokens of a prompt and its answer together. `chat_template` is the Jinja template that makes
    a prompt of messages, None for a model that was not trained to chat: it only completes.
    """

    context: int
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if not 16 <= self.context <= 1 << 20:
            raise Malformed(f"language.context: {self.context}, expected 16 to {1 << 20} tokens")
        if self.chat_template is not None and not 0 < len(self.chat_template.encode()) <= 64 * 1024:
            raise Malformed("language.chat_template: expected a template of 1 byte to 64 KiB")


@dataclass(frozen=True, kw_only=True)
class Calibration(Document):
    """How sure an answer is: from its scores to the probability that its label is the right one (`wire.confidence`).

    `temperature`: the scores are sharpened or flattened by it (Guo et al. 2017). `isotonic`: the best score is read off
    the line through the points `scores`, rising, and `confidences`, never falling (Zadrozny and Elkan 2002).

    An answer whose confidence is below `threshold` is worth asking a larger model; 0 means none is. With it, at most
    `target_error` of 100 answers are wrong on the device where the source model would be right.
    """

    method: Literal["temperature", "isotonic"]
    temperature: float = 1.0
    scores: tuple[float, ...] = ()
    confidences: tuple[float, ...] = ()
    threshold: float
    target_error: float

    def __post_init__(self) -> None:
        if not 0.001 <= self.temperature <= 1000:
            raise Malformed(f"calibration.temperature: {self.temperature:g}, expected 0.001 to 1000")
        if not 0 <= self.threshold <= 1 or not 0 <= self.target_error <= 100:
            raise Malformed("calibration: expected a threshold from 0 to 1, and a target error from 0 to 100")
        if (self.method == "isotonic") != bool(self.scores) or len(self.scores) != len(self.confidences):
            raise Malformed("calibration: isotonic has as many confidences as scores, at least one; temperature none")
        if any(b <= a for a, b in pairwise(self.scores)) or any(b < a for a, b in pairwise(self.confidences)):
            raise Malformed("calibration: expected rising scores, and confidences that never fall")
        if not all(0 <= c <= 1 for c in self.confidences):
            raise Malformed("calibration.confidences: expected numbers from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Pipeline(Document):
    """What stands around the graph.

    `inputs` and `outputs` are the graph's own tensors: what a runtime is fed, and what is read from it. Text tasks feed
    integers `[1, tokens]` under the names `input_ids`, `attention_mask`, `token_type_ids`; pictures and sounds have one
    input; `tensors` takes arrays under the graph's names. `activation` is applied to the first output: `softmax` and
    `sigmoid` over its last axis, `normalize` to length 1. `labels` names the file of class names, in the order of that
    last axis.

    A language model (`text-generation`) has no tensors that others would feed or read, and a section `language`.

    `lengths` are the token counts of a graph without dynamic shapes, ascending: a text is padded to the first that
    holds it. A graph with more than one has a signature `tokens_<n>` for each.

    `calibration` changes no score and no label: it says how sure an answer is.
    """

    contract: str = CONTRACT
    task: Task
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    activation: Literal["softmax", "sigmoid", "normalize", "none"]
    tokenizer: Tokenizer | None = None
    image: Image | None = None
    audio: Audio | None = None
    language: Language | None = None
    labels: str | None = None
    lengths: tuple[int, ...] = ()
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        for name, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            if len({t.name for t in tensors}) != len(tensors) or bool(tensors) == (self.task == "text-generation"):
                raise Malformed(f"pipeline.{name}: empty, or a name stands twice, or a language model has some")
        self._check_sections()
        self._check_lengths()
        self._check_calibration()
        if self.labels is not None:
            check_file(self.labels, "pipeline.labels")

    def _check_sections(self) -> None:
        wanted = {"tokenizer": self.task in TEXT_TASKS, "image": self.task == "image-classification"}
        wanted |= {"audio": self.task == "audio-frames", "language": self.task == "text-generation"}
        for name, needed in wanted.items():
            if needed != (getattr(self, name) is not None):
                raise Malformed(f"pipeline.{name}: task {self.task} {'needs it' if needed else 'has none'}")
        if self.task.endswith("classification") and self.labels is None:
            raise Malformed(f"pipeline.labels: task {self.task} needs it")
        if self.task in ("image-classification", "audio-frames") and len(self.inputs) != 1:
            raise Malformed(f"pipeline.inputs: task {self.task} has one")
        known = ("input_ids", "attention_mask", "token_type_ids")
        if self.tokenizer and not {t.name for t in self.inputs} <= set(known):
            raise Malformed(f"pipeline.inputs: a text task feeds {', '.join(known)}")

    def _check_lengths(self) -> None:
        if not self.lengths:
            return
        if self.tokenizer is None or any(b <= a for a, b in pairwise(self.lengths)) or self.lengths[0] < 1:
            raise Malformed("pipeline.lengths: expected rising token counts, of a text task")
        if self.lengths[-1] < self.tokenizer.max_length:
            raise Malformed(
                f"pipeline.lengths: the longest, {self.lengths[-1]}, is below the {self.tokenizer.max_length} tokens "
                "of a text"
            )

    def _check_calibration(self) -> None:
        if self.calibration is None:
            return
        if self.task not in CALIBRATED_TASKS:
            raise Malformed(f"pipeline.calibration: task {self.task} has none")
        if self.calibration.method == "temperature" and self.activation != "softmax":
            raise Malformed(f"pipeline.calibration: a temperature needs softmax, not {self.activation}")


@dataclass(frozen=True, kw_only=True)
class Labels(Document):
    """`labels.json`: class names in the order of the model's output."""

    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels) or not self.labels:
            raise Malformed("labels: empty, or a label stands twice")


@dataclass(frozen=True, kw_only=True)
class GoldenCase(Document):
    """One input, a `text` or arrays by name, with what the variant answered in the runtime that will serve it.

    `outputs` are those of `wire.processing.Result`, by name; `labels` its best labels: one, or one for each word or
    frame.

    For a language model the text is what a user says first, or with no chat template the text to go on with, and the
    outputs tell how it goes on when it always takes the likeliest token: `tokens` int64 `[n]` with n up to
    `CONTINUATION`, and float32 `[n]` for each token `logprobs`, the natural logarithm of its probability, and
    `margins`, how far it lies above the second.
    """

    text: str | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Tensor]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.outputs:
            raise Malformed("golden case: no outputs")
        if (self.text is None) == (not self.inputs):
            raise Malformed("golden case: expected either a text or inputs")


@dataclass(frozen=True, kw_only=True)
class Golden(Document):
    """`golden.json`: a few inputs, the outputs expected of them, and the tolerance.

    A case holds when no number of an output is further than `max_abs` from the expected one, and every label is the
    expected one wherever its two best scores lie more than `2 * max_abs` apart. All cases must hold.

    A continuation holds by the same rule, token by token: `logprobs` are compared as far as the tokens are the expected
    ones, and where they part, the expected token's margin must be `2 * max_abs` or less.
    """

    LIMIT: ClassVar[int] = 4 * 1024 * 1024

    contract: str = CONTRACT
    max_abs: float
    cases: tuple[GoldenCase, ...]

    def __post_init__(self) -> None:
        if not self.cases or not self.max_abs > 0:
            raise Malformed("golden set: needs at least one case and a tolerance above 0")
