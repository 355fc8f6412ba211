"""Small TFLite files, put together from the schema: graphs that remember, and one with a signature for each length.

running_sum(tmp_path / "m.tflite")       # x float32 [1, 2] -> y, the sum of all x so far: a resource variable
recurrent(tmp_path / "m.tflite")         # x float32 [1, 1, 2] -> y, a recurrent layer: a variable tensor
for_lengths(tmp_path / "m.tflite", 2, 4)  # input_ids int32 [1, n] -> y float32 [1, n]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

FLOAT, INT, RESOURCE = schema.TensorType.FLOAT32, schema.TensorType.INT32, schema.TensorType.RESOURCE
_LAST_BYTE_CODE = 127


class _File:
    """Tables of a model that refer to each other by number."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version, self.model.subgraphs, self.model.operatorCodes = 3, [], []
        self.model.buffers = [schema.BufferT()]

    def constant(self, values: np.ndarray[Any, Any]) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def operator(
        self,
        code: int,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Any = None,
    ) -> Any:
        listed = schema.OperatorCodeT()
        listed.builtinCode, listed.deprecatedBuiltinCode, listed.version = code, min(code, _LAST_BYTE_CODE), 1
        self.model.operatorCodes.append(listed)
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = len(self.model.operatorCodes) - 1, list(inputs), list(outputs)
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            made.builtinOptionsType, made.builtinOptions = getattr(schema.BuiltinOptions, name), options
        return made

    def graph(self, tensors: Sequence[Any], operators: Sequence[Any], inputs: list[int], outputs: list[int]) -> int:
        made = schema.SubGraphT()
        made.tensors, made.operators, made.inputs, made.outputs = list(tensors), list(operators), inputs, outputs
        self.model.subgraphs.append(made)
        return len(self.model.subgraphs) - 1

    def write(self, path: Path) -> Path:
        path.write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(self.model)))
        return path


def _tensor(name: str, kind: int, shape: Sequence[int], buffer: int = 0, *, variable: bool = False) -> Any:
    made = schema.TensorT()
    made.name, made.type, made.shape, made.buffer = name.encode(), kind, list(shape), buffer
    made.isVariable = variable
    return made


def running_sum(path: Path) -> Path:
    file = _File()
    code = schema.BuiltinOperator

    def handle(out: int) -> Any:
        options = schema.VarHandleOptionsT()
        options.container, options.sharedName = b"", b"sum"
        return file.operator(code.VAR_HANDLE, [], [out], options)

    def none(name: str) -> Any:
        return getattr(schema, name)()

    once = schema.CallOnceOptionsT()
    once.initSubgraphIndex = 1
    file.graph(
        [
            _tensor("x", FLOAT, [1, 2]),
            _tensor("handle", RESOURCE, [1]),
            _tensor("old", FLOAT, [1, 2]),
            _tensor("y", FLOAT, [1, 2]),
        ],
        [
            file.operator(code.CALL_ONCE, [], [], once),
            handle(1),
            file.operator(code.READ_VARIABLE, [1], [2], none("ReadVariableOptionsT")),
            file.operator(code.ADD, [0, 2], [3], none("AddOptionsT")),
            file.operator(code.ASSIGN_VARIABLE, [1, 3], [], none("AssignVariableOptionsT")),
        ],
        inputs=[0],
        outputs=[3],
    )
    zeros = file.constant(np.zeros((1, 2), np.float32))
    file.graph(
        [_tensor("handle", RESOURCE, [1]), _tensor("zeros", FLOAT, [1, 2], zeros)],
        [handle(0), file.operator(code.ASSIGN_VARIABLE, [0, 1], [], none("AssignVariableOptionsT"))],
        inputs=[],
        outputs=[],
    )
    return file.write(path)


def recurrent(path: Path) -> Path:
    file = _File()
    units = np.eye(2, dtype=np.float32)
    options = schema.SequenceRNNOptionsT()
    options.timeMajor = False
    tensors = [
        _tensor("x", FLOAT, [1, 1, 2]),
        _tensor("weights", FLOAT, [2, 2], file.constant(units)),
        _tensor("recurrent", FLOAT, [2, 2], file.constant(units)),
        _tensor("bias", FLOAT, [2], file.constant(np.zeros(2, np.float32))),
        _tensor("state", FLOAT, [1, 2], variable=True),
        _tensor("y", FLOAT, [1, 1, 2]),
    ]
    code = schema.BuiltinOperator.UNIDIRECTIONAL_SEQUENCE_RNN
    file.graph(tensors, [file.operator(code, [0, 1, 2, 3, 4], [5], options)], inputs=[0], outputs=[5])
    return file.write(path)


def for_lengths(path: Path, *lengths: int) -> Path:
    file = _File()
    file.model.signatureDefs = []
    for n in lengths:
        options = schema.CastOptionsT()
        options.inDataType, options.outDataType = INT, FLOAT
        cast = file.operator(schema.BuiltinOperator.CAST, [0], [1], options)
        tensors = [_tensor(f"ids_{n}", INT, [1, n]), _tensor(f"out_{n}", FLOAT, [1, n])]
        signature = schema.SignatureDefT()
        signature.signatureKey = f"tokens_{n}".encode()
        signature.subgraphIndex = file.graph(tensors, [cast], inputs=[0], outputs=[1])
        signature.inputs, signature.outputs = [_named("input_ids", 0)], [_named("y", 1)]
        file.model.signatureDefs.append(signature)
    return file.write(path)


def _named(name: str, tensor: int) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name.encode(), tensor
    return made
