"""From comparisons to trials: which devices have enough evidence now, and how they stand among their peers.

    history = observe(look, history)

1. A device seen with the candidate for the first time gets up to nine peers without it (`fleet.gates.peers`).
2. Once it and they have reached a size of evidence, it is ranked among them by their changes since before. It counts
   there once, whatever comes later.
3. With no device left to compare with, its change alone is tried, with a wider limit, and once it has seen the same
   hours of a day as before: a busy hour is not the model's fault. A device that ran no model before is tried by
   absolute limits. One that ran a model of which nothing is known is tried by neither.

Which devices get the candidate first is drawn by a hash, so equal models make all places as likely: it is a randomised
experiment in small blocks, and what happens to all devices at one time cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median

from fleet.gates.gross import RESTARTS, gross
from fleet.gates.history import Block, History, Mode, Trial
from fleet.gates.measures import (
    ABSOLUTE,
    COMPARED,
    HOURS,
    LABELS,
    MEASURES,
    REQUESTS,
    Measure,
    allowed,
    amounts,
    hours,
    minus,
    wider,
)
from fleet.gates.peers import PATIENT, Look, begin, changes, is_known, waits
from fleet.gates.sequential import Interval, mean, place, rank_bets, share_bets
from fleet.gates.sequential import median as estimate_median
from fleet.gates.thresholds import Gates
from fleet.gates.values import Comparison

MOST = 300
"""Devices of a profile that are followed: more would hardly change a verdict, only the size of what is kept."""
TAIL = 0.01
"""The share of answers above the p99 of before, if nothing changed."""
GROSS_SIZES = (32, 128, 512, 2048)
"""Requests at which a device is looked at for what is plainly broken."""
DAY = 24.0
"""Hours in which a device without peers has seen what it saw before."""
_NEVER = float(1 << 40)
_FIRST_DUE = (0.0, 0.0, 0.0, 0.0)


def observe(look: Look, history: History) -> History:
    """The history with what has come in: the same one when nothing has."""
    blocks, trials = dict(history.blocks), dict(history.trials)
    changed = False
    for one in look.candidates:
        if one.after is None:
            continue
        block = blocks.get(one.device)
        if block is None and len(blocks) >= MOST:
            continue
        block = (
            _told_late(look, one, _counted_anew(one, block), blocks) if block is not None else begin(look, one, blocks)
        )
        if not _is_due(look, one, block):
            continue
        found = _advance(look, one, block, trials)
        changed = changed or found is not blocks.get(one.device)
        blocks[one.device] = found
    return replace(history, blocks=blocks, trials=trials) if changed else history


def trials_of(gates: Gates) -> Iterator[tuple[str, Measure]]:
    """The gates that try hypotheses: alpha is divided over them."""
    yield from ((name, one) for name, one in {**MEASURES, **ABSOLUTE}.items() if name in gates.limits)


def _counted_anew(one: Comparison, block: Block) -> Block:
    """A device whose `since` moved was sent the release again: its peers began at another time."""
    if block.since == one.since.timestamp():
        return block
    return replace(block, since=one.since.timestamp(), mode="unranked", peers={}, start={}, due=_FIRST_DUE)


def _told_late(look: Look, one: Comparison, block: Block, blocks: Mapping[str, Block]) -> Block:
    """A device was away, and what it did before came after what it does now: it is compared from now on."""
    if block.mode != "unknown" or not is_known(one):
        return block
    return replace(begin(look, one, blocks), taken=block.taken, gross=block.gross)


def _is_due(look: Look, one: Comparison, block: Block) -> bool:
    """Whether there is anything to do: looked at for every device at every look, so it is to be quick."""
    after, due = one.after, block.due
    assert after is not None
    much = after.requests >= due[REQUESTS] or after.feedback_total >= due[LABELS] or after.compared >= due[COMPARED]
    if much or (not block.gross and _restless(one)) or hours(one) >= due[HOURS]:
        return True
    return any(not waits(look, peer, int(kind), amount) for peer, (kind, amount) in block.waits.items())


def _restless(one: Comparison) -> bool:
    return one.after is not None and one.after.restarts >= RESTARTS


def _advance(look: Look, one: Comparison, block: Block, trials: dict[str, Trial]) -> Block:
    """Take every size that a device and its peers have reached, and say when there is something to do again."""
    began, taken, due = block.started(one.device), dict(block.taken), [_NEVER] * 4
    slow: dict[str, tuple[float, ...]] = {}
    has = [a - b for a, b in zip(amounts(one), began, strict=False)]
    for gate in _tried(look.gates, block.mode):
        name, measure, _ = gate
        kind = measure.kind
        for size in measure.sizes[taken.get(name, 0) :]:
            if has[kind] >= size and block.mode == "alone" and name in MEASURES and has[HOURS] < DAY:
                due[HOURS] = min(due[HOURS], began[HOURS] + DAY)
                break
            peer = _take(look, one, block, gate, size, trials) if has[kind] >= size else ""
            if peer is not None:
                due[kind] = min(due[kind], began[kind] + (PATIENT * size if peer else size))
                slow |= {peer: (kind, block.started(peer)[kind] + size)} if peer else {}
                break
            taken[name] = taken.get(name, 0) + 1
    taken["gross"] = sum(has[REQUESTS] >= size for size in GROSS_SIZES)
    due[REQUESTS] = min([due[REQUESTS], *(began[REQUESTS] + size for size in GROSS_SIZES[taken["gross"] :])])
    broken = block.gross
    if not broken and (taken["gross"] != block.taken.get("gross") or _restless(one)):
        broken = gross(one, minus(look.tally(one, 0.0), began))
    changed = (taken, broken, tuple(due), slow) != (block.taken, block.gross, block.due, block.waits)
    return replace(block, taken=taken, gross=broken, due=tuple(due), waits=slow) if changed else block


def _tried(gates: Gates, mode: Mode) -> Iterator[tuple[str, Measure, float]]:
    """The gates that a block takes part in, with their limits."""
    for name, limit in gates.limits.items():
        if name in MEASURES and mode in ("compared", "alone"):
            yield name, MEASURES[name], wider(name, limit) if mode == "alone" else limit
        elif name in ABSOLUTE and (name == "agreement" or mode == "first"):
            yield name, ABSOLUTE[name], (100 - limit if name == "agreement" else limit) / 100


def _take(
    look: Look, one: Comparison, block: Block, gate: tuple[str, Measure, float], size: int, trials: dict[str, Trial]
) -> str | None:
    """Rank a device at a size, or hold it against a limit; or the peer to wait for."""
    name, measure, limit = gate
    key = f"{name}/{size}"
    others = changes(look, one, block, name, size) if block.mode == "compared" and name in MEASURES else []
    if isinstance(others, str):
        return others
    value = measure.change(one, minus(look.tally(one, measure.factor(limit)), block.started(one.device)))
    if value is None:
        return None
    if name in ABSOLUTE:
        # A limit of nothing would be a division by it: a thousandth is none.
        bets = share_bets(value, max(limit, 1e-3))
        trials[key] = trials.get(key, Trial()).add(bets, value, _mean)
    elif block.mode == "alone":
        usual = TAIL if name == "tail" else 0.0
        beyond = value - usual - (usual or allowed(name, limit))
        trials[key] = trials.get(key, Trial()).add(rank_bets(place(beyond, ())), value - usual, estimate_median)
    elif others:
        bets = rank_bets(place(value - allowed(name, limit), others))
        trials[key] = trials.get(key, Trial()).add(bets, value - median(others), estimate_median)
    return None


def _mean(shares: Sequence[float]) -> Interval:
    return mean([(share, 1.0) for share in shares])
