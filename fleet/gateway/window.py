"""The check of a stream: what was not looked at together with what follows is held back. Pure.

    window = Window(filters, verdicts)
    out = window.feed(event)          # events to pass on now; raises Blocked
    out += window.close()             # the rest, at the end

An answer comes in pieces, and what is not wanted may stand on two of them. So of each text the last characters wait:
as many as the longest thing that is looked for. What a client has is checked; what it does not have it never gets.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fleet.gateway import injection, personal
from fleet.gateway.asked import Place, texts_below
from fleet.gateway.document import written
from fleet.gateway.filters import NOTED, REDACTED, Filter, Verdicts

_CONTEXT: Final = 16
"""Characters before the held ones that a pattern may look back on."""
_RUN: Final = re.compile(r"\s{2,}")
_FIELDS: Final = ("content", "reasoning_content", "reasoning", "refusal")
Channel = tuple[int, str]


@dataclass
class _Text:
    """One text that grows: what was let go last, what waits, and an event to write the rest into."""

    before: str = ""
    waiting: str = ""
    gone: str = ""
    """The end of what was let go as phrases are looked for in it, its long runs of spaces drawn together."""
    template: Any = None


@dataclass
class Window:
    """The texts of one stream."""

    filters: Sequence[Filter]
    verdicts: Verdicts
    pieces: int = 0
    """Events with text so far."""
    size: int = 0
    """Characters in them."""
    _texts: dict[Channel, _Text] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._hold = max(rules.hold for rules in self.filters)
        self._denied = [(rules, rules.denied) for rules in self.filters if rules.denied is not None]
        self._personal = [rules for rules in self.filters if rules.personal != "off"]
        self._context = max([_CONTEXT, *(rules.finder.hold for rules in self._personal if rules.finder is not None)])

    def feed(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """The events to send for one that came, in order. Raises `Blocked`."""
        choices, before = _choices(event), self.size
        places = list(_places(choices))
        self._check_all_seen(choices, places)
        for channel, place in places:
            text = self._texts.get(channel)
            if text is None:
                text = self._texts[channel] = _Text(template=_template(event, channel))
            came = place.get()
            self.size += len(came)
            text.waiting += came
            place.set(self._let_go(text, whole=False))
        self.pieces += self.size > before
        ended = {c["index"] for c in choices if c.get("finish_reason") is not None}
        if not ended:
            return [] if self.size > before and _says_nothing(choices) else [event]
        rest = [e for channel in list(self._texts) if channel[0] in ended for e in self._flush(channel)]
        return _ordered(rest, event) if rest and any(True for _ in _places(choices)) else [*rest, event]

    def one_text(self, event: dict[str, Any]) -> tuple[Channel, Place] | None:
        """The only text of an event that brings nothing else to look at; None for any other event."""
        choices = _choices(event)
        places = list(_places(choices))
        if len(places) != 1 or len(choices) != 1 or choices[0].get("finish_reason") is not None:
            return None
        return places[0]

    def grow(self, channel: Channel, pieces: Sequence[str], template: dict[str, Any]) -> str:
        """What to send now of a text that grew by some pieces. Raises `Blocked`.

        `template` is an event that brought it; with another text it will bring the rest.
        """
        text = self._texts.get(channel)
        if text is None:
            text = self._texts[channel] = _Text(template=_template(template, channel))
        came = "".join(pieces)
        self.size += len(came)
        self.pieces += sum(map(bool, pieces))
        text.waiting += came
        return self._let_go(text, whole=False)

    def _check_all_seen(self, choices: list[dict[str, Any]], places: list[tuple[Channel, Place]]) -> None:
        """Raises `Blocked` for a text where none is looked for: what no window holds would pass unchecked."""
        seen = {(id(place.holder), place.key) for _, place in places}
        if any(one.get() and (id(one.holder), one.key) not in seen for one in texts_below(choices)):
            raise self.verdicts.block(self.filters[0].name, "unknown-text", "the answer")

    def close(self) -> list[dict[str, Any]]:
        """What still waits. Raises `Blocked`."""
        return [e for channel in list(self._texts) for e in self._flush(channel)]

    def _flush(self, channel: Channel) -> Iterator[dict[str, Any]]:
        text = self._texts.pop(channel)
        rest = self._let_go(text, whole=True)
        if rest:
            for _, place in _places(_choices(text.template)):
                place.set(rest)
            yield text.template

    def _let_go(self, text: _Text, *, whole: bool) -> str:
        """The part of a text that nothing still to come can change, redacted."""
        seen, start = text.before + text.waiting, len(text.before)
        self._check_phrases(text)
        found = self._personal_in(seen, start)
        until = len(seen) if whole else max(start, len(seen) - self._hold)
        for f, _ in found:
            if f.start < until < f.end:
                until = max(start, f.start)
        return self._release(text, seen, until, [pair for pair in found if pair[0].end <= until])

    def _check_phrases(self, text: _Text) -> None:
        """Raises `Blocked`. The end of a phrase never goes out, however much space its words are drawn out by."""
        if not self._denied:
            return
        looked, new = text.gone + injection.plain(text.waiting), len(text.gone)
        for rules, denied in self._denied:
            # What ends before the new text was looked at, with more in front of it than is here now.
            if denied.search(looked) and any(match.end() > new for match in denied.finditer(looked)):
                raise self.verdicts.block(rules.name, "deny", "the answer")

    def _personal_in(self, seen: str, start: int) -> list[tuple[personal.Found, Filter]]:
        """What reaches beyond `start`. Raises `Blocked`."""
        found = [(f, rules) for rules in self._personal for f in rules.personal_in(seen) if f.end > start]
        for f, rules in found:
            if rules.personal == "block":
                raise self.verdicts.block(rules.name, f"personal {f.kind}", "the answer")
        return found

    def _release(self, text: _Text, seen: str, until: int, found: list[tuple[personal.Found, Filter]]) -> str:
        if not found and until == len(text.before):
            return ""
        taken: list[personal.Found] = []
        for f, rules in sorted(found, key=lambda pair: (pair[0].start, pair[1].personal != "redact")):
            if taken and f.start < taken[-1].end:
                continue
            self.verdicts.note(rules.name, f"personal {f.kind}", REDACTED if rules.personal == "redact" else NOTED)
            if rules.personal == "redact":
                taken.append(f)
        start = len(text.before)
        shifted = [personal.Found(max(f.start - start, 0), f.end - start, f.kind) for f in taken]
        out = personal.redacted(seen[start:until], shifted)
        if self._denied:
            text.gone = _RUN.sub(" ", text.gone + injection.plain(seen[start:until]))[-self._hold - 1 :]
        text.before, text.waiting = seen[max(0, until - self._context) : until], seen[until:]
        return out


def brings_nothing_else(event: dict[str, Any], place: Place) -> bool:
    """Whether an event need not be sent while the text in `place`, its only one, waits."""
    text = place.get()
    place.set("")
    try:
        return _says_nothing(_choices(event))
    finally:
        place.set(text)


def _says_nothing(choices: list[dict[str, Any]]) -> bool:
    """Whether all that an event brought waits, so that it need not be sent."""
    for choice in choices:
        delta = choice.get("delta")
        if choice.get("logprobs") or choice.get("text") or not isinstance(delta, dict):
            return False
        if any(found or name not in _FIELDS for name, found in delta.items()):
            return False
    return True


def _ordered(rest: list[dict[str, Any]], event: dict[str, Any]) -> list[dict[str, Any]]:
    """An event that brings text and ends its choice: its own text first, then what waited, then the end alone."""
    last = copy.deepcopy(event)
    for _, place in _places(_choices(last)):
        place.set("")
    for choice in _choices(event):
        choice["finish_reason"] = None
    event.pop("usage", None)
    return [event, *rest, last]


def _template(event: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """An event that carries one text and nothing else."""
    made = copy.deepcopy({key: value for key, value in event.items() if key != "usage"})
    made["choices"] = [c for c in _choices(made) if c["index"] == channel[0]]
    for choice in made["choices"]:
        choice["finish_reason"] = None
        choice.pop("logprobs", None)
        if isinstance(choice.get("delta"), dict):
            choice["delta"] = {k: v for k, v in choice["delta"].items() if _belongs(channel, k)}
            calls = choice["delta"].get("tool_calls")
            if calls:
                keep = [c for i, c in enumerate(calls) if f"tool {c.get('index', i)}" == channel[1]]
                choice["delta"]["tool_calls"] = [
                    {"index": c.get("index", 0), "function": {"arguments": c["function"]["arguments"]}} for c in keep
                ]
    return made


def _belongs(channel: Channel, key: str) -> bool:
    return key == ("tool_calls" if channel[1].startswith("tool ") else channel[1])


def _choices(event: dict[str, Any]) -> list[dict[str, Any]]:
    choices = event.get("choices")
    found = [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
    for choice in found:
        if type(choice.get("index")) is not int:
            choice["index"] = 0
    return found


def _places(choices: list[dict[str, Any]]) -> Iterator[tuple[Channel, Place]]:
    """Every text of the choices of an event: of chat, of tool calls, of completions."""
    for choice in choices:
        index, delta = choice["index"], choice.get("delta")
        if isinstance(choice.get("text"), str):
            yield (index, "text"), Place(choice, "text")
        if not isinstance(delta, dict):
            continue
        for name in _FIELDS:
            if isinstance(delta.get(name), str):
                yield (index, name), Place(delta, name)
        calls = delta.get("tool_calls")
        for i, call in enumerate(calls if isinstance(calls, list) else ()):
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                yield (index, f"tool {call.get('index', i)}"), Place(function, "arguments")


def as_event(value: dict[str, Any]) -> bytes:
    """A value as a server-sent event."""
    return b"data: " + written(value) + b"\n\n"


def end_of(event: dict[str, Any] | None) -> bytes:
    """The end of a stream that a filter cut: OpenAI's word for it, so that clients know."""
    base = {k: v for k, v in (event or {}).items() if k not in ("choices", "usage")}
    indexes = [c["index"] for c in _choices(event or {})] or [0]
    is_text = any("text" in c for c in _choices(event or {}))
    choices = [
        {"index": i, **({"text": ""} if is_text else {"delta": {}}), "finish_reason": "content_filter"} for i in indexes
    ]
    return as_event({**base, "choices": choices}) + b"data: [DONE]\n\n"
