"""Heuristics for prompts that try to take over: instructions to forget instructions, forged roles, known tricks. Pure.

Each pattern has a weight; a text whose weights reach `ENOUGH` is suspect. They catch what is tried by copying, in
English and a little German, French and Spanish; who writes something new gets past them. A classifier may stand beside
them (`fleet.gateway.classifier`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

ENOUGH: Final = 1.0
_VERB: Final = (
    r"(?:ignor\w*|disregard\w*|forget|overrid\w+|bypass\w*|skip|drop|vergiss|vergessen sie|ignoriere\w*|oublie\w*"
    r"|olvida\w*)"
)
_WHAT: Final = (
    r"(?:instruct\w+|prompts?|rules?|guidelines?|directions?|directives?|commands?|context|anweisungen|regeln|consignes"
    r"|instrucciones|reglas)"
)
_TELL: Final = r"(?:reveal|print|show|repeat|output|display|leak|tell me|what (?:is|are|was|were))"
_HIDDEN: Final = r"(?:system|initial|hidden|original|secret) (?:prompts?|instructions?|messages?)"
_NOTHING: Final = r"(?:restrictions?|limits?|filters?|rules|censorship|guardrails?|safety)"
_PATTERNS: Final[Sequence[tuple[float, str, str]]] = (
    # weight, words of which the pattern needs one, pattern
    (
        1.0,
        "ignor, disregard, forget, overrid, bypass, skip, drop, vergiss, vergessen, oublie, olvida",
        rf"\b{_VERB}\b(?:\W+\w+){{0,5}}?\W+{_WHAT}\b",
    ),
    (
        1.0,
        "<|, inst], sys>",
        r"<\|(?:im_start|im_end|system|user|assistant|begin_of_text|start_header_id|eot_id)\|>|\[/?inst\]|<</?sys>>",
    ),
    (1.0, "system, initial, hidden, original, secret", rf"\b{_TELL}\b(?:\W+\w+){{0,4}}?\W+{_HIDDEN}"),
    (1.0, "repeat", r"\brepeat (?:the|all) (?:words|text) above\b"),
    (
        1.0,
        "anything, jailbreak, mode",
        r"\b(?:do anything now|jailbreak(?:ed|ing)?|dan mode|developer mode (?:enabled|on)|god mode)\b",
    ),
    (0.6, "you are no", r"\byou are (?:now|no longer)\b(?! (?:able|allowed|in the))"),
    (
        0.6,
        "pretend, act, behave",
        rf"\b(?:pretend|act|behave)\b(?:\W+\w+){{0,4}}?\W+(?:no|without(?: any)?)\W+{_NOTHING}\b",
    ),
    (0.6, "from now on", r"\bfrom now on\b(?:\W+\w+){0,3}?\W+(?:you|answer|respond|reply)\b"),
    (0.6, "system, assistant, developer", r"(?:^|\n)\W{0,4}(?:system|assistant|developer)\W{0,3}:"),
    (
        0.5,
        "new, updated, real, actual",
        r"\b(?:new|updated|real|actual) (?:instructions?|task|system prompt)\W*(?::|are|is)",
    ),
    (
        0.5,
        "restriction, limit, filter, rules, censorship, guardrail, safety",
        rf"\b(?:no|without|remove|disable|turn off)\b(?:\W+\w+){{0,3}}?\W+{_NOTHING}\b",
    ),
    (0.5, "base64", r"\bbase64\b(?:\W+\w+){0,6}?\W+(?:decode|execute|follow|run)\b"),
    (0.5, "base64", r"\b(?:decode|execute|follow)\b(?:\W+\w+){0,6}?\W+base64\b"),
)
_COMPILED: Final = tuple(
    (weight, frozenset(words.split(", ")), re.compile(pattern)) for weight, words, pattern in _PATTERNS
)
_WORDS: Final = tuple(frozenset[str]().union(*(words for _, words, _ in _COMPILED)))


def score(text: str) -> float:
    """The weights of the patterns that a plain text fits; `ENOUGH` or more is suspect."""
    lower = text.lower()
    there = [word for word in _WORDS if word in lower]
    if not there:
        return 0
    return sum(
        weight
        for weight, words, pattern in _COMPILED
        if not words.isdisjoint(there) and pattern.search(lower) is not None
    )


def plain(text: str) -> str:
    """A text as its reader sees it: no invisible characters, one form for each letter (NFKC)."""
    if text.isascii():
        return text
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFKC", visible)
