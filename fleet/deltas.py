"""Deltas: which pairs of files are worth one, what became of each, and what a device is offered.

    deltas.ready(session, device, member)      # whether a release may be sent now; asks for the deltas that it lacks
    deltas.offers(session, device, models)     # what stands in the device's next desired state
    deltas.listed                              # blobs that may be sent because they are deltas

A device is offered a delta only over what it says that it runs and the fleet gave it: who knows the new version and
the delta knows the old one. A delta is made once for each pair (`fleet.builds.delta`), and none is no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from sqlmodel import Session, col, select

from fleet import devices
from fleet.errors import FleetError
from fleet.rollout.attempts import rollout_of
from fleet.store.blobs import BlobStore
from fleet.store.database import Database
from fleet.store.tables import DeltaRow, Device, RolloutDevice
from fleet.trust.repository import Repository
from wire.bundle import BundleFile, BundleManifest
from wire.chunks import AVERAGE, ChunkList
from wire.errors import WireError
from wire.orders import MAX_OFFERS, DeltaOffer, DesiredModel
from wire.units import instant, show_instant

WAIT: Final = timedelta(seconds=60)
"""How long a release may wait for its delta; the wave goes on without it then."""
WORTH: Final = 0.8
"""Largest share of the chunks that a device lacks which a delta may take: below it nothing is won."""
LEAST: Final = 2 * AVERAGE
"""Bytes of lacking chunks from which a delta is made."""
_HOUR: Final = timedelta(hours=1)
_COLLECT_EVERY: Final = timedelta(minutes=1)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """Two blobs of which the second can be made of the first; `lacking`: bytes of chunks that only the second has."""

    base: str
    blob: str
    lacking: int


@dataclass(frozen=True)
class Made:
    """A delta that was made and stored."""

    delta: str
    size: int
    chunks: str | None
    chunks_size: int


def pairs(old: BundleManifest, new: BundleManifest, chunks: Callable[[BundleFile], ChunkList]) -> tuple[Pair, ...]:
    """The files in chunks that two versions have under one role and name, where they share too few of them."""
    before = {(file.role, file.path): file for file in old.files if file.chunks is not None}
    both = [(before[f.role, f.path], f) for f in new.files if f.chunks is not None and (f.role, f.path) in before]
    found = (Pair(a.digest, b.digest, lacking(chunks(a), chunks(b))) for a, b in both if a.digest != b.digest)
    return tuple(pair for pair in found if pair.lacking >= LEAST)


def lacking(old: ChunkList, new: ChunkList) -> int:
    """Bytes of the chunks of a blob that another one does not have."""
    held = {ref.digest for ref in old.chunks}
    return sum(ref.size for ref in new.chunks if ref.digest not in held)


def is_worth(size: int, lacking: int) -> bool:
    """Whether a delta of so many bytes, its chunk list among them, is much smaller than the chunks that it saves."""
    return size <= WORTH * lacking


class Deltas:
    """The table of deltas. Used on the serial thread, but for `listed`, which is replaced and never changed.

    `kept`: how long a delta stays after it was offered last. `wake` is called when there is one to make.
    """

    def __init__(
        self,
        database: Database,
        repository: Repository,
        blobs: BlobStore,
        clock: Callable[[], datetime],
        kept: timedelta,
    ) -> None:
        self._repository, self._blobs, self._clock, self._kept = repository, blobs, clock, kept
        self._pairs = lru_cache(256)(self._find_pairs)
        self._collected = clock()
        self.wake: Callable[[], object] = lambda: None
        self.listed: dict[str, str | None] = {}
        """Every delta that may be sent and every chunk list of one, with the digest of its own chunk list if any."""
        with database.transaction() as session:
            for failed in session.exec(select(DeltaRow).where(DeltaRow.state == "failed")):
                session.delete(failed)  # the compiler may be there now
            session.flush()
            self._list(session)

    # --- what rollouts and desired states ask -------------------------------------------------------------------

    def ready(self, session: Session, device: Device, member: RolloutDevice) -> bool:
        """Whether every delta that a device could use for its release is there, or will not be."""
        rows = [self._row(session, pair) for pair in self._of(device, member)]
        return all(row.state != "waiting" or self._clock() - instant(row.created) > WAIT for row in rows)

    def offers(self, session: Session, device: Device, models: Sequence[DesiredModel]) -> tuple[DeltaOffer, ...]:
        """What a device may be offered for the models that it should run, at most `MAX_OFFERS`."""
        found = []
        for model in models:
            member = session.get(RolloutDevice, (rollout_of(model.rollout), device.id)) if model.rollout else None
            if member is not None and member.digest == model.digest:
                rows = (session.get(DeltaRow, (pair.base, pair.blob)) for pair in self._of(device, member))
                found += [self._offer(session, row) for row in rows if row is not None and row.state == "ready"]
        return tuple(found[:MAX_OFFERS])

    def _of(self, device: Device, member: RolloutDevice) -> tuple[Pair, ...]:
        """The pairs for a release over the one that the fleet gave this device before, if that is what it runs.

        None for a release that stands in a slot there, in shadow or as what ran before: it has every file of it.
        """
        if not member.before or member.target not in self._repository.releases:
            return ()
        before = DesiredModel.from_bytes(member.before.encode())
        report = devices.last_report(device)
        if report is None or any(s.digest == member.digest for s in report.slots):
            return ()
        runs = any(s.slot == "active" and s.digest == before.digest for s in report.slots)
        return self._pairs(before.digest, member.digest) if runs else ()

    def _find_pairs(self, old: str, new: str) -> tuple[Pair, ...]:
        try:
            before, after = (BundleManifest.from_bytes(self._blobs.read(digest)) for digest in (old, new))
            return pairs(before, after, self._chunk_list)
        except (FleetError, WireError) as e:
            _log.warning("no delta from %s to %s: %s", old, new, e)
            return ()

    def _chunk_list(self, file: BundleFile) -> ChunkList:
        assert file.chunks is not None
        return ChunkList.from_bytes(self._blobs.read(file.chunks))

    def _row(self, session: Session, pair: Pair) -> DeltaRow:
        row = session.get(DeltaRow, (pair.base, pair.blob))
        if row is None:
            now = show_instant(self._clock())
            row = DeltaRow(base=pair.base, blob=pair.blob, lacking=pair.lacking, created=now, used=now)
            session.add(row)
            session.flush()
            self.wake()
        return row

    def _offer(self, session: Session, row: DeltaRow) -> DeltaOffer:
        now = self._clock()
        if now - instant(row.used) > _HOUR:
            row.used = show_instant(now)
            session.add(row)
        return DeltaOffer(
            blob=row.blob,
            base=row.base,
            delta=row.delta,
            size=row.size,
            chunks=row.chunks,
            chunks_size=row.chunks_size,
        )

    # --- what the maker asks ------------------------------------------------------------------------------------

    def next(self, session: Session) -> Pair | None:
        """The pair that waits longest."""
        waiting = select(DeltaRow).where(DeltaRow.state == "waiting").order_by(col(DeltaRow.created)).limit(1)
        row = session.exec(waiting).first()
        return Pair(row.base, row.blob, row.lacking) if row is not None else None

    def take(self, session: Session, pair: Pair, made: Made | None, reason: str) -> None:
        """What came of a pair."""
        row = session.get(DeltaRow, (pair.base, pair.blob))
        if row is None:
            return
        row.state, row.reason = ("ready", "") if made is not None else ("failed", reason[:1000])
        if made is not None:
            row.delta, row.size, row.chunks, row.chunks_size = made.delta, made.size, made.chunks, made.chunks_size
        session.add(row)
        session.flush()
        self._list(session)

    # --- what time brings ---------------------------------------------------------------------------------------

    def tick(self, session: Session) -> list[str]:
        """Forget what is not offered any more, or makes what is not listed. The blobs to `drop` after the commit."""
        now = self._clock()
        if now - self._collected < _COLLECT_EVERY:
            return []
        self._collected = now
        old = [row for row in session.exec(select(DeltaRow)) if self._is_old(row, now)]
        for row in old:
            session.delete(row)
        session.flush()
        self._list(session)
        return [blob for row in old for blob in (row.delta, row.chunks) if blob]

    def drop(self, blobs: Iterable[str]) -> None:
        """Remove what `tick` gave, once it is forgotten for good."""
        for blob in blobs:
            if blob not in self.listed and blob not in self._repository.listed:
                self._blobs.remove(blob)

    def _is_old(self, row: DeltaRow, now: datetime) -> bool:
        return row.blob not in self._repository.listed or now - instant(row.used) > self._kept

    def _list(self, session: Session) -> None:
        rows = session.exec(select(DeltaRow).where(DeltaRow.state == "ready")).all()
        listed: dict[str, str | None] = {row.delta: row.chunks for row in rows}
        self.listed = listed | {row.chunks: None for row in rows if row.chunks is not None}
