"""The language of a text, cheaply: enough to see that a fleet is spoken to in another one than it was. Pure.

    language_of("mach das Licht in der Küche an")      # "de"
    language_of("turn it off")                         # "en"
    language_of("12:30")                               # "und"

By the script where a script is written in one language only, else by function words and letters that a language has to
itself. Of a text the first `LOOKED_AT` characters are looked at. Two words of a command say little: what cannot be told
is `und`, and as device and compiler ask this one function, the share of `und` is the same on both sides.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

UNKNOWN: Final = "und"
"""ISO 639-2: undetermined."""
LOOKED_AT: Final = 64
"""Characters: about ten words. More would say little more, and what is paid for is paid with each request."""
_LETTERS: Final = 8
"""Letters of another script than Latin that are looked up."""

_FUNCTION_WORDS: Final[Mapping[str, str]] = {
    "en": "the and is are was to of in on off for with my me i you your it this that what when how please turn set at "
    "from be do does not have can will up there which who where has but they we",
    "de": "der die das und ist ein eine einen den dem des im mit auf für von zu nicht mir mich ich du wie was wann "
    "auch bitte es sie wir am um bei aus nach noch sind wird haben kann mein meine mach stell",
    "fr": "le la les un une des du et est dans pour avec sur ce cette mon ma mes je tu il elle nous vous que qui quand "
    "pas ne au aux moi sont plus sont l d qu c j s n",
    "es": "el la los las un una y es de del en para con por que mi me yo tu se lo cuando como no al este esta qué cómo "
    "cuál más está hay pon",
    "it": "il lo la gli i un una e è di del della in per con che mi ti si non quando come sono alla nel questo questa "
    "più le da ho ha al dei delle",
    "pt": "o a os as um uma e é de do da em no na para com por que meu minha me eu não se quando como ao mais está são "
    "você isso esta este dos das",
    "nl": "de het een en is van in op te met voor niet ik je mij mijn wat wanneer hoe dat dit die zijn aan uit om naar "
    "er ook maar wordt zet",
    "pl": "i w na z do się nie to jest że o mi mnie ja ty jak co kiedy dla po od przy są był jego czy proszę",
    "sv": "och i att det som en på är av för med till den jag du inte har om ett mig min hur vad när från kan de",
    "tr": "ve bir bu da de için ile ben sen mi mı ne nasıl çok var yok daha gibi olarak bana benim kadar",
    "cs": "a je se v na to že s z do o jsem mi mě jak co kdy pro by ale jako jsou není prosím",
    "ru": "и в не на я что с как это он по но они к у из за мне мой вы так же от для если было включи какая какой",
    "uk": "і в не на я що з як це він по але вони до у із за мені мій ви так від для якщо було та є",
    "bg": "и в не на аз че с как това той по но те към у от за ми ти вие така ако беше да се е са",
}
_LETTERS_OF: Final[Mapping[str, str]] = {
    "ß": "de",
    "ñ": "es",
    "¿": "es",
    "¡": "es",
    "ã": "pt",
    "õ": "pt",
    "ł": "pl",
    "ą": "pl",
    "ę": "pl",
    "ś": "pl",
    "ż": "pl",
    "ź": "pl",
    "ğ": "tr",
    "ı": "tr",
    "ş": "tr",
    "å": "sv",
    "ř": "cs",
    "ě": "cs",
    "ů": "cs",
    "œ": "fr",
    "ê": "fr",
    "ù": "fr",
    "ò": "it",
    "ì": "it",
    "ы": "ru",
    "э": "ru",
    "ё": "ru",
    "і": "uk",
    "ї": "uk",
    "є": "uk",
    "ґ": "uk",
}
_SCRIPTS: Final[tuple[tuple[int, str], ...]] = (
    *((0x0000, ""), (0x0370, "el"), (0x0400, "cyrillic"), (0x0530, "hy"), (0x0590, "he"), (0x0600, "arabic")),
    *((0x0700, ""), (0x0900, "hi"), (0x0980, "bn"), (0x0A00, "pa"), (0x0A80, "gu"), (0x0B00, ""), (0x0B80, "ta")),
    *((0x0C00, "te"), (0x0C80, "kn"), (0x0D00, "ml"), (0x0D80, "si"), (0x0E00, "th"), (0x0E80, "lo"), (0x0F00, "")),
    *((0x1000, "my"), (0x10A0, "ka"), (0x1100, "ko"), (0x1200, "am"), (0x1380, ""), (0x1780, "km"), (0x1800, "")),
    *((0x1F00, "el"), (0x2000, ""), (0x3040, "ja"), (0x3100, ""), (0x3400, "zh"), (0xA000, ""), (0xAC00, "ko")),
    *((0xD7B0, ""), (0xF900, "zh"), (0xFB00, "")),
)
"""Where blocks of Unicode 15 begin, and what is written in them; "": Latin, signs, or what is not told apart."""
_STARTS: Final = [start for start, _ in _SCRIPTS]
_WORD: Final = re.compile(r"\w+")
_BEYOND_LATIN: Final = re.compile(r"[\u0370-\u1fff\u3040-\uffff]")
_OWN_LETTERS: Final = re.compile(f"[{''.join(_LETTERS_OF)}]")


def _votes() -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for language, words in _FUNCTION_WORDS.items():
        for word in set(words.split()):
            found.setdefault(word, []).append(language)
    return {word: tuple(languages) for word, languages in found.items()}


_VOTES: Final = _votes()
LANGUAGES: Final = frozenset(
    {*_FUNCTION_WORDS, *(name for _, name in _SCRIPTS if len(name) == 2), "ar", "fa", "ur", UNKNOWN}
)
"""All that may be answered."""


def language_of(text: str) -> str:
    """The ISO 639-1 code of a text's language, or `UNKNOWN`."""
    text = text[:LOOKED_AT].lower()
    if text.isascii():
        return _by_words(text, ())
    letters = _BEYOND_LATIN.findall(text)
    script = _script(letters[:_LETTERS]) if letters else ""
    if script == "arabic":
        return _arabic(text)
    if script == "zh" and any("\u3040" <= c < "\u3100" for c in letters):
        return "ja"
    if script in ("", "cyrillic"):
        return _by_words(text, _OWN_LETTERS.findall(text))
    return script


def _script(letters: Sequence[str]) -> str:
    """The script of most of some letters."""
    found = Counter(_SCRIPTS[bisect_right(_STARTS, ord(c)) - 1][1] for c in letters)
    return found.most_common(1)[0][0]


def _arabic(text: str) -> str:
    if any(c in text for c in "ٹڈڑے"):
        return "ur"
    return "fa" if any(c in text for c in "پچژگ") else "ar"


def _by_words(text: str, letters: Sequence[str]) -> str:
    """The language that most function words speak for, a letter of its own as much as two; `UNKNOWN` for a tie."""
    votes: dict[str, int] = {}
    for word in _WORD.findall(text):
        for language in _VOTES.get(word, ()):
            votes[language] = votes.get(language, 0) + 1
    for letter in letters:
        language = _LETTERS_OF[letter]
        votes[language] = votes.get(language, 0) + 2
    if not votes:
        return UNKNOWN
    most = max(votes.values())
    first, *others = (language for language, n in votes.items() if n == most)
    return UNKNOWN if others else first
