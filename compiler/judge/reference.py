"""What inputs and answers of a variant look like on the test examples: drift on devices is held against it. Pure.

The examples are those that were held out: on examples that it knows a model is surer than anywhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from compiler.examples.examples import Examples
from wire.evidence import Reference
from wire.language import language_of
from wire.shapes import Shapes

if TYPE_CHECKING:
    from wire.processing import Result


def of(examples: Examples, results: Iterable[Result]) -> Reference:
    """The reference of a variant that gave these results, one for each example."""
    shapes = Shapes()
    for result in results:
        shapes.add(result)
    return Reference(dataset=examples.digest, n=len(examples.rows), **shapes.fields())


def of_texts(examples: Examples) -> Reference:
    """That of a language model: the languages that it is asked in. How long prompts are, the first weeks tell."""
    languages = Counter(language_of(row.example) for row in examples.rows if isinstance(row.example, str))
    return Reference(dataset=examples.digest, n=len(examples.rows), languages=dict(languages))
