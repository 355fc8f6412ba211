"""How good a model is, by what is known of it: four figures that mean different things, each with its interval.

    figures(behaviours, cloud)     # of one model: those that can be told, by kind

| kind | of | what it is not |
| feedback accuracy | answers that an app called right or wrong | of all answers: apps may tell of mistakes only |
| shadow agreement | answers in shadow that are the active model's, too | right |
| cloud agreement | checked answers that the larger model gives, too | right |
| corrected accuracy | all answers, by cloud agreement mended with true labels | known without labels |

They are never added up, averaged or put in each other's place: a `Figure` knows its kind, and nothing here takes two.
The first two have the device as their unit and hold at all looks together (`sequential.mean`); the last two are those
of `fleet.agreement`, by strata of confidence, and hold for the look at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fleet.agreement import Estimate, accuracy, agreement
from fleet.gates.sequential import mean
from fleet.gates.values import Behaviour
from wire.agreement import Agreement

Kind = Literal["feedback accuracy", "shadow agreement", "cloud agreement", "corrected accuracy"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A share from 0 to 1 of `n` answers, `labelled` of them with the truth, of `devices` (None: not known by device).

    `low` and `high` are its 95 % interval; None where there are too few devices for one.
    """

    kind: Kind
    value: float
    low: float | None
    high: float | None
    n: int
    labelled: int = 0
    devices: int | None = None

    def to_value(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self)

    def words(self) -> str:
        """`feedback accuracy 91.8 % (90.9 to 92.6) of 12,300 answers on 24 devices`."""
        between = ""
        if self.low is not None and self.high is not None:
            between = f" ({100 * self.low:.1f} to {100 * self.high:.1f})"
        labels = f", {self.labelled:,} with a label" if self.kind == "corrected accuracy" else ""
        devices = f" on {self.devices} devices" if self.devices is not None else ""
        return f"{self.kind} {100 * self.value:.1f} %{between} of {self.n:,} answers{labels}{devices}"


def figures(behaviours: Sequence[Behaviour], cloud: Iterable[Agreement] = ()) -> dict[Kind, Figure]:
    """What is known of one model. `behaviours`: of its devices, one each; `cloud`: its counts of checked answers.

    A kind of which nothing is known is left out; a device that counts what cannot be, more hits than answers, too.
    """
    counts = list(cloud)
    found = (
        _by_device("feedback accuracy", [(b.feedback_correct, b.feedback_total) for b in behaviours]),
        _by_device("shadow agreement", [(b.agreed, b.compared) for b in behaviours]),
        _by_strata("cloud agreement", agreement(counts)),
        _by_strata("corrected accuracy", accuracy(counts)),
    )
    return {one.kind: one for one in found if one is not None}


def _by_device(kind: Kind, counts: Sequence[tuple[int, int]]) -> Figure | None:
    sound = [(float(hits), float(n)) for hits, n in counts if 0 <= hits <= n and n > 0]
    if not sound:
        return None
    told, n = mean(sound), int(sum(n for _, n in sound))
    labelled = n if kind == "feedback accuracy" else 0
    return Figure(kind=kind, value=told.value, low=told.low, high=told.high, n=n, labelled=labelled, devices=told.n)


def _by_strata(kind: Kind, told: Estimate | None) -> Figure | None:
    if told is None:
        return None
    return Figure(kind=kind, value=told.value, low=told.low, high=told.high, n=told.n, labelled=told.labelled)
