"""Sources that are code: a TorchScript archive, and a function that makes a torch module. Here neither is run.

A function is found without importing anything, first beside the description and then where Python looks for modules.
Its digest is over its module (the whole package where it lies in one) and the description's `files`: what else it
reads is not seen, so a change of that does not make a new build.
"""

from __future__ import annotations

import re
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from compiler.errors import Incompatible, Malformed
from compiler.sources import assemble
from compiler.sources.archive import check_zip
from compiler.sources.describe import Described
from compiler.sources.files import check_size, file_size
from compiler.sources.source import Source

_PLACE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_KEYS = ("task", "labels", "activation", "tokenizer", "max_length", "image", "audio", "inputs", "outputs")


def read_torchscript(path: Path, described: Described) -> Source:
    """Check and describe an archive. Raises `Malformed` for a broken or pickled one and for a zip bomb."""
    size = file_size(path)
    described.refuse(_KEYS, "TorchScript is one file")
    names = [name.partition("/")[2] for name in check_zip(path)]
    if not any(name.startswith("code/") for name in names) or "constants.pkl" not in names:
        if any(name.startswith("models/") or name == "archive_format" for name in names):
            raise Incompatible(f"source {path}: a torch.export archive; save the module with torch.jit.save instead")
        raise Malformed(
            f"source {path}: not TorchScript: a pickled module or state is never read; save it with torch.jit.save"
        )
    return assemble.of_module("torchscript", str(path), described, [("model.pt", path)], size, path.parent)


def read_function(place: str, described: Described) -> Source:
    """Find and describe `package.module:function`. Raises `Malformed` when it is not there or not described."""
    if not _PLACE.fullmatch(place):
        raise Malformed(f"source python:{place[:200]}: expected python:package.module:function")
    if described.path is None:
        raise Malformed(f"source python:{place}: needs a description (--describe) with task and [[inputs]]")
    described.refuse((*_KEYS, "files"), "a torch module has none")
    search = described.path.parent
    files = _files(place, search)
    named = sum(described.file(name).stat().st_size for name in described.says.files)
    size = named + sum(path.stat().st_size for _, path in files)
    check_size(search, size)
    return assemble.of_module(
        "torch-module", place, described, [("place", place.encode()), *files], size, search.resolve()
    )


def _files(place: str, search: Path) -> list[tuple[str, Path]]:
    """The module's file, or every file of the outermost package that holds it."""
    found = _find(place.partition(":")[0].split("."), [str(search), *sys.path], place)
    if not found.submodule_search_locations:
        assert found.origin is not None
        return [(Path(found.origin).name, Path(found.origin))]
    (folder, *_) = (Path(location) for location in found.submodule_search_locations)
    return sorted(
        (path.relative_to(folder.parent).as_posix(), path)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    )


def _find(parts: list[str], where: list[str], place: str) -> ModuleSpec:
    """The outermost module or package of a dotted name, all of which must be there."""
    outermost: ModuleSpec | None = None
    path: list[str] | None = where
    for name in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
        # Not importlib.util.find_spec: it imports the packages on the way.
        found = PathFinder.find_spec(name, path) if path is not None else None
        if found is None or (found.origin is None and not found.submodule_search_locations):
            raise Malformed(f"source python:{place}: no module {name!r} beside the description or on PYTHONPATH")
        outermost = outermost or found
        path = list(found.submodule_search_locations) if found.submodule_search_locations else None
    assert outermost is not None
    return outermost
