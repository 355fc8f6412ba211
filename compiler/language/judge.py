"""How good a language model is: whether it guesses the last word of a text from the words before it.

The task of LAMBADA (Paperno and others, "The LAMBADA dataset: word prediction requiring a broad discourse context",
ACL 2016), on any texts. Variant and source are asked the same, so their answers are compared pair by pair, as with
every other task. Pure, but for the session that is asked.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compiler.errors import Incompatible, Untrusted
from compiler.examples.examples import Row
from compiler.judge import gates
from compiler.language.session import Session
from wire.evidence import Decision, Sabotage
from wire.pipeline import Golden, GoldenCase
from wire.processing import Result, to_tensor

GUESS = 6
"""Tokens in which a word must be guessed."""
CASES = 6
"""Golden cases."""
LONGEST = 300
"""Characters of a golden text: it is asked again at each start of a probation, on small boards."""


@dataclass(frozen=True)
class Answers:
    """What a model guessed: 1 or 0 for each text, and the ms for each token of each answer."""

    values: tuple[float, ...]
    ms: tuple[float, ...]


def ask(session: Session, rows: Sequence[Row], tick: Callable[[int], None]) -> Answers:
    """Ask for the last word of each text; `tick` hears how many were answered."""
    values, ms = [], []
    for i, row in enumerate(rows):
        assert isinstance(row.example, str)
        before, word = row.example.strip().rsplit(maxsplit=1)
        found = session.complete(before, GUESS)
        values.append(float(bare(next(iter(found.text.split()), "")) == bare(word)))
        ms.append(found.ms)
        tick(i + 1)
    return Answers(tuple(values), tuple(ms))


def bare(word: str) -> str:
    """A word without case and the punctuation around it."""
    return word.strip(string.punctuation + "\u201c\u201d\u2018\u2019").casefold()  # quotation marks of print


def golden_set(session: Session, rows: Sequence[Row], tolerance: float) -> Golden:
    """The golden set of the model in a session. Raises `Incompatible` where it always answers with nothing."""
    texts = [_cut(str(rows[i].example)) for i in gates.golden_places(rows)[:CASES]]
    results = [(text, session.golden(text)) for text in texts]
    cases = tuple(
        GoldenCase(text=text, outputs={name: to_tensor(values) for name, values in result.outputs.items()})
        for text, result in results
        if all(values.size for values in result.outputs.values())
    )
    if not cases:
        raise Incompatible("golden set: the model ends every answer at once: give other test examples")
    return Golden(max_abs=tolerance, cases=cases)


def again(session: Session, golden: Golden) -> list[Result]:
    """The answers to a golden set."""
    return [session.golden(str(case.text)) for case in golden.cases]


def verdicts(name: str, golden: Golden, results: Sequence[Result], decision: Decision) -> Sabotage:
    """What both gates said of a model broken on purpose. Raises `Untrusted` when one lets it pass."""
    return gates.saboteur_verdicts(name, golden, results, decision)


def check_repeats(golden: Golden, results: Sequence[Result]) -> None:
    """Raises `Untrusted` when a fresh process does not give a golden set again."""
    fault = gates.golden_set_fault(golden, results)
    if fault:
        raise Untrusted(f"it does not repeat its own answers: {fault}")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(maxsplit=1)[0]
