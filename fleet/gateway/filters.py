"""What a text may not hold: phrases, too many characters, personal data, attempts to take the model over. Pure.

checked = check(filters, asked, verdicts)       # raises Blocked; texts are redacted where they stand
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Final

from fleet.errors import Blocked, Malformed
from fleet.gateway import injection
from fleet.gateway import personal as personal_data
from fleet.gateway.asked import Asked, Place
from fleet.readers import choice, count, flag, setting, text, texts

BLOCKED: Final = "blocked"
REDACTED: Final = "redacted"
NOTED: Final = "noted"
REFUSED: Final = "refused"
"""Not because of what the text says: it could not be looked at."""
_REQUEST: Final = "the request"
_APART: Final = "\0"
_SPACED: Final = re.compile(r"[_.-]+|(?<=[a-z])(?=[A-Z])")


def _kinds(value: object, where: str) -> tuple[str, ...]:
    kinds = texts(value, where)
    for kind in kinds:
        if kind not in personal_data.KINDS:
            raise Malformed(f"{where}: {kind!r}: choose from {', '.join(personal_data.KINDS)}")
    return kinds


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A set of rules, by its name in `gateway.toml`."""

    name: str
    deny: tuple[str, ...] = setting(texts, [])
    """Phrases, whatever their case and the spaces between their words."""
    max_chars: int = setting(count(1, 10_000_000), "200000")
    """Of all texts of a request together: to look at them takes time, in which nobody else is answered."""
    personal: str = setting(choice("off", "note", "redact", "block"), "off")
    personal_kinds: tuple[str, ...] = setting(_kinds, list(personal_data.KINDS))
    personal_by: str = setting(choice("builtin", "presidio"), "builtin")
    """`presidio`: the kinds, and what Microsoft Presidio finds."""
    injection: str = setting(choice("off", "note", "block"), "off")
    classifier: str = setting(text, "")
    answers: bool = setting(flag, True)
    """Whether `deny` and `personal` hold for what comes back, too."""
    finder: personal_data.Finder | None = field(default=None, repr=False, compare=False)
    """What `personal_by` names, once it runs; None: the built-in set alone."""

    @cached_property
    def denied(self) -> re.Pattern[str] | None:
        """The phrases as one pattern."""
        if not self.deny:
            return None
        phrases = (
            "".join(
                r"\s+" if part.isspace() else re.escape(part) for part in re.split(r"(\s+)", injection.plain(p).strip())
            )
            for p in self.deny
        )
        return re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)", re.IGNORECASE)

    @cached_property
    def hold(self) -> int:
        """Characters of a stream that have to be seen together: what is shorter than these is not missed."""
        longest = max((len(p) + 8 for p in self.deny), default=0)
        held = max(personal_data.LONGEST, self.finder.hold if self.finder is not None else 0)
        return max(longest, held if self.personal != "off" else 0)

    @property
    def checks_answers(self) -> bool:
        """Whether an answer has to be looked at."""
        return self.answers and self.hold > 0

    def personal_in(self, text: str) -> list[personal_data.Found]:
        """The personal data in a text, in its order, without overlaps. Raises `NotJudged`."""
        found = personal_data.find(text, self.personal_kinds)
        return found if self.finder is None else personal_data.joined([*found, *self.finder.find(text)])


@dataclass
class Verdicts:
    """What the filters did, without the text: counts by `filter/rule action`."""

    counts: Counter[str] = field(default_factory=Counter)

    def note(self, filter_name: str, rule: str, action: str, times: int = 1) -> None:
        """Count something."""
        self.counts[f"{filter_name}/{rule} {action}"] += times

    def block(self, filter_name: str, rule: str, what: str) -> Blocked:
        """Count it, and the error that says so; the text itself is not repeated."""
        self.note(filter_name, rule, BLOCKED)
        return Blocked(f"{what}: the rule {rule} of the filter {filter_name} does not let it through")

    @property
    def blocked(self) -> bool:
        """Whether anything was."""
        return any(key.endswith(BLOCKED) for key in self.counts)


def finder_of(filters: Iterable[Filter]) -> personal_data.Finder | None:
    """What finds personal data for any of them besides the built-in set: what asks it runs off the event loop."""
    return next((rules.finder for rules in filters if rules.personal != "off" and rules.finder is not None), None)


def check(filters: Iterable[Filter], asked: Asked, verdicts: Verdicts) -> None:
    """Every text of a request by every rule. Redacts in place. Raises `Blocked`."""
    places = asked.texts
    for rules in filters:
        if sum(len(p.get()) for p in places) + sum(map(len, asked.names)) > rules.max_chars:
            raise verdicts.block(rules.name, "max_chars", f"the request has over {rules.max_chars} characters")
        for parts in asked.split():  # before a part of what they hold together is redacted alone
            _check_joined(rules, parts, verdicts)
        for place in places:
            original = place.get()
            changed = check_text(rules, original, verdicts, _REQUEST)
            if changed is not original:
                place.set(changed)
            if rules.injection != "off":
                _check_injection(rules, original, verdicts)
        if asked.names:
            _check_names(rules, asked.names, verdicts)


def _check_joined(rules: Filter, parts: Sequence[Place], verdicts: Verdicts) -> None:
    """What is found only where the parts of a message meet: some models read them as one text, some as lines."""
    texts = [place.get() for place in parts]
    for joined in ("".join(texts), "\n".join(texts)):
        if rules.denied is not None and rules.denied.search(injection.plain(joined)):
            raise verdicts.block(rules.name, "deny", _REQUEST)
        if rules.injection != "off" and not any(_is_injection(text) for text in texts):
            _check_injection(rules, joined, verdicts)
    if rules.personal != "off":
        _check_seams(rules, parts, texts, verdicts)


def _check_seams(rules: Filter, parts: Sequence[Place], texts: Sequence[str], verdicts: Verdicts) -> None:
    """Personal data of which each part has a piece: the mark stands in the first one, the others lose theirs."""
    ends = list(accumulate(map(len, texts)))
    across = [one for one in rules.personal_in("".join(texts)) if any(one.start < end < one.end for end in ends)]
    for one in across:
        if rules.personal == "block":
            raise verdicts.block(rules.name, f"personal {one.kind}", _REQUEST)
        verdicts.note(rules.name, f"personal {one.kind}", REDACTED if rules.personal == "redact" else NOTED)
    if not across or rules.personal != "redact":
        return
    for place, original, end in zip(parts, texts, ends, strict=True):
        start, kept = end - len(original), original
        # From the back, so that what is in front keeps its place.
        for one in reversed([one for one in across if one.start < end and one.end > start]):
            mark = f"[{one.kind}]" if one.start >= start else ""
            kept = kept[: max(one.start - start, 0)] + mark + kept[one.end - start :]
        place.set(kept)


def _check_names(rules: Filter, names: Sequence[str], verdicts: Verdicts) -> None:
    """Names that a request gives, as those of the properties of a tool: a name cannot be redacted, it is blocked."""
    # Each alone, with a sign between them that belongs to nothing; and as words, as a model reads it.
    spoken = [_SPACED.sub(" ", name) for name in names]
    if rules.denied is not None and any(rules.denied.search(injection.plain(_APART.join(n))) for n in (names, spoken)):
        raise verdicts.block(rules.name, "deny", _REQUEST)
    if rules.personal != "off":
        for one in rules.personal_in(_APART.join(names)):
            if rules.personal != "note":
                raise verdicts.block(rules.name, f"personal {one.kind}", _REQUEST)
            verdicts.note(rules.name, f"personal {one.kind}", NOTED)
    if rules.injection != "off" and _is_injection(_APART.join(spoken)):
        for name in spoken:
            _check_injection(rules, name, verdicts)


def check_text(rules: Filter, original: str, verdicts: Verdicts, what: str) -> str:
    """One text by the rules that hold both ways, redacted. Raises `Blocked`."""
    if rules.denied is not None and rules.denied.search(injection.plain(original)):
        raise verdicts.block(rules.name, "deny", what)
    if rules.personal == "off":
        return original
    found = rules.personal_in(original)
    if not found:
        return original
    if rules.personal == "block":
        raise verdicts.block(rules.name, f"personal {found[0].kind}", what)
    for one in found:
        verdicts.note(rules.name, f"personal {one.kind}", REDACTED if rules.personal == "redact" else NOTED)
    return personal_data.redacted(original, found) if rules.personal == "redact" else original


def _check_injection(rules: Filter, original: str, verdicts: Verdicts) -> None:
    if not _is_injection(original):
        return
    if rules.injection == "block":
        raise verdicts.block(rules.name, "injection", _REQUEST)
    verdicts.note(rules.name, "injection", NOTED)


def _is_injection(text: str) -> bool:
    return injection.score(injection.plain(text)) >= injection.ENOUGH
