"""Tokens and what they cost. Pure. Money is counted in nanos: billionths of the currency that the prices are in.

usage = usage_of(answer) or Usage(prompt, estimate(text), estimated=True)
cost = price.cost(usage)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fleet.readers import needed, number

NANOS: Final = 1_000_000_000
BYTES_PER_TOKEN: Final = 3
"""Of UTF-8. English has four to a token and Chinese about three: an estimate is rather too high than too low."""
PART: Final = 1500
"""Tokens counted for a picture or a sound, whose real number only the model knows."""
MOST_STORED: Final = 2**63 - 1
"""The largest number of the database."""
_MOST: Final = 1_000_000_000


@dataclass(frozen=True)
class Usage:
    """Tokens of a request. `estimated`: nobody counted them, because the usage is missing or the client left."""

    prompt: int
    completion: int
    estimated: bool = False

    @property
    def total(self) -> int:
        """All of them."""
        return self.prompt + self.completion


@dataclass(frozen=True, kw_only=True)
class Price:
    """For a million tokens, in units of one currency for all prices."""

    input: float = needed(number(0, 1_000_000))
    output: float = needed(number(0, 1_000_000))

    def cost(self, usage: Usage) -> int:
        """Nanos, rounded up."""
        return math.ceil((usage.prompt * self.input + usage.completion * self.output) * (NANOS / 1_000_000))


FREE: Final = Price(input=0, output=0)


def estimate(text: str) -> int:
    """Tokens of a text, rather too many than too few."""
    return tokens_of(len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")))


def tokens_of(size: int) -> int:
    """Tokens of so many bytes of text."""
    return -(-size // BYTES_PER_TOKEN)


def usage_of(value: object) -> Usage | None:
    """The usage that an answer of an upstream tells; None when it tells none that makes sense."""
    usage = value.get("usage") if isinstance(value, Mapping) else None
    if not isinstance(usage, Mapping):
        return None
    prompt, completion = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
    # Embeddings have no completion.
    return Usage(prompt, completion or 0) if prompt is not None else None


def _tokens(usage: Mapping[str, Any], name: str) -> int | None:
    count = usage.get(name)
    return count if type(count) is int and 0 <= count <= _MOST else None
