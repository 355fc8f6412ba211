"""Open Inference Protocol v2, REST with JSON tensors: the codec. Pure.

A text model has one input, `text` BYTES `[n]`, and three outputs: `label` BYTES `[n]`, `score` FP32 `[n]` and `scores`
FP32 `[n, classes]`. `model_version` is the manifest digest of the model that answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from agent.errors import Malformed
from agent.serving.service import Answer, Served
from wire.document import parse_json
from wire.errors import WireError

MOST_TEXTS: Final = 256
LONGEST_TEXT: Final = 8 * 1024
"""Bytes of one text. The tokenizer's time grows with the square of a text without spaces: 1 MiB of it took 490 s."""
OUTPUTS: Final = ("label", "score", "scores")
_FORM: Final = '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["turn the light on"]}]}'


@dataclass(frozen=True)
class Request:
    """The texts of an inference request, at least one, the caller's id for it, and the outputs it asks for."""

    id: str | None
    texts: tuple[str, ...]
    outputs: tuple[str, ...] = OUTPUTS


def parse_request(body: bytes) -> Request:
    """Raises `Malformed` with what to send instead."""
    value = parse_object(body)
    inputs = value.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Malformed(f"inputs: expected one tensor, such as {_FORM}")
    name = value.get("id")
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= 128):
        raise Malformed("id: expected a text of 1 to 128 characters")
    return Request(name, _texts(inputs[0]), _outputs(value.get("outputs")))


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises `Malformed`."""
    try:
        value = parse_json(body, what="request body", limit=len(body))
    except WireError as e:
        raise Malformed(str(e)) from e
    if not isinstance(value, dict):
        raise Malformed("request body: expected a JSON object")
    return value


def _texts(tensor: dict[str, Any]) -> tuple[str, ...]:
    if tensor.get("name") != "text" or tensor.get("datatype") != "BYTES":
        raise Malformed(f"inputs[0]: expected the tensor 'text' of datatype BYTES, such as {_FORM}")
    texts, shape = tensor.get("data"), tensor.get("shape")
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise Malformed("inputs[0].data: expected a flat list of texts")
    if not 1 <= len(texts) <= MOST_TEXTS:
        raise Malformed(f"inputs[0].data: {len(texts)} texts, expected 1 to {MOST_TEXTS}")
    if shape != [len(texts)] or type(shape[0]) is not int:
        raise Malformed(f"inputs[0].shape: expected [{len(texts)}], the number of texts in data")
    for i, text in enumerate(texts):
        if len(text.encode()) > LONGEST_TEXT:
            raise Malformed(f"inputs[0].data[{i}]: over {LONGEST_TEXT} bytes: send its beginning, or in parts")
    return tuple(texts)


def _outputs(asked: object) -> tuple[str, ...]:
    """The outputs that a request names; all of them when it names none."""
    if asked is None or asked == []:
        return OUTPUTS
    if not isinstance(asked, list) or not all(isinstance(o, dict) and o.get("name") in OUTPUTS for o in asked):
        raise Malformed(f'outputs: expected a list such as [{{"name": "label"}}], of {", ".join(OUTPUTS)}')
    return tuple(output["name"] for output in asked)


def answer_value(answer: Answer, request: str, outputs: tuple[str, ...] = OUTPUTS) -> dict[str, Any]:
    """The response to an inference request, with the outputs that it asks for."""
    n, classes = len(answer.predictions), len(answer.labels)
    scores = [s for p in answer.predictions for s in p.scores]
    tensors = (
        {"name": "label", "datatype": "BYTES", "shape": [n], "data": [p.label for p in answer.predictions]},
        {"name": "score", "datatype": "FP32", "shape": [n], "data": [p.score for p in answer.predictions]},
        {"name": "scores", "datatype": "FP32", "shape": [n, classes], "data": scores},
    )
    return {
        "model_name": answer.model,
        "model_version": answer.digest,
        "id": request,
        "outputs": [tensor for tensor in tensors if tensor["name"] in outputs],
    }


def model_value(name: str, served: Served) -> dict[str, Any]:
    """The metadata of a model; -1 is a dimension of any size."""
    return {
        "name": name,
        "versions": [served.digest],
        "platform": f"shoal_{served.runtime}",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "score", "datatype": "FP32", "shape": [-1]},
            {"name": "scores", "datatype": "FP32", "shape": [-1, len(served.labels)]},
        ],
    }
