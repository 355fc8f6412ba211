from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import Unavailable, Untrusted
from agent.store.blobs import Blobs
from wire.chunks import ChunkList, ChunkRef, digest

PARTS = tuple(bytes([i + 1]) * (100 + i) for i in range(6))
BLOB = b"".join(PARTS)
LIST = ChunkList(
    blob=digest(BLOB), size=len(BLOB), chunks=tuple(ChunkRef(digest=digest(p), size=len(p)) for p in PARTS)
)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["good", "flipped", "short", "restart", "tear"]))))
def test_whatever_arrives_only_verified_bytes_are_kept(moves) -> None:
    """Any order, duplicates, flipped bits, restarts, and a disk that tore what was written last."""
    with tempfile.TemporaryDirectory() as name:
        store = Blobs(Path(name), 0)
        partial = store.begin(LIST)
        held: set[int] = set()
        for index, what in moves:
            data = PARTS[index]
            if what == "good":
                assert partial.put(index, data) is (index not in held)
                held.add(index)
            elif what in ("flipped", "short") and index not in held:
                with pytest.raises(Untrusted, match=f"chunk {index}"):
                    partial.put(index, data[:-1] + (b"\xff" if what == "flipped" else b""))
            elif what == "restart":
                partial.close()
                partial = store.begin(LIST)
            elif what == "tear" and index in held:
                partial.close()
                with store.path(LIST.blob).with_suffix(".partial").open("r+b") as file:
                    file.seek(LIST.offsets[index])
                    file.write(b"\xee")
                partial = store.begin(LIST)
                held.discard(index)
            assert partial.missing == frozenset(range(6)) - held
            assert not store.has(LIST.blob)
        for index in sorted(partial.missing, reverse=True):
            partial.put(index, PARTS[index])
        partial.finish()
        partial.close()
        assert store.read(LIST.blob) == BLOB


def test_chunks_of_a_wrong_list_never_become_a_blob(tmp_path) -> None:
    """Attack: a chunk list that names the blob and cuts up another one."""
    other = tuple(bytes([9]) * len(p) for p in PARTS)
    wrong = ChunkList(
        blob=LIST.blob, size=LIST.size, chunks=tuple(ChunkRef(digest=digest(p), size=len(p)) for p in other)
    )
    store = Blobs(tmp_path, 0)
    partial = store.begin(wrong)
    for index, data in enumerate(other):
        partial.put(index, data)
    with pytest.raises(Untrusted, match="add up to another blob"):
        partial.finish()
    partial.close()
    assert list(tmp_path.iterdir()) == []


def test_a_chunk_beyond_the_list_is_refused(tmp_path) -> None:
    partial = Blobs(tmp_path, 0).begin(LIST)
    with pytest.raises(Untrusted, match="chunk 6 of 6"):
        partial.put(6, b"x")
    partial.close()


def test_collecting_keeps_what_is_needed_whole_or_partial(tmp_path) -> None:
    store = Blobs(tmp_path, 0)
    store.begin(LIST).close()
    (tmp_path / ("a" * 64)).write_bytes(b"old")
    assert store.collect({LIST.blob}) == 3
    assert [p.name for p in tmp_path.iterdir()] == [f"{LIST.blob.removeprefix('sha256:')}.partial"]


def test_a_file_that_cannot_be_removed_is_named_and_one_that_is_gone_is_passed(tmp_path, monkeypatch) -> None:
    """Accident: the disk has an error; and somebody else removed a file first."""
    store, unlink = Blobs(tmp_path, 0), Path.unlink
    (tmp_path / ("a" * 64)).write_bytes(b"old")

    def twice(path: Path) -> None:
        unlink(path)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", twice)
    assert store.collect(()) == 0
    (tmp_path / ("b" * 64)).mkdir()
    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(Unavailable, match="bbb: not removed: "):
        store.collect(())


def test_a_blob_that_the_disk_changed_is_not_read(tmp_path) -> None:
    store = Blobs(tmp_path, 0)
    store.path(LIST.blob).write_bytes(BLOB[:-1] + b"x")
    with pytest.raises(Unavailable, match="the disk changed it"):
        store.read(LIST.blob)


def test_too_little_room_is_said_with_figures(tmp_path) -> None:
    with pytest.raises(Unavailable, match=r"free, the update needs 1\.0 MiB"):
        Blobs(tmp_path, 1 << 60).check_room(1 << 20)


# --- chunks that another blob has too -----------------------------------------------------------------------------

NEXT_PARTS = (*PARTS[:2], b"new" * 40, *PARTS[3:])
NEXT = b"".join(NEXT_PARTS)
NEXT_LIST = ChunkList(
    blob=digest(NEXT), size=len(NEXT), chunks=tuple(ChunkRef(digest=digest(p), size=len(p)) for p in NEXT_PARTS)
)


def store_with_version_one(folder: Path, blob: bytes = BLOB) -> Blobs:
    store = Blobs(folder, 0)
    store.path(LIST.blob).write_bytes(blob)
    store.path(digest(LIST.to_bytes())).write_bytes(LIST.to_bytes())
    return store


def test_a_new_version_begins_with_the_chunks_of_the_old_one(tmp_path) -> None:
    store = store_with_version_one(tmp_path)
    assert store.lacking(NEXT_LIST) == len(NEXT_PARTS[2])
    partial = store.begin(NEXT_LIST)
    assert partial.missing == {2}
    assert not partial.complete
    partial.put(2, NEXT_PARTS[2])
    assert partial.complete
    partial.finish()
    partial.close()
    assert store.read(NEXT_LIST.blob) == NEXT
    assert store.lacking(NEXT_LIST) == 0


def test_chunks_of_a_blob_that_is_only_half_here_count_too(tmp_path) -> None:
    store = Blobs(tmp_path, 0)
    store.path(digest(LIST.to_bytes())).write_bytes(LIST.to_bytes())
    half = store.begin(LIST)
    for index in (0, 4):
        half.put(index, PARTS[index])
    half.close()
    partial = store.begin(NEXT_LIST)
    assert partial.missing == {1, 2, 3, 5}
    partial.close()
    assert store.lacking(NEXT_LIST) == sum(len(NEXT_PARTS[i]) for i in (1, 2, 3, 5))


def test_a_chunk_that_the_disk_damaged_in_another_blob_is_not_used_again(tmp_path) -> None:
    """Accident: one bit of the old version rotted. Its other chunks still count."""
    damaged = bytearray(BLOB)
    damaged[LIST.offsets[4] + 7] ^= 1
    store = store_with_version_one(tmp_path, bytes(damaged))
    partial = store.begin(NEXT_LIST)
    assert partial.missing == {2, 4}
    partial.close()


@pytest.mark.parametrize("text", [b'{"blob":"', b'{"blob":"sha256:' + b"0" * 64 + b'","chunks":[],"size":1}'])
def test_a_damaged_chunk_list_in_the_store_is_passed_over(tmp_path, text: bytes) -> None:
    store = store_with_version_one(tmp_path)
    store.path("sha256:" + "0" * 64).write_bytes(text)
    partial = store.begin(NEXT_LIST)
    assert partial.missing == {2}
    partial.close()


def test_a_list_that_names_chunks_of_a_blob_wrongly_brings_none_of_them(tmp_path) -> None:
    """Attack: a chunk list of another release says that a blob here holds what it does not hold."""
    store = Blobs(tmp_path, 0)
    other = b"x" * len(BLOB)
    lie = ChunkList(blob=digest(other), size=len(other), chunks=LIST.chunks)
    store.path(lie.blob).write_bytes(other)
    store.path(digest(lie.to_bytes())).write_bytes(lie.to_bytes())
    partial = store.begin(NEXT_LIST)
    assert partial.missing == frozenset(range(6))
    partial.close()
