"""The layers of a graph, in groups that can stay float while the others are quantized.

A transformer has a group for each of its layers, one for what comes before and one for what comes after; any other
graph has one for each node with weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.errors import Malformed
from compiler.passes import onnx_file

MOST = 24
"""Groups of a graph without layers: nodes that follow each other share one beyond it."""
EMBEDDINGS, HEAD = "embeddings", "head"
_LAYER = re.compile(r"^(?:.*?[/.])?(?:layers?|blocks?|h)\.(\d+)(?=[/.])")
"""Exporters name a node after the module that it comes from: `/model/encoder/layer.3/output/dense/MatMul`."""
_WEIGHED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU", "RNN")


def groups(path: Path) -> list[str]:
    """Names of the groups, in the graph's order. `path` is a graph that `onnx.export` or `onnx.prepare` made."""
    return list(members(onnx_file.load(path)))


def kept(model: Any, names: Sequence[str]) -> list[str]:
    """Nodes that stay float when the groups `names` do. Raises `Malformed` for a name that is no group."""
    known = members(model)
    for name in names:
        if name not in known:
            raise Malformed(f"keep_float: no group {name!r}; this graph has {', '.join(known)}")
    return [node for name in names for node in known[name]]


def members(model: Any) -> Mapping[str, Sequence[str]]:
    """Names of the nodes of each group."""
    layers = _layers(model)
    return _by_layer(model, layers) if layers else _by_node(weighed(model))


def weighed(model: Any) -> list[Any]:
    """Nodes with a matrix of float32 weights, in the graph's order."""
    matrices = {t.name for t in model.graph.initializer if len(t.dims) > 1}
    return [node for node in model.graph.node if node.op_type in _WEIGHED and matrices & set(node.input)]


def is_transformer(model: Any) -> bool:
    """Whether two activations are multiplied as matrices: attention."""
    weights = {t.name for t in model.graph.initializer}
    return any(node.op_type == "MatMul" and not weights & set(node.input) for node in model.graph.node)


def _layers(model: Any) -> dict[str, str]:
    """For each place of a layer in the module its group: `layer.3`, or the place itself where two have that number."""
    places = [m for node in weighed(model) if (m := _LAYER.match(node.name))]
    numbers: dict[str, set[str]] = {}
    for match in places:
        numbers.setdefault(match[1], set()).add(match[0])
    clear = all(len(found) == 1 for found in numbers.values())
    return {m[0]: f"layer.{m[1]}" if clear else m[0].strip("/") for m in places}


def _by_layer(model: Any, layers: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in (EMBEDDINGS, *layers.values(), HEAD)}
    seen = False
    heavy = {node.name for node in weighed(model)}
    for node in model.graph.node:
        match = _LAYER.match(node.name)
        if match and match[0] in layers:
            found[layers[match[0]]].append(node.name)
            seen = True
        elif node.name in heavy:
            found[HEAD if seen else EMBEDDINGS].append(node.name)
    return {name: names for name, names in found.items() if names}


def _by_node(heavy: Sequence[Any]) -> dict[str, list[str]]:
    size = -(-len(heavy) // MOST)
    chunks = [heavy[i : i + size] for i in range(0, len(heavy), size)] if heavy else []
    return {chunk[0].name: [node.name for node in chunk] for chunk in chunks}
