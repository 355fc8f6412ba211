"""The cache: what is kept is found again, whole and unchanged, and the folder does not grow for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from compiler.errors import Unavailable
from compiler.workshop import cache as module
from compiler.workshop.cache import Cache, cache_key, is_in, work_key

KEYS = [cache_key("test", number=n) for n in range(4)]


def age(path: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


def entry(cache: Cache, key: str) -> Path:
    return cache.folder / "entries" / f"{key.removeprefix('sha256:')}.json"


def fill(cache: Cache, hours: list[float]) -> None:
    """An entry of 1,000 bytes for each key, last used so many hours ago."""
    for key, ago, byte in zip(KEYS, hours, b"abcd", strict=False):
        kept = cache.keep(key, {"made": bytes([byte]) * 1000})
        age(cache.path(kept.files["made"]), ago)
        age(entry(cache, key), ago)


def blobs(cache: Cache) -> int:
    return len(list((cache.folder / "blobs" / "sha256").iterdir()))


def test_files_and_facts_are_found_under_the_key_that_they_were_kept_under(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.find(KEYS[0]) is None
    with cache.scratch() as scratch:
        (scratch / "made").write_bytes(b"moved")
        cache.keep(KEYS[0], {"one": scratch / "made", "two": b"written"}, {"peak": 7})
        assert not (scratch / "made").exists()
    found = Cache(tmp_path / "cache").find(KEYS[0])
    assert found is not None
    assert {name: cache.read(digest) for name, digest in found.files.items()} == {"one": b"moved", "two": b"written"}
    assert found.facts == {"peak": 7}
    assert cache.find(KEYS[1]) is None


@pytest.mark.parametrize("damage", ["file", "entry", "file removed"])
def test_damaged_is_as_good_as_absent(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path)
    kept = cache.keep(KEYS[0], {"made": b"a model"})
    assert cache.find(KEYS[0]) is not None
    path = entry(cache, KEYS[0]) if damage == "entry" else cache.path(kept.files["made"])
    if damage == "file removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert cache.find(KEYS[0]) is None


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    fill(cache, [9.0, 30.0, 20.0, 40.0])
    assert cache.find(KEYS[3]) is not None, "and so it was used just now"
    assert cache.prune(limit=3000) == 2000
    assert [cache.find(key) is not None for key in KEYS] == [True, False, False, True]
    assert blobs(cache) == 2


def test_what_a_running_build_may_need_stays_although_it_is_too_much(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    fill(cache, [1.0, 2.0, 3.0, 4.0])
    assert cache.prune(limit=10) == 0
    assert all(cache.find(key) for key in KEYS)


def test_a_file_of_two_entries_stays_while_one_of_them_does(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    fill(cache, [10.0, 20.0])
    cache.keep(KEYS[2], {"same": b"a" * 1000})
    age(entry(cache, KEYS[2]), 30.0)
    assert cache.prune(limit=1) == 1000
    cache.keep(KEYS[3], {"made": b"d"})
    assert (cache.find(KEYS[2]), cache.find(KEYS[1])) == (None, None)


def test_files_that_a_killed_build_half_wrote_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    fill(cache, [1.0])
    for folder in ("entries", "blobs/sha256"):
        half = tmp_path / folder / ".half.4711"
        half.write_bytes(b"xx")
        age(half, 8.0)
    cache.prune()
    assert list(tmp_path.rglob(".half*")) == []
    assert cache.find(KEYS[0]) is not None


def test_scratch_of_a_killed_build_goes_when_the_next_one_starts_and_that_of_a_running_one_stays(
    tmp_path: Path,
) -> None:
    """The accident: a process with a scratch folder is killed."""
    program = "\n".join(
        [
            "import sys, time",
            "from pathlib import Path",
            "from compiler.workshop.cache import Cache",
            f"with Cache(Path({str(tmp_path)!r})).scratch() as folder:",
            "    (folder / 'large').write_bytes(b'x')",
            "    print(folder, flush=True)",
            "    time.sleep(100)",
        ]
    )
    cache = Cache(tmp_path)
    with subprocess.Popen([sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        left = Path(process.stdout.readline().strip())
        with cache.scratch() as mine:
            assert (left / "large").exists()
            assert mine.exists()
        process.kill()
        process.wait()
    assert (left / "large").exists()
    with cache.scratch():
        assert not left.exists()
    assert [p.name for p in (tmp_path / "scratch").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(Unavailable, match=r"cache .*/cache: cannot be written: .*name a folder that can be"):
        Cache(tmp_path / "cache").keep(KEYS[0], {"made": b"x"})
    with pytest.raises(Unavailable, match="cannot be written"), Cache(tmp_path / "cache").scratch():
        pass


def test_tools_that_others_bring_along_count_and_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict.fromkeys(module.TOOLS, "1")
    monkeypatch.setattr(module, "_version", known.get)
    for tool in ("litert-converter", "flatbuffers", "protobuf"):
        module.tool_versions.cache_clear()
        before = cache_key("x")
        known[tool] = "2"
        module.tool_versions.cache_clear()
        assert cache_key("x") != before, tool
    monkeypatch.undo()
    module.tool_versions.cache_clear()

    def absent(tool: str) -> str:
        raise PackageNotFoundError(tool)

    monkeypatch.setattr(module, "version", absent)
    assert {module._version(tool) for tool in ("litert-converter", "flatbuffers", "protobuf")} == {"absent"}
    with pytest.raises(PackageNotFoundError):
        module._version("onnx")


def test_keys_differ_by_what_was_asked_for_and_name_the_same_whatever_the_order() -> None:
    assert cache_key("x", a=1, b=[2]) == cache_key("x", b=[2], a=1)
    assert len({cache_key("x", a=1), cache_key("x", a=2), cache_key("y", a=1), work_key("x", a=1)}) == 4


def test_children_use_no_module_whose_change_leaves_their_keys_alone() -> None:
    """Otherwise a change of that module would give a stale file."""
    modules = (
        "runtimes",
        "examples.examples",
        "variant",
        "passes.table",
        "sources.read",
        "sources.module",
        "sources.huggingface",
    )
    program = f"import sys, {', '.join(f'compiler.{m}' for m in modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    used = {name for name in done.stdout.split() if name.startswith("compiler.")}
    assert "compiler.passes.onnx_export" in used
    assert [name for name in used if is_in(name, module._SEARCH)] == []
