"""Language models as sources: a Hugging Face folder of a causal model, and a GGUF file of llama.cpp.

A GGUF file is read as far as its metadata: no tensor of it is looked at here. Its format: the GGUF specification of the
ggml project, version 3.
"""

# ruff: noqa: PLC0415  numpy comes with the reader of GGUF: sources of other kinds do not wait for it
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from compiler.errors import Incompatible, Malformed
from compiler.sources.describe import Described
from compiler.sources.files import digest_of, file_size, read_bytes, read_json
from compiler.sources.source import HuggingFace, Source
from wire.errors import WireError
from wire.pipeline import Language

CONTEXT: Final = 2048
"""Tokens of prompt and answer where nothing else is said: the cache of more takes memory that small devices lack."""
CAUSAL: Final = "ForCausalLM"
_KEYS: Final = ("max_length",)


def read_gguf(path: Path, described: Described) -> Source:
    """Check and describe a GGUF file. Raises `Malformed` for a broken one, `Incompatible` for no language model."""
    described.refuse(_KEYS, "the file says it itself")
    size = file_size(path)
    says = _metadata(path)
    architecture = str(says.get("general.architecture", ""))
    longest = says.get(f"{architecture}.context_length")
    if not isinstance(longest, int) or "tokenizer.ggml.tokens" not in says:
        raise Incompatible(f"source {path}: no language model: it names neither a context length nor a tokenizer")
    return Source(
        kind="gguf",
        place=str(path),
        digest=digest_of([("model.gguf", path), *described.parts()]),
        size=size,
        architecture=architecture,
        language=_language(path, longest, says.get("tokenizer.chat_template"), described),
        **_TEXT,
    )


def bits(path: Path) -> int:
    """Bits of a weight, scales among them, in the form that most weights of a GGUF file have."""
    weights: Counter[float] = Counter()
    for tensor in _reader(path).tensors:
        weights[8 * int(tensor.n_bytes) / int(tensor.n_elements)] += int(tensor.n_elements)
    return round(weights.most_common(1)[0][0]) if weights else 32


def read_causal(
    folder: Path, described: Described, config: Mapping[str, Any], files: list[tuple[str, Path | bytes]], size: int
) -> Source:
    """Describe a Hugging Face folder of a causal model, its files checked. Raises `Malformed` or `Incompatible`."""
    described.refuse(_KEYS, "the folder says it itself")
    longest = config.get("max_position_embeddings")
    if not isinstance(longest, int):
        raise Incompatible(f"source {folder}/config.json: no max_position_embeddings: how long may a text be?")
    read_bytes(folder / "tokenizer.json", "save the model with a fast tokenizer")
    return Source(
        kind="huggingface",
        place=str(folder),
        digest=digest_of([*files, *described.parts()]),
        size=size,
        architecture=str(config["architectures"][0]),
        huggingface=HuggingFace(config),
        language=_language(folder, longest, _template(folder), described),
        **_TEXT,
    )


_TEXT: Final[dict[str, Any]] = {
    "task": "text-generation",
    "labels": (),
    "activation": "none",
    "inputs": (),
    "outputs": (),
}


def _template(folder: Path) -> object:
    """The chat template: a file of its own, or in the tokenizer's configuration."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_bytes(path, "").decode("utf-8", errors="replace")
    configured = folder / "tokenizer_config.json"
    found = read_json(configured).get("chat_template") if configured.is_file() else None
    if isinstance(found, list):  # several by name
        found = next((t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default"), None)
    return found


def _language(path: Path, longest: int, template: object, described: Described) -> Language:
    wanted = described.says.max_length
    if wanted is not None and wanted > longest:
        raise Malformed(f"{described.where}: max_length: {wanted}; the model takes up to {longest} tokens")
    try:
        return Language(
            context=wanted or min(longest, CONTEXT),
            chat_template=template if isinstance(template, str) and template else None,
        )
    except WireError as e:
        raise Malformed(f"source {path}: {e}") from e


def _metadata(path: Path) -> dict[str, Any]:
    fields = _reader(path).fields
    names = [n for n in fields if n.startswith("general.") or n.endswith((".context_length", ".chat_template"))]
    found = {name: fields[name].contents() for name in names}
    return {**found, **{name: True for name in fields if name not in found}}


def _reader(path: Path) -> Any:
    import gguf

    try:
        return gguf.GGUFReader(path)
    except Exception as e:  # the library raises whatever numpy and struct do
        raise Malformed(f"source {path}: not a GGUF file, or cut short: {str(e)[:200]}") from e
