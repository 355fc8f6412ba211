"""The tokenizer that ships: made from the source's `tokenizer.json`, read on the device by kitoken.

BERT's normaliser leans on the Unicode tables of whoever runs it: characters that joined Unicode after the
source's library was built would become other tokens on the device. So its rules are written out as ranges of code
points, taken from the source's own library, and every reader gives the same ids
(docs/decisions/0003-tokenizer-on-the-device.md).
Padding and truncation leave the file: `pipeline.json` states them.

    made = for_device(path.read_bytes())
    check_parity(source_bytes, made, texts)      # raises Incompatible with the first text that differs
    DeviceTokenizer(made.data, made.tokenizer(128)).rows(texts)
"""

# ruff: noqa: PLC0415, RUF001  look-alike characters are what the texts are for; heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from compiler.errors import Incompatible, Malformed
from wire.pipeline import Tokenizer

FILE = "tokenizer.json"
_SEPARATOR = "|"
_BASIC = [p for p in range(0x20000) if not 0xD800 <= p < 0xE000]
_POINTS = [*_BASIC, *range(0x20000, 0x30000), *range(0xE0000, 0xE1000), *range(0xF0000, sys.maxunicode + 1)]
"""Code points that a rule can name: the planes between are empty, and all punctuation is in the first two."""

# fmt: off
HARD_TEXTS = (
    *("", " ", "\t\n\r\x00\x07\x7f\x85", "don't stop", "naïve café cafe\u0301 Ångström İstanbul straße ﬁlter"),
    *("１２ ｆｕｌｌ ｶﾅ", "日本語と東京タワー", "𠮷野家で", "안녕하세요", "ประเทศไทย", "हिन्दी", "مرحبا", "שָׁלוֹם"),
    *("Привет, мир!", "你好，世界。", "🙂👩‍👩‍👧‍👦🇩🇪✌🏽❤️", "①½™€…—«x»„y“"),
    *("\u00a0\u3000\u200b\u2028\ufeff\ufffd\ue000", "\u0378 \u08f0 \U0001e900 \U000e0041 a\u1ac5b"),
    *("[MASK] [SEP] [UNK] [PAD] [mask] ##ing", "http://x.y/z?q=1&r=%20 a@b.co 3.14 1,000 C++ _x_ ^~`|"),
    *("x" * 100, "x" * 101, "a b " * 300),
)
# fmt: on
"""Texts on which tokenizers are known to differ."""


@dataclass(frozen=True)
class DeviceFile:
    """The shipped `tokenizer.json` and the ids that frame every text."""

    data: bytes
    before: tuple[int, ...]
    after: tuple[int, ...]
    pad: int

    def tokenizer(self, max_length: int) -> Tokenizer:
        """What `pipeline.json` says of it; `max_length` in tokens, frame included."""
        return Tokenizer(
            kind="huggingface-json",
            file=FILE,
            max_length=max_length,
            before=self.before,
            after=self.after,
            pad=self.pad,
        )


class DeviceTokenizer:
    """Text to token ids as the device does it. Raises `Malformed` for a file that kitoken does not read."""

    def __init__(self, data: bytes, tokenizer: Tokenizer) -> None:
        from kitoken import Kitoken

        try:
            self._encoder = Kitoken.from_tokenizers(data)
        except ValueError as e:
            raise Malformed(f"{FILE}: the device's tokenizer cannot read it: {e}") from e
        self._tokenizer = tokenizer

    def row(self, text: str) -> list[int]:
        """The ids of one text, at most `max_length` of them."""
        t = self._tokenizer
        room = t.max_length - len(t.before) - len(t.after)
        return [*t.before, *self._encoder.encode(text, True)[:room], *t.after]

    def words(self, text: str) -> list[int]:
        """The ids of one text, each word read alone."""
        t = self._tokenizer
        return [*t.before, *(i for word in text.split() for i in self._encoder.encode(word, True)), *t.after]


def for_device(source: bytes) -> DeviceFile:
    """Rewrite a source's `tokenizer.json` for the device. Raises `Malformed` or `Incompatible`."""
    reference = _reference(source)
    document = json.loads(source)
    before, after = _frame(reference)
    pad = (
        (document.get("padding") or {}).get("pad_id")
        or reference.token_to_id("[PAD]")
        or reference.token_to_id("<pad>")
        or 0
    )
    document |= {"padding": None, "truncation": None}
    if (document.get("normalizer") or {}).get("type") == "BertNormalizer":
        document["normalizer"], before_split = _spelled_normalizer(document["normalizer"])
        document["pre_tokenizer"] = _spelled_pre_tokenizer(document.get("pre_tokenizer"), before_split)
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return DeviceFile(data=data, before=before, after=after, pad=pad)


def check_parity(source: bytes, made: DeviceFile, texts: Iterable[str], *, by_word: bool = False) -> None:
    """Raises `Incompatible` when the device's ids of a text, uncut, are not the source's.

    `by_word`: the words of a text are read one by one, as for a task that labels words.
    """
    reference = _reference(source)
    device = DeviceTokenizer(made.data, made.tokenizer(sys.maxsize))
    for text in texts:
        if by_word:
            expected, got = reference.encode(text.split(), is_pretokenized=True).ids, device.words(text)
        else:
            expected, got = reference.encode(text).ids, device.row(text)
        if expected != got:
            raise Incompatible(
                f"{FILE}: the device reads {text[:60]!r} as {got[:12]}, the source as {expected[:12]}: "
                "this kind of tokenizer does not run on a device yet"
            )


def _reference(source: bytes) -> Any:
    """The source's own tokenizer, without padding and truncation. Raises `Malformed`."""
    from tokenizers import Tokenizer as SourceTokenizer  # type: ignore[import-untyped]

    try:
        reference = SourceTokenizer.from_str(source.decode())
    except Exception as e:  # the library raises Exception itself, and nothing narrower
        raise Malformed(f"{FILE}: not a tokenizer of the Hugging Face format: {e}") from e
    reference.no_padding()
    reference.no_truncation()
    return reference


def _frame(reference: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the source puts before and after one text."""
    whole, bare = reference.encode("a").ids, reference.encode("a", add_special_tokens=False).ids
    at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return tuple(whole[:at]), tuple(whole[at + len(bare) :])


def _spelled_normalizer(bert: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """BERT's normaliser as steps with explicit ranges, and the class of characters that stand alone ("" for none)."""
    from tokenizers.normalizers import BertNormalizer  # type: ignore[import-untyped]

    off = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
    lower = bool(bert.get("lowercase"))
    accents = bert.get("strip_accents")
    steps: list[dict[str, Any]] = []
    if bert.get("clean_text"):
        cleaned = list(_mapped(BertNormalizer(**{**off, "clean_text": True})))
        steps += [
            _replace(_ranges(p for p, c in cleaned if c == ""), ""),
            _replace(_ranges(p for p, c in cleaned if c == " "), " "),
        ]
    if lower if accents is None else accents:
        stripped = _mapped(BertNormalizer(**{**off, "strip_accents": True}))
        steps += [{"type": "NFD"}, _replace(_ranges(p for p, c in stripped if c == ""), "")]
    steps += [{"type": "Lowercase"}] if lower else []
    alone = ""
    if bert.get("handle_chinese_chars"):
        alone = _ranges(p for p, c in _mapped(BertNormalizer(**{**off, "handle_chinese_chars": True})) if len(c) == 3)
    return {"type": "Sequence", "normalizers": steps}, alone


def _spelled_pre_tokenizer(pre: dict[str, Any] | None, alone: str) -> dict[str, Any]:
    """BERT's splitting with explicit ranges. Raises `Incompatible` for a splitter of another kind."""
    if (pre or {}).get("type") != "BertPreTokenizer":
        raise Incompatible(f"{FILE}: a BertNormalizer with pre-tokenizer {(pre or {}).get('type')!r} is not supported")
    splits = [_split(r"\s+", "Removed")]
    splits += [_split(alone, "Isolated")] if alone else []
    splits += [_split(_ranges(_punctuation()), "Isolated")]
    return {"type": "Sequence", "pretokenizers": splits}


def _mapped(normalizer: Any) -> Iterator[tuple[int, str]]:
    """Every code point with what the normaliser makes of it; one call, because a million calls take seconds."""
    others = [p for p in _POINTS if chr(p) not in _SEPARATOR]
    text: str = normalizer.normalize_str(_SEPARATOR.join(map(chr, others)))
    return zip(others, text.split(_SEPARATOR), strict=True)


def _punctuation() -> list[int]:
    """Code points that the reference cuts out of a word."""
    from tokenizers.pre_tokenizers import BertPreTokenizer  # type: ignore[import-untyped]

    words = " ".join(f"a{chr(p)}a" for p in _BASIC)
    return sorted(
        {ord(piece) for piece, _ in BertPreTokenizer().pre_tokenize_str(words) if len(piece) == 1} - {ord("a")}
    )


def _ranges(points: Iterable[int]) -> str:
    """A regular expression's character class."""
    spans: list[list[int]] = []
    for p in points:
        if spans and p == spans[-1][1] + 1:
            spans[-1][1] = p
        else:
            spans.append([p, p])
    parts = (f"\\x{{{a:04X}}}" if a == b else f"\\x{{{a:04X}}}-\\x{{{b:04X}}}" for a, b in spans)
    return f"[{''.join(parts)}]"


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _split(pattern: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}
