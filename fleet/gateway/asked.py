"""A request as it came: what it asks of which model, and every text in it. Pure.

asked = read("/chat/completions", body)
for place in asked.texts: place.set(redact(place.get()))
data = asked.body_for(target)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from fleet.errors import Malformed
from fleet.gateway.document import parsed, written
from fleet.gateway.pricing import PART, estimate

CHAT: Final = "/chat/completions"
COMPLETIONS: Final = "/completions"
EMBEDDINGS: Final = "/embeddings"
_CONTENT: Final = {CHAT: "messages", COMPLETIONS: "prompt", EMBEDDINGS: "input"}
_MOST_PARTS: Final = 100_000
"""Values in a body: to read millions of them takes seconds, in which the fleet would answer nobody."""
_DEEPEST: Final = 100
_NO_TEXT: Final = frozenset({"role", "type", "model", "id", "tool_call_id", "encoding_format"})
"""Keys of words that the interface itself knows, when they are single words."""
_INTERFACE: Final = (
    "model messages prompt input role content type text name tool_calls tool_call_id id function arguments tools "
    "tool_choice functions description parameters properties required strict items enum additionalProperties "
    "response_format json_schema schema stream stream_options include_usage max_tokens max_completion_tokens "
    "temperature top_p n stop seed user image_url url detail input_audio data format file file_data encoding_format "
    "dimensions frequency_penalty presence_penalty parallel_tool_calls metadata reasoning_effort refusal"
)
_KNOWN: Final = frozenset(_INTERFACE.split())
"""Names of the interface and of JSON Schema: all others somebody chose, and a model reads them."""
_MEDIA: Final = frozenset({"image_url", "input_audio", "file"})
_MOST_OUTPUT: Final = 1_000_000_000
"""Tokens: more is no request, and its cost would not fit the database."""
LOGPROBS: Final = ("logprobs", "top_logprobs", "prompt_logprobs")
_WORDS: Final = frozenset({"role", "type", "id", "name", "finish_reason", "stop_reason", "index"})
_WORD: Final = re.compile(r"[\w./:-]{0,64}")
_DATA: Final = frozenset({"url", "data", "file_data"})
"""Keys of a picture, a sound or a file under which it stands itself."""
_PER_MESSAGE: Final = 4
"""Tokens that a chat template puts around a message."""


@dataclass(frozen=True)
class Place:
    """Where a text stands: a key of an object, or an index of a list."""

    holder: Any
    key: str | int

    def get(self) -> str:
        """The text."""
        return str(self.holder[self.key])

    def set(self, text: str) -> None:
        """Put another text there."""
        self.holder[self.key] = text


@dataclass(frozen=True)
class Asked:
    """A request that makes sense. `value` is its JSON, the request's own to change."""

    path: str
    model: str
    value: dict[str, Any]
    texts: tuple[Place, ...]
    names: tuple[str, ...]
    """Keys of objects that the interface does not know, such as those of the properties of a tool."""
    prompt: int
    """Tokens, estimated."""
    output: int | None
    """Tokens of the longest answer that it asks for; None when it does not say."""
    choices: int
    stream: bool
    wants_usage: bool

    def split(self) -> Iterator[tuple[Place, ...]]:
        """The texts of each message that has several, in the order in which a model reads them."""
        for message in self.value["messages"] if self.path == CHAT else ():
            content = message.get("content") if isinstance(message, dict) else None
            if isinstance(content, list) and len(content) > 1:
                parts = [(part, "text") for part in content if isinstance(part, dict)]
                texts = tuple(Place(holder, key) for holder, key in parts if isinstance(holder.get(key), str))
                if len(texts) > 1:
                    yield texts

    def most_output(self, unsaid: int) -> int:
        """Tokens that may come back, when one answer that says no number has `unsaid` at most."""
        if self.path == EMBEDDINGS:
            return 0
        return min(self.choices * (self.output if self.output is not None else unsaid), _MOST_OUTPUT)

    def body_for(self, model: str, kind: str, unsaid: int, *, usage: bool) -> bytes:
        """What an upstream is sent: the model as it is called there, a longest answer, and a wish for its usage."""
        value = {**self.value, "model": model or self.model}
        if self.output is None and self.path != EMBEDDINGS:
            chat = kind == "openai" and self.path == CHAT
            value["max_completion_tokens" if chat else "max_tokens"] = unsaid
        if self.stream and usage and not self.wants_usage:
            value["stream_options"] = {**(value.get("stream_options") or {}), "include_usage": True}
        return written(value)


def read(path: str, body: bytes) -> Asked:
    """Raises `Malformed` for what is no request of this kind."""
    value = _object(path, body)
    model = value.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= 200 or not model.isprintable():
        raise Malformed(f"{path}: model: expected the name of a model: GET /v1/models lists them")
    names: dict[str, None] = {}
    media, texts = _texts(path, value, names)
    options = value.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise Malformed(f"{path}: stream_options: expected an object")
    messages = len(value["messages"]) if path == CHAT else 1
    choices = _count(path, value, "n") or 1
    if not isinstance(value.get("stream"), bool | None):
        raise Malformed(f"{path}: stream: expected true or false")
    said = [n for name in ("max_completion_tokens", "max_tokens") if (n := _count(path, value, name)) is not None]
    return Asked(
        path=path,
        model=model,
        value=value,
        texts=texts,
        names=tuple(names),
        prompt=sum(estimate(t.get()) for t in texts)
        + sum(map(estimate, names))
        + media * PART
        + messages * _PER_MESSAGE
        + _numbers(path, value),
        # Which of the two an upstream goes by, it alone knows.
        output=max(said) if said else None,
        choices=max(choices, _count(path, value, "best_of") or 1) * _prompts(path, value),
        stream=value.get("stream") is True and path != EMBEDDINGS,
        wants_usage=bool(options and options.get("include_usage") is True),
    )


def _object(path: str, body: bytes) -> dict[str, Any]:
    # Signs within texts count too: two million characters of prose have fewer.
    if sum(body.count(sign) for sign in (b",", b"[", b"{")) > _MOST_PARTS:
        raise Malformed(f"{path}: over {_MOST_PARTS} commas and brackets: send less in one request")
    try:
        value = parsed(body)
    except ValueError as e:
        raise Malformed(f"{path}: the body is not JSON: {e}") from e
    name = _CONTENT[path]
    if not isinstance(value, dict) or not isinstance(value.get(name), list if path == CHAT else list | str):
        raise Malformed(f"{path}: expected an object with {'a list of messages' if path == CHAT else name}")
    return value


def _count(path: str, value: dict[str, Any], name: str) -> int | None:
    found = value.get(name)
    if found is None:
        return None
    if type(found) is not int or not 1 <= found <= 10_000_000:
        raise Malformed(f"{path}: {name}: expected a whole number of 1 or more")
    return found


def _numbers(path: str, value: dict[str, Any]) -> int:
    """Tokens that come as numbers, in place of texts."""
    found = value[_CONTENT[path]]
    if path == CHAT or isinstance(found, str):
        return 0
    return sum(_not_texts(one) if isinstance(one, list) else not isinstance(one, str) for one in found)


def _not_texts(values: list[Any]) -> int:
    return sum(not isinstance(one, str) for one in values)


def _prompts(path: str, value: dict[str, Any]) -> int:
    """How many prompts a completion is asked for: each gets answers of its own. A list of tokens is one."""
    found = value[_CONTENT[path]]
    if path != COMPLETIONS or isinstance(found, str):
        return 1
    return max(sum(isinstance(one, list | str | dict) for one in found), 1)


def _texts(path: str, value: dict[str, Any], names: dict[str, None]) -> tuple[int, tuple[Place, ...]]:
    """The number of pictures and sounds, and all texts: one that is not looked at is a way in."""
    media, places = 0, []
    for place in _walk(path, value, 0, names):
        if place is None:
            media += 1
        else:
            places.append(place)
    return media, tuple(places)


def _walk(path: str, value: Any, depth: int, names: dict[str, None]) -> Iterator[Place | None]:
    """Every text below a value, and None for each picture or sound. Keys that somebody chose go into `names`."""
    if depth > _DEEPEST:
        raise Malformed(f"{path}: over {_DEEPEST} levels deep")
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    if isinstance(value, dict) and not value.keys() <= _KNOWN:
        names.update(dict.fromkeys(name for name in value if name not in _KNOWN))
    for name, one in items:
        if isinstance(one, str):
            if not (name in _NO_TEXT and _WORD.fullmatch(one)):
                yield Place(value, name)
        elif isinstance(one, dict) and name in _MEDIA and value.get("type") == name:
            yield None
            yield from (Place(one, key) for key, text in one.items() if key not in _DATA and isinstance(text, str))
        elif isinstance(one, dict | list):
            yield from _walk(path, one, depth + 1, names)


def texts_below(value: Any) -> Iterator[Place]:
    """Every text of an answer, whatever it is called; not the interface's own words, when they are words."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    for name, one in items:
        if isinstance(one, str):
            if not (name in _WORDS and _WORD.fullmatch(one)):
                yield Place(value, name)
        elif isinstance(one, dict | list):
            yield from texts_below(one)


def has_numbers(asked: Asked) -> bool:
    """Whether it holds tokens as numbers, which no filter of texts can read."""
    return _numbers(asked.path, asked.value) > 0
