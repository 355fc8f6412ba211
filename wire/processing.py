"""What `pipeline.json` means: from a text, picture, sound or arrays to the graph's inputs, and from its outputs back.

Pure: arrays in, arrays out. Agent and compiler both use it, so what was evaluated is what serves; how a graph runs is
theirs. numpy comes with this module, and kitoken with the first text model: import it where a model is loaded.

    processor = Processor(pipeline, labels, tokenizer_bytes)
    result = processor.run("turn the light on", graph)     # graph: feeds by name -> outputs by name
    result.outputs["scores"], result.labels
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from wire.confidence import confidence
from wire.errors import Incompatible, Malformed
from wire.language import language_of
from wire.pipeline import (
    AUDIO,
    EMBEDDING,
    IMAGE,
    LOGPROBS,
    MARGINS,
    SCORES,
    TOKENS,
    Audio,
    DataType,
    GoldenCase,
    Image,
    Pipeline,
    Tensor,
    TensorSpec,
)

if TYPE_CHECKING:
    from kitoken import Kitoken

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Example = str | Arrays
"""A text, or arrays by name: `image`, `audio`, or the graph's own inputs."""
Graph = Callable[[Arrays], Arrays]
"""Runs a model once: the arrays of `Pipeline.inputs` in, at least those of `Pipeline.outputs` out."""


@dataclass(frozen=True)
class Result:
    """An answer. `labels` are the best ones: one, or one for each word or frame; none for a model without labels.

    `outputs` by task: `scores` float32 `[classes]`, or `[words, classes]`, or `[frames, classes]`; `embedding` float32
    `[width]`; else the graph's outputs without the batch axis, by their names. `confidence` is the probability that the
    one label is right, where the pipeline is calibrated.

    Of the input: `length` in tokens before anything is cut off (of words with a label each: those that fit), without
    frame tokens, or in values of what is no text; `language` of a text (`wire.language`). Neither is known of a graph's
    own inputs, all of one shape.
    """

    outputs: Arrays
    labels: tuple[str, ...] = ()
    confidence: float | None = None
    length: int | None = None
    language: str = ""


class Processor:
    """The steps around one graph. Raises `Incompatible` for a tokenizer file that it cannot read."""

    def __init__(self, pipeline: Pipeline, labels: tuple[str, ...], tokenizer: bytes | None) -> None:
        self._pipeline = pipeline
        self._labels = labels
        self._encoder = _encoder(pipeline, tokenizer)
        self._plain = pipeline.task == "tensors" and pipeline.activation == "none" and not labels
        self._fixed = [(spec.name, spec.shape, np.dtype(spec.dtype)) for spec in pipeline.inputs]
        self._names = tuple(spec.name for spec in pipeline.outputs)

    def run(self, example: Example, graph: Graph) -> Result:
        """One answer; a sound asks the graph once a frame. Raises `Malformed` for an example of the wrong form."""
        if self._plain:  # the same as below, where nothing stands between the caller and the graph
            given = graph(example if self._is_feed(example) else self.feeds(example)[0])
            return Result({name: _named(given, name)[0] for name in self._names})
        feeds, length = self._fed(example)
        result = self.result([graph(feed) for feed in feeds], self._kept_tokens(example))
        language = language_of(example) if isinstance(example, str) else ""
        return replace(result, length=length, language=language)

    def _is_feed(self, example: Example) -> TypeGuard[Arrays]:
        """Whether these are the graph's inputs as they are."""
        if isinstance(example, str) or len(example) != len(self._fixed):
            return False
        for name, shape, dtype in self._fixed:
            values = example.get(name)
            if values is None or values.shape != shape or values.dtype != dtype:
                return False
        return True

    def feeds(self, example: Example) -> list[dict[str, Array]]:
        """What the graph is fed, once or once for each frame: arrays with a batch axis of 1."""
        return self._fed(example)[0]

    def _fed(self, example: Example) -> tuple[list[dict[str, Array]], int]:
        """What the graph is fed, and the length of the input."""
        if self._pipeline.tokenizer is not None:
            ids, length = self._read(_text(example))
            return [self._text_feed(ids)], length
        if self._pipeline.image is not None:
            image = _array(example, IMAGE)
            return [self._one(picture(image, self._pipeline.image))], image.size
        if self._pipeline.audio is not None:
            sound = _array(example, AUDIO)
            return [self._one(frame[None]) for frame in frames(sound, self._pipeline.audio)], sound.size
        arrays = {spec.name: _fit(_array(example, spec.name), spec) for spec in self._pipeline.inputs}
        return [arrays], sum(values.size for values in arrays.values())

    def result(self, outputs: Sequence[Arrays], tokens: Sequence[int] | None = None) -> Result:
        """The answer in the graph's outputs, one of them for each feed. `tokens` are those that stand for a word each.

        Raises `Incompatible` when an output is missing, or its last axis is not as long as the labels.
        """
        first = self._activated(outputs)
        task = self._pipeline.task
        if task == "sentence-embedding":
            return Result({EMBEDDING: first[0][0]})
        if task == "token-classification":
            return self._labelled(first[0][0][list(tokens or ())])
        if task == "audio-frames":
            joined = np.concatenate(first)
            return self._labelled(joined) if self._labels else Result({self._pipeline.outputs[0].name: joined})
        if self._labels:
            return self._classified(first[0][0])
        rest = {spec.name: _named(outputs[0], spec.name)[0] for spec in self._pipeline.outputs[1:]}
        return Result({self._pipeline.outputs[0].name: first[0][0], **rest})

    def words(self, text: str) -> tuple[str, ...]:
        """The words of a text that token classification answers: those that fit."""
        return tuple(text.split()[: len(self._words(text)) - 2])

    def count_tokens(self, text: str) -> int:
        """Tokens of a text that the graph is fed, frame tokens among them, padding not."""
        return len(self._ids(text))

    # --- text -------------------------------------------------------------------------------------------------

    def _ids(self, text: str) -> list[int]:
        return self._read(text)[0]

    def _read(self, text: str) -> tuple[list[int], int]:
        """The ids that the graph is fed, and how many tokens of the text there were."""
        if self._by_word:
            rows = self._words(text)
            return [i for row in rows for i in row], sum(map(len, rows[1:-1]))
        ids = self._encode(text)
        return self._framed(ids), len(ids)

    @property
    def _by_word(self) -> bool:
        return self._pipeline.task == "token-classification"

    def _words(self, text: str) -> list[list[int]]:
        """The ids of each word, frame tokens at both ends, cut to the model's length."""
        t = self._pipeline.tokenizer
        assert t is not None
        room = t.max_length - len(t.before) - len(t.after)
        rows: list[list[int]] = [list(t.before)]
        for word in text.split():
            ids = self._encode(word)
            if len(ids) > room:
                break
            room -= len(ids)
            rows.append(ids)
        return [*rows, list(t.after)]

    def _kept_tokens(self, example: Example) -> list[int] | None:
        """For token classification: where each word's first token stands; for a word of no token, the one before it."""
        if not self._by_word:
            return None
        found, at = [], 0
        for i, ids in enumerate(rows := self._words(_text(example))):
            if 0 < i < len(rows) - 1:
                found.append(at if ids else max(0, at - 1))
            at += len(ids)
        return found

    def _encode(self, text: str) -> list[int]:
        assert self._encoder is not None
        return list(self._encoder.encode(text, True))

    def _framed(self, ids: list[int]) -> list[int]:
        t = self._pipeline.tokenizer
        assert t is not None
        return [*t.before, *ids[: t.max_length - len(t.before) - len(t.after)], *t.after]

    def _text_feed(self, ids: list[int]) -> dict[str, Array]:
        assert self._pipeline.tokenizer is not None
        width = next((n for n in self._pipeline.lengths if n >= len(ids)), len(ids))
        fill = width - len(ids)
        columns = {
            "input_ids": ids + [self._pipeline.tokenizer.pad] * fill,
            "attention_mask": [1] * len(ids) + [0] * fill,
            "token_type_ids": [0] * width,
        }
        return {spec.name: np.asarray([columns[spec.name]], spec.dtype) for spec in self._pipeline.inputs}

    # --- the rest ---------------------------------------------------------------------------------------------

    def _one(self, values: Array) -> dict[str, Array]:
        (spec,) = self._pipeline.inputs
        return {spec.name: _fit(values, spec)}

    def _activated(self, outputs: Sequence[Arrays]) -> list[Array]:
        name, kind = self._pipeline.outputs[0].name, self._pipeline.activation
        return [activate(_named(output, name), kind) for output in outputs]

    def _classified(self, scores: Array) -> Result:
        found, calibration = self._labelled(scores), self._pipeline.calibration
        return replace(found, confidence=confidence(scores, calibration)) if calibration else found

    def _labelled(self, scores: Array) -> Result:
        if scores.shape[-1:] != (len(self._labels),):
            raise Incompatible(f"the graph gives {scores.shape[-1:]} scores, the bundle has {len(self._labels)} labels")
        best = np.atleast_1d(scores.argmax(axis=-1))
        return Result({SCORES: scores}, tuple(self._labels[i] for i in best))


def activate(values: Array, kind: str) -> Array:
    """Scores or unit vectors, float32 of the same shape; `none` leaves an array as it is."""
    if kind == "softmax":
        raised = np.exp(values.astype(np.float32) - values.max(axis=-1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=-1, keepdims=True), np.float32)
    if kind == "sigmoid":
        with np.errstate(over="ignore"):  # 1 / infinity is the right answer
            return np.asarray(1 / (1 + np.exp(-values.astype(np.float32))), np.float32)
    if kind == "normalize":
        length = np.linalg.norm(values.astype(np.float32), axis=-1, keepdims=True)
        return np.asarray(values / np.maximum(length, 1e-12), np.float32)
    return values


def picture(values: Array, image: Image) -> Array:
    """A picture uint8 `[height, width, channels]` as float32 `[1, ...]` in the graph's layout. Raises `Malformed`."""
    if values.ndim != 3 or values.shape[2] != image.channels or values.dtype != np.uint8 or 0 in values.shape:
        raise Malformed(
            f"image: expected uint8 [height, width, {image.channels}], got {values.dtype} {list(values.shape)}"
        )
    scaled = resize(values.astype(np.float32), image.height, image.width) * np.float32(image.scale)
    mean, std = image.mean or (0.0,) * image.channels, image.std or (1.0,) * image.channels
    normal = (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return (normal if image.layout == "NHWC" else normal.transpose(2, 0, 1))[None]


def resize(values: Array, height: int, width: int) -> Array:
    """Bilinear with half-pixel centres: `[h, w, c]` to `[height, width, c]`, edges repeated."""
    if values.shape[:2] == (height, width):
        return values
    top, bottom, down = _between(values.shape[0], height)
    left, right, across = _between(values.shape[1], width)
    down = down[:, None, None]

    def column(at: Array) -> Array:
        """Rows and columns are picked at once: whole rows of a picture 1 high and 350 000 wide took 2.7 GB."""
        return np.asarray(values[top[:, None], at] * (1 - down) + values[bottom[:, None], at] * down)

    return np.asarray(column(left) * (1 - across[:, None]) + column(right) * across[:, None], np.float32)


def _between(old: int, new: int) -> tuple[Array, Array, Array]:
    """For each new place: the two old ones beside it, and the share of the second."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (at - low).astype(np.float32)


def frames(samples: Array, audio: Audio) -> Iterator[Array]:
    """Each frame of a sound `[samples]`, float32 `[frame]`. Raises `Malformed` unless it is mono float32."""
    if samples.ndim != 1 or samples.dtype != np.float32 or not len(samples):
        raise Malformed(f"audio: expected float32 [samples], got {samples.dtype} {list(samples.shape)}")
    padded = np.pad(samples, (0, max(0, audio.frame - len(samples)))) * np.float32(audio.scale)
    for start in range(0, len(padded) - audio.frame + 1, audio.hop):
        yield padded[start : start + audio.frame]


def to_tensor(values: Array) -> Tensor:
    """An array for a document."""
    plain = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    kind = cast(DataType, str(values.dtype))  # numpy's names are the contract's
    return Tensor(dtype=kind, shape=tuple(values.shape), data=base64.b64encode(plain.tobytes()).decode())


def to_array(tensor: Tensor) -> Array:
    """The inverse of `to_tensor`. Raises `Malformed` when data and shape do not agree."""
    try:
        raw = base64.b64decode(tensor.data, validate=True)
        return np.frombuffer(raw, np.dtype(tensor.dtype).newbyteorder("<")).reshape(tensor.shape).astype(tensor.dtype)
    except ValueError as e:
        raise Malformed(f"tensor {tensor.dtype} {list(tensor.shape)}: its data does not fit: {e}") from e


def example_of(case: GoldenCase) -> Example:
    """The input of a golden case."""
    return case.text if case.text is not None else {name: to_array(t) for name, t in case.inputs.items()}


def golden_fault(case: GoldenCase, result: Result, max_abs: float) -> str | None:
    """Why a result does not hold for a golden case, in words; None when it does."""
    if MARGINS in case.outputs:
        return _continuation_fault(case, result, max_abs)
    for name, tensor in case.outputs.items():
        expected, got = to_array(tensor), result.outputs.get(name)
        if got is None or got.shape != expected.shape:
            return f"output {name} is {'missing' if got is None else list(got.shape)}, expected {list(expected.shape)}"
        with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, which does not hold
            off = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        # A NaN compares false with everything: ask for what must hold, not for what must not.
        if not bool((off <= max_abs).all()):
            return f"output {name} is {float(off.max()):.3g} away from what is expected, the tolerance is {max_abs:.3g}"
    return _label_fault(case, result, max_abs)


def _continuation_fault(case: GoldenCase, result: Result, max_abs: float) -> str | None:
    expected, margins, sure = (to_array(case.outputs[name]) for name in (TOKENS, MARGINS, LOGPROBS))
    got, got_sure = (result.outputs.get(name, np.zeros(0)) for name in (TOKENS, LOGPROBS))
    pairs = zip(
        expected, margins, sure, [*got, *[None] * len(expected)], [*got_sure, *[0.0] * len(expected)], strict=False
    )
    for i, (token, margin, logprob, found, found_logprob) in enumerate(pairs):
        if found != token:
            near = margin <= 2 * max_abs  # two tokens as likely as each other: from here on the texts differ
            return None if near else f"token {i + 1} of its continuation is {found} where {token} is expected"
        off = abs(float(found_logprob) - float(logprob))
        if not off <= max_abs:
            return f"token {i + 1} of its continuation has a log probability {off:.3g} away from what is expected"
    return None


def _label_fault(case: GoldenCase, result: Result, max_abs: float) -> str | None:
    if len(case.labels) != len(result.labels):
        return f"{len(result.labels)} labels where {len(case.labels)} are expected"
    if not case.labels:
        return None
    scores = np.sort(np.atleast_2d(to_array(case.outputs[SCORES])), axis=-1)
    for expected, got, row in zip(case.labels, result.labels, scores, strict=True):
        clear = len(row) < 2 or row[-1] - row[-2] > 2 * max_abs
        if expected != got and clear:
            return f"label {got!r} where {expected!r} is expected"
    return None


def _encoder(pipeline: Pipeline, tokenizer: bytes | None) -> Kitoken | None:
    if pipeline.tokenizer is None:
        return None
    from kitoken import Kitoken  # noqa: PLC0415  a model of pictures or tensors does not need its 7 MB

    try:
        return Kitoken.from_tokenizers(tokenizer or b"")
    except ValueError as e:
        raise Incompatible(f"{pipeline.tokenizer.file}: not a tokenizer that can be read here: {e}") from e


def _text(example: Example) -> str:
    if not isinstance(example, str):
        raise Malformed("input: expected a text")
    return example


def _array(example: Example, name: str) -> Array:
    if isinstance(example, str) or name not in example:
        given = "a text" if isinstance(example, str) else ", ".join(example) or "nothing"
        raise Malformed(f"input: expected an array {name!r}, got {given}")
    return example[name]


def _fit(values: Array, spec: TensorSpec) -> Array:
    """An array in the type and shape of the graph's input. Raises `Malformed` when its shape is another."""
    shaped = values.shape
    if shaped == spec.shape:
        return values.astype(spec.dtype, copy=False)
    if len(shaped) != len(spec.shape) or any(
        want not in (-1, got) for want, got in zip(spec.shape, shaped, strict=True)
    ):
        raise Malformed(f"input {spec.name}: expected the shape {list(spec.shape)}, got {list(shaped)}")
    return values.astype(spec.dtype, copy=False)


def _named(outputs: Arrays, name: str) -> Array:
    if name not in outputs:
        raise Incompatible(f"the graph has no output {name!r}; it has {', '.join(outputs)}")
    if not outputs[name].ndim:
        raise Incompatible(f"the graph's output {name!r} is one number: its first axis must be the batch")
    return outputs[name]
