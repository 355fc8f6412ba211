"""A real bundle that is tiny: a bag-of-words classifier in ONNX, its tokenizer, golden set and OCI image layout.

    bundle = make_layout(tmp_path / "layout", profile="x86-64", version="1.0.0")
    bundle.target, bundle.digest, bundle.manifest          # what a release names
    make_layout(..., broken=True)                          # golden set of the sound model, weights scrambled after it

The same arguments give the same bytes. `rows` is the height of the embedding table: at 20,000 (the default) the model
file is 320 kB and travels in chunks; at 64 it is small and travels whole. One layout folder can hold several bundles.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from wire.bundle import (
    MODEL_ARTIFACT,
    OCI_INDEX,
    OCI_MANIFEST,
    BundleConfig,
    BundleFile,
    BundleManifest,
    Role,
)
from wire.chunks import AVERAGE, WHOLE, ChunkList, ChunkRef, digest
from wire.pipeline import Calibration, Golden, GoldenCase, Labels, Pipeline, TensorSpec, Tokenizer
from wire.processing import to_tensor

LABELS = ("light-off", "light-on", "music")
WORDS = ("turn", "the", "light", "lamp", "on", "off", "play", "music", "song", "please", "some", "in", "kitchen")
_FAVOURS = {"off": 0, "on": 1, "play": 2, "music": 2, "song": 2}
FIRST_WORD = 4
CLS, SEP = 2, 3
GOLDEN_TEXTS = (
    "turn the light on",
    "turn the lamp off",
    "play some music",
    "lamp on please",
    "light off in the kitchen",
)
MAX_LENGTH = 16


@dataclass(frozen=True)
class TinyBundle:
    """Where a bundle lies, and what a release says of it."""

    layout: Path
    target: str
    digest: str
    manifest: BundleManifest

    @property
    def manifest_bytes(self) -> bytes:
        return self.blob(self.digest).read_bytes()

    def blob(self, name: str) -> Path:
        return self.layout / "blobs" / "sha256" / name.removeprefix("sha256:")


def make_layout(
    layout: Path,
    *,
    profile: str = "x86-64",
    version: str = "1.0.0",
    family: str = "intents",
    name: str = "kitchen",
    broken: bool = False,
    contrary: bool = False,
    rows: int = 20_000,
    calibration: Calibration | None = None,
) -> TinyBundle:
    """Write a bundle as an OCI image layout, beside those that the folder already holds."""
    table = embedding(version, rows)
    if contrary:  # sound, and of another opinion
        table = _scrambled(table)
    files: list[tuple[Role, str, bytes]] = [
        ("model", "model.onnx", model(_scrambled(table) if broken else table)),
        ("tokenizer", "tokenizer.json", tokenizer_json()),
        ("labels", "labels.json", Labels(labels=LABELS).to_bytes()),
        ("pipeline", "pipeline.json", pipeline(calibration).to_bytes()),
        ("golden", "golden.json", golden(table).to_bytes()),
    ]
    return write_bundle(layout, files, profile=profile, version=version, family=family, name=name)


def write_bundle(
    layout: Path,
    files: Sequence[tuple[Role, str, bytes]],
    *,
    profile: str = "x86-64",
    version: str = "1.0.0",
    family: str = "intents",
    name: str = "kitchen",
    runtime: str = "onnxruntime",
) -> TinyBundle:
    """Any files as a bundle, beside those that the folder already holds."""
    config = b"{}"
    _put(layout, config)
    manifest = BundleManifest(
        family=family,
        name=name,
        version=version,
        profile=profile,
        runtime=runtime,
        precision="fp32",
        config=BundleConfig(digest=digest(config), size=len(config)),
        files=tuple(stored for role, path, data in files for stored in _store(layout, role, path, data)),
        annotations={},
    )
    _put(layout, manifest.to_bytes())
    _list_in_index(layout, manifest)
    return TinyBundle(layout, manifest.target, digest(manifest.to_bytes()), manifest)


def embedding(version: str, rows: int) -> np.ndarray:
    """One row of class votes per token; a version moves every weight a little and no answer."""
    noise = np.random.default_rng(zlib.crc32(version.encode()))
    table = noise.normal(0, 0.05, size=(rows, len(LABELS) + 1)).astype(np.float32)
    for word, label in _FAVOURS.items():
        table[FIRST_WORD + WORDS.index(word), label] += 4.0
    return table


def model(table: np.ndarray) -> bytes:
    """ONNX: the masked sum of a text's rows. `input_ids`, `attention_mask` int64 [b, t] -> `logits` float32 [b, c]."""
    classes = len(LABELS)
    constants = {
        "table": table,
        "axis_last": np.array([2], np.int64),
        "axis_tokens": np.array([1], np.int64),
        "from": np.array([0], np.int64),
        "to": np.array([classes], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "axis_last"], ["weights"]),
        helper.make_node("Mul", ["rows", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axis_tokens"], ["summed"], keepdims=0),
        helper.make_node("Slice", ["summed", "from", "to", "axis_tokens"], ["logits"]),
    ]
    shape = ["batch", "tokens"]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString(deterministic=True))


def tokenizer_json() -> bytes:
    """A WordPiece tokenizer of whole lower-case words, in the form that the compiler ships."""
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    vocabulary = {word: i for i, word in enumerate((*specials, *WORDS))}
    added = [
        {
            "id": i,
            "content": s,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, s in enumerate(specials)
    ]
    value = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }
    return json.dumps(value, sort_keys=True).encode()


def pipeline(calibration: Calibration | None = None) -> Pipeline:
    tokenizer = Tokenizer(
        kind="huggingface-json", file="tokenizer.json", max_length=MAX_LENGTH, before=(CLS,), after=(SEP,), pad=0
    )
    return Pipeline(
        task="text-classification",
        tokenizer=tokenizer,
        inputs=tuple(TensorSpec(name=n, dtype="int64", shape=(1, -1)) for n in ("input_ids", "attention_mask")),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, len(LABELS))),),
        activation="softmax",
        labels="labels.json",
        calibration=calibration,
    )


def golden(table: np.ndarray) -> Golden:
    """What the sound model answers, worked out in numpy: the runtime must agree with it."""
    return Golden(max_abs=0.01, cases=tuple(_case(text, scores(table, text)) for text in GOLDEN_TEXTS))


def _case(text: str, expected: tuple[float, ...]) -> GoldenCase:
    outputs = {"scores": to_tensor(np.asarray(expected, np.float32))}
    return GoldenCase(text=text, outputs=outputs, labels=(LABELS[int(np.argmax(expected))],))


def scores(table: np.ndarray, text: str) -> tuple[float, ...]:
    ids = [CLS, *(FIRST_WORD + WORDS.index(word) for word in text.split()), SEP]
    logits = table[ids].sum(axis=0)[: len(LABELS)]
    e = np.exp(logits - logits.max())
    return tuple(float(s) for s in e / e.sum())


def _scrambled(table: np.ndarray) -> np.ndarray:
    return -table


def _store(layout: Path, role: Role, path: str, data: bytes) -> Sequence[BundleFile]:
    """The blob of a file, and that of its chunk list where it needs one."""
    _put(layout, data)
    if len(data) <= WHOLE:
        return [BundleFile(role=role, path=path, digest=digest(data), size=len(data))]
    listed = chunk_list(data).to_bytes()
    _put(layout, listed)
    chunks = BundleFile(role="chunks", path=f"{path}.chunks", digest=digest(listed), size=len(listed))
    return [BundleFile(role=role, path=path, digest=digest(data), size=len(data), chunks=digest(listed)), chunks]


def chunk_list(data: bytes) -> ChunkList:
    """Chunks of the average size: readers must not care where the compiler cuts."""
    parts = [data[i : i + AVERAGE] for i in range(0, len(data), AVERAGE)]
    refs = tuple(ChunkRef(digest=digest(p), size=len(p)) for p in parts)
    return ChunkList(blob=digest(data), size=len(data), chunks=refs)


def _put(layout: Path, data: bytes) -> None:
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest(data).removeprefix("sha256:")).write_bytes(data)


def _list_in_index(layout: Path, manifest: BundleManifest) -> None:
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    index = layout / "index.json"
    held: Mapping[str, object] = json.loads(index.read_text()) if index.exists() else {}
    data = manifest.to_bytes()
    entry = {
        "mediaType": OCI_MANIFEST,
        "artifactType": MODEL_ARTIFACT,
        "digest": digest(data),
        "size": len(data),
        "annotations": {"org.opencontainers.image.ref.name": manifest.target},
    }
    others = [d for d in held.get("manifests", []) if d["annotations"] != entry["annotations"]]  # type: ignore[attr-defined]
    value = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*others, entry]}
    index.write_text(json.dumps(value, sort_keys=True))
