"""Files of examples: what is read, and what is refused before it costs anything."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.errors import Malformed
from compiler.examples import arrays
from compiler.examples.examples import LINE, check, read, read_texts, spread
from compiler.sources.source import Source, Text
from wire.chunks import digest
from wire.pipeline import Audio, Image, Task, TensorSpec

LABELS = ("cold", "warm", "wet")


def source(task: Task, *inputs: TensorSpec, labels: tuple[str, ...] = LABELS) -> Source:
    any_tensor = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    return Source(
        kind="onnx",
        place="model.onnx",
        digest=digest(b""),
        size=1,
        architecture="any",
        task=task,
        labels=labels,
        activation="none",
        inputs=inputs or (any_tensor,),
        outputs=(any_tensor,),
        text=Text(tokenizer=b"", max_length=8, inputs=("input_ids",)) if "image" not in task else None,
        image=Image(height=4, width=4, channels=3, layout="NHWC") if task == "image-classification" else None,
        audio=Audio(rate=8000, frame=40, hop=20) if task == "audio-frames" else None,
    )


TEXTS, WORDS, EMBEDDING = source("text-classification"), source("token-classification"), source("sentence-embedding")
IMAGES, SOUNDS, TENSORS = source("image-classification"), source("audio-frames"), source("tensors")
PICTURES = np.arange(3 * 48, dtype=np.uint8).reshape(3, 4, 4, 3)


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def lines(*values: Mapping[str, Any]) -> str:
    return "".join(json.dumps(v) + "\n" for v in values)


def npz(path: Path, **given: Any) -> Path:
    np.savez(path, **given)
    return path


# --- texts ------------------------------------------------------------------------------------------------------------


def test_texts_come_from_jsonl_in_the_order_of_the_file_with_its_digest(tmp_path: Path) -> None:
    data = lines({"text": "brr", "label": "cold"}, {"text": "", "label": "wet", "more": 1}) + "\n"
    found = read(write(tmp_path / "test.jsonl", data), TEXTS)
    assert [(r.example, r.label) for r in found.rows] == [("brr", "cold"), ("", "wet")]
    assert (found.digest, found.name) == (digest(data.encode()), "test.jsonl")
    check(found, TEXTS)
    assert read_texts(tmp_path / "test.jsonl").rows == found.rows


def test_texts_come_from_csv_with_commas_quotes_and_line_breaks_as_spreadsheets_write_it(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbfid,text,label\r\n1,"cold, ""very""\nindeed",cold\r\n2,w\xc3\xa4rm,warm\r\n'
    found = read(write(tmp_path / "test.csv", data), TEXTS)
    assert [(r.example, r.label) for r in found.rows] == [('cold, "very"\nindeed', "cold"), ("wärm", "warm")]


def test_words_have_a_label_each(tmp_path: Path) -> None:
    data = lines({"words": ["it", "is", "cold"], "labels": ["wet", "wet", "cold"]})
    (row,) = read(write(tmp_path / "test.jsonl", data), WORDS).rows
    assert (row.example, row.label) == ("it is cold", ("wet", "wet", "cold"))


@pytest.mark.parametrize(("name", "data"), [("a.jsonl", lines({"text": "x", "label": "?"})), ("a.csv", "text\nx\n")])
def test_texts_to_embed_have_no_labels(name: str, data: str, tmp_path: Path) -> None:
    (row,) = read(write(tmp_path / name, data), EMBEDDING).rows
    assert (row.example, row.label) == ("x", None)


def test_texts_without_labels_are_read_and_checked(tmp_path: Path) -> None:
    found = read(write(tmp_path / "test.jsonl", lines({"text": "a"}, {"text": "b"})), TEXTS)
    check(found, TEXTS)
    assert [r.label for r in found.rows] == [None, None]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "it has no rows"),
        ('{"text": "a", "label": "cold"}\n{"text": "b", "lable": "wet"}\n', r'jsonl:2: expected {"text": string'),
        ('{"text": "a", "label": ""}', "jsonl:1: expected"),
        ('{"text": "a", "label": 3}', "jsonl:1: expected"),
        ('["a", "cold"]', "jsonl:1: expected"),
        ('{"text": "a", "label": "cold"', "jsonl:1: not valid JSON"),
        ('{"text": "a", "text": "b", "label": "cold"}', "a key stands twice"),
        ('{"text": "a", "label": "cold"}\n{"text": "b"}', "jsonl:2: no label, unlike the rows before it"),
        (b'{"text": "a", "label": "cold"}\n{"text": "\xe4", "label": "wet"}', "jsonl:2: not UTF-8 text"),
        ('{"text": "' + "a" * LINE + '", "label": "cold"}', "jsonl:1: .* the limit is 65536"),
    ],
)
def test_what_is_wrong_with_a_jsonl_file_is_told_with_its_line(data: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=message):
        read(write(tmp_path / "test.jsonl", data), TEXTS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "csv:1: the columns are none; expected text and label"),
        ("text,lable\na,cold\n", "csv:1: the columns are text, lable; expected text and label"),
        ("text,label,text\na,cold,b\n", "csv:1: the columns are"),
        ("text,label\n", "it has no rows"),
        ('text,label\n"a\nb",cold\nc, d,cold\n', "csv:4: 3 columns, the header has 2"),
        ("text,label\na,\n", "csv:2: the label is empty"),
        ('text,label\n"a"b,cold\n', "csv:2: not CSV"),
        ('text,label\n"a,cold\n', "not CSV: unexpected end of data"),
        (b"text,label\na,cold\n\xff,wet\n", "csv:3: not UTF-8 text"),
        ("text,label\n" + "a" * (LINE + 1) + ",cold\n", "csv:2: a row over"),
        ("text,label\n" + "a" * 200_000 + ",cold\n", "csv:2: not CSV: field larger"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_told_with_its_line(data: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=message):
        read(write(tmp_path / "test.csv", data), TEXTS)


@pytest.mark.parametrize(
    "row",
    [
        {"words": ["a", "b"], "labels": ["wet"]},
        {"words": ["a b"], "labels": ["wet"]},
        {"words": [""], "labels": ["wet"]},
        {"words": [], "labels": []},
        {"words": ["a"], "labels": [""]},
        {"words": [3], "labels": ["wet"]},
        {"words": ["a"], "label": ["wet"]},
    ],
)
def test_words_and_labels_that_do_not_fit_are_told(row: Mapping[str, Any], tmp_path: Path) -> None:
    """Words that hold spaces or nothing would be split again otherwise than they are labelled."""
    with pytest.raises(Malformed, match=r"jsonl:1: expected .*as many labels as words"):
        read(write(tmp_path / "test.jsonl", lines(row)), WORDS)


def test_words_are_not_read_from_csv(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="read from JSONL"):
        read(write(tmp_path / "test.csv", "text,label\na,b\n"), WORDS)


def test_a_file_that_is_not_there_or_is_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="cannot be read: No such file"):
        read(tmp_path / "none.jsonl", TEXTS)
    with pytest.raises(Malformed, match="cannot be read: Is a directory"):
        read(tmp_path, TEXTS)
    with pytest.raises(Malformed, match="not a file"):
        read(Path("/dev/null"), TEXTS)


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """The accident: the training data of a year. The file is sparse: reading it would take its size in memory."""
    path = write(tmp_path / "test.jsonl", "")
    with path.open("r+b") as file:
        file.truncate(200_000_000_000)
    with pytest.raises(Malformed, match="200000000000 bytes, the limit is"):
        read(path, TEXTS)


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("cold", "hot", "icy"), r"label 'hot' \(2 such\) is not one of the source's 3 labels \(cold, warm, wet"),
        (("cold", "cold"), "every row has the label 'cold'"),
    ],
)
def test_labels_that_do_not_match_or_are_one_only_are_told(
    labels: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    found = read(write(tmp_path / "t.jsonl", lines(*({"text": "t", "label": label} for label in labels))), TEXTS)
    with pytest.raises(Malformed, match=message):
        check(found, TEXTS)


def test_of_words_the_labels_are_checked_one_by_one(tmp_path: Path) -> None:
    found = read(write(tmp_path / "t.jsonl", lines({"words": ["a", "b"], "labels": ["wet", "dry"]})), WORDS)
    with pytest.raises(Malformed, match="label 'dry'"):
        check(found, WORDS)


def test_rows_are_spread_over_labels() -> None:
    labels = ["cold"] * 10 + ["warm"] * 2 + ["wet"]
    assert spread(labels, 6) == [0, 10, 12, 1, 11, 2]
    assert spread(labels, 2) == [0, 10]
    assert sorted(spread(labels, 99)) == list(range(13))


def test_rows_without_labels_or_with_one_are_spread_over_the_file() -> None:
    assert spread([None] * 10, 5) == [0, 2, 4, 6, 8]
    assert spread(["cold"] * 3, 5) == [0, 1, 2]


def test_what_is_spread_already_stays_in_its_order() -> None:
    labels = [("wet",), ("wet", "cold"), ("cold", "wet"), ("wet",), ("cold",)] * 5
    places = spread(labels, 7)
    assert spread([labels[i] for i in places], 7) == list(range(7))


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_pictures_come_with_numbers_or_names_of_labels_or_without(tmp_path: Path) -> None:
    numbers = read(npz(tmp_path / "a.npz", x=PICTURES, y=np.asarray([0, 2, 1])), IMAGES)
    names = read(npz(tmp_path / "b.npz", x=PICTURES, y=np.asarray(["cold", "wet", "warm"])), IMAGES)
    assert [r.label for r in numbers.rows] == [r.label for r in names.rows] == ["cold", "wet", "warm"]
    assert [r.label for r in read(npz(tmp_path / "c.npz", x=PICTURES), IMAGES).rows] == [None] * 3
    example = numbers.rows[1].example
    assert not isinstance(example, str)
    np.testing.assert_array_equal(example["image"], PICTURES[1])
    assert numbers.digest == digest((tmp_path / "a.npz").read_bytes())


def test_compressed_arrays_and_those_of_the_other_byte_order_are_read(tmp_path: Path) -> None:
    sounds = np.linspace(-1, 1, 120, dtype=">f4").reshape(2, 60)
    np.savez_compressed(tmp_path / "a.npz", x=sounds, y=np.asarray([[0, 1], [2, 2]], ">i8"))
    first, second = read(tmp_path / "a.npz", SOUNDS).rows
    assert (first.label, second.label) == (("cold", "warm"), ("wet", "wet"))
    assert not isinstance(first.example, str)
    assert first.example["audio"].dtype == np.float32
    np.testing.assert_array_equal(first.example["audio"], sounds[0])


def test_the_label_of_a_sound_is_that_of_each_of_its_frames(tmp_path: Path) -> None:
    found = read(npz(tmp_path / "a.npz", x=np.zeros((2, 100), np.float32), y=np.asarray([1, 0])), SOUNDS)
    assert [r.label for r in found.rows] == [("warm",) * 4, ("cold",) * 4]
    short = read(npz(tmp_path / "b.npz", x=np.zeros((1, 10), np.float32), y=np.asarray([1])), SOUNDS)
    assert short.rows[0].label == ("warm",)


def test_tensors_keep_the_axis_of_the_batch_and_are_called_as_the_graph_calls_them(tmp_path: Path) -> None:
    two = source(
        "tensors",
        TensorSpec(name="left", dtype="float32", shape=(1, -1, 2)),
        TensorSpec(name="y", dtype="int64", shape=(-1,)),
    )
    found = read(npz(tmp_path / "a.npz", left=np.ones((3, 5, 2)), y=np.arange(3, dtype=np.int32)), two)
    assert [r.label for r in found.rows] == [None] * 3
    example = found.rows[2].example
    assert not isinstance(example, str)
    assert (example["left"].shape, example["y"].tolist()) == ((1, 5, 2), [2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": PICTURES}, "it holds the arrays images; expected x, and y for labels"),
        ({"x": PICTURES, "z": PICTURES}, "it holds the arrays x, z"),
        ({"x": PICTURES, "y": np.zeros(2, int)}, "x has 3 rows, y has 2 rows"),
        ({"x": PICTURES.astype(np.float32)}, r"x is float32 \[3, 4, 4, 3\], expected uint8 \[rows, any, any, 3\]"),
        ({"x": PICTURES[..., :1]}, r"x is uint8 \[3, 4, 4, 1\]"),
        ({"x": PICTURES[0]}, r"x is uint8 \[4, 4, 3\]"),
        ({"x": PICTURES[:0]}, "'x' has no rows"),
        ({"x": PICTURES, "y": np.asarray([0, 1, 3])}, r"y\[2\] is '3', expected a label, or a number from 0 to 2"),
        ({"x": PICTURES, "y": np.asarray([0, -1, 2])}, r"y\[1\] is '-1'"),
        ({"x": PICTURES, "y": np.asarray([0.0, 1, 2])}, r"y\[0\] is '0.0'"),
        ({"x": PICTURES, "y": np.zeros((3, 2), int)}, r"y has the shape \[3, 2\], expected \[3\]"),
        ({"x": np.asarray([{}, {}, {}])}, "'x' holds Python objects, which only code could unpack"),
        ({"x": np.asarray([b"abc"])}, r"'x' is of type \|S3"),
        ({"x": np.float32(3)}, "'x' has no rows"),
        ({"x": np.zeros((1, 1000, 1000, 3), np.uint8)}, "'x' has 3000000 bytes a row, the limit is"),
    ],
)
def test_what_is_wrong_with_an_array_is_told(given: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=message):
        read(npz(tmp_path / "a.npz", **given), IMAGES)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_is_told_with_its_row(bad: float, tmp_path: Path) -> None:
    values = np.zeros((4, 4), np.float32)
    values[2, 1] = bad
    with pytest.raises(Malformed, match=r"x\[2\] holds NaN or infinity"):
        read(npz(tmp_path / "a.npz", x=values), TENSORS)


def test_tensors_of_a_type_that_would_lose_more_than_width_are_told(tmp_path: Path) -> None:
    ids = source("tensors", TensorSpec(name="ids", dtype="int64", shape=(1, 4)))
    with pytest.raises(Malformed, match="ids is float64"):
        read(npz(tmp_path / "a.npz", ids=np.full((2, 4), 0.5)), ids)


def test_labels_for_a_source_without_any_are_told(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=np.zeros((2, 4), np.float32), y=np.asarray([0, 1]))
    with pytest.raises(Malformed, match="y holds labels, and the source has none"):
        read(path, source("tensors", labels=()))


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=r"reads an \.npz file"):
        read(write(tmp_path / "test.jsonl", lines({"text": "a"})), IMAGES)
    with pytest.raises(Malformed, match=r"damaged, or not an \.npz file"):
        read(write(tmp_path / "test.npz", "short"), IMAGES)
    with pytest.raises(Malformed, match=r"damaged, or not an \.npz file"):
        read(write(tmp_path / "test.npz", b"PK" + bytes(500)), IMAGES)
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("../x.py", b"print()")
    with pytest.raises(Malformed, match=r"'\.\./x.py' is not an array"):
        read(tmp_path / "zip.npz", IMAGES)


def test_a_file_cut_or_changed_on_its_way_is_told(tmp_path: Path) -> None:
    whole = npz(tmp_path / "a.npz", x=PICTURES).read_bytes()
    for bad in (
        whole[:-30],
        whole[:200] + whole[-100:],
        whole.replace(PICTURES.tobytes(), bytes(len(PICTURES.tobytes()))),
    ):
        with pytest.raises(Malformed, match="damaged"):
            read(write(tmp_path / "b.npz", bad), IMAGES)


# --- attacks ----------------------------------------------------------------------------------------------------------


def npy(shape: tuple[int, ...], data: bytes = b"", dtype: str = "|u1") -> bytes:
    """An array file that says of itself what it likes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def zipped(path: Path, data: bytes, declared: int | None = None) -> Path:
    """An archive of `x.npy`, compressed; its directory and header may lie about its size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", data)
    if declared is not None:
        lie = path.read_bytes().replace(struct.pack("<L", len(data)), struct.pack("<L", declared))
        path.write_bytes(lie)
    return path


def peak(path: Path) -> int:
    """Bytes that reading the file adds to a process, at their peak."""
    program = (
        "import sys, resource, numpy; from pathlib import Path; from compiler.examples.arrays import read_arrays\n"
        "from compiler.errors import Malformed\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_arrays(open(sys.argv[1], 'rb'), Path(sys.argv[1]), most_rows=10)\nexcept Malformed: pass\n"
        "else: sys.exit('was read')\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=True, text=True)
    return int(done.stdout)


def test_a_zip_bomb_that_says_what_it_is_is_not_unpacked(tmp_path: Path) -> None:
    """The attack: 600 MB of zeros in 600 kB."""
    path = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w") as member,
    ):
        for _ in range(600):
            member.write(bytes(1024 * 1024))
    with pytest.raises(Malformed, match="a zip bomb, or too large: it unpacks to 629145600 bytes"):
        read(path, IMAGES)
    assert peak(path) < 50_000_000


def test_a_zip_bomb_that_lies_about_its_size_is_not_unpacked(tmp_path: Path) -> None:
    """The attack: 200 MB of zeros that declare 3,000 bytes, as many as their header asks for."""
    head = npy((3, 4, 4, 3))
    path = zipped(tmp_path / "bomb.npz", head + bytes(200_000_000), declared=len(head) + 144)
    with pytest.raises(Malformed, match=f"a zip bomb: 'x.npy' says {len(head) + 144} bytes and holds more"):
        read(path, IMAGES)
    assert peak(path) < 50_000_000


def test_an_array_that_says_it_is_huge_takes_no_memory(tmp_path: Path) -> None:
    """The attack: a header of a terabyte with nothing behind it."""
    path = zipped(tmp_path / "huge.npz", npy((10, 10**11), b"abc"))
    with pytest.raises(Malformed, match="3 bytes are there: damaged"):
        read(path, IMAGES)
    assert peak(path) < 50_000_000


def test_an_array_of_too_many_rows_is_told(tmp_path: Path) -> None:
    path = zipped(tmp_path / "rows.npz", npy((300_000, 1, 1, 3), bytes(900_000)))
    with pytest.raises(Malformed, match="300000 rows, the limit is 200000"):
        read(path, IMAGES)


def test_an_archive_with_a_long_list_of_members_is_not_listed(tmp_path: Path) -> None:
    """The attack: each entry of the list costs a kilobyte of memory and nothing in the file."""
    path = tmp_path / "many.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(2000):
            archive.writestr(f"{i}.npy", b"")
    with pytest.raises(Malformed, match="lists too many arrays"):
        read(path, IMAGES)


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    """The attack: an object array whose unpickling would write a file."""
    marker = tmp_path / "was-run"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(marker), "w"))

    array = np.empty(2, object)
    array[:] = [Trap(), Trap()]
    with pytest.raises(Malformed, match="Python objects"):
        read(npz(tmp_path / "a.npz", x=array), IMAGES)
    assert not marker.exists()


def test_a_member_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """The attack: two readers take different ones."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", npy((1,), b"a"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", npy((1,), b"b"))
    with pytest.raises(Malformed, match="stands in it twice"):
        read(tmp_path / "a.npz", IMAGES)


def test_the_limits_leave_room_for_a_real_test_set() -> None:
    """2,000 pictures of 224 by 224."""
    assert arrays.UNPACKED > 2000 * 224 * 224 * 3


def test_reading_texts_imports_nothing_heavy(tmp_path: Path) -> None:
    program = "import sys, json, compiler.examples.examples; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    assert not set(loaded) & {"numpy", "torch", "onnx", "kitoken", "tokenizers"}
