"""The keys of blobs: which ones a device needs for its models, and what each chunk is encrypted with.

keys = BlobKeys(open_secret(data / "keys" / "chunk-secret"), repository)
keys.of(blob, chunk_list)           # 32 bytes; the same on every start
keys.ring(models)                   # by blob digest: what a device is given
keys.covers(models, blob)           # whether it may ask for chunks of this one
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Final

from fleet.trust.repository import Repository, blobs_of
from wire.orders import DeltaOffer, DesiredModel, MeasureJob
from wire.secrecy import blob_key
from wire.shadow import ShadowModel

Needing = DesiredModel | MeasureJob | ShadowModel
"""What names a release that a device has to read."""
_HELD: Final = 4096
"""Derived keys kept: deriving one costs as much as encrypting a chunk."""


class BlobKeys:
    """Derives the key of a blob from one secret of the fleet. Used from any thread."""

    def __init__(self, secret: bytes, repository: Repository) -> None:
        self._repository = repository
        self._derive = lru_cache(_HELD)(partial(blob_key, secret))

    def of(self, blob: str, chunk_list: str | None) -> bytes:
        """The key of a blob that is cut as `chunk_list` says, None for one chunk."""
        return self._derive(blob, chunk_list)

    def ring(self, models: Iterable[Needing]) -> dict[str, bytes]:
        """Every key that these need. What is not listed any more has none: none of it is sent."""
        return {blob: self.of(blob, chunk_list) for blob, chunk_list in self._blobs(models)}

    def of_offers(self, offers: Sequence[DeltaOffer]) -> dict[str, bytes]:
        """The keys of deltas and of their chunk lists."""
        keys = {offer.delta: self.of(offer.delta, offer.chunks) for offer in offers}
        return keys | {offer.chunks: self.of(offer.chunks, None) for offer in offers if offer.chunks is not None}

    def covers(self, models: Iterable[Needing], blob: str) -> bool:
        """Whether a blob belongs to one of these."""
        return any(blob == needed for needed, _ in self._blobs(models))

    def _blobs(self, models: Iterable[Needing]) -> Iterator[tuple[str, str | None]]:
        for model in models:
            listed = self._repository.releases.get(model.target)
            if listed is not None and listed.release.digest == model.digest:
                yield from blobs_of(listed)
