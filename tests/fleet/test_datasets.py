"""Data sets and sources: registered once and for good, and nothing that runs code when it is loaded."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet_process import ApiError, FleetProcess

from fleet.builds.content import check_safetensors
from wire.chunks import digest

ROWS = b'{"text": "turn on", "label": "on"}\n{"text": "turn off", "label": "off"}\n'


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    with FleetProcess(tmp_path_factory.mktemp("datasets") / "fleet", max_source="1 MiB") as running:
        yield running


def put(fleet: FleetProcess, data: bytes) -> str:
    fleet.api("PUT", f"/api/v1/blobs/{digest(data)}", data)
    return digest(data)


def register(fleet: FleetProcess, data: bytes, name: str, **changes: Any) -> Any:
    body = {"digest": put(fleet, data), "name": name, "licence": "CC-BY-4.0", "use": "test", **changes}
    return fleet.api("POST", "/api/v1/datasets", body)


def arrays(**values: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **values)
    return file.getvalue()


def test_a_data_set_is_registered_once_and_for_good(fleet: FleetProcess) -> None:
    first = register(fleet, ROWS, "lights")
    assert (first["rows"], first["format"], first["who"]) == (2, "jsonl", "token:first")
    assert register(fleet, ROWS, "lights") == first
    for reference in ("lights", digest(ROWS)):
        assert fleet.api("GET", f"/api/v1/datasets/{reference}") == first
    for name, changes in (("other", {}), ("lights", {"use": "train"}), ("lights", {"licence": "MIT"})):
        with pytest.raises(ApiError, match="for good") as refused:
            register(fleet, ROWS, name, **changes)
        assert refused.value.status == 409
    with pytest.raises(ApiError, match="another file has this name"):
        register(fleet, ROWS + ROWS, "lights")


@pytest.mark.parametrize(
    ("data", "kind", "rows"),
    [
        (b'text,label\n"a, b",on\nc,off\n', "csv", 2),
        (arrays(x=np.zeros((2, 3), np.float32), y=np.array(["a", "b"])), "npz", None),
    ],
)
def test_tables_and_arrays_are_known_by_their_bytes(
    fleet: FleetProcess, data: bytes, kind: str, rows: int | None
) -> None:
    made = register(fleet, data, f"as-{kind}")
    assert (made["format"], made["rows"]) == (kind, rows)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps({"text": "x"}), "data set bad:1"),
        (arrays(x=np.array([{"a": 1}], dtype=object)), "no array of numbers or texts"),
        (b'{"text": "a"}\n{"text": \n', "data set bad:2: not valid JSON"),
        (b'{"text": "a"}\n[1]\n', "data set bad:2: expected a JSON object"),
        (b"sentence,label\na,b\n", "column 'text'"),
        (b'{"text": "\xff"}', "UTF-8"),
        (b"PK\x03\x04 cut short", "not an .npz file"),
    ],
)
def test_what_is_no_file_of_examples_is_refused(fleet: FleetProcess, data: bytes, message: str) -> None:
    """Attack: a pickle, alone or as objects in an array; accident: a broken file."""
    with pytest.raises(ApiError, match=message) as refused:
        register(fleet, data, "bad")
    assert refused.value.status == 400


@pytest.mark.parametrize("licence", ["", "free to use!", "x" * 300])
def test_a_licence_is_an_spdx_expression(fleet: FleetProcess, licence: str) -> None:
    with pytest.raises(ApiError, match="SPDX"):
        register(fleet, ROWS + b"\n", "unlicensed", licence=licence)


# --- sources ------------------------------------------------------------------------------------------------------


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def field(number: int, value: bytes) -> bytes:
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


ONNX = b"\x08\x08" + field(7, b"graph") + field(8, b"\x10\x11")
FOLDER = {"config.json": b"{}", "model.safetensors": safetensors(), "1_Pooling/config.json": b"{}"}
INDEX = "model.safetensors.index.json"
PICKLE = pickle.dumps([1])


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", PICKLE)
    return file.getvalue()


def add(fleet: FleetProcess, files: dict[str, bytes]) -> Any:
    named = {path: put(fleet, data) for path, data in files.items()}
    return fleet.api("POST", "/api/v1/sources", {"name": "tiny", "files": named})


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (FOLDER, "huggingface"),
        ({**FOLDER, INDEX: b'{"weight_map": {"w": "model.safetensors"}}'}, "huggingface"),
        ({"model.onnx": ONNX, "model.onnx.data": b"\x01" * 100}, "onnx"),
        ({"model.tflite": b"\x1c\0\0\0TFL3"}, "tflite"),
        ({"model.onnx": ONNX, "tokenizer.json": b"{}"}, "onnx"),
    ],
)
def test_a_source_is_its_files(fleet: FleetProcess, files: dict[str, bytes], kind: str) -> None:
    made = add(fleet, files)
    assert (made["kind"], {f["path"] for f in made["files"]}) == (kind, set(files))
    assert add(fleet, files) == made
    assert made in fleet.api("GET", "/api/v1/sources")


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_weights_whose_header_is_as_long_as_a_pickle_begins_are_weights(length: int, tmp_path: Path) -> None:
    path, short = tmp_path / "model.safetensors", safetensors()
    path.write_bytes(length.to_bytes(8, "little") + short[8:-8].ljust(length) + short[-8:])
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    check_safetensors(path, path.name)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({**FOLDER, "pytorch_model.bin": PICKLE}, "pickled weights and code are never read"),
        ({**FOLDER, "modeling.py": b"import os"}, "pickled weights and code are never read"),
        ({**FOLDER, "model.safetensors": PICKLE}, "a pickle"),
        ({**FOLDER, "model.safetensors": zipped()}, "a zip archive"),
        ({**FOLDER, "model.safetensors": safetensors()[:-1]}, "its length is not the one"),
        ({**FOLDER, "config.json": b"{"}, "not valid JSON"),
        ({**FOLDER, "vocab.txt": b"a\0b"}, "zero bytes"),
        ({**FOLDER, "adapter_config.json": b'{"base_model_name_or_path": "/srv/model"}'}, "merge it first"),
        ({**FOLDER, INDEX: b'{"weight_map": {"w": "../../other/model.safetensors"}}'}, "weight_map names '../../other"),
        ({**FOLDER, INDEX: b'{"weight_map": {"w": "not-sent.safetensors"}}'}, "weight_map names 'not-sent"),
        ({**FOLDER, INDEX: b'{"weight_map": {"w": "config.json"}}'}, "weight_map names 'config.json'"),
        ({**FOLDER, INDEX: b"[]"}, "weight_map is no object"),
        ({"model.onnx": zipped()}, "a zip archive"),
        ({"model.onnx": ONNX[:-1]}, "cut short"),
        ({"model.onnx": b"\x08\x08"}, "0 graphs"),
        ({"model.onnx": ONNX, "weights.data": PICKLE}, "a pickle"),
        ({"model.onnx": ONNX, "other.onnx": ONNX}, "2 models"),
        ({"model.onnx": ONNX, "config.json": b"{}"}, "has no place"),
        ({"model.onnx": ONNX, "tokenizer.json": b"{"}, "not valid JSON"),
        ({"model.tflite": ONNX}, "not a TFLite model"),
        ({"model.tflite": b"\x1c\0\0\0TFL3", "run.sh": b"#!/bin/sh"}, "has no place"),
        ({"config.json": b"{}"}, "expected a folder with"),
        ({**FOLDER, "../config.json": b"{}"}, "path '../config.json'"),
        ({**FOLDER, "/etc/config.json": b"{}"}, "path '/etc/config.json'"),
        ({**FOLDER, "a/b/c/d.json": b"{}"}, "path 'a/b/c/d.json'"),
        ({**FOLDER, ".hidden.json": b"{}"}, "path '.hidden.json'"),
        ({**FOLDER, "vocab.txt": b"x" * (1 << 20)}, "max_source"),
    ],
)
def test_a_source_that_runs_code_leaves_its_folder_or_is_broken_is_refused(
    fleet: FleetProcess, files: dict[str, bytes], message: str
) -> None:
    """Attack: what runs code when it is loaded, under any name, and paths out of the folder."""
    with pytest.raises(ApiError, match=message) as refused:
        add(fleet, files)
    assert refused.value.status in (400, 413)


def test_a_file_that_was_not_uploaded_is_asked_for(fleet: FleetProcess) -> None:
    missing = "sha256:" + 64 * "0"
    with pytest.raises(ApiError, match="upload it with PUT") as refused:
        fleet.api("POST", "/api/v1/sources", {"name": "tiny", "files": {"model.onnx": missing}})
    assert refused.value.status == 404
