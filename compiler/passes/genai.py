"""Passes that make language models: a folder of onnxruntime-genai by its own builder, and a GGUF file as it is.

What the builder writes is several files; a pass makes one, so they are an archive (`pack`, `unpack`): tar, plain, its
entries sorted and without times or owners.
"""

# ruff: noqa: PLC0415  torch and the builder are imported where they are used
from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from compiler.errors import Incompatible, Unavailable
from compiler.passes.job import PassJob
from compiler.sources.read import read
from compiler.sources.source import Source

MODEL, WEIGHTS, CONFIG = "model.onnx", "model.onnx.data", "genai_config.json"
TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BLOCK: Final = 32
"""Weights that share a scale in int4."""
_NEWER: Final = ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
"""Classes of transformers 5 that the builder of onnxruntime-genai 0.18 imports by name, for models of that age."""


def fp32(job: PassJob) -> None:
    """A causal model as it is. Raises `Incompatible` for an architecture that the builder does not know."""
    _build(job, "fp32", {})


def int4(job: PassJob) -> None:
    """Its matrices in int4, in blocks with a scale each, its products in int8; the rest stays float32."""
    _build(job, "int4", {"int4_accuracy_level": "4", "int4_block_size": str(BLOCK)})


def take(job: PassJob) -> None:
    """A GGUF file as it came."""
    shutil.copyfile(job.source, job.output)


def unpack(archive: Path, folder: Path) -> None:
    """The files of an archive that `pack` made, into a folder that is there."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


def pack(folder: Path, archive: Path, names: tuple[str, ...]) -> None:
    """Those files of a folder that are there, as one file."""
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder / name for name in names):
            if path.is_file():
                entry = tarfile.TarInfo(path.name)
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(entry, file)


def _build(job: PassJob, precision: str, options: dict[str, str]) -> None:
    source = read(job.source, Path(job.describe) if job.describe else None)
    with tempfile.TemporaryDirectory(dir=job.output.parent) as scratch:
        made, cache = Path(scratch, "made"), Path(scratch, "cache")
        _run_builder(source, made, cache, precision, options)
        _settle(made / CONFIG, source)
        pack(made, job.output, (MODEL, WEIGHTS, CONFIG, *TOKENIZER))


def _run_builder(source: Source, made: Path, cache: Path, precision: str, options: dict[str, str]) -> None:
    builder = _builder()
    given = [f"{name}={value}" for name, value in options.items()]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            parsed = builder.parse_extra_options("", source.place, str(made), precision, "cpu", str(cache), given)
            config = parsed["hf_details"]["hf_config"]
            if getattr(config, "rope_scaling", None) is None:
                config.rope_scaling = {"rope_type": "default"}  # what None means to transformers 4
            builder.create_model("", source.place, str(made), precision, "cpu", str(cache), **parsed)
    except (NotImplementedError, KeyError, ValueError, AttributeError, TypeError, AssertionError) as e:
        raise Incompatible(
            f"source {source.place}: onnxruntime-genai does not build {source.architecture}: {str(e)[:300]}"
        ) from e


def _builder() -> Any:
    """The builder's module, which wants its own folder on the path. Only for a process of its own."""
    import torch
    import transformers

    torch.set_num_threads(1)
    found = find_spec("onnxruntime_genai")
    if found is None or not found.submodule_search_locations:
        raise Unavailable("package onnxruntime-genai is not installed here: install shoal with its extra 'compiler'")
    for name in _NEWER:
        if not hasattr(transformers, name):
            setattr(transformers, name, type(name, (), {}))
    sys.path.insert(0, str(Path(found.submodule_search_locations[0], "models")))
    import builder  # type: ignore[import-not-found]

    return builder


def _settle(path: Path, source: Source) -> None:
    """The configuration as a device needs it: with our context, and nothing of the machine that built it."""
    assert source.language is not None
    config = json.loads(path.read_text())
    config["model"]["context_length"] = source.language.context
    config["search"]["max_length"] = source.language.context
    path.write_text(json.dumps(config, sort_keys=True, indent=1))
