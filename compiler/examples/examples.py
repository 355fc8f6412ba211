"""Files of examples, labelled or not: the held-out test set of a build, what calibration observes, what `tune` learns.

    examples = read(Path("test.jsonl"), source)
    check(examples, source)             # a test set: are these the labels that the source can give?
    examples.rows[0].example, examples.rows[0].label, examples.digest

| task | file |
| --- | --- |
| text-classification | JSONL `{"text", "label"}`, or CSV with the columns text and label |
| token-classification | JSONL `{"words": [...], "labels": [...]}`, a label for each word |
| text-generation | as sentence-embedding, a text of two words or more: its last word is what is asked for |
| sentence-embedding | JSONL `{"text"}` or CSV with the column text; labels are ignored |
| image-classification | .npz: `x` uint8 [n, height, width, channels], `y` [n] |
| audio-frames | .npz: `x` float32 [n, samples], `y` [n] or [n, frames] |
| tensors | .npz: an array [n, ...] for each input of the graph, by its name, and `y` [n] |

Labels may be left out, then of every row; `y` holds strings, or integers that count the source's labels from 0. Files
are data: nothing in them is run or unpickled, and their sizes are checked before memory is taken for them.
"""

# ruff: noqa: PLC0415  numpy is imported where arrays are read: a file of texts does not need it
from __future__ import annotations

import csv
import hashlib
import io
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.errors import Malformed
from compiler.examples.arrays import LARGEST_FILE, read_arrays
from compiler.sources.source import Source
from wire.document import parse_json
from wire.errors import Malformed as MalformedJson
from wire.pipeline import AUDIO, IMAGE, TEXT_TASKS, Task, TensorSpec

if TYPE_CHECKING:
    from wire.processing import Array, Example

TEXTS = 128 * 1024 * 1024
"""Largest file of texts in bytes."""
LINE = 64 * 1024
"""Largest row of a file of texts in bytes."""
ROWS = 200_000
"""Most rows of a file."""

Label = str | tuple[str, ...] | None
"""One label, or one for each word or frame; None where the file has none."""


@dataclass(frozen=True)
class Row:
    """One example as `wire.processing` takes it, and its label."""

    example: Example
    label: Label = None


@dataclass(frozen=True)
class Examples:
    """The rows of a file, in its order, the digest of its bytes, and its name without the folder."""

    rows: tuple[Row, ...]
    digest: str
    name: str

    def spread(self, n: int) -> tuple[Row, ...]:
        """At most `n` rows, taken from every label in turn; see `spread`."""
        return tuple(self.rows[i] for i in spread([row.label for row in self.rows], n))


def read(path: Path, source: Source) -> Examples:
    """Raises `Malformed` for a file that is not what the source's task needs, with its line or row."""
    texts = source.task in (*TEXT_TASKS, "text-generation")
    with _open(path, TEXTS if texts else LARGEST_FILE) as file:
        digest = _digest(file)
        if texts:
            rows = _texts(file.read(), path, source.task)
        elif path.suffix.lower() != ".npz":
            raise Malformed(f"examples {path}: the task {source.task} reads an .npz file of arrays")
        else:
            rows = _array_rows(read_arrays(file, path, most_rows=ROWS), source, path)
    return Examples(rows=rows, digest=digest, name=path.name)


def read_texts(path: Path) -> Examples:
    """Texts with a label each, for whoever has no source yet. Raises `Malformed` as `read` does."""
    with _open(path, TEXTS) as file:
        digest = _digest(file)
        return Examples(rows=_texts(file.read(), path, "text-classification"), digest=digest, name=path.name)


def check(examples: Examples, source: Source) -> None:
    """Raises `Malformed` when a test set asks for a label that the source cannot give, or for one label only."""
    asked = {label for row in examples.rows for label in _each(row.label)}
    if not asked:
        return
    strangers = sorted(asked - set(source.labels))
    if strangers:
        raise Malformed(
            f"examples {examples.name}: label {strangers[0]!r} ({len(strangers)} such) is not one of the source's "
            f"{len(source.labels)} labels ({', '.join(source.labels[:5])}...): use the source's own words for them"
        )
    if len(asked) < 2:
        raise Malformed(
            f"examples {examples.name}: every row has the label {asked.pop()!r}: a model that always gives it would be "
            "perfect here; add rows of the other labels"
        )


def normal(text: str) -> str:
    """What two texts have in common that are the same to a reader: Unicode NFKC, no case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shared(examples: Examples, others: Examples) -> list[int]:
    """Places of the rows that are among the others: the same text to a reader, or arrays; labels are not compared."""
    known = {_content(row) for row in others.rows}
    return [i for i, row in enumerate(examples.rows) if _content(row) in known]


def _content(row: Row) -> str | bytes:
    if isinstance(row.example, str):
        return normal(row.example)
    whole = hashlib.sha256()
    for name, values in sorted(row.example.items()):
        whole.update(f"{name} {values.dtype} {values.shape}\n".encode() + values.tobytes())
    return whole.digest()


def spread(labels: Sequence[Label], n: int) -> list[int]:
    """Places of at most `n` rows: every label in turn, evenly among more labels than `n`, evenly where there is one.

    Rows with several labels count as of one kind when the same labels stand in them.
    """
    kinds: dict[tuple[str, ...], list[int]] = {}
    for i, label in enumerate(labels):
        kinds.setdefault(tuple(sorted(set(_each(label)))), []).append(i)
    if len(kinds) == 1:
        return _evenly(range(len(labels)), n)
    groups = [kinds[kind] for kind in _evenly(sorted(kinds), n)]
    turns = (group[i] for i in range(max(map(len, groups))) for group in groups if i < len(group))
    return [place for place, _ in zip(turns, range(n), strict=False)]


def _evenly(items: Sequence[Any], n: int) -> list[Any]:
    """At most `n` of them, at equal distances."""
    return [items[i * len(items) // n] for i in range(n)] if len(items) > n else list(items)


def _each(label: Label) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else label or ()


# --- the file ---------------------------------------------------------------------------------------------------------


def _open(path: Path, limit: int) -> BufferedReader:
    try:
        file = path.open("rb")
    except OSError as e:
        raise Malformed(f"examples {path}: cannot be read: {e.strerror}") from e
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_size <= limit:
        return file
    file.close()
    if not stat.S_ISREG(found.st_mode):
        raise Malformed(f"examples {path}: not a file")
    raise Malformed(
        f"examples {path}: {found.st_size} bytes, the limit is {limit}: fewer rows will do, a test set needs thousands"
    )


def _digest(file: BufferedReader) -> str:
    """The digest of its bytes; the file stands at its beginning again."""
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return f"sha256:{found}"


# --- texts ------------------------------------------------------------------------------------------------------------

_FORMS = {
    "text-classification": '{"text": string, "label": string}',
    "token-classification": '{"words": [string, ...], "labels": [string, ...]}, as many labels as words',
    "sentence-embedding": '{"text": string}',
    "text-generation": '{"text": string} of two words or more',
}


def _texts(data: bytes, path: Path, task: Task) -> tuple[Row, ...]:
    lines = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
    rows: list[Row] = []
    for where, row in lines(data.removeprefix(b"\xef\xbb\xbf"), path, task):
        if rows and (row.label is None) != (rows[0].label is None):
            raise Malformed(f"{where}: {'no label' if row.label is None else 'a label'}, unlike the rows before it")
        if len(rows) == ROWS:
            raise Malformed(f"{where}: more than {ROWS} rows: a test set needs thousands")
        rows.append(row)
    if not rows:
        raise Malformed(f"examples {path}: it has no rows; write one {_FORMS[task]} per line")
    return tuple(rows)


def _json_rows(data: bytes, path: Path, task: Task) -> Iterator[tuple[str, Row]]:
    for n, line in enumerate(data.splitlines(), 1):
        where = f"{path}:{n}"
        if not line.strip():
            continue
        _decoded(line, path, n)
        try:
            value = parse_json(line, what=where, limit=LINE)
        except MalformedJson as e:
            raise Malformed(str(e)) from e
        row = _row(value, task)
        if row is None:
            raise Malformed(f"{where}: expected {_FORMS[task]}, got {line[:80].decode(errors='replace')}")
        yield where, row


def _row(value: object, task: Task) -> Row | None:
    """The row in a JSON value, None when it has another form."""
    match task, value:
        case "text-classification", {"text": str(text), "label": str(label)} if label:
            return Row(text, label)
        # Without a label nothing else may stand there: a misspelt "label" must not make a test set without labels.
        case "text-classification", {"text": str(text), **rest} if not rest:
            return Row(text)
        case (("sentence-embedding" | "text-generation"), {"text": str(text)}):
            return Row(text) if task == "sentence-embedding" or len(text.split()) > 1 else None
        case "token-classification", {"words": [*words], "labels": [*labels]} if len(words) == len(labels) > 0:
            good = _are_words(words) and all(isinstance(label, str) and label for label in labels)
            return Row(" ".join(words), tuple(labels)) if good else None
        case "token-classification", {"words": [*words], **rest} if not rest and words and _are_words(words):
            return Row(" ".join(words))
    return None


def _are_words(values: Sequence[object]) -> bool:
    """Texts that stay apart when they are joined by spaces: what the model is given is split again."""
    return all(isinstance(v, str) and v.split() == [v] for v in values)


def _csv_rows(data: bytes, path: Path, task: Task) -> Iterator[tuple[str, Row]]:
    if task == "token-classification":
        raise Malformed(f"examples {path}: words with a label each are read from JSONL, {_FORMS[task]} per line")
    reader = csv.reader(io.StringIO(_decoded(data, path, 1), newline=""), strict=True)
    try:
        header = next(reader, [])
        columns = _columns(header, path, task)
        start = reader.line_num + 1
        for fields in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if not fields:
                continue
            if len(fields) != len(header):
                raise Malformed(
                    f"{where}: {len(fields)} columns, the header has {len(header)}: quote texts with commas"
                )
            if sum(map(len, fields)) > LINE:
                raise Malformed(f"{where}: a row over {LINE} characters")
            row = Row(*(fields[i] for i in columns))
            if row.label == "":
                raise Malformed(f"{where}: the label is empty")
            yield where, row
    except csv.Error as e:
        raise Malformed(f"{path}:{reader.line_num}: not CSV: {e}") from e


def _columns(header: Sequence[str], path: Path, task: Task) -> tuple[int, ...]:
    """Where text and label stand; text alone where labels are not read, or not there."""
    names = [name.strip() for name in header]
    unlabelled = task in ("sentence-embedding", "text-generation")
    wanted = ("text",) if unlabelled or names == ["text"] else ("text", "label")
    if any(names.count(name) != 1 for name in wanted):
        raise Malformed(
            f"{path}:1: the columns are {', '.join(names)[:200] or 'none'}; expected {' and '.join(wanted)}"
        )
    return tuple(names.index(name) for name in wanted)


def _decoded(data: bytes, path: Path, line: int) -> str:
    """The text of bytes that begin in that line of the file."""
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        line += data.count(b"\n", 0, e.start)
        raise Malformed(f"{path}:{line}: not UTF-8 text: save the file as UTF-8") from e


# --- arrays -----------------------------------------------------------------------------------------------------------


def _array_rows(arrays: Mapping[str, Array], source: Source, path: Path) -> tuple[Row, ...]:
    inputs = [spec.name for spec in source.inputs] if source.task == "tensors" else ["x"]
    allowed = {*inputs, "y"}
    if not set(inputs) <= set(arrays) <= allowed:
        raise Malformed(
            f"examples {path}: it holds the arrays {', '.join(sorted(arrays)) or 'none'}; expected "
            f"{', '.join(inputs)}{'' if 'y' in inputs else ', and y for labels'}"
        )
    counts = {name: len(values) for name, values in arrays.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} has {n} rows" for name, n in counts.items())
        raise Malformed(f"examples {path}: {told}: expected as many of each")
    for spec in _specs(source):
        _check_input(arrays[spec.name], spec, path)
    labels = [None] * counts[inputs[0]] if "y" in inputs or "y" not in arrays else _labels(arrays, source, path)
    return tuple(Row(_example(arrays, i, source), label) for i, label in enumerate(labels))


def _specs(source: Source) -> Sequence[TensorSpec]:
    """What the arrays must be; the first axis counts the rows."""
    if source.image is not None:
        return (TensorSpec(name="x", dtype="uint8", shape=(-1, -1, -1, source.image.channels)),)
    if source.audio is not None:
        return (TensorSpec(name="x", dtype="float32", shape=(-1, -1)),)
    return source.inputs


def _check_input(values: Array, spec: TensorSpec, path: Path) -> None:
    import numpy as np

    shape, wanted = values.shape[1:], spec.shape[1:]
    fits = len(shape) == len(wanted) and all(want in (-1, got) for want, got in zip(wanted, shape, strict=True))
    # Sounds and pictures are of one type, because another is often on another scale; a tensor may lose only width.
    same = values.dtype == spec.dtype if spec.name == "x" else np.can_cast(values.dtype, spec.dtype, "same_kind")
    if not fits or not same:
        sizes = ", ".join("any" if size < 0 else str(size) for size in wanted)
        raise Malformed(
            f"examples {path}: {spec.name} is {values.dtype} {list(values.shape)}, expected {spec.dtype} "
            f"[rows, {sizes}]"
        )
    if values.dtype.kind == "f":
        for i, row in enumerate(values):
            if not np.isfinite(row).all():
                raise Malformed(f"examples {path}: {spec.name}[{i}] holds NaN or infinity")


def _example(arrays: Mapping[str, Array], i: int, source: Source) -> Mapping[str, Array]:
    if source.image is not None:
        return {IMAGE: arrays["x"][i]}
    if source.audio is not None:
        return {AUDIO: arrays["x"][i]}
    return {spec.name: arrays[spec.name][i : i + 1] for spec in source.inputs}


def _labels(arrays: Mapping[str, Array], source: Source, path: Path) -> list[Label]:
    given = arrays["y"]
    if not source.labels:
        raise Malformed(f"examples {path}: y holds labels, and the source has none: describe them, or leave y out")
    frames = _frames(arrays["x"], source) if source.audio is not None else None
    shapes = [(len(given),)] if frames is None else [(len(given),), (len(given), frames)]
    if given.shape not in shapes:
        told = " or ".join(str(list(shape)) for shape in shapes)
        raise Malformed(f"examples {path}: y has the shape {list(given.shape)}, expected {told}")
    if given.ndim == 2:
        return [tuple(_named(row, source, f"{path}: y[{i}]")) for i, row in enumerate(given)]
    names = list(_named(given, source, f"{path}: y"))
    return list(names) if frames is None else [(name,) * frames for name in names]


def _frames(sounds: Array, source: Source) -> int:
    """Frames of each sound, as `wire.processing.frames` cuts them."""
    assert source.audio is not None
    samples = int(sounds.shape[1])
    return 1 + max(0, samples - source.audio.frame) // source.audio.hop


def _named(given: Iterable[Any], source: Source, where: str) -> Iterator[str]:
    """The labels of a row of `y`. Raises `Malformed` for a number that counts none, or what is no label."""
    import numpy as np

    for i, value in enumerate(given):
        if isinstance(value, np.integer) and 0 <= value < len(source.labels):
            yield source.labels[int(value)]
        elif isinstance(value, np.str_) and value:
            yield str(value)
        else:
            expected = f"a label, or a number from 0 to {len(source.labels) - 1}"
            raise Malformed(f"{where}[{i}] is {str(value)[:80]!r}, expected {expected} for the source's labels")
