"""Changes bytes of a stored member of a zip archive in their place, checksums included; everything else stays.

A TorchScript archive is such a zip: its tensors stand uncompressed at aligned places, which writing it anew would move.
Layout of the records: APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.9 (data descriptor), 4.3.12 (directory).
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass

from compiler.errors import Incompatible

_LOCAL = struct.Struct("<4s22xHH")
_ENTRY = struct.Struct("<4s12xL8xHHH8xL")
_CRC = struct.Struct("<L")
_LOCAL_CRC, _ENTRY_CRC = 14, 16
_DESCRIPTOR_MARK = b"PK\7\x08"
_HAS_DESCRIPTOR = 8


@dataclass(frozen=True)
class Member:
    """A stored member: its name, where its bytes stand, and where its checksum stands, as often as it does."""

    name: str
    start: int
    length: int
    checksums: tuple[int, ...]


def members(data: bytes) -> list[Member]:
    """The members that are stored as they are. Raises `Incompatible` for what is no sound archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = _entries(data, archive.start_dir, len(archive.infolist()))
            stored = [info for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED]
        return [_member(data, info, entries[info.header_offset]) for info in stored]
    except (zipfile.BadZipFile, struct.error, KeyError) as e:
        raise Incompatible(f"a damaged zip archive: {e}: copy the model again") from e


def replaced(data: bytes, member: Member, new: bytes) -> bytes:
    """The archive with other bytes for a member, as many as it had."""
    assert len(new) == member.length
    changed = bytearray(data)
    changed[member.start : member.start + member.length] = new
    for place in member.checksums:
        _CRC.pack_into(changed, place, zlib.crc32(new))
    return bytes(changed)


def _entries(data: bytes, place: int, count: int) -> dict[int, int]:
    """Where the directory's entry of a member stands, by the offset of its local header."""
    found = {}
    for _ in range(count):
        _, _, name, extra, comment, offset = _ENTRY.unpack_from(data, place)
        found[offset] = place
        place += _ENTRY.size + name + extra + comment
    return found


def _member(data: bytes, info: zipfile.ZipInfo, entry: int) -> Member:
    _, name, extra = _LOCAL.unpack_from(data, info.header_offset)
    start = info.header_offset + _LOCAL.size + name + extra
    end = start + info.file_size
    if not info.flag_bits & _HAS_DESCRIPTOR:
        second = info.header_offset + _LOCAL_CRC
    else:  # its mark is usual, and may be missing
        second = end + 4 * (data[end : end + 4] == _DESCRIPTOR_MARK)
    return Member(info.filename, start, info.file_size, (entry + _ENTRY_CRC, second))
