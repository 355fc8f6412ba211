"""Data capture: a sample of what a model was asked, kept on this device for whoever develops the app. Off by default.

Texts only, redacted before they are kept; in memory, bounded in bytes, gone with the agent; shown by `GET
/shoal/capture` and nowhere else. Nothing of it is ever sent: telemetry does not know that it exists.

capture = Capture(percent=5, size=64 * 1024, chance=random.random)
capture.take("kitchen", digest, examples, results)
capture.shown()
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from wire.processing import Example, Result

LONGEST: Final = 1000
"""Characters that are kept of a text."""
MOST: Final = 8
"""Examples that are kept of a request: the redacting of each takes a moment of the loop's thread."""
_GROUP: Final = r"[0-9A-Fa-f]{1,4}"
_IPV6: Final = re.compile(
    rf"(?<![\w:])(?:{_GROUP}(?::{_GROUP}){{7}}|(?:{_GROUP}(?::{_GROUP}){{0,6}})?::(?:{_GROUP}(?::{_GROUP}){{0,6}})?)"
    r"(?:%\w{1,16})?(?![\w:])"
)
"""Eight groups, or some around a `::`, so that no time of day is one."""
_CARD: Final = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")
_PATTERNS: Final = (
    ("mail", re.compile(r"[^\s@<>()\[\],;:\"]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")),
    ("iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")),
    ("address", re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)")),
    ("address", _IPV6),
    ("phone", re.compile(r"(?<![\w.])(?:\+|\(?0)\d(?:[ ()/.-]{0,2}\d){5,14}(?!\w)")),
    ("number", re.compile(r"(?<!\d)\d(?:[ .,/-]?\d){6,}(?!\d)")),
)
"""What is taken out, in this order. What is not a pattern, such as a name, stays: that is why capture is off."""


class Capture:
    """A ring of the newest samples. `percent` of the requests, `size` bytes in all, `chance()` from 0 to 1."""

    def __init__(self, *, percent: int, size: int, chance: Callable[[], float]) -> None:
        self._percent = percent
        self._size = size
        self._chance = chance
        self._held = 0
        self._samples: deque[tuple[int, dict[str, Any]]] = deque()
        self.seen = 0
        """Requests since the start, kept or not."""

    def take(self, model: str, digest: str, examples: Sequence[Example], results: Sequence[Result]) -> None:
        """Keep a request with its answer, if chance says so; arrays are not kept, only that there were some."""
        self.seen += 1
        if self._chance() * 100 >= self._percent:
            return
        texts = [redacted(example) if isinstance(example, str) else None for example in examples[:MOST]]
        labels = [list(result.labels) for result in results[:MOST]]
        weight = sum(100 + len((text or "").encode()) for text in texts) + sum(len(x) for row in labels for x in row)
        pairs = [{"text": text, "labels": row} for text, row in zip(texts, labels, strict=True)]
        self._samples.append((weight, {"request": self.seen, "model": model, "digest": digest, "examples": pairs}))
        self._held += weight
        while self._held > self._size:
            self._held -= self._samples.popleft()[0]

    def shown(self) -> dict[str, Any]:
        """What is kept, oldest first."""
        return {
            "percent": self._percent,
            "size": self._size,
            "held": self._held,
            "seen": self.seen,
            "samples": [sample for _, sample in self._samples],
        }


def redacted(text: str) -> str:
    """A text without addresses of mail and network, numbers of phones, cards and accounts, and other long numbers."""
    cut = _CARD.sub(lambda found: "[card]" if _luhn(found[0]) else found[0], text)
    for name, pattern in _PATTERNS:
        cut = pattern.sub(f"[{name}]", cut)
    return cut[:LONGEST]


def _luhn(number: str) -> bool:
    """Whether the check digit of a card number holds (ISO/IEC 7812-1)."""
    digits = [int(d) for d in reversed(number) if d.isdigit()]
    doubled = (sum(divmod(2 * d, 10)) for d in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
