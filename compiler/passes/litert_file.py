"""LiteRT flatbuffers: what is in them, and by which names quantizers find it."""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_SIGNATURE = "serving_default"
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
PRODUCTS = (*_CONVOLUTIONS, "FULLY_CONNECTED", "BATCH_MATMUL")
"""Operators that carry a model's arithmetic; their second input is the weights (TRANSPOSE_CONV's too)."""
WEIGHTED = (*PRODUCTS, "EMBEDDING_LOOKUP")
"""Operators whose weights the quantizer stores in fewer bits."""
_INTEGERS = ("INT4", "INT8", "UINT8", "INT16")
# The converter names a tensor by the classes and attributes that lead to it: `Net/nn.Sequential_body/nn.Conv2d_0;2`.
_ATTRIBUTE = re.compile(r"[\w.]*\.[A-Za-z0-9]+_(\w+)")
_OURS = "module."
"""The attribute under which `litert.convert` holds the source's module."""


@dataclass(frozen=True)
class Layer:
    """An operator with weights: the path of the module that owns them, and what the quantizer calls the operator."""

    path: str
    operator: str
    scope: str

    @property
    def group(self) -> str:
        """The layers that go back to float together: one block of a repeated kind (`encoder.layer.3`), or one layer."""
        parts = self.path.split(".")
        end = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), len(parts))
        return ".".join(parts[:end])


def signature(tokens: int) -> str:
    """What the signature for a token count is called, in a file with several."""
    return f"tokens_{tokens}"


def signatures(model: Any) -> dict[str | None, int | None]:
    """Each signature with the token count of its `input_ids`; None for a graph that takes none, or without signatures.

    A file of an older converter has no signature, and its first graph is what runs.
    """
    found: dict[str | None, int | None] = {}
    for entry in model.signatureDefs or ():
        tensors = model.subgraphs[entry.subgraphIndex].tensors
        ids = [tensors[i.tensorIndex].shape[1] for i in entry.inputs if i.name == b"input_ids"]
        found[entry.signatureKey.decode()] = int(ids[0]) if ids else None
    return found or {None: None}


def read(path: Path) -> Any:
    """The flatbuffer as objects of its schema."""
    from ai_edge_litert.tools import flatbuffer_utils  # type: ignore[import-untyped]

    return flatbuffer_utils.read_model(str(path))


def layers(model: Any) -> list[Layer]:
    """Every operator with weights, in the order of the graph, one signature after the other."""
    return [
        Layer(_path(model, graph, operator), name, _scope(graph, operator))
        for graph in model.subgraphs
        for name, operator in operators(model, graph)
        if name in WEIGHTED and _weights(model, graph, operator)
    ]


def operators(model: Any, graph: Any) -> Iterator[tuple[str, Any]]:
    """Each operator of a graph with its name."""
    from ai_edge_litert.tools import flatbuffer_utils

    for operator in graph.operators or ():
        yield str(flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)), operator


def convolutional(model: Any) -> bool:
    """Whether there are convolutions: such a network takes int8 everywhere, a transformer in its products only."""
    return any(name in _CONVOLUTIONS for graph in model.subgraphs for name, _ in operators(model, graph))


def stateful(model: Any) -> bool:
    """Whether the graph remembers something from one call to the next."""
    return any(name == "VAR_HANDLE" for graph in model.subgraphs for name, _ in operators(model, graph))


def quantized(model: Any) -> bool:
    """Whether numbers are stored in fewer bits than float32 already."""
    kinds = _kinds()
    return any(
        (kinds[tensor.type] in _INTEGERS and _scaled(tensor)) or (kinds[tensor.type] == "FLOAT16")
        for graph in model.subgraphs
        for tensor in graph.tensors
    )


def kind(graph: Any, tensor: int) -> str:
    """The type of a tensor's numbers, as the schema names it."""
    return _kinds()[graph.tensors[tensor].type]


def _kinds() -> dict[int, str]:
    from ai_edge_litert.schema_py_generated import TensorType  # type: ignore[import-untyped]

    return {value: name for name, value in vars(TensorType).items() if isinstance(value, int)}


def _scaled(tensor: Any) -> bool:
    return tensor.quantization is not None and tensor.quantization.scale is not None


def _weights(model: Any, graph: Any, operator: Any) -> list[int]:
    """The operator's constant matrices."""
    constant = [i for i in operator.inputs if i >= 0 and model.buffers[graph.tensors[i].buffer].data is not None]
    return [i for i in constant if len(graph.tensors[i].shape) > 1]


def _scope(graph: Any, operator: Any) -> str:
    """As `ai_edge_quantizer` makes it: the names of what the operator gives."""
    return "".join(f"{_name(graph, i)};" for i in operator.outputs if i >= 0)


def _path(model: Any, graph: Any, operator: Any) -> str:
    """The path of the module that owns the weights.

    Weights that two signatures share have lost their name: then it is in what the operator gives, as the last of
    those that were fused. A file of another converter keeps the name of its weights.
    """
    named = [_name(graph, i) for i in (*_weights(model, graph, operator), *operator.outputs)]
    paths = [path for name in named for part in reversed(name.split(";")) if (path := _attributes(part))]
    return paths[0].removeprefix(_OURS) if paths else named[0]


def _attributes(name: str) -> str:
    """`encoder.layer.0` of a name as the converter of torch modules makes it; "" of any other."""
    found = [_ATTRIBUTE.fullmatch(part) for part in name.split("/")[1:]]
    return ".".join(match[1] for match in found if match) if all(found) else ""


def _name(graph: Any, tensor: int) -> str:
    return str(graph.tensors[tensor].name.decode())
