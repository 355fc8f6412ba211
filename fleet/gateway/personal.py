"""Personal data in a text: mail, phone, card, IBAN, IP address. Pure.

What has a checksum is held against it: a card against Luhn (ISO/IEC 7812-1), an IBAN against mod 97 (ISO 13616). This
finds what looks like these five kinds and nothing else: no names, no addresses of houses, no birthdays.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

T = TypeVar("T")
KINDS: Final = ("mail", "iban", "card", "ip", "phone")
"""In the order in which they are looked for: what one takes is none of the next."""
LONGEST: Final = 64
"""Characters of the longest one that a stream is held back for."""
_MAIL: Final = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}")
_IBAN: Final = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]{4}){2,7}(?:[ -]?[A-Za-z0-9]{1,3})?(?![A-Za-z0-9])"
)
_CARD: Final = re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])")
_IP: Final = re.compile(
    r"(?<![\d.:A-Fa-f])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?![\d:A-Fa-f]|\.\d)"
)
_PHONE: Final = re.compile(
    r"(?<![\w.+-])(?:"
    r"(?:\+|00)[1-9](?:[ ()/.-]{0,2}\d){6,13}"  # with a country code
    r"|\(?0\d{1,4}\)?[ /-]\d(?:[ -]?\d){4,9}"  # with an area code that begins with 0
    r"|\(?[2-9]\d{2}\)?[ .-]\d{3}[.-]\d{4}"  # North American
    r")(?!\d)"
)
_ALIKE: Final = str.maketrans(
    "\u00a0\u2007\u2009\u202f\u2010\u2011\u2012\u2013\u2212\uff20\uff0e\uff0b"
    + "".join(map(chr, range(0xFF10, 0xFF1A))),
    "    -----@.+0123456789",
)
"""Signs that read like those of the patterns, one for one, so that a find stands in the text as it came."""
_DIGITS: Final = re.compile(
    r"\d(?:\.\d|(?:[ ()/.-]{0,2}\d){6}|(?<=[A-Za-z]{2}\d)(?<![A-Za-z0-9][A-Za-z]{2}\d)\d[ -]?[A-Za-z0-9]{4})"
)
_COLONS: Final = re.compile(r":[\dA-Fa-f]*:")


@dataclass(frozen=True, order=True)
class Found:
    """Where it stands in the text, and its kind."""

    start: int
    end: int
    kind: str


class Finder(Protocol):
    """What finds more than the patterns here, and takes so long that it is not waited for on the event loop."""

    @property
    def hold(self) -> int:
        """Characters of a stream that it sees together, and so many before them."""

    def find(self, text: str) -> list[Found]:
        """As `find`; only below `run`. Raises `NotJudged`."""

    async def run(self, act: Callable[[], T]) -> T:
        """What `act` returns, which may ask `find`. Raises what it raises, and `NotJudged` when too much waits."""


def find(text: str, kinds: Collection[str] = KINDS) -> list[Found]:
    """All that is found, in the order of the text; none overlaps another."""
    text = plain(text)
    if not _may_hold(text):
        return []
    found: list[Found] = []
    for kind in KINDS:
        if kind in kinds:
            found = list(_merged(found, _of_kind(text, kind)))
    return found


def plain(text: str) -> str:
    """With signs of the patterns for those that look like them, one for one."""
    return text if text.isascii() else text.translate(_ALIKE)


def joined(found: Iterable[Found]) -> list[Found]:
    """In the order of the text; what overlaps becomes one, called as the longest of it."""
    out: list[Found] = []
    longest = 0
    for one in sorted(found):
        size = one.end - one.start
        if not out or one.start >= out[-1].end:
            out.append(one)
            longest = size
            continue
        kind = one.kind if size > longest else out[-1].kind
        out[-1] = Found(out[-1].start, max(out[-1].end, one.end), kind)
        longest = max(longest, size)
    return out


def _may_hold(text: str) -> bool:
    """Whether one of the signs is there that each kind has: most texts are done with this look.

    Each pattern begins with one sign, to which the search leaps: all in one pattern would be tried at each character.
    """
    return "@" in text or _DIGITS.search(text) is not None or _COLONS.search(text) is not None


def _merged(held: list[Found], new: Iterable[Found]) -> Iterator[Found]:
    """Both in the order of the text, without what of the new overlaps the held. Both come so, each without overlaps."""
    at, before = 0, 0
    for one in new:
        while at < len(held) and held[at].start < one.end:
            before = max(before, held[at].end)
            yield held[at]
            at += 1
        if one.start >= before:
            yield one
    yield from held[at:]


def redacted(text: str, found: Collection[Found]) -> str:
    """The text with `[mail]` and the like in their places."""
    pieces, at = [], 0
    for one in found:
        pieces += [text[at : one.start], f"[{one.kind}]"]
        at = one.end
    return "".join(pieces) + text[at:]


def _of_kind(text: str, kind: str) -> Iterator[Found]:
    if kind == "mail" and "@" not in text:
        return
    pattern, holds = _RULES[kind]
    for match in pattern.finditer(text):
        if holds(match.group()):
            yield Found(match.start(), match.end(), kind)


def _is_card(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d if i % 2 == 0 else (d * 2 if d < 5 else d * 2 - 9) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0 and len(set(digits)) > 1


def _is_iban(text: str) -> bool:
    plain = re.sub(r"[ -]", "", text).upper()
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _is_ip(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_loopback)


def _is_any(_text: str) -> bool:
    return True


_RULES: Final[Mapping[str, tuple[re.Pattern[str], Callable[[str], bool]]]] = {
    "mail": (_MAIL, _is_any),
    "iban": (_IBAN, _is_iban),
    "card": (_CARD, _is_card),
    "ip": (_IP, _is_ip),
    "phone": (_PHONE, _is_any),
}
