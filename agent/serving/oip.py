"""Open Inference Protocol v2, REST with JSON tensors and the binary tensor extension: the codec. Pure.

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
from typing import TYPE_CHECKING, Any, Final

import orjson

from agent.errors import Malformed
from agent.serving.exchange import Fields, Reply
from agent.serving.service import Answer, Served
from agent.serving.tensors import (
    arrays_at,
    pack_floats,
    raw_bytes,
    read_array,
    read_texts,
    write_array,
    write_texts,
)
from wire.pipeline import EMBEDDING, SCORES

if TYPE_CHECKING:
    from agent.serving.tensors import Place
    from wire.processing import Array, Example, Result

MOST_TEXTS: Final = 256
LONGEST_TEXT: Final = 8 * 1024
"""Bytes of one text. The tokenizer's time grows with the square of a text without spaces: 1 MiB of it took 490 s."""
LAYOUTS: Final = 32
"""Forms of requests that are remembered of a model."""
JSON_LENGTH: Final = "inference-header-content-length"
"""Header field of the binary tensor extension: bytes of the JSON that stands before the raw data."""
EXTENSIONS: Final = ("binary_tensor_data", "statistics", "model_repository")
_FORM: Final = '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["turn the light on"]}]}'
_ID: Final = b'"id":"'
"""Stands once in the JSON of an answer: within a text a quotation mark has a backslash before it."""
_UNKNOWN: Final = ("shared_memory_region", "classification", "sequence_id")
"""Parameters of extensions that this server lacks: without a word an app would take the answer for another one."""
Parts = tuple[dict[str, Any], bytes]


@dataclass(slots=True)
class Request:
    """The examples of an inference request, at least one, the caller's id for it, and the outputs it asks for.

    `binary`: those that it wants as raw bytes.
    """

    id: str | None
    examples: tuple[Example, ...]
    outputs: tuple[str, ...]
    binary: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Layout:
    """A request of arrays, read and found to fit the model once: an app in a loop sends many of the same form."""

    arrays: tuple[Place, ...]
    """Each with its place in the raw bytes of all."""
    size: int
    outputs: tuple[str, ...]
    binary: frozenset[str]

    def request(self, body: bytes, length: int) -> Request:
        """The request in a body whose JSON, `length` bytes long, is the same."""
        # In bytes of their own most of them begin where their type wants it, and need no copy each.
        return Request(None, (arrays_at(body[length:], self.arrays),), self.outputs, self.binary)


def parse_request(body: bytes, served: Served, json_length: str | None = None) -> Request:
    """`json_length` is what the header field `JSON_LENGTH` says. Raises `Malformed` with what to send instead."""
    if served.pipeline.language is not None:
        raise Malformed("a language model answers on /v1/chat/completions and /v1/completions")
    if json_length is None:
        return _of_json(parse_object(body), served)
    length = _length(json_length, len(body))
    head = body[:length]
    layout = served.layouts.get(head)
    if layout is not None and length + layout.size == len(body):
        return layout.request(body, length)
    whole = memoryview(body)
    request, raw = _parse(parse_object(whole[:length]), whole[length:], served)
    if request.id is None and None not in raw:
        _remember(head, request, served)
    return request


def _of_json(value: dict[str, Any], served: Served) -> Request:
    """Numbers in a form that was read before are packed into the raw bytes that they might have come as."""
    form = _form(value)
    layout = served.layouts.get(form) if form else None
    if layout is not None and (packed := pack_floats([t["data"] for t in value["inputs"]], layout.size)) is not None:
        return layout.request(packed, 0)
    request, _ = _parse(value, memoryview(b""), served)
    if form and all(datatype == "FP32" for _, datatype, *_ in form):
        _remember(form, request, served)
    return request


def _form(value: dict[str, Any]) -> tuple[tuple[str, str, str, int, int], ...] | None:
    """What tells two requests of JSON tensors from each other beside their numbers; None if there is more to it."""
    try:
        form = tuple([(t["name"], t["datatype"], repr(t["shape"]), len(t["data"]), len(t)) for t in value["inputs"]])
    except (KeyError, TypeError):
        return None
    return form if len(value) == 1 and all(keys == 4 for *_, keys in form) else None


def _parse(value: dict[str, Any], data: memoryview, served: Served) -> tuple[Request, Sequence[memoryview | None]]:
    """The request, and the raw bytes of each input; None where its data is JSON."""
    name = value.get("id")
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= 128):
        raise Malformed("id: expected a text of 1 to 128 characters")
    inputs = value.get("inputs")
    if not isinstance(inputs, list) or not all(isinstance(t, dict) for t in inputs):
        raise Malformed(f"inputs: expected a list of tensors, such as {_FORM}")
    raw = _raw(inputs, data)
    every = _parameters(value, "request").get("binary_data_output") is True
    outputs, binary = _outputs(value.get("outputs"), served.interface.names, every=every)
    return Request(name, _examples(inputs, raw, served), outputs, binary), raw


def _remember(form: object, request: Request, served: Served) -> None:
    """The arrays of an example stand in the order in which they came."""
    arrays = request.examples[0]
    if isinstance(arrays, str):
        return
    places, at = [], 0
    for name, values in arrays.items():
        places.append((name, at, values.dtype, values.shape))
        at += values.nbytes
    if len(served.layouts) >= LAYOUTS:
        served.layouts.clear()
    served.layouts[form] = Layout(tuple(places), at, request.outputs, request.binary)


def parse_object(body: bytes | memoryview) -> dict[str, Any]:
    """A JSON object. Raises `Malformed`."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise Malformed(f"request body: not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise Malformed("request body: expected a JSON object")
    return value


def answer_reply(answer: Answer, request: Request, request_id: str) -> Reply:
    """The reply to an inference request, with the outputs that it asks for."""
    if request.id is None and len(request.binary) == len(answer.served.interface.names) and _is_plain(answer.served):
        return _raw_reply(answer, request_id)
    wanted = request.outputs
    tensors = [part for part in _tensors(answer, request) if part[0]["name"] in wanted]
    value = {
        "model_name": answer.model,
        "model_version": answer.digest,
        "id": request_id,
        "outputs": [tensor for tensor, _ in tensors],
    }
    data = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    if not request.binary:
        return Reply(200, "application/json", data, answer.served.names)
    headers = {**answer.served.names, JSON_LENGTH: str(len(data))}
    return Reply(200, "application/octet-stream", b"".join((data, *(raw for _, raw in tensors))), headers)


def _is_plain(served: Served) -> bool:
    return served.pipeline.task == "tensors" and not served.labels


def _raw_reply(answer: Answer, request_id: str) -> Reply:
    """All outputs of a model of tensors as raw bytes; the JSON before them differs by the id alone, which is ours."""
    served = answer.served
    outputs = answer.results[0].outputs
    key = (answer.model, len(request_id), *[values.shape for values in outputs.values()])
    raw = [raw_bytes(values) for values in outputs.values()]
    known = served.heads.get(key)
    if known is None:
        tensors = [write_array(name, values[None], binary=True)[0] for name, values in outputs.items()]
        value = {"model_name": answer.model, "model_version": served.digest, "id": "", "outputs": tensors}
        before, _, after = orjson.dumps(value).partition(_ID)
        if len(served.heads) >= LAYOUTS:
            served.heads.clear()
        length = len(before) + len(_ID) + len(request_id) + len(after)
        known = served.heads[key] = (before + _ID, after, Fields({**served.names, JSON_LENGTH: str(length)}))
    before, after, headers = known
    return Reply(200, "application/octet-stream", b"".join((before, request_id.encode(), after, *raw)), headers)


def model_value(name: str, served: Served) -> dict[str, Any]:
    """The metadata of a model; -1 is a dimension of any size."""
    return {
        "name": name,
        "versions": [served.digest],
        "platform": f"shoal_{served.runtime}",
        "inputs": [tensor.to_value() for tensor in served.interface.inputs],
        "outputs": [tensor.to_value() for tensor in served.interface.outputs],
    }


# --- inputs ---------------------------------------------------------------------------------------------------


def _length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= most):
        raise Malformed(
            f"Inference-Header-Content-Length: {text[:20]!r}, expected the length of the JSON, up to {most}"
        )
    return int(text)


def _raw(inputs: Sequence[dict[str, Any]], data: memoryview) -> list[memoryview | None]:
    """The raw bytes of each input, one after the other; None where the data is JSON."""
    found: list[memoryview | None] = []
    at = 0
    for i, tensor in enumerate(inputs):
        size = _parameters(tensor, f"inputs[{i}]").get("binary_data_size") if "parameters" in tensor else None
        if size is None:
            found.append(None)
            continue
        if type(size) is not int or not 0 <= size <= len(data) - at:
            raise Malformed(f"inputs[{i}]: binary_data_size {size!r:.20}, {len(data) - at} bytes of binary data follow")
        found.append(data[at : at + size])
        at += size
    if at != len(data):
        raise Malformed(f"{len(data) - at} bytes follow the JSON that belong to no input: see binary_data_size")
    return found


def _parameters(value: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    given = value.get("parameters")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Malformed(f"{where}: parameters: expected a JSON object")
    for name in _UNKNOWN:
        if given.get(name):
            raise Malformed(f"{where}: parameter {name}: not supported here: see the extensions in /v2")
    return given


def _examples(
    inputs: Sequence[dict[str, Any]], raw: Sequence[memoryview | None], served: Served
) -> tuple[Example, ...]:
    pipeline, asked = served.pipeline, served.interface.inputs
    if pipeline.tokenizer is not None:
        if len(inputs) != 1:
            raise Malformed(f"inputs: expected one tensor, such as {_FORM}")
        return _texts(inputs[0], raw[0], 1 if pipeline.task == "token-classification" else MOST_TEXTS)
    names = [str(tensor.get("name")) for tensor in inputs]
    missing = [info.name for info in asked if info.name not in names]
    if missing or len(inputs) != len(asked):
        listed = ", ".join(f"{info.name} {info.datatype} {list(info.shape)}" for info in asked)
        raise Malformed(f"inputs: expected {listed}; {'missing: ' + ', '.join(missing) if missing else 'one each'}")
    infos = {info.name: info for info in asked}
    arrays = {name: read_array(inputs[i], infos[name], raw[i], f"inputs[{i}]") for i, name in enumerate(names)}
    if pipeline.image is not None or pipeline.audio is not None:
        arrays = {name: array[0] for name, array in arrays.items()}
    return (arrays,)


def _texts(tensor: dict[str, Any], raw: memoryview | None, most: int) -> tuple[str, ...]:
    if tensor.get("name") != "text" or tensor.get("datatype") != "BYTES":
        raise Malformed(f"inputs[0]: expected the tensor 'text' of datatype BYTES, such as {_FORM}")
    texts = read_texts(tensor, raw, "inputs[0]")
    if not 1 <= len(texts) <= most:
        raise Malformed(f"inputs[0].data: {len(texts)} texts, expected 1 to {most}")
    for i, text in enumerate(texts):
        if len(text.encode()) > LONGEST_TEXT:
            raise Malformed(f"inputs[0].data[{i}]: over {LONGEST_TEXT} bytes: send its beginning, or in parts")
    return tuple(texts)


def _outputs(asked: object, there: tuple[str, ...], *, every: bool) -> tuple[tuple[str, ...], frozenset[str]]:
    """The outputs that a request names, all of them when it names none, and those of them that it wants as raw bytes.

    `every`: all that do not say otherwise.
    """
    if asked is None or asked == []:
        return there, frozenset(there) if every else frozenset()
    if not isinstance(asked, list) or not all(isinstance(o, dict) and o.get("name") in there for o in asked):
        raise Malformed(f'outputs: expected a list such as [{{"name": "{there[0]}"}}], of {", ".join(there)}')
    binary = [o["name"] for o in asked if _parameters(o, f"output {o['name']}").get("binary_data", every) is True]
    return tuple(o["name"] for o in asked), frozenset(binary)


# --- outputs --------------------------------------------------------------------------------------------------


def _tensors(answer: Answer, request: Request) -> list[Parts]:
    """Every output of the model, with its raw bytes where they are wanted."""
    task, binary = answer.served.pipeline.task, request.binary
    if task == "sentence-embedding":
        return [_array(EMBEDDING, _stacked(answer.results, EMBEDDING), binary)]
    (first, *_), (example, *_) = answer.results, request.examples
    if task == "token-classification":
        assert isinstance(example, str)
        # The first words of the text, as many as were answered: see `Processor.words`.
        words = example.split()[: len(first.labels)]
        return [_bytes("words", words, binary), *_labelled(first.outputs[SCORES], first.labels, binary)]
    if not answer.served.labels:
        plain = task == "audio-frames"  # its first axis are the frames; elsewhere the batch axis of 1 comes back
        return [_array(name, values if plain else values[None], binary) for name, values in first.outputs.items()]
    if task == "audio-frames":
        return _labelled(first.outputs[SCORES], first.labels, binary)
    labels = [label for result in answer.results for label in result.labels]
    return _labelled(_stacked(answer.results, SCORES), labels, binary)


def _labelled(scores: Array, labels: Sequence[str], binary: frozenset[str]) -> list[Parts]:
    """Label, best score and all scores of each row `[rows, classes]`."""
    return [
        _bytes("label", labels, binary),
        _array("score", scores.max(axis=-1), binary),
        _array(SCORES, scores, binary),
    ]


def _stacked(results: Sequence[Result], name: str) -> Array:
    import numpy as np  # noqa: PLC0415  as above

    return np.stack([result.outputs[name] for result in results])


def _array(name: str, values: Array, binary: frozenset[str]) -> Parts:
    return write_array(name, values, binary=name in binary)


def _bytes(name: str, values: Sequence[str], binary: frozenset[str]) -> Parts:
    return write_texts(name, values, binary=name in binary)
