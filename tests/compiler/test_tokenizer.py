"""The tokenizer that ships gives the source's ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compiler.bundle.tokenizer import HARD_TEXTS, DeviceTokenizer, check_parity, for_device
from compiler.errors import Incompatible, Malformed


@pytest.fixture(scope="module")
def original(encoder: Path) -> bytes:
    return (encoder / "tokenizer.json").read_bytes()


def test_hard_unicode_has_the_ids_of_the_source(original: bytes) -> None:
    check_parity(original, for_device(original), HARD_TEXTS)


def test_without_the_rewriting_a_character_newer_than_the_source_becomes_other_tokens(original: bytes) -> None:
    """The accident that the rewriting prevents: U+0378 is unassigned, the readers disagree on what that means."""
    made = for_device(original)
    plain = json.loads(original) | {"padding": None, "truncation": None}
    made = type(made)(json.dumps(plain).encode(), made.before, made.after, made.pad)
    with pytest.raises(Incompatible, match="the device reads"):
        check_parity(original, made, ["a\u0378b"])


@pytest.mark.slow
def test_every_code_point_has_the_ids_of_the_source(original: bytes) -> None:
    every = (f"a{chr(p)}b" for p in range(0x110000) if not 0xD800 <= p < 0xE000)
    check_parity(original, for_device(original), every)


def test_a_row_is_framed_and_cut_to_the_length(original: bytes) -> None:
    made = for_device(original)
    row = DeviceTokenizer(made.data, made.tokenizer(6)).row("turn lamp now quick please stop")
    assert (row[:1], row[-1:], len(row)) == (list(made.before), list(made.after), 6)


def test_padding_of_the_file_does_not_reach_the_device(original: bytes) -> None:
    made = for_device(original)
    assert json.loads(original)["padding"] is not None
    assert len(DeviceTokenizer(made.data, made.tokenizer(64)).row("lamp")) == 3


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"model": 1}'])
def test_a_file_that_is_no_tokenizer_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed, match=r"tokenizer\.json"):
        for_device(data)


def test_another_splitter_under_a_bert_normaliser_is_refused(original: bytes) -> None:
    value: dict[str, Any] = json.loads(original)
    value["pre_tokenizer"] = {"type": "Whitespace"}
    with pytest.raises(Incompatible, match="Whitespace"):
        for_device(json.dumps(value).encode())
