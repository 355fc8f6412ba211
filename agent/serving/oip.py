"""Open Inference Protocol v2, REST with JSON tensors: the codec. Pure.

What a model is asked and what it answers, by task (`n` texts, `w` words, `f` frames, `c` classes):

    text-classification    text BYTES [n]                       label BYTES [n], score FP32 [n], scores FP32 [n, c]
    token-classification   text BYTES [1]                       words BYTES [w], label [w], score [w], scores [w, c]
    sentence-embedding     text BYTES [n]                       embedding FP32 [n, width]
    image-classification   image UINT8 [1, height, width, channels]            label [1], score [1], scores [1, c]
    audio-frames           audio FP32 [1, samples]              label [f], score [f], scores [f, c], or the graph's own
    tensors                the graph's inputs                   the graph's outputs

`model_version` is the manifest digest of the model that answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from agent.errors import Malformed
from agent.serving.service import Answer, Served
from wire.document import parse_json
from wire.errors import WireError
from wire.pipeline import AUDIO, EMBEDDING, IMAGE, SCORES, DataType, Pipeline

if TYPE_CHECKING:
    from wire.processing import Array, Example, Result

MOST_TEXTS: Final = 256
LONGEST_TEXT: Final = 8 * 1024
"""Bytes of one text. The tokenizer's time grows with the square of a text without spaces: 1 MiB of it took 490 s."""
DATATYPES: Final[Mapping[DataType, str]] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
_FORM: Final = '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["turn the light on"]}]}'


@dataclass(frozen=True)
class Request:
    """The examples of an inference request, at least one, the caller's id for it, and the outputs it asks for."""

    id: str | None
    examples: tuple[Example, ...]
    outputs: tuple[str, ...]


def parse_request(body: bytes, served: Served) -> Request:
    """Raises `Malformed` with what to send instead."""
    value = parse_object(body)
    name = value.get("id")
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= 128):
        raise Malformed("id: expected a text of 1 to 128 characters")
    inputs = value.get("inputs")
    if not isinstance(inputs, list) or not all(isinstance(t, dict) for t in inputs):
        raise Malformed(f"inputs: expected a list of tensors, such as {_FORM}")
    return Request(name, _examples(inputs, served.pipeline), _outputs(value.get("outputs"), output_names(served)))


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises `Malformed`."""
    try:
        value = parse_json(body, what="request body", limit=len(body))
    except WireError as e:
        raise Malformed(str(e)) from e
    if not isinstance(value, dict):
        raise Malformed("request body: expected a JSON object")
    return value


def output_names(served: Served) -> tuple[str, ...]:
    """What a model answers, by name."""
    return tuple(name for name, _, _ in _answered(served.pipeline, served.labels))


def answer_value(answer: Answer, request: Request, request_id: str) -> dict[str, Any]:
    """The response to an inference request, with the outputs that it asks for."""
    tensors = _tensors(answer, request)
    return {
        "model_name": answer.model,
        "model_version": answer.digest,
        "id": request_id,
        "outputs": [tensor for tensor in tensors if tensor["name"] in request.outputs],
    }


def model_value(name: str, served: Served) -> dict[str, Any]:
    """The metadata of a model; -1 is a dimension of any size."""
    pipeline = served.pipeline
    outputs = [{"name": n, "datatype": kind, "shape": shape} for n, kind, shape in _answered(pipeline, served.labels)]
    inputs = [{"name": n, "datatype": kind, "shape": shape} for n, kind, shape in _asked(pipeline)]
    return {
        "name": name,
        "versions": [served.digest],
        "platform": f"shoal_{served.runtime}",
        "inputs": inputs,
        "outputs": outputs,
    }


# --- inputs ---------------------------------------------------------------------------------------------------


def _asked(pipeline: Pipeline) -> list[tuple[str, str, list[int]]]:
    """Name, datatype and shape of each input of a model."""
    if pipeline.tokenizer is not None:
        return [("text", "BYTES", [1 if pipeline.task == "token-classification" else -1])]
    if pipeline.image is not None:
        return [(IMAGE, "UINT8", [1, -1, -1, pipeline.image.channels])]
    if pipeline.audio is not None:
        return [(AUDIO, "FP32", [1, -1])]
    # The first axis is the batch: one at a time, see `Model.answer`.
    return [(t.name, DATATYPES[t.dtype], [1, *t.shape[1:]]) for t in pipeline.inputs]


def _examples(inputs: Sequence[dict[str, Any]], pipeline: Pipeline) -> tuple[Example, ...]:
    if pipeline.tokenizer is not None:
        if len(inputs) != 1:
            raise Malformed(f"inputs: expected one tensor, such as {_FORM}")
        return _texts(inputs[0], 1 if pipeline.task == "token-classification" else MOST_TEXTS)
    asked = _asked(pipeline)
    given = {str(t.get("name")): (i, t) for i, t in enumerate(inputs)}
    missing = [name for name, _, _ in asked if name not in given]
    if missing or len(inputs) != len(asked):
        listed = ", ".join(f"{name} {kind} {shape}" for name, kind, shape in asked)
        raise Malformed(f"inputs: expected {listed}; {'missing: ' + ', '.join(missing) if missing else 'one each'}")
    arrays = {name: _array(given[name][1], kind, shape, f"inputs[{given[name][0]}]") for name, kind, shape in asked}
    batched = pipeline.image is not None or pipeline.audio is not None
    return ({name: array[0] if batched else array for name, array in arrays.items()},)


def _array(tensor: dict[str, Any], kind: str, wanted: list[int], where: str) -> Array:
    """A JSON tensor, flat or nested, as an array. Raises `Malformed`."""
    import numpy as np  # noqa: PLC0415  it came with the model, not with the agent

    shape = tensor.get("shape")
    if tensor.get("datatype") != kind:
        raise Malformed(
            f"{where}: tensor {tensor['name']} has datatype {tensor.get('datatype')!r:.40}, expected {kind}"
        )
    if not isinstance(shape, list) or not _fits(shape, wanted):
        raise Malformed(f"{where}: shape {str(shape)[:80]}, expected {wanted}, -1 for any size")
    dtype = next(name for name, datatype in DATATYPES.items() if datatype == kind)
    try:
        given = np.asarray(tensor.get("data"))
        if given.dtype.kind not in ("b" if dtype == "bool" else "iu" if "int" in dtype else "iuf"):
            raise Malformed(f"{where}.data: expected numbers of datatype {kind}")
        if not _in_range(given, dtype):
            raise Malformed(f"{where}.data: a number is out of the range of {kind}")
        return given.astype(dtype).reshape(shape)
    except (ValueError, TypeError, OverflowError) as e:
        raise Malformed(f"{where}.data: does not fit the shape {shape}: {str(e)[:120]}") from e


def _in_range(values: Array, dtype: str) -> bool:
    import numpy as np  # noqa: PLC0415  as above

    if dtype == "bool" or not values.size:
        return True
    bounds = np.iinfo(dtype) if "int" in dtype else np.finfo(dtype)
    return bool(bounds.min <= values.min() and values.max() <= bounds.max)


def _fits(shape: list[Any], wanted: list[int]) -> bool:
    return len(shape) == len(wanted) and all(
        type(n) is int and n > 0 and want in (-1, n) for n, want in zip(shape, wanted, strict=True)
    )


def _texts(tensor: dict[str, Any], most: int) -> tuple[str, ...]:
    if tensor.get("name") != "text" or tensor.get("datatype") != "BYTES":
        raise Malformed(f"inputs[0]: expected the tensor 'text' of datatype BYTES, such as {_FORM}")
    texts, shape = tensor.get("data"), tensor.get("shape")
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise Malformed("inputs[0].data: expected a flat list of texts")
    if not 1 <= len(texts) <= most:
        raise Malformed(f"inputs[0].data: {len(texts)} texts, expected 1 to {most}")
    if shape != [len(texts)] or type(shape[0]) is not int:
        raise Malformed(f"inputs[0].shape: expected [{len(texts)}], the number of texts in data")
    for i, text in enumerate(texts):
        if len(text.encode()) > LONGEST_TEXT:
            raise Malformed(f"inputs[0].data[{i}]: over {LONGEST_TEXT} bytes: send its beginning, or in parts")
    return tuple(texts)


def _outputs(asked: object, there: tuple[str, ...]) -> tuple[str, ...]:
    """The outputs that a request names; all of them when it names none."""
    if asked is None or asked == []:
        return there
    if not isinstance(asked, list) or not all(isinstance(o, dict) and o.get("name") in there for o in asked):
        raise Malformed(f'outputs: expected a list such as [{{"name": "{there[0]}"}}], of {", ".join(there)}')
    return tuple(output["name"] for output in asked)


# --- outputs --------------------------------------------------------------------------------------------------


def _answered(pipeline: Pipeline, labels: Sequence[str]) -> list[tuple[str, str, list[int]]]:
    """Name, datatype and shape of each output of a model."""
    first = pipeline.outputs[0]
    if pipeline.task == "sentence-embedding":
        return [(EMBEDDING, "FP32", [-1, first.shape[-1]])]
    if labels:
        kind = DATATYPES[first.dtype] if pipeline.activation == "none" else "FP32"
        labelled = [("label", "BYTES", [-1]), ("score", kind, [-1]), (SCORES, kind, [-1, len(labels)])]
        return [("words", "BYTES", [-1]), *labelled] if pipeline.task == "token-classification" else labelled
    rows = -1 if pipeline.task == "audio-frames" else 1
    given = (first,) if pipeline.task == "audio-frames" else pipeline.outputs
    return [(t.name, DATATYPES[t.dtype], [rows, *t.shape[1:]]) for t in given]


def _tensors(answer: Answer, request: Request) -> list[dict[str, Any]]:
    """Every output of the model."""
    task = answer.served.pipeline.task
    if task == "sentence-embedding":
        return [_stacked(EMBEDDING, [r.outputs[EMBEDDING] for r in answer.results])]
    (first, *_), (example, *_) = answer.results, request.examples
    if task == "token-classification":
        assert isinstance(example, str)
        # The first words of the text, as many as were answered: see `Processor.words`.
        words = example.split()[: len(first.labels)]
        return [_bytes("words", words), *_labelled(first.outputs[SCORES], first.labels)]
    if not answer.served.labels:
        plain = task == "audio-frames"  # its first axis are the frames; elsewhere the batch axis of 1 comes back
        return [_tensor(name, values if plain else values[None]) for name, values in first.outputs.items()]
    if task == "audio-frames":
        return _labelled(first.outputs[SCORES], first.labels)
    return _labelled(_rows(answer.results), [label for r in answer.results for label in r.labels])


def _rows(results: Sequence[Result]) -> Array:
    import numpy as np  # noqa: PLC0415  as above

    return np.stack([r.outputs[SCORES] for r in results])


def _labelled(scores: Array, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Label, best score and all scores of each row `[rows, classes]`."""
    return [_bytes("label", labels), _tensor("score", scores.max(axis=-1)), _tensor(SCORES, scores)]


def _stacked(name: str, rows: Sequence[Array]) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415  as above

    return _tensor(name, np.stack(rows))


def _bytes(name: str, values: Sequence[str]) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": list(values)}


def _tensor(name: str, values: Array) -> dict[str, Any]:
    kind = DATATYPES[cast(DataType, str(values.dtype))]
    return {"name": name, "datatype": kind, "shape": list(values.shape), "data": values.reshape(-1).tolist()}
