"""Earlier results by the digest of everything that decides them. Looking one up imports nothing heavy.

A key covers what was asked for, the versions of the tools, the processor and the compiler's own code: a hit is what a
new run would give. Files are verified when they are found: damaged is as good as absent. What is written is there as a
whole or not at all, so several builds may share one folder, and a build that was killed leaves what it finished.

    cache = Cache(folder)
    key = cache_key("score", examples=digest, files=digests)
    cache.find(key) or cache.keep(key, {"answers": path})
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from compiler.bundle.layout import blob_path, verify
from compiler.bundle.made import Made
from compiler.errors import CompilerError, Unavailable
from wire.chunks import digest
from wire.document import Document, dump_json
from wire.errors import WireError

TOOLS = (
    *("torch", "transformers", "optimum", "optimum-onnx", "tokenizers", "kitoken", "numpy", "onnx", "onnxruntime"),
    *("onnxruntime-genai", "xllamacpp", "gguf"),
    *("litert-torch", "litert-converter", "ai-edge-litert", "ai-edge-quantizer", "flatbuffers", "protobuf"),
)
X86_ONLY = ("litert-torch", "ai-edge-quantizer")
"""Not installed where their converter has no wheel: ONNX recipes need none of them."""
_OTHERS = ("litert-converter", "flatbuffers", "protobuf")
"""What others bring along: they write a file's bytes, and are here or not as those ask for."""
_SEARCH = (
    *("judge", "language", "report", "search", "build", "inputs", "progress", "verify"),
    *("bundle.made", "bundle.pack", "plan.candidates", "plan.rules"),
)
"""Rooms and modules that no pass and no scoring uses: a better search finds what an older one made."""
LIMIT = 20 * 1024**3
"""Bytes that the cache may hold after a build, unless its owner says otherwise."""
RECENT = 6 * 3600.0
"""Seconds in which a build that still runs may come back to what it used."""
_ENTRIES, _BLOBS, _SCRATCH = "entries", "blobs", "scratch"


@cache
def tool_versions() -> Mapping[str, str]:
    """Installed versions of everything that shapes a bundle's bytes or figures; "absent" for what may be."""
    return {tool: _version(tool) for tool in TOOLS}


def _version(tool: str) -> str:
    try:
        return version(tool)
    except PackageNotFoundError:
        if tool not in (*X86_ONLY, *_OTHERS):
            raise
        return "absent"


@cache
def code_digest(without: tuple[str, ...] = ()) -> str:
    """Digest of the code that makes and runs models: another compiler has another cache."""
    home = Path(__file__).parents[2]
    patterns = ("compiler/**/*.py", "wire/*.py", "agent/serving/*_program.py")
    files = sorted(p for pattern in patterns for p in home.glob(pattern) if not is_in(_dotted(p, home), without))
    lines = [f"{p.relative_to(home)} {hashlib.sha256(p.read_bytes()).hexdigest()}\n" for p in files]
    return digest("".join(lines).encode())


def is_in(module: str, rooms: Sequence[str]) -> bool:
    """Whether a module (`compiler.judge.gates`) is one of these modules of the compiler, or stands in such a room."""
    return any(f"{module}.".startswith(f"compiler.{room}.") for room in rooms)


def _dotted(path: Path, home: Path) -> str:
    return ".".join(path.relative_to(home).with_suffix("").parts)


@cache
def processor() -> str:
    """Model of the processor, empty where the system does not tell: int8 kernels answer differently on another one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def cache_key(what: str, **decides: Any) -> str:
    """The digest under which a result of a build is kept: `decides` are JSON values that say what was asked for."""
    return _key(what, decides, code_digest())


def work_key(what: str, **decides: Any) -> str:
    """The digest under which the work of one child is kept: which candidates a search tries does not change it."""
    return _key(what, decides, code_digest(_SEARCH))


def _key(what: str, decides: Mapping[str, Any], code: str) -> str:
    around = {"tools": dict(tool_versions()), "code": code, "machine": platform.machine(), "processor": processor()}
    return digest(dump_json({"what": what, "decides": decides, **around}))


def file_digest(path: Path) -> str:
    """`sha256:` and the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Entry(Document):
    """What is kept under one key: digests of files by name, and facts in JSON."""

    LIMIT: ClassVar[int] = 8 * 1024 * 1024

    files: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Cache:
    """A folder of earlier results: `blobs/sha256/*` and `entries/*.json`. Methods that write raise `Unavailable`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verified: set[tuple[str, int, int]] = set()

    def find(self, key: str) -> Entry | None:
        """What is kept under a key, if its files are all there and unchanged."""
        path = self._entry(key)
        try:
            entry = Entry.from_bytes(path.read_bytes())
            for name in entry.files.values():
                self._verify(name)
            os.utime(path)  # used now: `prune` takes what was not used for longest
        except (OSError, WireError, CompilerError):
            return None  # damaged is as good as absent: it is made again
        return entry

    def keep(self, key: str, files: Mapping[str, Path | bytes], facts: Mapping[str, Any] | None = None) -> Entry:
        """Keep files by name, and facts. A path is moved into the cache, from a folder that `scratch` gave."""
        try:
            digests = {name: self._put(data) for name, data in files.items()}
            entry = Entry(files=digests, facts=facts or {})
            write_whole(self._entry(key), entry.to_bytes())
        except OSError as e:
            raise self._unwritable(e) from e
        return entry

    def path(self, digest: str) -> Path:
        """Where a file of an entry lies. It must not be written to."""
        return blob_path(self.folder, digest)

    def get(self, key: str) -> Made | None:
        """An earlier result of a profile, or None."""
        entry = self.find(key)
        try:
            return Made.from_value(entry.facts["made"]) if entry else None
        except (KeyError, WireError):
            return None

    def put(self, key: str, made: Made, blobs: Mapping[str, bytes]) -> Made:
        """Keep the result of a profile with its files by digest."""
        self.keep(key, blobs, {"made": made.to_value()})
        return made

    def read(self, digest: str) -> bytes:
        """A file of a result that `get` or `put` returned."""
        return self.path(digest).read_bytes()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the cache's disk for work in progress, gone at the end.

        The folders of builds that were killed go when the next one starts: theirs are the ones that nobody locks.
        """
        home = self.folder / _SCRATCH
        try:
            home.mkdir(parents=True, exist_ok=True)
            with _locked(home / ".lock"):
                _sweep(home)
                folder = Path(tempfile.mkdtemp(dir=home))
                lock = _lock(folder / ".lock")
        except OSError as e:
            raise self._unwritable(e) from e
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def prune(self, limit: int = LIMIT) -> int:
        """Forget what was not used for longest until `limit` bytes are left; the number of bytes that went.

        What was used or written in the last hours (`RECENT`) stays: a build beside this one may need it.
        """
        old = time.time() - RECENT
        wanted: set[str] = set()
        used = 0
        for path, when in _by_use(self.folder / _ENTRIES):
            names = {n for n in _files_of(path) if n not in wanted}
            size = sum(map(_size, (path, *map(self.path, names))))
            if when < old and (used + size > limit or path.name.startswith(".")):  # a dot: half written by one killed
                path.unlink(missing_ok=True)
                continue
            wanted |= names
            used += size
        kept = {n.removeprefix("sha256:") for n in wanted}
        stale = [p for p, when in _by_use(self.folder / _BLOBS / "sha256") if p.name not in kept and when < old]
        return sum(_remove(path) for path in stale)

    def _verify(self, name: str) -> None:
        path = self.path(name)
        state = path.stat()
        seen = (name, state.st_mtime_ns, state.st_size)
        if seen not in self._verified:
            verify(path, name)
            self._verified.add(seen)

    def _put(self, data: Path | bytes) -> str:
        if isinstance(data, bytes):
            write_whole(self.path(name := digest(data)), data)
            return name
        path = self.path(name := file_digest(data))
        path.parent.mkdir(parents=True, exist_ok=True)
        data.replace(path)
        return name

    def _entry(self, key: str) -> Path:
        return self.folder / _ENTRIES / f"{key.removeprefix('sha256:')}.json"

    def _unwritable(self, error: OSError) -> Unavailable:
        return Unavailable(
            f"cache {self.folder}: cannot be written: {error.strerror}; name a folder that can be, with free space"
        )


def write_whole(path: Path, data: bytes) -> None:
    """All of the file or none of it, whatever happens in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _lock(path: Path, *, wait: bool = True) -> int:
    """A descriptor that holds the lock; closing it, or the end of the process, gives it back."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = _lock(path)
    try:
        yield
    finally:
        os.close(descriptor)


def _sweep(home: Path) -> None:
    for folder in home.iterdir():
        if folder.is_dir():
            try:
                lock = _lock(folder / ".lock", wait=False)
            except BlockingIOError:
                continue  # its build runs
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _by_use(folder: Path) -> list[tuple[Path, float]]:
    """The files of a folder with the time of their last use, newest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            found.append((path, path.stat().st_mtime))
        except FileNotFoundError:
            continue  # another build pruned it
    return sorted(found, key=lambda f: (-f[1], f[0]))


def _files_of(entry: Path) -> set[str]:
    try:
        return set(Entry.from_bytes(entry.read_bytes()).files.values())
    except (OSError, WireError):
        return set()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _remove(path: Path) -> int:
    size = _size(path)
    path.unlink(missing_ok=True)
    return size
