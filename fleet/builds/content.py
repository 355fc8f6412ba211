"""What an uploaded file is, by its bytes and not by its name: nothing that runs code when it is loaded gets in.

    check_safetensors(path, "model.safetensors")      # raises Malformed
    examples = read_examples(path, "reviews")         # format and number of rows

Nothing is unpickled, unpacked or held in memory as a whole.
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from fleet.errors import Malformed

LONGEST_TEXT: Final = 64 * 1024 * 1024
"""Bytes of a JSON or text file of a source: the largest vocabularies have a third of that."""
LONGEST_LINE: Final = 1024 * 1024
LARGEST_ARRAYS: Final = 8 * 1024**3
"""Bytes of the arrays of an .npz file once they are unpacked."""
_HEADER: Final = 100 * 1024 * 1024
_CODE: Final[Mapping[bytes, str]] = {
    b"PK\x03\x04": "a zip archive, as torch.save makes them",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x7fELF": "a program",
    b"#!": "a script",
}
_MODEL_PROTO: Final = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
"""Fields of ModelProto in onnx.proto and their wire types; 7 is the graph."""
_GRAPH: Final = 7
_NPY: Final = re.compile(rb"'descr': *'[<>|=]?[biufUS?]\d*'")
"""Numbers, truth values and texts; an array of objects ('O') is a pickle."""


@dataclass(frozen=True)
class ExamplesFile:
    """Format of a file of examples: jsonl, csv or npz. `rows` is None for arrays."""

    format: str
    rows: int | None


def refuse_code(path: Path, name: str) -> None:
    """Raises `Malformed` for what looks like something that runs code when it is loaded."""
    with path.open("rb") as file:
        head = file.read(4)
    for magic, what in _CODE.items():
        if head.startswith(magic):
            raise Malformed(
                f"file {name}: its bytes are {what}, which may run code when it is loaded: send safetensors, ONNX or "
                "TFLite"
            )


def check_json(path: Path, name: str) -> None:
    """Raises `Malformed` for what is no JSON."""
    try:
        json.loads(_text(path, name))
    except (ValueError, RecursionError) as e:
        raise Malformed(f"file {name}: not valid JSON: {e}") from e


def check_text(path: Path, name: str) -> None:
    """Raises `Malformed` for what is no text in UTF-8."""
    _text(path, name)


def check_safetensors(path: Path, name: str) -> None:
    """Raises `Malformed` unless header and length agree: 8 bytes little-endian length, JSON header, data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_HEADER, size - 8):
            # Asked only now: the length of a sound header may begin with the bytes of a pickle (640 is 80 02).
            refuse_code(path, name)
            raise Malformed(f"file {name}: not a safetensors file, or cut short: send it again")
        try:
            header = json.loads(file.read(length))
            ends = [int(entry["data_offsets"][1]) for key, entry in header.items() if key != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as e:
            raise Malformed(f"file {name}: its safetensors header is corrupt: send it again") from e
    if not ends or max(ends) != size - 8 - length:
        raise Malformed(f"file {name}: its length is not the one that its safetensors header tells: send it again")


def check_index(path: Path, name: str, sent: Collection[str]) -> None:
    """Raises `Malformed` for an index of weights that stand in no file of the source: libraries follow its paths."""
    index = json.loads(_text(path, name))
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict):
        raise Malformed(f"file {name}: weight_map is no object: save the model again")
    folder = name.rpartition("/")[0]
    for place in sorted({str(place) for place in places.values()}):
        if not place.endswith(".safetensors") or f"{folder}/{place}".lstrip("/") not in sent:
            raise Malformed(
                f"file {name}: weight_map names {place[:200]!r}, no .safetensors file that was sent with it"
            )


def check_tflite(path: Path, name: str) -> None:
    """Raises `Malformed` without the identifier that TensorFlow Lite's schema asks for."""
    with path.open("rb") as file:
        if file.read(8)[4:] != b"TFL3":
            raise Malformed(f"file {name}: not a TFLite model: its identifier is missing")


def check_onnx(path: Path, name: str) -> None:
    """Raises `Malformed` unless the fields of the outermost message are those of a ModelProto with one graph."""
    refuse_code(path, name)
    with path.open("rb") as file:
        try:
            fields = list(_fields(file, path.stat().st_size))
        except ValueError as e:
            raise Malformed(f"file {name}: not an ONNX model: {e}") from e
    if fields.count(_GRAPH) != 1:
        raise Malformed(f"file {name}: not an ONNX model: it has {fields.count(_GRAPH)} graphs")


def read_examples(path: Path, name: str) -> ExamplesFile:
    """What a file of examples is. Raises `Malformed` that names the line."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PK\x03\x04"):
        _check_arrays(path, name)
        return ExamplesFile("npz", None)
    if head.lstrip()[:1] == b"{":
        return ExamplesFile("jsonl", _count_json_lines(path, name))
    return ExamplesFile("csv", _count_csv_rows(path, name))


def _text(path: Path, name: str) -> str:
    if path.stat().st_size > LONGEST_TEXT:
        raise Malformed(f"file {name}: over {LONGEST_TEXT} bytes, which no file of this kind has")
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as e:
        raise Malformed(f"file {name}: not a text in UTF-8: {e.reason}") from e
    if "\0" in text:
        raise Malformed(f"file {name}: not a text: it holds zero bytes")
    return text


def _fields(file: BinaryIO, size: int) -> Iterator[int]:
    """Numbers of the fields of a protobuf message. Raises `ValueError` for one that a ModelProto does not have."""
    while file.tell() < size:
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if _MODEL_PROTO.get(number) != kind:
            raise ValueError(f"field {number} of type {kind} is none of a model")
        value = _varint(file)
        if kind == 2 and file.seek(value, 1) > size:
            raise ValueError("it is cut short")
        yield number


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it is cut short")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number in it is too long")


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
            if len(line) > LONGEST_LINE:
                raise Malformed(f"data set {name}:{number}: a line of over {LONGEST_LINE} bytes")
            try:
                yield number, line.decode()
            except UnicodeDecodeError as e:
                raise Malformed(f"data set {name}:{number}: not a text in UTF-8: {e.reason}") from e


def _count_json_lines(path: Path, name: str) -> int:
    count = 0
    for number, line in _lines(path, name):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise Malformed(f"data set {name}:{number}: not valid JSON: {e}") from e
        if not isinstance(value, dict):
            raise Malformed(f"data set {name}:{number}: expected a JSON object on each line")
        count += 1
    return count


def _count_csv_rows(path: Path, name: str) -> int:
    try:
        rows = csv.reader((line for _, line in _lines(path, name)), strict=True)
        header = next(rows, [])
        if "text" not in [column.strip() for column in header]:
            raise Malformed(
                f"data set {name}: neither JSON lines, nor .npz, nor CSV with a column 'text': it begins with "
                f"{','.join(header)[:80]!r}"
            )
        return sum(1 for row in rows if row)
    except csv.Error as e:
        raise Malformed(f"data set {name}: not valid CSV: {e}") from e


def _check_arrays(path: Path, name: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if not members or sum(m.file_size for m in members) > LARGEST_ARRAYS:
                raise Malformed(f"data set {name}: no arrays, or over {LARGEST_ARRAYS} bytes of them")
            for member in members:
                with archive.open(member) as file:
                    head = file.read(512)
                if not (member.filename.endswith(".npy") and head.startswith(b"\x93NUMPY") and _NPY.search(head)):
                    raise Malformed(
                        f"data set {name}: {member.filename[:80]!r} is no array of numbers or texts: save with "
                        "numpy.savez, without objects"
                    )
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as e:
        raise Malformed(f"data set {name}: not an .npz file: {e}") from e


CHECKS: Final[Mapping[str, Callable[[Path, str], None]]] = {
    ".json": check_json,
    ".txt": check_text,
    ".safetensors": check_safetensors,
    ".onnx": check_onnx,
    ".tflite": check_tflite,
    # Weights beside an .onnx file: any bytes, so only what they are not can be said.
    ".data": refuse_code,
    ".onnx_data": refuse_code,
}
