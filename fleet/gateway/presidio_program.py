"""A process that looks for personal data with Microsoft Presidio, and does nothing else.

    python -P -m fleet.gateway.presidio_program '{"entities": [...], "language": "en", "model": "", ...}'

It says `{"ready": true}` or `{"error": "..."}`, then answers each line `{"text": "..."}` with
`[[start, end, kind], ...]`, in characters, until its input ends. It writes no text anywhere, and asks nobody else: the
list of domains is the one that came with the package.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any, Final

import spacy
import tldextract
from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
from presidio_analyzer.nlp_engine import SpacyNlpEngine
from spacy.language import Language

PIECE: Final = 1500
"""Characters that are looked at together: Presidio's time grows with the square of a text."""
WORDS: Final = {
    "EMAIL_ADDRESS": "mail",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "IP_ADDRESS": "ip",
}
"""What the built-in set calls the same thing. Others are their own names: `US_SSN` is `us-ssn`."""


class Unfit(Exception):
    """The settings do not go together."""


def main(arguments: list[str]) -> int:
    """The exit code."""
    logging.disable()  # what it logs may quote a text
    tldextract.extract = tldextract.TLDExtract(
        suffix_list_urls=(), cache_dir=None
    )  # or the first mail would ask the net
    settings = json.loads(arguments[0])
    try:
        engine = engine_of(settings)
    except Unfit as e:
        say({"error": str(e)})
        return 1
    say({"ready": True})
    for line in sys.stdin:
        say(list(look(engine, json.loads(line)["text"], settings)))
    return 0


def say(value: object) -> None:
    """One line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def engine_of(settings: dict[str, Any]) -> Any:
    """Presidio with one language, whose pipeline is the model's, or one of words alone. Raises `Unfit`."""
    language, model = settings["language"], settings["model"]
    nlp = SpacyNlpEngine(models=[{"lang_code": language, "model_name": model or "blank"}])
    nlp.nlp = {language: pipeline(language, model)}
    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language], nlp_engine=nlp)
    if not model:  # it says that it finds persons, and would find none
        registry.remove_recognizer("SpacyRecognizer")
    engine = AnalyzerEngine(registry=registry, nlp_engine=nlp, supported_languages=[language])
    known = sorted(engine.get_supported_entities(language))
    for entity in settings["entities"]:
        if entity not in known:
            of = f"the model {model}" if model else "no model (names and places take one: set model)"
            raise Unfit(f"entities: {entity!r}: with {of}, for {language!r}, choose from {', '.join(known)}")
    return engine


def pipeline(language: str, model: str) -> Any:
    """What cuts a text into words. Raises `Unfit`."""
    if model:
        if not spacy.util.is_package(model):  # never a download
            raise Unfit(f"model: {model!r}: there is no such package: install this spaCy model with pip")
        return spacy.load(model)
    try:
        blank = spacy.blank(language)
    except ImportError as e:
        raise Unfit(f"language: {language!r}: spaCy does not know it") from e
    # Presidio looks for words around a find, such as "ssn", by their lemmas: without a model, by the words themselves.
    Language.component("shoal_lower", func=_lower)
    blank.add_pipe("shoal_lower")
    return blank


def _lower(words: Any) -> Any:
    for word in words:
        word.lemma_ = word.lower_
    return words


def look(engine: Any, text: str, settings: dict[str, Any]) -> Iterator[tuple[int, int, str]]:
    """All that is found: what is no longer than `hold` stands whole in one of the pieces, with its words before it."""
    # Half of a pair of surrogates is no text for spaCy. One sign for one: what is found stands where it stood.
    whole = "".join("?" if "\ud800" <= c <= "\udfff" else c for c in text)
    step = PIECE - 2 * min(settings["hold"], PIECE // 4)
    for at in range(0, max(len(whole) - (PIECE - step), 1), step):
        found = engine.analyze(
            whole[at : at + PIECE],
            language=settings["language"],
            entities=settings["entities"],
            score_threshold=settings["threshold"],
        )
        for one in found:
            yield at + one.start, at + one.end, WORDS.get(one.entity_type, one.entity_type.lower().replace("_", "-"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
