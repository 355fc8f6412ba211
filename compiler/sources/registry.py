"""A registered model of MLflow: `models:/name@alias` or `models:/name/version`, downloaded and found in its folder.

The registry is the one that `MLFLOW_TRACKING_URI` names, with MLflow's own variables for its credentials. What comes
down is read like any other source: a Hugging Face folder (flavors `transformers`, `sentence_transformers`), an ONNX
file, TorchScript, or the one model file among the artifacts. The pickles of other flavors are never opened. The
variables leave the environment with the download: the code of a model must not run with the registry's credentials.
"""

# ruff: noqa: PLC0415  mlflow takes seconds, and is optional
from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import Incompatible, Malformed, Unavailable
from compiler.sources.files import inside, read_bytes

_REFERENCE = re.compile(r"models:/[^/@:\0]+(@[^/@:\0]+|/[0-9]+)")
_FILES = (".onnx", ".tflite", ".pt", ".pth", ".ts", ".torchscript")
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class Registered:
    """What was fetched: the folder or file that is a source, and which version it is, as `models:/name/version`."""

    source: Path
    reference: str


def download(reference: str, scratch: Path) -> Registered:
    """Fetch a registered model into `scratch`. A process does it once.

    Raises `Malformed` for a reference that names no model, `Incompatible` for a flavor that cannot be read,
    `Unavailable` when MLflow is missing, not configured, or does not answer.
    """
    if not _REFERENCE.fullmatch(reference):
        raise Malformed(f"source {reference[:200]}: expected models:/name@alias or models:/name/version")
    try:
        meant = _version(reference)
        folder = _fetch(meant, scratch)
    finally:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            del os.environ[name]
    return Registered(_source(folder, _flavors(folder, reference), reference), meant)


def _version(reference: str) -> str:
    """The version that an alias means now: it may mean another one tomorrow. Raises as `download` does."""
    name, mark, alias = reference.removeprefix("models:/").partition("@")
    if not mark:
        return reference
    with _told(reference):
        from mlflow.tracking import MlflowClient

        return f"models:/{name}/{MlflowClient().get_model_version_by_alias(name, alias).version}"


def _fetch(reference: str, scratch: Path) -> Path:
    with _told(reference):
        from mlflow.artifacts import download_artifacts

        try:
            return Path(download_artifacts(artifact_uri=reference, dst_path=str(scratch)))
        except OSError as e:
            raise Unavailable(f"source {reference}: cannot be downloaded to {scratch}: {e}") from e


@contextmanager
def _told(reference: str) -> Iterator[None]:
    """What MLflow raises, in our words."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise Unavailable(f"source {reference}: MLFLOW_TRACKING_URI is not set: name the registry there")
    # MLflow reports its use to its makers unless it is told not to before it is imported.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as e:
        raise Unavailable(f"source {reference}: reading a registry needs mlflow-skinny: install shoal[mlflow]") from e
    try:
        yield
    except MlflowException as e:
        if e.error_code in _MISSING:
            raise Malformed(f"source {reference}: the registry has no such model: {_first_line(e)}") from e
        raise Unavailable(f"source {reference}: the registry does not answer: {_first_line(e)}") from e


def _flavors(folder: Path, reference: str) -> Mapping[str, Any]:
    import yaml  # type: ignore[import-untyped]

    path = folder / "MLmodel"
    try:
        value = yaml.safe_load(read_bytes(path, "a registered model holds this file"))
    except (yaml.YAMLError, RecursionError) as e:
        raise Malformed(f"source {reference}: {path}: not valid YAML") from e
    flavors = value.get("flavors") if isinstance(value, dict) else None
    if not isinstance(flavors, dict):
        raise Malformed(f"source {reference}: {path}: names no flavors")
    return flavors


def _source(folder: Path, flavors: Mapping[str, Any], reference: str) -> Path:
    where = f"source {reference}: MLmodel"
    match flavors:
        case {"transformers": {"model_binary": str(name)}}:
            return _with_components(inside(folder, name, where), folder / "components")
        case {"sentence_transformers": {"data": str(name)}} | {"onnx": {"data": str(name)}}:
            return inside(folder, name, where)
        case {"pytorch": {"model_data": str(name)}}:
            return inside(folder, f"{name}/model.pth", where)
        case _:
            return _only_file(folder, flavors, reference)


def _with_components(model: Path, components: Path) -> Path:
    """The model's folder with its tokenizer or image processor in it, as the library saves them together."""
    for path in sorted(components.glob("*/*")):
        if path.is_file() and not (model / path.name).exists():
            shutil.copyfile(path, model / path.name)
    return model


def _only_file(folder: Path, flavors: Mapping[str, Any], reference: str) -> Path:
    found = sorted(path for path in folder.rglob("*") if path.suffix in _FILES)
    if len(found) != 1:
        raise Incompatible(
            f"source {reference}: flavors {', '.join(map(str, flavors)) or 'none'} with {len(found)} model files; "
            "register a transformers, onnx or TorchScript model, or one .onnx, .tflite or .pt file"
        )
    return found[0]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
