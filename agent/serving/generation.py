"""What a language model is asked, and what it answers part by part: values, whichever runtime generates.

Asked(messages=(Message("user", "Hello"),), max_tokens=64)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One message of a chat; the role is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request: the messages of a chat, or a text to go on with.

    `max_tokens` of the answer, None for as many as the context takes. `temperature` 0 always takes the likeliest token;
    `seed` None draws otherwise each time. The answer ends before the first of the `stop` sequences.
    """

    messages: tuple[Message, ...] | None = None
    prompt: str = ""
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class End:
    """How an answer ended: `stop`, `length`, or `stopped` where nobody wanted the rest. Tokens of prompt and answer."""

    finish: str
    prompt: int
    answer: int


@dataclass(frozen=True)
class Part:
    """What came next of an answer; the last one has its `end`, and nothing else.

    `logprobs` of the chosen tokens, and `margins` between the two likeliest ones, are natural logarithms.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    margins: tuple[float, ...] = ()
    end: End | None = None


Hear = Callable[[Part], bool]
"""Takes a part of an answer in the model's thread; False where the rest is not wanted."""
