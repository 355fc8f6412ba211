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
_PATTERNS: Final[Sequence[tuple[float, str]]] = (
    (1.0, rf"\b{_VERB}\b(?:\W+\w+){{0,5}}?\W+{_WHAT}\b"),
    (1.0, r"<\|(?:im_start|im_end|system|user|assistant|begin_of_text|start_header_id|eot_id)\|>|\[/?INST\]|<</?SYS>>"),
    (1.0, rf"\b{_TELL}\b(?:\W+\w+){{0,4}}?\W+{_HIDDEN}"),
    (1.0, r"\brepeat (?:the|all) (?:words|text) above\b"),
    (1.0, r"\b(?:do anything now|jailbreak(?:ed|ing)?|DAN mode|developer mode (?:enabled|on)|god mode)\b"),
    (0.6, r"\byou are (?:now|no longer)\b(?! (?:able|allowed|in the))"),
    (0.6, rf"\b(?:pretend|act|behave)\b(?:\W+\w+){{0,4}}?\W+(?:no|without(?: any)?)\W+{_NOTHING}\b"),
    (0.6, r"\bfrom now on\b(?:\W+\w+){0,3}?\W+(?:you|answer|respond|reply)\b"),
    (0.6, r"(?:^|\n)\W{0,4}(?:system|assistant|developer)\W{0,3}:"),
    (0.5, r"\b(?:new|updated|real|actual) (?:instructions?|task|system prompt)\W*(?::|are|is)"),
    (0.5, rf"\b(?:no|without|remove|disable|turn off)\b(?:\W+\w+){{0,3}}?\W+{_NOTHING}\b"),
    (0.5, r"\bbase64\b(?:\W+\w+){0,6}?\W+(?:decode|execute|follow|run)\b"),
    (0.5, r"\b(?:decode|execute|follow)\b(?:\W+\w+){0,6}?\W+base64\b"),
)
_COMPILED: Final = tuple((weight, re.compile(pattern, re.IGNORECASE)) for weight, pattern in _PATTERNS)
_HINTS: Final = re.compile(
    r"ignor|disreg|forget|overrid|bypass|skip|drop|vergi|oublie|olvida|<\||inst\]|sys>|reveal|print|show|repeat|output|"
    r"display|leak|tell|what |anything now|jailbreak|mode|you are|pretend|act|behave|from now|system|assistant|"
    r"developer|new |updated|real|actual|restrict|safety|filter|guardrail|censor|base64",
    re.IGNORECASE,
)
"""A text without any of these fits no pattern: most texts are done with one look."""


def score(text: str) -> float:
    """The weights of the patterns that a plain text fits; `ENOUGH` or more is suspect."""
    if _HINTS.search(text) is None:
        return 0.0
    return sum(weight for weight, pattern in _COMPILED if pattern.search(text))


def plain(text: str) -> str:
    """A text as its reader sees it: no invisible characters, one form for each letter (NFKC)."""
    if text.isascii():
        return text
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFKC", visible)
