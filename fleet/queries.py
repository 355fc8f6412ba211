"""Queries: which devices are meant. Pure.

    query = parse("profile=raspberry-pi-4 and tag:kitchen and not group:lab")
    matches = predicate(query)
    matches(Standing("kitchen-1", "raspberry-pi-4", "floor-2", frozenset({"kitchen"}), "online"))    # True

A test is a field (`device`, `profile`, `group`, `tag`, `state`) with `=`, which is exact, or `:`, which takes `*`, `?`
and `[...]` (`device:pi-*`); or one of the words `all`, `online`, `late`, `offline` and `unknown`. `not` binds closest,
then `and`, then `or`. `parse(show(q)) == q` for every query.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import translate
from typing import Final, Literal, NamedTuple

from fleet.errors import Malformed

Field = Literal["device", "profile", "group", "tag", "state"]
FIELDS: Final[tuple[Field, ...]] = ("device", "profile", "group", "tag", "state")
STATES: Final = ("online", "late", "offline", "unknown")
LONGEST: Final = 2000
"""Characters of a query."""
DEEPEST: Final = 40
"""Brackets and `not`s inside each other."""
_TOKEN: Final = re.compile(r"(?P<mark>[()=:])|(?P<word>[A-Za-z0-9._*?\[\]-]+)")
_KEYWORDS: Final = frozenset({"and", "or", "not"})


@dataclass(frozen=True)
class Standing:
    """What queries ask of a device. `state` is one of `STATES`."""

    device: str
    profile: str
    group: str
    tags: frozenset[str] = frozenset()
    state: str = "unknown"


@dataclass(frozen=True)
class Everything:
    """Every device."""


@dataclass(frozen=True)
class Is:
    """A field has a value, or one that a pattern fits; of a device's tags one is enough."""

    field: Field
    value: str
    pattern: bool = False


@dataclass(frozen=True)
class Not:
    """The others."""

    of: Query


@dataclass(frozen=True)
class And:
    """All of at least two hold."""

    of: tuple[Query, ...]


@dataclass(frozen=True)
class Or:
    """One of at least two holds."""

    of: tuple[Query, ...]


Query = Everything | Is | Not | And | Or
Predicate = Callable[[Standing], bool]


class _Token(NamedTuple):
    text: str
    at: int
    """The first character is 1."""
    word: bool


def parse(text: str) -> Query:
    """A query. Raises `Malformed` that names the character where it stops being one."""
    if len(text) > LONGEST:
        raise Malformed(f"query: {len(text)} characters, at most {LONGEST}: use a tag or a group")
    reader = _Reader([*_tokens(text)], len(text) + 1)
    query = reader.either(0)
    if (rest := reader.peek()) is not None:
        raise _fault(rest.at, "'and', 'or' or the end", rest.text)
    return query


def show(query: Query) -> str:
    """The text of a query."""
    match query:
        case Everything():
            return "all"
        case Is(field, value, pattern):
            return (
                value if field == "state" and not pattern and value in STATES else f"{field}{':='[not pattern]}{value}"
            )
        case Not(of):
            return f"not {_inside(of)}"
        case And(of):
            return " and ".join(map(_inside, of))
        case Or(of):
            return " or ".join(show(q) if isinstance(q, And) else _inside(q) for q in of)


def predicate(query: Query) -> Predicate:
    """Whether a device is meant; made once, asked often."""
    match query:
        case Is():
            return _of_test(query)
        case Not(of):
            inner = predicate(of)
            return lambda standing: not inner(standing)
        case And(of):
            inners = tuple(map(predicate, of))
            return lambda standing: all(one(standing) for one in inners)
        case Or(of):
            inners = tuple(map(predicate, of))
            return lambda standing: any(one(standing) for one in inners)
    return lambda _standing: True


def asks_for(query: Query, field: Field) -> bool:
    """Whether a query looks at a field: what none looks at has not to be read."""
    match query:
        case Is(mine, _, _):
            return mine == field
        case Not(of):
            return asks_for(of, field)
        case And(of) | Or(of):
            return any(asks_for(one, field) for one in of)
    return False


def _of_test(test: Is) -> Predicate:
    field, value = test.field, test.value
    if not test.pattern:
        if field == "tag":
            return lambda standing: value in standing.tags
        return lambda standing: bool(getattr(standing, field) == value)
    fits = re.compile(translate(value)).match
    if field == "tag":
        return lambda standing: any(fits(tag) for tag in standing.tags)
    return lambda standing: fits(getattr(standing, field)) is not None


def _inside(query: Query) -> str:
    return f"({show(query)})" if isinstance(query, And | Or) else show(query)


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            raise _fault(at + 1, "a word, '=', ':', '(' or ')'", text[at])
        yield _Token(match[0], at + 1, match["word"] is not None)
        at = match.end()


class _Reader:
    """Recursive descent over tokens; `end` is the character behind the last."""

    def __init__(self, tokens: list[_Token], end: int) -> None:
        self._tokens, self._end, self._next = tokens, end, 0

    def peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def either(self, depth: int) -> Query:
        found = [self._both(depth)]
        while self._takes("or"):
            found.append(self._both(depth))
        return found[0] if len(found) == 1 else Or(tuple(found))

    def _both(self, depth: int) -> Query:
        found = [self._one(depth)]
        while self._takes("and"):
            found.append(self._one(depth))
        return found[0] if len(found) == 1 else And(tuple(found))

    def _one(self, depth: int) -> Query:
        token = self._take("a test such as profile=x86-64")
        if depth > DEEPEST:
            raise Malformed(f"query, character {token.at}: more than {DEEPEST} brackets and 'not' inside each other")
        if token.text == "not":
            return Not(self._one(depth + 1))
        if token.text == "(":
            inner = self.either(depth + 1)
            closing = self._take("')'")
            if closing.text != ")":
                raise _fault(closing.at, "'and', 'or' or ')'", closing.text)
            return inner
        return self._test(token)

    def _test(self, token: _Token) -> Query:
        if not token.word or token.text in _KEYWORDS:
            raise _fault(token.at, "a test such as profile=x86-64", token.text)
        mark = self.peek()
        if mark is None or mark.text not in ("=", ":"):
            return _single(token)
        field = next((f for f in FIELDS if f == token.text), None)
        if field is None:
            raise _fault(token.at, f"one of the fields {', '.join(FIELDS)}", token.text)
        self._next += 1
        value = self._take(f"what {field} should be")
        if not value.word:
            raise _fault(value.at, f"what {field} should be", value.text)
        return Is(field, value.text, mark.text == ":")

    def _takes(self, word: str) -> bool:
        token = self.peek()
        if token is None or token.text != word:
            return False
        self._next += 1
        return True

    def _take(self, expected: str) -> _Token:
        token = self.peek()
        if token is None:
            raise _fault(self._end, expected, "")
        self._next += 1
        return token


def _single(token: _Token) -> Query:
    if token.text == "all":
        return Everything()
    if token.text in STATES:
        return Is("state", token.text)
    raise _fault(token.at, f"a test such as profile=x86-64, or one of all, {', '.join(STATES)}", token.text)


def _fault(at: int, expected: str, found: str) -> Malformed:
    return Malformed(
        f"query, character {at}: expected {expected}, got {found[:40]!r}"
        if found
        else f"query, character {at}: expected {expected}, and there it ends"
    )
