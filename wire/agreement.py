"""How often a device's answers agree with the reference, the larger model of the cloud: counts, by how sure they were.

A device counts, the fleet adds up (`merge`) and estimates (`fleet.agreement`). No input and no label is in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from wire.document import Document, check_counts
from wire.errors import Malformed

UNSURE, UNKNOWN = 10, 11
"""Strata of answers below the model's threshold, which are asked of the cloud anyway, and of uncalibrated ones."""


def stratum(confidence: float | None, threshold: float) -> int:
    """The tenth in which a confidence lies, from 0; or `UNSURE`, or `UNKNOWN`."""
    if confidence is None:
        return UNKNOWN
    return UNSURE if confidence < threshold else min(9, max(0, int(confidence * 10)))


@dataclass(frozen=True, kw_only=True)
class Agreement(Document):
    """One stratum of one model's answers: how many there were, how many of them were checked, how many agreed.

    Of the checked ones on which the true label came later: the model right or wrong, agreeing with the reference or
    not. `labelled` are all four.
    """

    stratum: int
    answers: int = 0
    checked: int = 0
    agreed: int = 0
    right_agreed: int = 0
    right_differed: int = 0
    wrong_agreed: int = 0
    wrong_differed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, *COUNTS)
        if not 0 <= self.stratum <= UNKNOWN:
            raise Malformed(f"agreement.stratum: {self.stratum}, expected 0 to {UNKNOWN}")

    @property
    def labelled(self) -> int:
        """Checked answers with a true label."""
        return self.right_agreed + self.right_differed + self.wrong_agreed + self.wrong_differed


COUNTS = tuple(f.name for f in fields(Agreement) if f.name not in ("stratum", "extra"))


def merge(counts: Iterable[Agreement]) -> tuple[Agreement, ...]:
    """Added up by stratum, in their order. Associative and commutative."""
    sums: dict[int, dict[str, int]] = {}
    for one in counts:
        mine = sums.setdefault(one.stratum, dict.fromkeys(COUNTS, 0))
        for name in COUNTS:
            mine[name] += getattr(one, name)
    return tuple(Agreement.from_value({"stratum": number, **found}) for number, found in sorted(sums.items()))
