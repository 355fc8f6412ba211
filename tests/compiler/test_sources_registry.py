"""A registered model of MLflow becomes the source that lies in it; the registry is a local file store."""

# ruff: noqa: PLC0415  mlflow and onnx take seconds: only the tests that use them wait for them
from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from compiler.errors import Incompatible, Malformed, Unavailable
from compiler.sources.read import read

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # the file store is old, and all that a test needs


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "registry").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return tmp_path / "registry"


def register(artifacts: Path, name: str = "tiny") -> None:
    """The first version of a model, with the alias `champion`."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    client.create_registered_model(name)
    made = client.create_model_version(name, artifacts.as_uri())
    client.set_registered_model_alias(name, "champion", made.version)


def mlmodel(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "MLmodel").write_text(text)
    return folder


def save_onnx(path: Path) -> None:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 4)) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("reference", ["models:/tiny@champion", "models:/tiny/1"])
def test_a_registered_onnx_model_is_downloaded_and_read(reference: str, registry: Path, tmp_path: Path) -> None:
    folder = mlmodel(tmp_path / "model", "flavors:\n  onnx:\n    data: model.onnx\n")
    save_onnx(folder / "model.onnx")
    register(folder)
    source = read(reference, None, scratch=tmp_path / "scratch")
    assert (source.kind, source.task) == ("onnx", "tensors")
    assert Path(source.reference).is_relative_to(tmp_path / "scratch")
    assert source.registered == "models:/tiny/1"
    assert source.digest == read(str(folder / "model.onnx"), None).digest == read(source.reference, None).digest


def test_the_credentials_of_the_registry_are_gone_once_the_model_is_here(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: a registered model whose code looks for the registry's password."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    folder = mlmodel(tmp_path / "model", "flavors:\n  onnx:\n    data: model.onnx\n")
    save_onnx(folder / "model.onnx")
    register(folder)
    read("models:/tiny/1", None, scratch=tmp_path / "scratch")
    assert [name for name in os.environ if name.startswith("MLFLOW_")] == []


def test_a_transformers_flavor_is_put_together_with_its_tokenizer(
    registry: Path, encoder: Path, tmp_path: Path
) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    folder = mlmodel(tmp_path / "model", "flavors:\n  transformers:\n    model_binary: model\n")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertForSequenceClassification(BertConfig(vocab_size=300, **sizes)).save_pretrained(folder / "model")
    (folder / "components" / "tokenizer").mkdir(parents=True)
    shutil.copyfile(encoder / "tokenizer.json", folder / "components" / "tokenizer" / "tokenizer.json")
    register(folder)
    source = read("models:/tiny@champion", None)
    assert (source.kind, source.task) == ("huggingface", "text-classification")
    assert source.labels == ("LABEL_0", "LABEL_1")
    assert Path(source.place).is_dir()


BAD: dict[str, tuple[str, tuple[str, ...], type[Exception], str]] = {
    "a flavor that pickles": (
        "flavors:\n  sklearn:\n    pickled_model: model.pkl\n",
        *(("model.pkl",), Incompatible, "flavors sklearn with 0 model files"),
    ),
    "two models": ("flavors:\n  python_function: {}\n", ("a.onnx", "b.onnx"), Incompatible, "with 2 model files"),
    "a path that leaves the folder": (
        "flavors:\n  onnx:\n    data: ../../model.onnx\n",
        *((), Malformed, "leaves the folder"),
    ),
    "a pickled torch module": (
        "flavors:\n  pytorch:\n    model_data: data\n",
        *(("data/model.pth",), Malformed, "not a sound zip archive"),
    ),
    "no flavors": ("flavors: 5\n", (), Malformed, "names no flavors"),
    "a tag that makes objects": ("!!python/object/apply:os.getcwd []\n", (), Malformed, "not valid YAML"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_registered_model_that_cannot_be_read_is_told(case: str, registry: Path, tmp_path: Path) -> None:
    text, files, error, message = BAD[case]
    folder = mlmodel(tmp_path / "model", text)
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    register(folder)
    with pytest.raises(error, match=message):
        read("models:/tiny/1", None, scratch=tmp_path / "scratch")


@pytest.mark.parametrize("reference", ["models:/other/1", "models:/tiny/7", "models:/tiny@nobody"])
def test_a_model_or_alias_that_the_registry_does_not_have_is_told(
    reference: str, registry: Path, tmp_path: Path
) -> None:
    register(mlmodel(tmp_path / "model", "flavors: {}\n"))
    with pytest.raises(Malformed, match="the registry has no such model"):
        read(reference, None, scratch=tmp_path / "scratch")


@pytest.mark.parametrize("reference", ["models:/tiny", "models:/tiny/latest", "models:/a/b/1", "models:/tiny@a@b"])
def test_a_reference_that_names_no_version_is_told(reference: str) -> None:
    with pytest.raises(Malformed, match="expected models:/name@alias"):
        read(reference, None)


def test_a_registry_that_is_not_named_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(Unavailable, match="MLFLOW_TRACKING_URI is not set"):
        read("models:/tiny/1", None)


def test_a_registry_that_does_not_answer_is_told(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and nobody listens there
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(Unavailable, match="the registry does not answer"):
            read("models:/tiny/1", None)
