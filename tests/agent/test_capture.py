"""Data capture: a sample that is redacted and bounded."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from agent.serving.capture import LONGEST, MOST, Capture, redacted
from wire.processing import Result


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("call me at anna.berg+x@mail.example.org please", "call me at [mail] please"),
        ("my card is 4111 1111 1111 1111, thanks", "my card is [card], thanks"),
        ("4111-1111-1111-1111", "[card]"),
        ("not a card 4111 1111 1111 1112", "not a card [number]"),
        ("ring +49 (89) 1234-5678 now", "ring [phone] now"),
        ("ring 089/12345678", "ring [phone]"),
        ("pay to DE89 3704 0044 0532 0130 00 today", "pay to [iban] today"),
        ("the router is 192.168.178.1", "the router is [address]"),
        ("the server is 10.0.0.1.", "the server is [address]."),
        ("ask fe80::1ff:fe23:4567:890a%eth0, or ::1.", "ask [address], or [address]."),
        ("2001:db8:0:0:0:0:2:1 is down", "[address] is down"),
        ("wake me at 7:30:15, then at 8:00", "wake me at 7:30:15, then at 8:00"),
        ("pay 1,234,567,890 now", "pay [number] now"),
        ("file 12/345/6789", "file [number]"),
        ("customer 123456789", "customer [number]"),
        ("set it to 21.5 degrees at 7:30 in room 12", "set it to 21.5 degrees at 7:30 in room 12"),
        ("turn the light on", "turn the light on"),
    ],
)
def test_what_identifies_somebody_is_taken_out(text: str, left: str) -> None:
    assert redacted(text) == left


def test_a_text_of_any_form_is_redacted_in_linear_time() -> None:
    """Attack: texts on which a careless pattern takes for ever."""
    for hostile in (
        "1" * 8000,
        "1 " * 4000,
        "a@" * 4000,
        "+1-" * 2700,
        "AB12 " * 1600,
        "a." * 4000,
        "@" * 8000,
        "1:" * 4000,
        "a::" * 2700,
    ):
        assert len(redacted(hostile)) <= LONGEST


def answer(label: str) -> Result:
    return Result({"scores": np.zeros(2, np.float32)}, (label,))


def test_a_sample_is_kept_with_its_answer_and_no_array() -> None:
    capture = Capture(percent=50, size=10_000, chance=itertools.cycle([0.2, 0.7]).__next__)
    for i in range(4):
        capture.take("kitchen", "sha256:1", (f"text {i}",), (answer("on"),))
    capture.take("voice", "sha256:2", ({"audio": np.zeros(9)},), (answer("speech"),))
    shown = capture.shown()
    assert (shown["seen"], shown["percent"]) == (5, 50)
    assert [s["examples"] for s in shown["samples"]] == [
        [{"text": "text 0", "labels": ["on"]}],
        [{"text": "text 2", "labels": ["on"]}],
        [{"text": None, "labels": ["speech"]}],
    ]
    json.dumps(shown)


def test_only_the_first_examples_of_a_request_are_redacted_and_kept() -> None:
    capture = Capture(percent=100, size=100_000, chance=lambda: 0.0)
    capture.take("kitchen", "sha256:1", tuple(f"text {i}" for i in range(256)), (answer("on"),) * 256)
    (sample,) = capture.shown()["samples"]
    assert [pair["text"] for pair in sample["examples"]] == [f"text {i}" for i in range(MOST)]


def test_the_oldest_samples_give_way_and_the_bound_holds() -> None:
    capture = Capture(percent=100, size=2000, chance=lambda: 0.0)
    for i in range(100):
        capture.take("kitchen", "sha256:1", ("x" * 300 + str(i),), (answer("on"),))
        assert capture.shown()["held"] <= 2000
    kept = [s["request"] for s in capture.shown()["samples"]]
    assert kept == list(range(101 - len(kept), 101))
    assert len(kept) >= 3
    capture.take("kitchen", "sha256:1", ("y " * 900,) * 9, (answer("on"),) * 9)
    assert capture.shown()["samples"] == []
