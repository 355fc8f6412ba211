"""A Hugging Face folder, checked before anything heavy is imported: safetensors only, and no code of it runs.

Language models (`*ForCausalLM`) are left to `compiler.sources.language`. Of others two layouts are read:
sentence-transformers (`modules.json`: encoder, pooling, optional normalisation, and a dense head for text
classification, as `tune` writes it), and a plain folder whose own class has the head (`*ForSequenceClassification`,
`*ForTokenClassification`, `*ForImageClassification`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from compiler.errors import Incompatible, Malformed
from compiler.sources.assemble import TOKENS, check_labels
from compiler.sources.describe import Activation, Described
from compiler.sources.files import check_safetensors, check_size, digest_of, inside, parse_json, read_bytes, read_json
from compiler.sources.language import CAUSAL, read_causal
from compiler.sources.preprocessor import image_of
from compiler.sources.source import HuggingFace, Source, Text
from wire.errors import WireError
from wire.lineage import Dataset
from wire.pipeline import Image, Task, TensorSpec
from wire.tune import TRAINING, Training

_HEADS: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
}
_ENCODER = ["Transformer", "Pooling"]
_LAYOUTS = (_ENCODER, [*_ENCODER, "Normalize"], [*_ENCODER, "Dense"], [*_ENCODER, "Normalize", "Dense"])
_KEYS = ("labels", "activation", "max_length", "image")
_OFFSET = ("camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "xlm-roberta", "xmod")
"""Model types whose positions count from `pad_token_id + 1`: so many fewer tokens fit."""


def read(folder: Path, described: Described) -> Source:
    """Check and describe a folder. Raises `Malformed` for a bad file, `Incompatible` for another kind of model."""
    check_folder(folder)
    config = read_json(folder / "config.json")
    if any(name.endswith(CAUSAL) for name in architectures(config)):
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        return read_causal(folder, described, config, _files(folder), weights)
    described.refuse(_KEYS, "the folder says it itself")
    task, loading = _task(folder, config)
    activation = _activation(task, folder, config)
    if loading.normalize and task == "sentence-embedding":
        # What stands last is no part of the graph: `wire.processing` does it, for every variant alike.
        loading, activation = replace(loading, normalize=False), "normalize"
    labels = _labels(_table(config, loading), folder, described) if task != "sentence-embedding" else ()
    text = _text(folder, config, described) if task != "image-classification" else None
    image = described.says.image or image_of(folder, config) if text is None else None
    _check_section(task, described)
    return Source(
        kind="huggingface",
        place=str(folder),
        digest=digest_of([*_files(folder), *described.parts()]),
        size=sum(path.stat().st_size for path in _weights(folder, loading)),
        architecture=next(iter(architectures(config)), str(config.get("model_type", "unknown"))),
        task=task,
        labels=labels,
        activation=described.says.activation or activation,
        inputs=_inputs(text, image),
        outputs=(_output(task, len(labels), config),),
        text=text,
        image=image,
        huggingface=loading,
        trained=_trained(folder / TRAINING),
    )


def check_folder(folder: Path) -> None:
    """Raises `Malformed` unless the folder holds sound safetensors, and names no weights outside of it."""
    if not folder.is_dir():
        raise Malformed(
            f"source {folder}: no such folder; give the folder that holds config.json and model.safetensors"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        hint = "its pickled weights are never read; save it again with safe_serialization=True" if pickled else "add it"
        raise Malformed(f"source {folder}: no model.safetensors: {hint}")
    check_size(folder, sum(path.stat().st_size for path in weights))
    for path in weights:
        check_safetensors(path)
    _check_named(folder)


def check_links(folder: Path) -> None:
    """Raises `Malformed` when a link leads out of a folder that somebody else filled."""
    for path in folder.rglob("*"):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise Malformed(f"source {path}: a link that leaves the folder: send the file itself")


def architectures(config: Mapping[str, Any]) -> list[str]:
    """The model classes that `config.json` names."""
    listed = config.get("architectures")
    return [str(name) for name in listed] if isinstance(listed, list) else []


def read_tokenizer(folder: Path) -> bytes:
    """`tokenizer.json`. Raises `Malformed`."""
    return read_bytes(folder / "tokenizer.json", "save the model with a fast tokenizer")


def _check_named(folder: Path) -> None:
    """Every other way in which the library is told where weights are: it would follow a path out of the folder."""
    if (folder / "adapter_config.json").exists():
        raise Malformed(
            f"source {folder}/adapter_config.json: an adapter names the model that it changes: merge the adapter "
            "first, and save the whole model"
        )
    if "transformers_weights" in read_json(folder / "config.json"):
        raise Malformed(f"source {folder}/config.json: transformers_weights: call the file model.safetensors instead")
    for path in sorted(folder.rglob("*.safetensors.index.json")):
        _check_index(path)


def _check_index(path: Path) -> None:
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict):
        raise Malformed(f"source {path}: weight_map is no object: save the model again")
    for name in sorted({str(place) for place in places.values()}):
        if not name.endswith(".safetensors"):
            raise Malformed(f"source {path}: weight_map names {name[:200]!r}, which is no .safetensors file")
        inside(path.parent, name, f"source {path}: weight_map")


def _trained(path: Path) -> tuple[Dataset, ...]:
    """The data sets that a tuned source learned from; none where it does not say. Raises `Malformed`."""
    if not path.is_file():
        return ()
    try:
        return Training.from_bytes(read_bytes(path, "tune it again")).datasets
    except WireError as e:
        raise Malformed(f"source {path}: {e}: tune it again, or remove the file") from e


def _task(folder: Path, config: Mapping[str, Any]) -> tuple[Task, HuggingFace]:
    if (folder / "modules.json").is_file():
        return _sentence(folder, config)
    for name in architectures(config):
        for ending, task in _HEADS.items():
            if name.endswith(ending):
                return task, HuggingFace(config)
    raise Incompatible(
        f"source {folder}: unsupported architecture: neither modules.json nor one of *{', *'.join(_HEADS)} "
        f"(it says {config.get('architectures')}): tune a classifier on it first"
    )


def _sentence(folder: Path, config: Mapping[str, Any]) -> tuple[Task, HuggingFace]:
    kinds, pooling, dense = [], None, None
    for module in _modules(folder):
        kind, path = str(module.get("type", "")).rsplit(".", 1)[-1], folder / str(module.get("path", ""))
        if not path.resolve().is_relative_to(folder.resolve()):
            raise Malformed(f"source {folder}/modules.json: path {module.get('path')!r} leaves the folder")
        kinds.append(kind)
        pooling = _pooling(path) if kind == "Pooling" else pooling
        dense = path if kind == "Dense" else dense
    if kinds not in _LAYOUTS:
        raise Incompatible(
            f"source {folder}/modules.json: modules {', '.join(kinds) or 'none'}; expected Transformer, Pooling, "
            "optionally Normalize, and for a classification a Dense head with one output per label: tune a classifier "
            "on it first"
        )
    if dense is not None:
        _check_dense(dense)
    task: Task = "text-classification" if dense else "sentence-embedding"
    return task, HuggingFace(config, pooling, "Normalize" in kinds, dense)


def _check_dense(dense: Path) -> None:
    activation = str(read_json(dense / "config.json").get("activation_function", ""))
    if not activation.endswith("Identity"):
        raise Incompatible(
            f"source {dense}/config.json: activation {activation!r}, expected torch.nn.modules.linear.Identity"
        )
    weights = dense / "model.safetensors"
    if not weights.is_file():
        raise Malformed(f"source {weights}: missing")
    check_safetensors(weights)


def _modules(folder: Path) -> list[dict[str, Any]]:
    modules = parse_json(folder / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise Malformed(f"source {folder}/modules.json: expected a list of objects")
    return modules


def _pooling(path: Path) -> Literal["mean", "cls"]:
    config = read_json(path / "config.json")
    on = sorted(k for k, v in config.items() if k.startswith("pooling_mode_") and v is True)
    if on == ["pooling_mode_mean_tokens"]:
        return "mean"
    if on == ["pooling_mode_cls_token"]:
        return "cls"
    raise Incompatible(f"source {path}/config.json: pooling {', '.join(on) or 'none'}; mean and cls are supported")


def _activation(task: Task, folder: Path, config: Mapping[str, Any]) -> Activation:
    problem = config.get("problem_type")
    if task == "sentence-embedding":
        return "none"
    if problem == "regression":
        raise Incompatible(f"source {folder}/config.json: problem_type 'regression'; classifications are supported")
    return "sigmoid" if problem == "multi_label_classification" else "softmax"


def _table(config: Mapping[str, Any], loading: HuggingFace) -> object:
    # The library leaves out what it means without saying; to a head of ours it has nothing to say.
    default = {"0": "LABEL_0", "1": "LABEL_1"} if loading.dense is None else None
    return config.get("id2label", default)


def _labels(table: object, folder: Path, described: Described) -> tuple[str, ...]:
    if not isinstance(table, dict) or len(table) < 2:
        raise Malformed(f"source {folder}/config.json: id2label needs at least two labels")
    try:
        labels = tuple(str(table[str(i)]) for i in range(len(table)))
    except KeyError as e:
        raise Malformed(f"source {folder}/config.json: id2label has no entry {e}; it counts from 0") from e
    if len(set(labels)) != len(labels):
        raise Malformed(f"source {folder}/config.json: id2label names a label twice")
    if described.says.labels is not None:
        check_labels(described.says.labels, len(labels), described.where)
        return described.says.labels
    return labels


def _text(folder: Path, config: Mapping[str, Any], described: Described) -> Text:
    # The one fact that decides it in every architecture: whether there is an embedding for more than one type.
    types = config.get("type_vocab_size")
    typed = isinstance(types, int) and types > 1
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if typed else ()))
    longest, wanted = _max_length(folder, config), described.says.max_length
    if wanted is not None and wanted > longest:
        raise Malformed(f"{described.where}: max_length: {wanted}; the model takes up to {longest} tokens")
    return Text(tokenizer=read_tokenizer(folder), max_length=wanted or longest, inputs=names)


def _max_length(folder: Path, config: Mapping[str, Any]) -> int:
    """The smallest of what the files say, in tokens with the frame."""
    limits: list[Any] = [_positions(config), TOKENS]
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if (folder / name).is_file():
            limits.append(read_json(folder / name).get(key))
    return int(min(n for n in limits if isinstance(n, (int, float)) and math.isfinite(n) and n > 2))


def _positions(config: Mapping[str, Any]) -> Any:
    positions, pad = config.get("max_position_embeddings"), config.get("pad_token_id")
    if config.get("model_type") in _OFFSET and isinstance(positions, int):
        return positions - 1 - (pad if isinstance(pad, int) else 1)
    return positions


def _check_section(task: Task, described: Described) -> None:
    says = described.says
    if says.image is not None and task != "image-classification":
        raise Malformed(f"{described.where}: [image]: task {task} has none")
    if says.image is not None and says.image.layout != "NCHW":
        raise Malformed(f"{described.where}: [image]: layout: a Hugging Face model takes NCHW")
    if says.labels is not None and task == "sentence-embedding":
        raise Malformed(f"{described.where}: labels: task {task} has none")
    if says.max_length is not None and task == "image-classification":
        raise Malformed(f"{described.where}: max_length: task {task} has none")


def _inputs(text: Text | None, image: Image | None) -> tuple[TensorSpec, ...]:
    if text is not None:
        return tuple(TensorSpec(name=name, dtype="int64", shape=(1, -1)) for name in text.inputs)
    assert image is not None
    return (TensorSpec(name="pixel_values", dtype="float32", shape=(1, image.channels, image.height, image.width)),)


def _output(task: Task, classes: int, config: Mapping[str, Any]) -> TensorSpec:
    if task == "sentence-embedding":
        width = config.get("hidden_size", config.get("dim"))
        return TensorSpec(name="embedding", dtype="float32", shape=(1, width if isinstance(width, int) else -1))
    shape = (1, -1, classes) if task == "token-classification" else (1, classes)
    return TensorSpec(name="logits", dtype="float32", shape=shape)


def _weights(folder: Path, loading: HuggingFace) -> list[Path]:
    dense = [loading.dense / "model.safetensors"] if loading.dense else []
    return [*folder.glob("*.safetensors"), *dense]


def _files(folder: Path) -> list[tuple[str, Path | bytes]]:
    """Every file by name, without hidden ones: what a download tool notes there is no part of the model."""
    found = [(path.relative_to(folder), path) for path in folder.rglob("*") if path.is_file()]
    return sorted((name.as_posix(), path) for name, path in found if not any(p.startswith(".") for p in name.parts))
