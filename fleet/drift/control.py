"""From many scores to few alarms: what is rare by chance alone happens somewhere in a large fleet every day. Pure.

    alarms = step(alarms, scores, window)

1. Over all scores of a window the false discovery rate is held at `RATE` (Benjamini and Hochberg, JRSS B 57, 1995, 289
   to 300; for scores that rise together, as those of overlapping strata do: Benjamini and Yekutieli, The Annals of
   Statistics 29, 2001, 1165 to 1188). What passes and is as large as its limit is a sign.
2. An alarm opens when `SIGNS` of the last `LOOKS` windows that said something have a sign: chance does not repeat
   itself. It recovers when none of the last `LOOKS` has one.
3. One change shows in all devices and in each of their strata. The stratum where it is the clearest is named: a part
   only where it moved `STRONGER` times as much as the whole, and then not the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from fleet.drift.values import ALL, Alarm, Key, Score

RATE: Final = 0.01
SIGNS: Final = 2
LOOKS: Final = 3
STRONGER: Final = 2.0
OVER: Final = ("recovered", "settled")


def signs(scores: Sequence[Score], rate: float = RATE) -> set[Key]:
    """What is a sign in this window."""
    ordered = sorted(scores, key=lambda s: s.p)
    passed = max((i for i, s in enumerate(ordered, 1) if s.p <= rate * i / len(ordered)), default=0)
    return {s.key for s in ordered[:passed] if s.effect >= s.limit}


def step(alarms: Mapping[Key, Alarm], scores: Sequence[Score], window: str) -> dict[Key, Alarm]:
    """The alarms after one more window: those that are not over yet in, and out with those that are over now."""
    seen = signs(scores)
    after = dict(alarms)
    for score in scores:
        found = _after(alarms.get(score.key), score, window, sign=score.key in seen)
        if found is not None:
            after[score.key] = found
        else:
            after.pop(score.key, None)
    now = {score.key: score for score in scores}
    due = [a for a in after.values() if a.state == "suspected" and a.signs.count("1") >= SIGNS and a.key in seen]
    for alarm in _clearest(due, after, now):
        after[alarm.key] = replace(alarm, state="open")
    return after


def _after(alarm: Alarm | None, score: Score, window: str, *, sign: bool) -> Alarm | None:
    """One alarm after one more score; None where nothing is left to suspect."""
    if alarm is None or alarm.state in OVER:
        return Alarm(score.key, "suspected", "1", window, window, None, score) if sign else None
    looks = (alarm.signs + ("1" if sign else "0"))[-LOOKS:]
    if sign:
        return replace(alarm, signs=looks, last=window, score=score)
    if "1" in looks or len(looks) < LOOKS:
        return replace(alarm, signs=looks)
    return replace(alarm, signs=looks, state="recovered", ended=window) if alarm.state == "open" else None


def _clearest(due: Sequence[Alarm], alarms: Mapping[Key, Alarm], now: Mapping[Key, Score]) -> list[Alarm]:
    """Those of the due alarms that name the stratum where the change is the clearest."""
    clearest = [a for a in due if a.key.stratum != ALL and a.score.effect >= STRONGER * _of_all(a.key, alarms, now)]
    named = [a for a in alarms.values() if a.state == "open" and a.key.stratum != ALL]
    covered = {(a.key.digest, a.key.subject, a.key.against) for a in (*clearest, *named)}
    whole = [a for a in due if a.key.stratum == ALL]
    return [*clearest, *(a for a in whole if (a.key.digest, a.key.subject, a.key.against) not in covered)]


def _of_all(part: Key, alarms: Mapping[Key, Alarm], now: Mapping[Key, Score]) -> float:
    """By how much the whole moved that a stratum is a part of; 0 where it did not."""
    key = replace(part, stratum=ALL)
    if key in alarms and alarms[key].state == "open":
        return alarms[key].score.effect
    return now[key].effect if key in now and now[key].effect >= now[key].limit else 0.0
