"""JSON documents as frozen dataclasses: bytes in, typed value out, and back.

Guarantees: a value of the wrong type, a missing field, a number that is not finite or an integer of more than 64
bits, half a surrogate pair, a duplicate key or a document over its limit is `Malformed` with the path of the fault
(`reported.models[0].digest`), so what was read can be written and stored; a field that this reader does not know is
kept in `extra` and written again, so that formats can grow.

    @dataclass(frozen=True, kw_only=True)
    class Want(Document):
        digest: str
        chunks: tuple[int, ...]

    Want.from_bytes(b'{"digest": "ab", "chunks": [1]}').to_bytes()
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, Union

import orjson

from wire.errors import Incompatible, Malformed

CONTRACT = "1.0"
"""Version of topics, messages and manifests. A reader refuses another major, and keeps fields that it does not know."""
_MAJOR = CONTRACT.partition(".")[0]

_DEVICE = re.compile(r"[a-z0-9-]{1,63}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_INT = 2**63


@dataclass(frozen=True, kw_only=True)
class Document:
    """Base of every document. Subclasses may set `LIMIT`, the largest accepted size in bytes.

    `LEAN` are fields that are not written while they are empty, as they are made by their default.
    """

    LIMIT: ClassVar[int] = 256 * 1024
    LEAN: ClassVar[frozenset[str]] = frozenset()

    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse UTF-8 JSON. Raises `Malformed`, or `Incompatible` for another contract version."""
        return cls.from_value(parse_json(data, what=_name(cls), limit=cls.LIMIT))

    @classmethod
    def from_value(cls, value: object) -> Self:
        """Build from a parsed JSON value. Raises as `from_bytes` does."""
        if isinstance(value, dict) and "contract" in _hints(cls):
            check_contract(value.get("contract", ""), _name(cls))
        try:
            return typing.cast(Self, _reader(cls)(value))
        except _WrongError:
            return typing.cast(Self, _decode(cls, value, _name(cls)))  # slower: it raises what names the place

    def to_bytes(self) -> bytes:
        """UTF-8 JSON with sorted keys: the same value gives the same bytes."""
        return dump_json(self.to_value())

    def to_value(self) -> dict[str, Any]:
        """The document as JSON-ready dicts and lists; `None` fields are left out."""
        value = _encode(self)
        assert isinstance(value, dict)
        return value


def parse_json(data: bytes, *, what: str, limit: int) -> Any:
    """Strict JSON. Raises `Malformed` for size, encoding, depth, numbers that are not finite and duplicate keys."""
    if len(data) > limit:
        raise Malformed(f"{what}: {len(data)} bytes, the limit is {limit}")
    with suppress(ValueError):  # said below, in words
        value = orjson.loads(data)
        # What `dump_json` wrote is the same again, so no key stands twice in it: as strict, and three times as fast.
        if orjson.dumps(value, option=orjson.OPT_SORT_KEYS) == data:
            return value
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite
        )
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        raise Malformed(f"{what}: a text holds half of a surrogate pair") from e
    except (ValueError, RecursionError) as e:
        raise Malformed(f"{what}: not valid JSON: {e}") from e
    return value


def dump_json(value: object) -> bytes:
    """Compact UTF-8 JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def check_contract(version: object, where: str) -> None:
    """Raises `Incompatible` when the major of `version` is not ours, `Malformed` when it is no version."""
    if not isinstance(version, str) or not re.fullmatch(r"\d{1,4}\.\d{1,4}", version):
        raise Malformed(f"{where}.contract: expected a version such as {CONTRACT!r}, got {version!r}")
    if version.partition(".")[0] != _MAJOR:
        raise Incompatible(f"{where}: written for contract {version}, this program reads {_MAJOR}.x: update it")


def check_device(device: str, where: str) -> str:
    """A device id: `[a-z0-9-]{1,63}`."""
    return _check(_DEVICE, device, where, "a device id of 1 to 63 characters a-z, 0-9 and -")


def check_digest(digest: str, where: str) -> str:
    """A content digest: `sha256:` and 64 hexadecimal digits."""
    return _check(_DIGEST, digest, where, "sha256: and 64 hexadecimal digits")


def check_name(name: str, where: str) -> str:
    """A name of a family, model, version or profile: lower case, safe in paths and topics."""
    return _check(
        _NAME, name, where, "1 to 64 characters a-z, 0-9, '.', '_' and '-', starting and ending with a-z or 0-9"
    )


def check_token(text: str, where: str) -> str:
    """A name that a program made up for a start, a connection or a message: 1 to 64 letters, digits, _ and -."""
    return _check(_TOKEN, text, where, "1 to 64 characters a-z, A-Z, 0-9, _ and -")


def check_file(name: str, where: str) -> str:
    """The name of a file in a folder that somebody else chose: it cannot leave it."""
    return _check(_FILE, name, where, "a plain file name")


def check_counts(document: object, *names: str) -> None:
    """Raises `Malformed` when one of a document's numbers is below 0."""
    for name in names:
        if getattr(document, name) < 0:
            raise Malformed(f"{_name(type(document))}.{name}: expected 0 or more, got {getattr(document, name)}")


def _check(pattern: re.Pattern[str], text: str, where: str, expected: str) -> str:
    if not pattern.fullmatch(text):
        raise Malformed(f"{where}: expected {expected}, got {text[:80]!r}")
    return text


def _name(cls: type) -> str:
    return cls.__name__.lower()


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number


_PLAIN = frozenset({str, int, float, bool})


def _encode(value: object) -> object:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Document):
        return _encode_document(value)
    if type(value) is dict and set(map(type, value.values())) == {int} and set(map(type, value)) == {str}:
        return dict(value)
    if isinstance(value, Mapping):
        return {str(k): _encode(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_encode(v) for v in value]
    return value


def _encode_document(value: Document) -> dict[str, object]:
    found, fields, lean = dict(value.extra), vars(value), value.LEAN
    for name in _names(type(value)):
        one = fields[name]
        if type(one) in _PLAIN:
            found[name] = one
        elif one is not None and not (name in lean and one == _empty(type(value), name)):
            found[name] = _encode(one)
    return found


_EMPTY: dict[tuple[type, str], object] = {}


def _empty(cls: type, name: str) -> object:
    """What a field is by its default."""
    if (cls, name) not in _EMPTY:
        (made,) = (f.default_factory for f in dataclasses.fields(cls) if f.name == name)
        assert made is not dataclasses.MISSING
        _EMPTY[cls, name] = made()
    return _EMPTY[cls, name]


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


_NAMES: dict[type, tuple[str, ...]] = {}


def _names(cls: type) -> tuple[str, ...]:
    """The fields of a document but `extra`."""
    if cls not in _NAMES:
        _NAMES[cls] = tuple(f.name for f in dataclasses.fields(cls) if f.name != "extra")
    return _NAMES[cls]


# --- reading, made once for each type: a fleet reads thousands of documents a second ----------------------------------


class _WrongError(Exception):
    """A value is not of its type: `_decode` says where."""


Reader = Callable[[Any], Any]
_READERS: dict[Any, Reader] = {}


def _reader(kind: Any) -> Reader:
    """What `_decode` does for a type, without the place of a fault: it raises `_WrongError` instead."""
    if kind not in _READERS:
        _READERS[kind] = _make_reader(kind)
    return _READERS[kind]


def _make_reader(kind: Any) -> Reader:  # noqa: PLR0911  one line for each kind of type
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or kind is object:
        return lambda value: value
    if isinstance(kind, type) and issubclass(kind, Document):
        return _document_reader(kind)
    if origin in (Union, types.UnionType):
        (of,) = (a for a in args if a is not type(None))
        return _optional_reader(of)
    if origin is Literal:
        return _literal_reader(args)
    if origin is tuple:
        return _list_reader(args[0])
    if origin in (Mapping, dict):
        return _mapping_reader(args[1])
    if kind is int:
        return _read_int
    return _read_float if kind is float else _plain_reader(kind)


def _read_int(value: Any) -> int:
    if type(value) is not int or not -_INT <= value < _INT:
        raise _WrongError
    return value


def _read_float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is not int:
        raise _WrongError
    try:
        return float(value)
    except OverflowError:
        raise _WrongError from None


def _plain_reader(kind: type) -> Reader:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise _WrongError
        return value

    return read


def _literal_reader(words: tuple[Any, ...]) -> Reader:
    def read(value: Any) -> Any:
        if value not in words or isinstance(value, bool):
            raise _WrongError
        return value

    return read


def _optional_reader(of: Any) -> Reader:
    inner = _reader(of)

    def read(value: Any) -> Any:
        return None if value is None else inner(value)

    return read


def _are_counts(values: Collection[Any]) -> bool:
    """Whether all are integers of at most 64 bits: histograms and sketches are long."""
    return set(map(type, values)) == {int} and min(values) >= -_INT and max(values) < _INT


def _list_reader(of: Any) -> Reader:
    inner = _reader(of)

    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _WrongError
        if of is int and _are_counts(value):
            return tuple(value)
        return tuple(map(inner, value))

    return read


def _mapping_reader(of: Any) -> Reader:
    inner = _reader(of)

    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _WrongError
        if of is int and _are_counts(value.values()):
            return dict(value)
        return {key: inner(item) for key, item in value.items()}

    return read


def _document_reader(cls: type[Document]) -> Reader:
    hints = _hints(cls)
    missing = dataclasses.MISSING
    fields = [f for f in dataclasses.fields(cls) if f.name != "extra"]
    needed = frozenset(f.name for f in fields if f.default is missing and f.default_factory is missing)
    plain = {f.name: f.default for f in fields if f.default is not missing}
    made = [(f.name, f.default_factory) for f in fields if f.default_factory is not missing]
    readers = {f.name: _reader(hints[f.name]) for f in fields}
    check = getattr(cls, "__post_init__", None)

    def read(value: Any) -> Document:
        if type(value) is not dict or not needed <= value.keys():
            raise _WrongError
        known = plain.copy()
        extra: dict[str, Any] = {}
        for name, item in value.items():
            if name in readers:
                known[name] = readers[name](item)
            else:
                extra[name] = item
        for name, make in made:
            if name not in known:
                known[name] = make()
        known["extra"] = extra
        # What `__init__` does, without asking for each field whether a frozen class may set it: half of all reading.
        document = object.__new__(cls)
        document.__dict__.update(known)
        if check is not None:
            check(document)
        return document

    return read


def _decode(kind: Any, value: object, where: str) -> object:  # noqa: C901, PLR0911  one line for each kind of type
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or kind is object:
        return value
    if isinstance(kind, type) and issubclass(kind, Document):
        return _decode_document(kind, value, where)
    if origin in (Union, types.UnionType):
        return _decode_union(args, value, where)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            raise Malformed(f"{where}: expected one of {', '.join(map(repr, args))}, got {value!r}"[:400])
        return value
    if origin is tuple:
        items = _expect(list, value, where)
        return tuple(_decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin in (Mapping, dict):
        pairs = _expect(dict, value, where)
        return {key: _decode(args[1], item, f"{where}.{key[:80]}") for key, item in pairs.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return _expect_float(value, where)
    return _expect(kind, value, where)


def _decode_document(cls: type[Document], value: object, where: str) -> Document:
    pairs = _expect(dict, value, where)
    hints = _hints(cls)
    known: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        if f.name == "extra":
            continue
        if f.name in pairs:
            known[f.name] = _decode(hints[f.name], pairs[f.name], f"{where}.{f.name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise Malformed(f"{where}.{f.name}: missing")
    return cls(**known, extra={k: v for k, v in pairs.items() if k not in known})


def _decode_union(args: tuple[Any, ...], value: object, where: str) -> object:
    if value is None and type(None) in args:
        return None
    (kind,) = (a for a in args if a is not type(None))
    return _decode(kind, value, where)


def _expect(kind: type, value: object, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Malformed(f"{where}: expected {kind.__name__}, got {type(value).__name__}")
    if kind is int and not -_INT <= typing.cast(int, value) < _INT:
        raise Malformed(f"{where}: number too large")
    return value


def _expect_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError as e:
        raise Malformed(f"{where}: number too large") from e
