"""A Hugging Face folder: what is read of it, the module that it becomes, and an error for each way to be broken."""

# ruff: noqa: PLC0415  torch takes seconds: only the tests that load a model wait for it
from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiler.errors import Incompatible, Malformed
from compiler.sources.read import read
from compiler.sources.source import Source
from wire.lineage import Dataset
from wire.pipeline import Image, TensorSpec
from wire.tune import TRAINING, Training

LABELS = ("heat", "light", "lock", "tune")
TEXT = [TensorSpec(name=n, dtype="int64", shape=(1, -1)) for n in ("input_ids", "attention_mask", "token_type_ids")]


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def edit(path: Path, **changes: object) -> None:
    write(path, json.loads(path.read_text()) | changes)


def sentence(encoder: Path, folder: Path, *kinds: str) -> Path:
    """The encoder in the sentence-transformers layout, with the given modules after Transformer."""
    shutil.copytree(encoder, folder)
    paths = {"Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "2_Normalize"}
    named = [("", "Transformer"), *((paths[kind], kind) for kind in kinds)]
    write(
        folder / "modules.json",
        [{"idx": i, "path": path, "type": f"sentence_transformers.models.{k}"} for i, (path, k) in enumerate(named)],
    )
    write(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    if "Dense" in kinds:
        head(folder)
    return folder


def head(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    write(folder / "2_Dense" / "config.json", {"activation_function": "torch.nn.modules.linear.Identity"})
    weight = np.random.default_rng(0).normal(size=(len(LABELS), 32)).astype(np.float32)
    tensors = {"linear.weight": weight, "linear.bias": np.arange(len(LABELS), dtype=np.float32)}
    save_file(tensors, folder / "2_Dense" / "model.safetensors")
    edit(folder / "config.json", id2label={str(i): label for i, label in enumerate(LABELS)})


@pytest.fixture(scope="session")
def classifier(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence(encoder, tmp_path_factory.mktemp("sentence") / "model", "Pooling", "Dense")


@pytest.fixture
def folder(classifier: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(classifier, tmp_path / "model"))


def loaded(source: Source, **changes: Any) -> Any:
    import torch

    from compiler.sources.module import load

    torch.set_num_threads(1)
    return load(source, **changes)


def answer(source: Source, rows: list[list[int]], **changes: Any) -> Any:
    """The module's output for rows of ids of one length."""
    import torch

    ids = torch.tensor(rows)
    mask = (ids != 0).long()
    with torch.no_grad():
        return loaded(source, **changes)(*(ids, mask, torch.zeros_like(ids))[: len(source.inputs)])


def test_a_pooled_encoder_with_a_dense_head_is_a_text_classifier(folder: Path) -> None:
    source = read(str(folder), None)
    assert (source.kind, source.task, source.labels, source.activation) == (
        *("huggingface", "text-classification", LABELS, "softmax"),
    )
    assert list(source.inputs) == TEXT
    assert source.outputs == (TensorSpec(name="logits", dtype="float32", shape=(1, 4)),)
    assert source.text is not None
    assert source.text.max_length == 64
    assert source.architecture == "BertModel"
    assert source.reference == str(folder)


def test_logits_are_those_of_the_library_with_mean_pooling_and_the_head(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel

    got = answer(read(str(folder), None), [[2, 7, 9, 3], [2, 8, 3, 0]])
    ids = torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]])
    mask = (ids != 0).long()
    dense = load_file(folder / "2_Dense" / "model.safetensors")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    pooled = torch.stack([hidden[0].mean(0), hidden[1, :3].mean(0)])
    assert torch.allclose(got, pooled @ dense["linear.weight"].T + dense["linear.bias"], atol=1e-5)


def test_another_pooling_changes_the_answer_and_an_unknown_one_is_refused(folder: Path) -> None:
    import torch

    source = read(str(folder), None)
    assert not torch.allclose(answer(source, [[2, 7, 3]]), answer(source, [[2, 7, 3]], pooling="cls"), atol=1e-3)
    with pytest.raises(Incompatible, match="mean and cls are supported"):
        loaded(source, pooling="max")


def test_an_encoder_without_a_head_is_a_sentence_embedding_that_is_normalized_outside(
    encoder: Path, tmp_path: Path
) -> None:
    source = read(str(sentence(encoder, tmp_path / "model", "Pooling", "Normalize")), None)
    assert (source.task, source.labels, source.activation) == ("sentence-embedding", (), "normalize")
    assert source.outputs == (TensorSpec(name="embedding", dtype="float32", shape=(1, 32)),)
    made = answer(source, [[2, 7, 3]])
    assert made.shape == (1, 32)
    assert abs(float(made.norm()) - 1) > 0.01


def test_normalization_before_a_head_is_part_of_the_graph(encoder: Path, tmp_path: Path) -> None:
    import torch

    plain = read(str(sentence(encoder, tmp_path / "plain", "Pooling", "Dense")), None)
    normal = read(str(sentence(encoder, tmp_path / "normal", "Pooling", "Normalize", "Dense")), None)
    assert normal.activation == "softmax"
    assert not torch.allclose(answer(plain, [[2, 7, 3]]), answer(normal, [[2, 7, 3]]), atol=1e-3)


TEXT_MODELS = [
    ("DistilBert", {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}, 2),
    ("Roberta", {"pad_token_id": 1, "type_vocab_size": 1, "max_position_embeddings": 66}, 2),
    ("MobileBert", {"embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16}, 3),
]


@pytest.mark.parametrize(("name", "sizes", "inputs"), TEXT_MODELS, ids=[name for name, *_ in TEXT_MODELS])
@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification"])
def test_any_architecture_with_a_head_of_its_own_is_read_and_loaded(
    name: str, sizes: dict[str, int], inputs: int, head: str, encoder: Path, tmp_path: Path
) -> None:
    import transformers

    common = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = getattr(transformers, f"{name}Config")(
        **({"vocab_size": 300, "max_position_embeddings": 64, "num_labels": 3} | common | sizes)
    )
    getattr(transformers, f"{name}For{head}")(config).save_pretrained(tmp_path / "model")
    shutil.copyfile(encoder / "tokenizer.json", tmp_path / "model" / "tokenizer.json")
    source = read(str(tmp_path / "model"), None)
    assert source.text is not None
    assert (len(source.inputs), source.text.max_length) == (inputs, 64)
    assert source.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    by_token = head == "TokenClassification"
    assert source.task == ("token-classification" if by_token else "text-classification")
    assert answer(source, [[2, 7, 9, 3]]).shape == ((1, 4, 3) if by_token else (1, 3))


def image_model(folder: Path, **processor: object) -> Path:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, num_labels=3, image_size=32)
    ConvNextForImageClassification(config).save_pretrained(folder)
    plain = {
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.25],
        "resample": 2,
    }
    write(folder / "preprocessor_config.json", plain | processor)
    return folder


def test_an_image_classifier_brings_its_pre_processing(tmp_path: Path) -> None:
    import torch

    source = read(str(image_model(tmp_path / "model")), None)
    assert source.task == "image-classification"
    assert source.image == Image(
        height=32, width=32, channels=3, layout="NCHW", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.25)
    )
    assert source.inputs == (TensorSpec(name="pixel_values", dtype="float32", shape=(1, 3, 32, 32)),)
    assert loaded(source)(torch.rand(2, 3, 32, 32)).shape == (2, 3)


PROCESSORS: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "a crop": ({"do_center_crop": True, "crop_size": 28}, Incompatible, "a crop to 28"),
    "a shortest edge": ({"size": {"shortest_edge": 32}}, Incompatible, "shortest_edge"),
    "another filter": ({"resample": 3}, Incompatible, "resample 3"),
    "turned channels": ({"do_flip_channel_order": True}, Incompatible, "do_flip_channel_order"),
    "a mean of one channel": ({"image_mean": [0.5]}, Malformed, "image.mean"),
    "a mean that is no list": ({"image_mean": "grey"}, Malformed, "image_mean: expected a list"),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_pre_processing_that_cannot_be_done_is_refused_unless_it_is_described(case: str, tmp_path: Path) -> None:
    changes, error, message = PROCESSORS[case]
    model = image_model(tmp_path / "model", **changes)
    with pytest.raises(error, match=message):
        read(str(model), None)
    described = tmp_path / "described.toml"
    described.write_text('[image]\nheight = 32\nwidth = 32\nchannels = 3\nlayout = "NCHW"\n')
    assert read(str(model), described).image == Image(height=32, width=32, channels=3, layout="NCHW")


def test_the_digest_follows_every_file_and_the_description_and_no_hidden_file(folder: Path, tmp_path: Path) -> None:
    old = read(str(folder), None).digest
    (folder / ".cache").mkdir()
    (folder / ".cache" / "note").write_text("downloaded today")
    assert read(str(folder), None).digest == old
    described = tmp_path / "described.toml"
    described.write_text('labels = ["a", "b", "c", "d"]\nmax_length = 32\n')
    source = read(str(folder), described)
    assert source.digest != old
    assert source.text is not None
    assert (source.labels, source.text.max_length) == (("a", "b", "c", "d"), 32)
    described.write_text('# a comment decides nothing\nlabels = ["a", "b", "c", "d"]\nmax_length = 32\n')
    assert read(str(folder), described).digest == source.digest
    edit(folder / "config.json", layer_norm_eps=1e-6)
    assert read(str(folder), None).digest != old


def test_a_tuned_source_names_the_data_it_learned_from_and_a_damaged_record_is_told(folder: Path) -> None:
    assert read(str(folder), None).trained == ()
    rows = Dataset(name="rows.csv", digest="sha256:" + "1" * 64, use="train", rows=9, licence="CC0-1.0")
    training = Training(method="head", parameters={}, encoder="sha256:" + "2" * 64, datasets=(rows,), tools={})
    (folder / TRAINING).write_bytes(training.to_bytes())
    assert read(str(folder), None).trained == (rows,)
    (folder / TRAINING).write_text("{")
    with pytest.raises(Malformed, match=r"training\.json.*tune it again"):
        read(str(folder), None)


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def garble_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"x" * 100)


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_architectures(folder: Path) -> None:
    (folder / "modules.json").unlink()
    edit(folder / "config.json", architectures=5)


def strange_offsets(folder: Path) -> None:
    header = b'{"a": {"data_offsets": [0, "x"]}, "b": {"data_offsets": [0, 1]}}'
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"x")


def index(place: object) -> Callable[[Path], None]:
    """Weights in several files, one of which is `place`."""
    return lambda f: write(f / "model.safetensors.index.json", {"weight_map": {"a": "model.safetensors", "b": place}})


def linked_shard(folder: Path) -> None:
    (folder / "part.safetensors").symlink_to(shutil.copy(folder / "model.safetensors", folder.parent))
    index("part.safetensors")(folder)


def regression(folder: Path) -> None:
    (folder / "modules.json").unlink()
    edit(folder / "config.json", architectures=["BertForSequenceClassification"], problem_type="regression")


BAD: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "weights cut short": (cut_weights, Malformed, "its header asks for"),
    "weights that are no safetensors": (garble_weights, Malformed, "not a safetensors file"),
    "pickled weights": (pickle_weights, Malformed, "never read"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), Malformed, "no model.safetensors"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), Malformed, "tokenizer.json: missing"),
    "no config": (lambda f: (f / "config.json").unlink(), Malformed, "config.json: missing"),
    "config that is no JSON": (lambda f: (f / "config.json").write_text("{"), Malformed, "not valid JSON"),
    "one label": (lambda f: edit(f / "config.json", id2label={"0": "a"}), Malformed, "at least two labels"),
    "config that is too deep": (lambda f: (f / "config.json").write_text("[" * 10**5), Malformed, "not valid JSON"),
    "architectures that are no list": (no_architectures, Incompatible, "tune a classifier"),
    "offsets that are no numbers": (strange_offsets, Malformed, "header is corrupt"),
    "a label twice": (lambda f: edit(f / "config.json", id2label={"0": "a", "1": "a"}), Malformed, "a label twice"),
    "labels from 1": (lambda f: edit(f / "config.json", id2label={"1": "a", "2": "b"}), Malformed, "counts from 0"),
    "no head": (lambda f: (f / "modules.json").unlink(), Incompatible, "unsupported architecture"),
    "a regression": (regression, Incompatible, "regression"),
    "no weights of the head": (lambda f: (f / "2_Dense" / "model.safetensors").unlink(), Malformed, "2_Dense"),
    "an index with weights of another folder": (index("../other/model.safetensors"), Malformed, "leaves the folder"),
    "an index with weights anywhere": (index("/srv/model.safetensors"), Malformed, "leaves the folder"),
    "an index with a link that leaves": (linked_shard, Malformed, "leaves the folder"),
    "an index with pickled weights": (index("pytorch_model.bin"), Malformed, "no .safetensors file"),
    "an index of no files": (index(5), Malformed, "no .safetensors file"),
    "an index that maps nothing": (
        lambda f: write(f / "model.safetensors.index.json", {"weight_map": []}),
        *(Malformed, "weight_map is no object"),
    ),
    "weights that the config names": (
        lambda f: edit(f / "config.json", transformers_weights="../other.safetensors"),
        *(Malformed, "transformers_weights"),
    ),
    "an adapter": (lambda f: write(f / "adapter_config.json", {}), Malformed, "merge the adapter first"),
    "another activation": (
        lambda f: edit(f / "2_Dense" / "config.json", activation_function="Tanh"),
        *(Incompatible, "Tanh"),
    ),
    "another pooling": (
        lambda f: edit(f / "1_Pooling" / "config.json", pooling_mode_max_tokens=True),
        *(Incompatible, "pooling_mode_max_tokens"),
    ),
    "a module outside": (
        lambda f: (f / "modules.json").write_text('[{"type": "Pooling", "path": "../../x"}]'),
        *(Malformed, "leaves the folder"),
    ),
    "other modules": (
        lambda f: (f / "modules.json").write_text('[{"type": "CLIPModel", "path": ""}]'),
        *(Incompatible, "modules CLIPModel; expected Transformer"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_told_with_its_path_and_what_to_do(case: str, folder: Path) -> None:
    breaking, error, message = BAD[case]
    breaking(folder)
    with pytest.raises(error, match=message) as caught:
        read(str(folder), None)
    assert str(folder) in str(caught.value)


def change_weight(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    made = change(weights.pop(name))
    save_file(weights | ({name: made} if made is not None else {}), folder / "model.safetensors", {"format": "pt"})


WEIGHTS: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "NaN": (
        lambda f: change_weight(f, "encoder.layer.0.output.dense.weight", lambda w: w * float("nan")),
        *(Malformed, "encoder.layer.0.output.dense.weight holds NaN"),
    ),
    "missing": (
        lambda f: change_weight(f, "encoder.layer.1.output.dense.weight", lambda _: None),
        *(Malformed, r"encoder.layer.1.output.dense.weight \(1 such\) is missing"),
    ),
    "of another shape": (
        lambda f: change_weight(f, "embeddings.word_embeddings.weight", lambda w: w[:10]),
        *(Malformed, "embeddings.word_embeddings.weight"),
    ),
    "a head for other labels": (
        lambda f: edit(f / "config.json", id2label={"0": "a", "1": "b"}),
        *(Malformed, r"expected linear.weight \[2, width\]"),
    ),
    "an unknown model type": (
        lambda f: edit(f / "config.json", model_type="neverheardof"),
        *(Incompatible, "unsupported architecture.*'neverheardof', known are .*distilbert"),
    ),
    "no head in the weights": (
        lambda f: ((f / "modules.json").unlink(), edit(f / "config.json", architectures=["XForTokenClassification"])),
        *(Malformed, "classifier.bias"),
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_make_a_model_are_told(case: str, folder: Path) -> None:
    breaking, error, message = WEIGHTS[case]
    breaking(folder)
    with pytest.raises(error, match=message) as caught:
        loaded(read(str(folder), None))
    assert str(folder) in str(caught.value)


DESCRIPTIONS = {
    "another task": ('task = "tensors"', "task: the folder says it itself"),
    "too few labels": ('labels = ["a", "b"]', "2 labels, and an output of 4"),
    "too long": ("max_length = 65", "the model takes up to 64"),
    "a picture": ('[image]\nheight = 8\nwidth = 8\nchannels = 3\nlayout = "NCHW"', "text-classification has none"),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_a_description_cannot_say_other_than_the_folder(case: str, folder: Path, tmp_path: Path) -> None:
    text, message = DESCRIPTIONS[case]
    described = tmp_path / "described.toml"
    described.write_text(text)
    with pytest.raises(Malformed, match=message):
        read(str(folder), described)


def test_a_link_out_of_the_folder_is_refused_where_sources_must_be_safe(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a key")
    (folder / "vocab.txt").symlink_to(tmp_path / "secret")
    assert read(str(folder), None).labels == LABELS
    with pytest.raises(Malformed, match="a link that leaves the folder"):
        read(str(folder), None, safe=True)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.bin"])
def test_a_source_that_is_not_there_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="no such folder"):
        read(str(tmp_path / name), None)


def test_a_file_of_an_unknown_kind_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"x")
    with pytest.raises(Incompatible, match="not a kind of model"):
        read(str(tmp_path / "model.h5"), None)
