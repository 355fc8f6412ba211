"""What OpenAI's requests ask for, in values. Pure; every refusal names the field and what is expected.

A field that would change the answer and is not understood here is refused; one that changes nothing (`user`,
`metadata`, `store`) is passed over, as OpenAI's API does.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from agent.errors import Malformed, Unsupported
from agent.serving.generation import Asked, Message

if TYPE_CHECKING:
    from wire.processing import Array

MOST_TEXTS: Final = 2048
"""Texts of one request for embeddings, as OpenAI has it."""
LONGEST_TEXT: Final = 64 * 1024
MOST_STOPS: Final = 4
ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "top_logprobs": (0,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
}
"""Fields that are not done here, and the values that ask for nothing."""


@dataclass(frozen=True)
class Generation:
    """A request for text. `chat`: for the form of a chat."""

    asked: Asked
    chat: bool
    stream: bool
    include_usage: bool
    logprobs: bool


@dataclass(frozen=True)
class Embeddings:
    """A request for embeddings, one for each text."""

    texts: tuple[str, ...]
    base64: bool

    def shown(self, values: Array) -> list[float] | str:
        """An embedding as it was asked for: numbers, or base64 of little-endian float32."""
        if self.base64:
            return base64.b64encode(values.astype("<f4").tobytes()).decode()
        return [float(v) for v in values]


def parse_generation(value: Mapping[str, Any], *, chat: bool) -> Generation:
    """Raises `Malformed`, `Unsupported` for what another model may do."""
    for name, neutral in _NEUTRAL.items():
        if value.get(name) is not None and value[name] not in neutral:
            raise Unsupported(f"{name}: this device does not do it: leave it out, or ask a model of the cloud tier")
    asked = Asked(
        messages=_messages(value.get("messages")) if chat else None,
        prompt="" if chat else _prompt(value.get("prompt")),
        max_tokens=_most(value, chat=chat),
        temperature=_number(value, "temperature", 1.0, 2.0),
        top_p=_number(value, "top_p", 1.0, 1.0),
        seed=_whole(value, "seed", -(2**63)),
        stop=_stop(value.get("stop")),
    )
    options = value.get("stream_options") or {}
    if not isinstance(options, dict):
        raise Malformed('stream_options: expected an object such as {"include_usage": true}')
    return Generation(
        asked,
        chat,
        stream=_flag(value, "stream"),
        include_usage=_flag(options, "include_usage"),
        logprobs=_logprobs(value, chat=chat),
    )


def parse_embeddings(value: Mapping[str, Any]) -> Embeddings:
    """Raises `Malformed`."""
    given, form = value.get("input"), value.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise Malformed(f"encoding_format: expected float or base64, got {str(form)[:40]!r}")
    if value.get("dimensions") is not None:
        raise Malformed("dimensions: a model on this device has its own width: leave it out")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not 1 <= len(texts) <= MOST_TEXTS:
        raise Malformed(f"input: expected a text, or a list of 1 to {MOST_TEXTS} texts")
    if any(isinstance(text, (int, list)) for text in texts):
        raise Malformed("input: tokens of another tokenizer mean nothing to this model: send texts")
    return Embeddings(tuple(_text(text, f"input[{i}]") for i, text in enumerate(texts)), base64=form == "base64")


def _messages(given: object) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise Malformed('messages: expected a list such as [{"role": "user", "content": "Hello"}]')
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(given))


def _message(given: object, where: str) -> Message:
    if isinstance(given, dict) and given.get("role") in ("tool", "function"):
        raise Unsupported(f"{where}: answers of tools: this device does not do it: ask a model of the cloud tier")
    if not isinstance(given, dict) or given.get("role") not in ROLES:
        raise Malformed(f"{where}: expected a role, of {', '.join(ROLES)}, and a content")
    content = given.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise Unsupported(f"{where}.content: this model reads text alone")
        content = "".join(_text(part.get("text"), f"{where}.content") for part in content)
    return Message(ROLES[given["role"]], _text(content, f"{where}.content"))


def _prompt(given: object) -> str:
    """One text: several would be several answers."""
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if not isinstance(given, str):
        kind = Unsupported if isinstance(given, list) else Malformed
        raise kind("prompt: expected one text; tokens of another tokenizer mean nothing to this model")
    return _text(given, "prompt")


def _text(given: object, where: str) -> str:
    if not isinstance(given, str):
        raise Malformed(f"{where}: expected a text")
    if len(given.encode()) > LONGEST_TEXT:
        raise Unsupported(f"{where}: over {LONGEST_TEXT} bytes: send its beginning, or in parts")
    return given


def _most(value: Mapping[str, Any], *, chat: bool) -> int | None:
    if chat and value.get("max_completion_tokens") is not None:
        return _whole(value, "max_completion_tokens", 1)
    found = _whole(value, "max_tokens", 1)
    # OpenAI's own default: a text without an end is not what a completion is asked for.
    return 16 if found is None and not chat else found


def _logprobs(value: Mapping[str, Any], *, chat: bool) -> bool:
    given = value.get("logprobs")
    if chat:
        return _flag(value, "logprobs")
    if given not in (None, 0, 1) or isinstance(given, bool):
        raise Malformed("logprobs: expected 0 or 1: the probabilities of the chosen tokens are told, of no others")
    return given is not None


def _stop(given: object) -> tuple[str, ...]:
    listed = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or len(listed) > MOST_STOPS or not all(isinstance(s, str) and s for s in listed):
        raise Malformed(f"stop: expected a text, or a list of up to {MOST_STOPS} texts")
    return tuple(listed)


def _flag(value: Mapping[str, Any], name: str) -> bool:
    given = value.get(name)
    if given is not None and not isinstance(given, bool):
        raise Malformed(f"{name}: expected true or false")
    return bool(given)


def _number(value: Mapping[str, Any], name: str, default: float, most: float) -> float:
    given = value.get(name)
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given <= most:
        raise Malformed(f"{name}: expected a number from 0 to {most:g}")
    return float(given)


def _whole(value: Mapping[str, Any], name: str, least: int) -> int | None:
    given = value.get(name)
    if given is not None and (type(given) is not int or not least <= given < 2**63):
        raise Malformed(f"{name}: expected a whole number from {least} on")
    return given
