"""Which devices a candidate device is ranked among, and by what they have counted since.

Peers are drawn by a hash, among devices with a similar load before: whom one is compared with depends on nothing that
comes after. A block counts all its devices from one moment on, and waits for the slowest, candidate or not: else those
that are quick to reach a size, and those with more evidence than the rest, would stand where they stand for that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime

from fleet.gates.history import Block, Mode
from fleet.gates.measures import HOURS, MEASURES, REQUESTS, Tally, amounts, before, change, hours, minus, tally
from fleet.gates.thresholds import Gates
from fleet.gates.values import Comparison

PEERS = 9
"""With nine a device that is the worst of its block counts tenfold, and a wave of a tenth uses every other device."""
SIMILAR = 4.0
"""Peers have at most this many times the load, or at least the same part of it."""
PATIENT = 4
"""A device with this many times the size of evidence does not wait for slow peers any more."""
LATE = 0.25
"""Began later than its peers by more than this part of its span: all of the block are counted from now on."""


class Look:
    """One call of the gates: the comparisons, and tallies that several gates ask for."""

    def __init__(self, gates: Gates, comparisons: Sequence[Comparison], now: datetime) -> None:
        self.gates, self.now = gates, now
        self.candidates = [c for c in comparisons if c.arm == "candidate"]
        self.controls = {c.device: c for c in comparisons if c.arm == "control"}
        self._tallies: dict[tuple[str, float | None], Tally] = {}

    def tally(self, one: Comparison, factor: float | None = 1.0) -> Tally:
        """As `measures.tally`."""
        key = (one.device, factor)
        if key not in self._tallies:
            self._tallies[key] = tally(one, factor)
        return self._tallies[key]


def is_known(one: Comparison) -> bool:
    """Whether there is something to hold a device against."""
    return before(one.before, REQUESTS) > 0


def begin(look: Look, one: Comparison, blocks: Mapping[str, Block]) -> Block:
    """The block of a device that is seen with the candidate for the first time."""
    mode, peers = _choose(look, one, blocks)
    since = {p.device: p.since.timestamp() for p in peers}
    return Block(since=one.since.timestamp(), mode=mode, peers=since, start=_start(look, one, peers))


def changes(look: Look, one: Comparison, block: Block, name: str, size: int) -> list[float] | str:
    """The changes of the peers of a device; or the id of one that is to be waited for."""
    measure, there = MEASURES[name], []
    kind = measure.kind
    patient = amounts(one)[kind] - block.started(one.device)[kind] < PATIENT * size
    for peer in (p for p in map(look.controls.get, block.peers) if p is not None and _present(look, block, p)):
        if amounts(peer)[kind] - block.started(peer.device)[kind] >= size:
            there.append(peer)
        elif patient and (kind == HOURS or _alike(peer, one, kind)):
            return peer.device
    spans = ((peer, minus(look.tally(peer, measure.factor()), block.started(peer.device))) for peer in there)
    return [value for peer, span in spans if (value := change(name, peer, span)) is not None]


def waits(look: Look, device: str, kind: int, amount: float) -> bool:
    """Whether a peer is still to be waited for: it speaks, and has less evidence than that."""
    peer = look.controls.get(device)
    return peer is not None and _speaks(look, peer) and amounts(peer)[kind] < amount


def _present(look: Look, block: Block, peer: Comparison) -> bool:
    """Still runs what it ran, was not counted anew, and speaks."""
    return peer.since.timestamp() == block.peers[peer.device] and _speaks(look, peer)


def _speaks(look: Look, peer: Comparison) -> bool:
    return look.now - (peer.after.ends if peer.after is not None else peer.since) <= look.gates.fresh


def _choose(look: Look, one: Comparison, blocks: Mapping[str, Block]) -> tuple[Mode, list[Comparison]]:
    if not one.incumbent:
        return "first", []
    if not is_known(one):
        return "unknown", []
    if not look.controls:
        return "alone", []
    used = {(name, since) for b in blocks.values() for name, since in b.peers.items()}
    free = [c for c in look.controls.values() if (c.device, c.since.timestamp()) not in used]
    similar = sorted((c for c in free if _alike(c, one, REQUESTS)), key=lambda c: _draw(one.device, c.device))
    new = sum(c.device not in blocks and c.after is not None for c in look.candidates)
    chosen = similar[: min(PEERS, max(1, len(similar) // max(2, new)))]
    return ("compared" if chosen else "unranked"), chosen


def _start(look: Look, one: Comparison, peers: Sequence[Comparison]) -> dict[str, Tally]:
    """Tallies to take off: none when all began about together, else everybody's of now."""
    late = max(((one.since - p.since).total_seconds() / 3600 for p in peers), default=0.0)
    if late <= LATE * hours(one):
        return {}
    return {one.device: look.tally(one, look.gates.limits.get("tail", 1.0)), **{p.device: look.tally(p) for p in peers}}


def _alike(a: Comparison, b: Comparison, kind: int) -> bool:
    """Whether two devices had evidence at a similar rate before."""
    x, y = (before(c.before, kind) / max(before(c.before, HOURS), 1e-9) for c in (a, b))
    return x > 0 and y > 0 and max(x, y) <= SIMILAR * min(x, y)


def _draw(device: str, peer: str) -> bytes:
    return hashlib.sha256(f"{device}\n{peer}".encode()).digest()
