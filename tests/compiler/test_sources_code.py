"""TorchScript and functions that make a module: found and checked without running them, then loaded and tried."""

# ruff: noqa: PLC0415  torch takes seconds: only the tests that make a model wait for it
from __future__ import annotations

import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compiler.errors import CompilerError, Incompatible, Malformed
from compiler.sources.archive import check_zip
from compiler.sources.read import read
from wire.pipeline import TensorSpec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch calls its own TorchScript old

INPUT = '[[inputs]]\nname = "x"\ndtype = "float32"\nshape = [1, 4]\n'
CODE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)

def make():
    return Net()
"""


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    """Modules of a source leave nothing behind for the next test."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("shoal_test_"):
            del sys.modules[name]


def loaded(path: str, describe: Path | None = None, **changes: Any) -> Any:
    import torch

    from compiler.sources.module import load

    torch.set_num_threads(1)
    return load(read(path, describe), **changes)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- functions ------------------------------------------------------------------------------------------------------


def test_a_function_is_described_without_being_imported_and_then_loaded(tmp_path: Path) -> None:
    import torch

    write(tmp_path / "shoal_test_net.py", CODE)
    described = write(tmp_path / "net.toml", 'labels = ["a", "b", "c"]\n' + INPUT)
    source = read("python:shoal_test_net:make", described)
    assert "shoal_test_net" not in sys.modules
    assert (source.kind, source.task, source.place) == ("torch-module", "tensors", "shoal_test_net:make")
    assert source.inputs == (TensorSpec(name="x", dtype="float32", shape=(1, 4)),)
    assert source.outputs == (TensorSpec(name="output_0", dtype="float32", shape=(1, 3)),)
    assert source.reference == "python:shoal_test_net:make"
    module = loaded(source.reference, described)
    assert module(torch.zeros(5, 4)).shape == (5, 3)
    assert not module.training


def test_the_digest_follows_the_whole_package_and_the_files_that_are_named(tmp_path: Path) -> None:
    write(tmp_path / "shoal_test_pack" / "__init__.py", "raise RuntimeError('reading a source imports nothing')")
    write(tmp_path / "shoal_test_pack" / "deep" / "net.py", CODE)
    write(tmp_path / "shoal_test_pack" / "deep" / "__init__.py", "")
    described = write(tmp_path / "net.toml", 'files = ["weights.bin"]\n' + INPUT)
    reference = "python:shoal_test_pack.deep.net:make"
    with pytest.raises(Malformed, match=r"weights\.bin: no such file"):
        read(reference, described)
    digests = set()
    for name in ("weights.bin", "shoal_test_pack/other.py", "shoal_test_pack/deep/net.py"):
        write(tmp_path / name, CODE + "# changed")
        (tmp_path / "weights.bin").touch()
        digests.add(read(reference, described).digest)
    assert len(digests) == 3


FUNCTIONS: dict[str, tuple[str, str, type[Exception], str]] = {
    "not there": ("python:shoal_test_gone:make", CODE, Malformed, "no module 'shoal_test_gone'"),
    "in no package": ("python:shoal_test_net.sub:make", CODE, Malformed, "no module 'shoal_test_net.sub'"),
    "without a function": ("python:shoal_test_net", CODE, Malformed, "expected python:package.module:function"),
    "with an argument": ("python:shoal_test_net:make(1)", CODE, Malformed, "expected python:"),
    "of no such name": ("python:shoal_test_net:build", CODE, Malformed, "no attribute 'build'"),
    "that fails": ("python:shoal_test_net:make", "def make(): return 1 / 0", Malformed, "ZeroDivisionError"),
    "that exits": ("python:shoal_test_net:make", "def make(): raise SystemExit(0)", Malformed, "SystemExit"),
    "that returns no module": ("python:shoal_test_net:make", "def make(): return 5", Malformed, "returned int"),
    "with NaN weights": (
        "python:shoal_test_net:make",
        CODE.replace("return Net()", "net = Net(); net.layer.bias.data[0] = float('nan'); return net"),
        *(Malformed, "weight layer.bias holds NaN"),
    ),
    "with other outputs than labels": (
        "python:shoal_test_net:make",
        CODE.replace("Linear(4, 3)", "Linear(4, 5)"),
        *(Malformed, "3 labels, and an output of 5"),
    ),
    "for another input": (
        "python:shoal_test_net:make",
        CODE.replace("Linear(4, 3)", "Linear(9, 3)"),
        *(Incompatible, r"does not run on x \[1, 4\]"),
    ),
    "with two outputs": (
        "python:shoal_test_net:make",
        CODE.replace("return self.layer(x)", "return self.layer(x), x"),
        *(Malformed, "returns 2 tensors, 1 are described"),
    ),
    "with a named output": (
        "python:shoal_test_net:make",
        CODE.replace("return self.layer(x)", "return {'y': self.layer(x)}"),
        *(Malformed, "forward returns dict"),
    ),
    "in half precision": (
        "python:shoal_test_net:make",
        CODE.replace("return self.layer(x)", "return self.layer(x).half()"),
        *(Malformed, r"is float16 \[1, 3\], float32 \[1, 3\] is described"),
    ),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_function_that_makes_no_such_module_is_told(case: str, tmp_path: Path) -> None:
    reference, text, error, message = FUNCTIONS[case]
    write(tmp_path / "shoal_test_net.py", text)
    described = write(tmp_path / "net.toml", 'labels = ["a", "b", "c"]\n' + INPUT)
    with pytest.raises(error, match=message):
        loaded(reference, described)


def test_a_function_needs_a_description_with_inputs(tmp_path: Path) -> None:
    write(tmp_path / "shoal_test_net.py", CODE)
    with pytest.raises(Malformed, match="needs a description"):
        read("python:shoal_test_net:make", None)
    with pytest.raises(Malformed, match=r"name its \[\[inputs\]\]"):
        read("python:shoal_test_net:make", write(tmp_path / "net.toml", 'task = "tensors"'))
    with pytest.raises(Malformed, match="the first is the batch"):
        read("python:shoal_test_net:make", write(tmp_path / "net.toml", INPUT.replace("[1, 4]", "[3, 4]")))


@pytest.mark.parametrize("reference", ["python:a:b", "models:/a@b", "model.pt"])
def test_sources_that_run_code_are_refused_where_sources_must_be_safe(reference: str) -> None:
    with pytest.raises(Incompatible, match="not accepted here; accepted are huggingface, onnx, tflite"):
        read(reference, None, safe=True)


# --- TorchScript ----------------------------------------------------------------------------------------------------


def script(path: Path, **changes: Any) -> Path:
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    if changes.get("nan"):
        net[0].weight.data[0, 0] = float("nan")
    torch.jit.trace(net, torch.zeros(1, 4)).save(str(path))
    write(path.with_suffix(".toml"), 'labels = ["a", "b", "c"]\n' + INPUT)
    return path


def test_an_archive_is_read_without_torch_and_answers_as_its_module_did(tmp_path: Path) -> None:
    import torch

    path = script(tmp_path / "m.pt")
    source = read(str(path), None)
    assert (source.kind, source.task, source.reference) == ("torchscript", "tensors", str(path))
    torch.manual_seed(0)
    expected = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())(torch.ones(1, 4))
    assert torch.equal(loaded(str(path))(torch.ones(1, 4)), expected)


def test_torchscript_with_broken_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=r"weight 0\.weight holds NaN"):
        loaded(str(script(tmp_path / "m.pt", nan=True)))


def test_a_pooling_cannot_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match="only a sentence encoder"):
        loaded(str(script(tmp_path / "m.pt")), pooling="cls")


def test_an_archive_that_is_cut_short_is_told(tmp_path: Path) -> None:
    path = script(tmp_path / "m.pt")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(Malformed, match="not a sound zip archive"):
        read(str(path), None)


def test_a_changed_byte_of_the_weights_is_told(tmp_path: Path) -> None:
    path = script(tmp_path / "m.pt")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("data/0"))
    # The local header is 30 bytes, then the name and the padding that aligns the weights.
    start = entry.header_offset + 30 + sum(struct.unpack_from("<HH", data, entry.header_offset + 26))
    data[start] ^= 1
    path.write_bytes(data)
    with pytest.raises(Malformed, match="Bad CRC-32"):
        read(str(path), None)


def test_code_inside_that_is_no_torchscript_is_told(tmp_path: Path) -> None:
    path, bent = script(tmp_path / "m.pt"), tmp_path / "bent.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bent, "w") as new:
        for entry in old.infolist():
            code = entry.filename.endswith("__torch__.py") or "/code/__torch__/" in entry.filename
            new.writestr(entry.filename, b"import os\n" if code else old.read(entry))
    write(bent.with_suffix(".toml"), INPUT)
    with pytest.raises(Malformed, match="not sound TorchScript"):
        loaded(str(bent))


def test_a_pickled_module_is_never_opened(tmp_path: Path) -> None:
    import torch

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return Path.touch, (tmp_path / "sprung",)

    torch.save(Trap(), tmp_path / "m.pt")
    write(tmp_path / "m.toml", INPUT)
    with pytest.raises(Malformed, match="a pickled module or state is never read"):
        read(str(tmp_path / "m.pt"), None)
    assert not (tmp_path / "sprung").exists()


# --- zip archives ---------------------------------------------------------------------------------------------------


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data/0", bytes(64 * 1024 * 1024))


def overlapping(path: Path) -> None:
    """Many names for one entry: what a small file unpacks to has no end."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data/0", b"x" * 4096)
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    end = data.rindex(b"PK\x05\x06")
    entry, tail = data[start:end], bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, 200, 200, len(entry) * 200)
    path.write_bytes(data[:start] + entry * 200 + tail)


def lying(path: Path) -> None:
    """It declares one byte, and unpacks to 64 MB."""
    bomb(path)
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(mark) + at, 1)
    path.write_bytes(data)


BOMBS: dict[str, tuple[Callable[[Path], None], str]] = {
    "zeros": (bomb, "a zip bomb: it unpacks to more than"),
    "overlapping entries": (overlapping, "its entries overlap"),
    "a size that is a lie": (lying, "not a sound zip archive"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_zip_bomb_is_told_and_never_unpacked(case: str, tmp_path: Path) -> None:
    make, message = BOMBS[case]
    make(tmp_path / "m.pt")
    with pytest.raises(CompilerError, match=message):
        check_zip(tmp_path / "m.pt")
    with pytest.raises(Malformed, match=message):
        read(str(tmp_path / "m.pt"), None)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 and nothing more", b"x" * 1000], ids=range(3))
def test_a_file_that_is_no_archive_is_told(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(data)
    with pytest.raises(Malformed, match="not a sound zip archive"):
        read(str(tmp_path / "m.pt"), None)
