"""Every pass by its name. A pass module imports heavy libraries in its functions only: this table costs nothing."""

from __future__ import annotations

from collections.abc import Mapping

from compiler.passes import (
    genai,
    litert,
    litert_quantize,
    onnx_export,
    onnx_quantize,
    onnx_static,
    tensorrt,
    torchscript,
)
from compiler.passes.job import Pass

PASSES: Mapping[str, Pass] = {
    "onnx.export": onnx_export.export,
    "onnx.prepare": onnx_export.prepare,
    "onnx.fp16": onnx_quantize.fp16,
    "onnx.int8-dynamic": onnx_quantize.int8_dynamic,
    "onnx.int8-static": onnx_static.int8_static,
    "onnx.int8-weights": onnx_quantize.int8_weights,
    "onnx.int4-weights": onnx_quantize.int4_weights,
    "tensorrt.ready": tensorrt.ready,
    "tensorrt.int8-static": tensorrt.int8_static,
    "litert.convert": litert.convert,
    "litert.fp16": litert_quantize.fp16,
    "litert.int8-weights": litert_quantize.int8_weights,
    "litert.int8-dynamic": litert_quantize.int8_dynamic,
    "litert.int8-static": litert_quantize.int8_static,
    "torch.trace": torchscript.trace,
    "genai.fp32": genai.fp32,
    "genai.int4": genai.int4,
    "gguf.take": genai.take,
}
