"""Scores of one model in one window: whether its devices see and say what they are expected to. Pure.

    scores = judge(Model(digest, members, reference, known, days))

Each stratum (all devices, a profile, a group, a tag) is held against the compiler's reference and against the earlier
weeks of its own devices: device by device, so that new devices of another kind are not taken for drift.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fleet.drift.bins import Bins, shares
from fleet.drift.comparing import FEWEST_DAYS, Pair, compare
from fleet.drift.looks import KINDS, Counts, Kind, Look
from fleet.drift.values import ALL, Against, Key, Member, Score
from fleet.drift.words import moved, where

FEWEST_SEEN: Final = 5.0
"""Counts of a device in a window: with fewer it is left out."""
FEWEST_PAST: Final = 20.0
"""Counts that a device's past needs to be held against it."""
LENT: Final = 20.0
"""Counts that a device's past borrows from that of all, so that what it never did is not impossible."""


@dataclass(frozen=True)
class Model:
    """One model in one window. `days`: what all devices of a stratum saw on earlier days, by stratum."""

    digest: str
    members: Sequence[Member]
    reference: Look | None = None
    known: int = 0
    """Examples that the reference comes from."""
    days: Mapping[str, Sequence[Look]] = field(default_factory=dict)


def strata(members: Sequence[Member]) -> dict[str, list[Member]]:
    """The members by stratum. A stratum of all of them says nothing of its own, and is left out."""
    found: dict[str, list[Member]] = {ALL: list(members)}
    for member in members:
        for name in member.strata:
            found.setdefault(name, []).append(member)
    return {name: these for name, these in found.items() if name == ALL or len(these) < len(members)}


def judge(model: Model) -> list[Score]:
    """Every comparison of a model that there is enough for."""
    grouped = strata(model.members)
    found = []
    for kind in KINDS:
        for against, base in _bases(model, kind):
            bins = Bins.of(kind, base)
            sorted_ = _Sorted(bins, kind, base)
            for name, members in sorted(grouped.items()):
                score = _score(model, name, members, against, sorted_)
                if score is not None:
                    found.append(score)
    return found


def _bases(model: Model, kind: Kind) -> Iterator[tuple[Against, Counts]]:
    """What a kind is held against: tables with something in them."""
    if model.reference is not None and model.reference.table(kind):
        yield "reference", model.reference.table(kind)
    past = total(member.past.table(kind) for member in model.members)
    if past:
        yield "past", past


def total(tables: Iterator[Counts] | Sequence[Counts]) -> dict[str, float]:
    """The sum of some tables."""
    found: dict[str, float] = {}
    for table in tables:
        for key, n in table.items():
            found[key] = found.get(key, 0) + n
    return found


class _Sorted:
    """Tables by bin: each is sorted once, whatever strata its device is in."""

    def __init__(self, bins: Bins, kind: Kind, base: Counts) -> None:
        self.bins, self.kind, self.base = bins, kind, base
        self._kept: dict[tuple[str, bool], list[float]] = {}

    def today(self, member: Member) -> list[float]:
        return self._of(member, past=False)

    def past(self, member: Member) -> list[float]:
        return self._of(member, past=True)

    def _of(self, member: Member, *, past: bool) -> list[float]:
        key = member.device, past
        if key not in self._kept:
            self._kept[key] = self.bins.sort((member.past if past else member.today).table(self.kind))
        return self._kept[key]


def _score(model: Model, name: str, members: Sequence[Member], against: Against, by_bin: _Sorted) -> Score | None:
    kind = by_bin.kind
    days = [by_bin.bins.sort(day.table(kind)) for day in model.days.get(name, ())]
    some = [m for m in members if sum(by_bin.today(m)) >= FEWEST_SEEN]
    if against == "past":
        some = [m for m in some if sum(by_bin.past(m)) >= FEWEST_PAST]
    if not some or (against == "past" and len(days) < FEWEST_DAYS):
        return None
    base = by_bin.base if against == "reference" else total([m.past.table(kind) for m in some])
    expected = shares(by_bin.bins.sort(base))
    pairs = [Pair(seen, _expected(seen, expected, m, against, by_bin)) for m in some if (seen := by_bin.today(m))]
    found = compare(pairs, days, model.known if against == "reference" else None)
    if found is None:
        return None
    today = total([m.today.table(kind) for m in some])
    told = moved(kind, by_bin.bins, found.expected, found.seen, base, today)
    profiles = sorted({s.removeprefix("profile:") for m in some for s in m.strata if s.startswith("profile:")})
    words = f"{told}, {where(name, profiles, found.devices)}"
    key = Key(model.digest, name, kind, against)
    return Score(key, found.devices, found.n, found.psi, found.limit, found.p, words)


def _expected(
    seen: Sequence[float], base: Sequence[float], m: Member, against: Against, by_bin: _Sorted
) -> list[float]:
    """Counts by bin that a device would have as it was, or as the reference is."""
    n = sum(seen)
    if against == "reference":
        return [n * share for share in base]
    past = by_bin.past(m)
    whole = sum(past) + LENT
    return [n * (count + LENT * share) / whole for count, share in zip(past, base, strict=True)]
