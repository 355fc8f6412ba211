"""A source out of a graph or module and its description: whether the two fit, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler.errors import Incompatible, Malformed
from compiler.sources.describe import Activation, Described, spec
from compiler.sources.files import digest_of, read_bytes
from compiler.sources.source import Kind, Source, Text
from wire.pipeline import TEXT_TASKS, Audio, Image, Task, TensorSpec

TOKENS = 512
"""Largest accepted length of a text in tokens."""
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_CLASSES: tuple[Task, ...] = ("text-classification", "token-classification", "image-classification")
_KEYS = ("task", "labels", "activation", "tokenizer", "max_length", "image", "audio", "outputs")


def of_graph(
    kind: Kind,
    path: Path,
    described: Described,
    tensors: tuple[Sequence[TensorSpec], Sequence[TensorSpec]],
    files: Sequence[tuple[str, Path | bytes]],
    size: int,
) -> Source:
    """A source whose graph says its own tensors. `files` are what it consists of, `size` their bytes."""
    described.refuse(_KEYS, "the graph says it itself")
    inputs, outputs = tensors
    return _assemble(kind, str(path), described, (tuple(inputs), _chosen(outputs, described)), files, size)


def of_module(
    kind: Kind, place: str, described: Described, files: Sequence[tuple[str, Path | bytes]], size: int, search: Path
) -> Source:
    """A torch source, whose inputs only a description can tell; `search` is where its code is looked for first."""
    if not described.says.inputs:
        raise Malformed(
            f"source {place}: {described.where}: a torch module does not say what it takes: name its [[inputs]] with "
            "name, dtype and shape"
        )
    inputs = tuple(spec(slot, described.where) for slot in described.says.inputs)
    outputs = tuple(spec(slot, described.where) for slot in described.says.outputs)
    # One output, of a width that its labels give: `load` runs the module once and refuses what differs.
    default = TensorSpec(name="output_0", dtype="float32", shape=_default_shape(described))
    return _assemble(kind, place, described, (inputs, outputs or (default,)), files, size, search)


def _assemble(
    kind: Kind,
    place: str,
    described: Described,
    tensors: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    files: Sequence[tuple[str, Path | bytes]],
    size: int,
    search: Path | None = None,
) -> Source:
    says, (inputs, outputs) = described.says, tensors
    task: Task = says.task or "tensors"
    labels = says.labels or ()
    _check_labels(task, labels, outputs[0], described)
    return Source(
        kind=kind,
        place=place,
        digest=digest_of([*files, *described.parts()]),
        size=size,
        architecture=kind,
        task=task,
        labels=labels,
        activation=_activation(task, described),
        inputs=inputs,
        outputs=outputs,
        text=_text(task, inputs, described),
        image=_image(task, inputs, described),
        audio=_audio(task, inputs, described),
        search=search,
    )


def check_labels(labels: Sequence[str], width: int, where: str) -> None:
    """Raises `Malformed` when an output `width` wide (-1 when that is not known) does not fit the labels."""
    if labels and width not in (-1, len(labels)):
        raise Malformed(f"{where}: {len(labels)} labels, and an output of {width}: name one label for each, in order")


def _check_labels(task: Task, labels: tuple[str, ...], output: TensorSpec, described: Described) -> None:
    if task in _CLASSES and len(labels) < 2:
        raise Malformed(f"{described.where}: labels: task {task} needs at least two")
    if task == "sentence-embedding" and labels:
        raise Malformed(f"{described.where}: labels: task {task} has none")
    check_labels(labels, output.shape[-1], f"{described.where}: output {output.name[:80]!r}")


def _activation(task: Task, described: Described) -> Activation:
    return described.says.activation or ("softmax" if task in _CLASSES else "none")


def _chosen(outputs: Sequence[TensorSpec], described: Described) -> tuple[TensorSpec, ...]:
    known = {output.name: output for output in outputs}
    for slot in described.says.outputs:
        if slot.name not in known:
            raise Malformed(f"{described.where}: no output {slot.name[:80]!r}; the graph has {', '.join(known)[:300]}")
        if slot.dtype not in (None, known[slot.name].dtype):
            raise Malformed(f"{described.where}: output {slot.name[:80]!r} is {known[slot.name].dtype} in the graph")
        if slot.shape is not None and not _fits((1, *slot.shape[1:]), known[slot.name].shape):
            raise Malformed(f"{described.where}: output {slot.name[:80]!r} is {known[slot.name].shape} in the graph")
    return tuple(known[slot.name] for slot in described.says.outputs) or tuple(outputs)


def _fits(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(-1 in (a, b) or a == b for a, b in zip(one, other, strict=True))


def _default_shape(described: Described) -> tuple[int, ...]:
    width = len(described.says.labels or ()) or -1
    return (1, -1, width) if described.says.task == "token-classification" else (1, width)


def _text(task: Task, inputs: tuple[TensorSpec, ...], described: Described) -> Text | None:
    says = described.says
    if task not in TEXT_TASKS:
        if says.tokenizer or says.max_length:
            raise Malformed(f"{described.where}: tokenizer, max_length: task {task} has none")
        return None
    names = tuple(i.name for i in inputs)
    if not set(names) <= set(TEXT_INPUTS) or "input_ids" not in names:
        raise Incompatible(
            f"{described.where}: task {task} feeds {', '.join(TEXT_INPUTS)}; the graph takes {', '.join(names)[:300]}"
        )
    for tensor in inputs:
        if tensor.dtype not in ("int32", "int64") or len(tensor.shape) != 2:
            raise Incompatible(f"{described.where}: input {tensor.name}: expected integers [1, tokens]")
    if says.tokenizer is None:
        raise Malformed(f"{described.where}: tokenizer: task {task} needs a tokenizer.json beside the description")
    return Text(
        tokenizer=read_bytes(described.file(says.tokenizer), "save the tokenizer as tokenizer.json"),
        max_length=_max_length(inputs, described),
        inputs=names,
    )


def _max_length(inputs: tuple[TensorSpec, ...], described: Described) -> int:
    fixed = [tensor.shape[1] for tensor in inputs if tensor.shape[1] != -1]
    wanted = described.says.max_length or min(fixed, default=0)
    if not 3 <= wanted <= min([TOKENS, *fixed]):
        raise Malformed(
            f"{described.where}: max_length: expected 3 to {min([TOKENS, *fixed])} tokens, got {wanted or 'nothing'}"
        )
    return wanted


def _image(task: Task, inputs: tuple[TensorSpec, ...], described: Described) -> Image | None:
    image = described.says.image
    if (task == "image-classification") != (image is not None):
        raise Malformed(f"{described.where}: [image]: task {task} {'has none' if image else 'needs it'}")
    if image is None:
        return None
    shape = (
        (1, image.height, image.width, image.channels)
        if image.layout == "NHWC"
        else (1, image.channels, image.height, image.width)
    )
    _check_one_input(task, inputs, shape, described, "[image]")
    if inputs[0].dtype not in ("float32", "uint8"):
        raise Incompatible(f"{described.where}: a picture is float32 or uint8; the graph takes {inputs[0].dtype}")
    return image


def _audio(task: Task, inputs: tuple[TensorSpec, ...], described: Described) -> Audio | None:
    audio = described.says.audio
    if (task == "audio-frames") != (audio is not None):
        raise Malformed(f"{described.where}: [audio]: task {task} {'has none' if audio else 'needs it'}")
    if audio is not None:
        _check_one_input(task, inputs, (1, audio.frame), described, "[audio]")
    return audio


def _check_one_input(
    task: Task, inputs: tuple[TensorSpec, ...], shape: tuple[int, ...], described: Described, section: str
) -> None:
    if len(inputs) != 1:
        raise Incompatible(f"{described.where}: task {task} has one input; the graph takes {len(inputs)}")
    if not _fits(inputs[0].shape, shape):
        raise Malformed(
            f"{described.where}: {section}: it makes {list(shape)}, input {inputs[0].name[:80]!r} takes "
            f"{list(inputs[0].shape)}"
        )
