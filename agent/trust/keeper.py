"""Trusted metadata as it arrives: in any order, in pieces, again and again.

Documents are buffered by name and offered as one set whenever something comes. What is refused may only be early (a
timestamp before the root that names its key), so it is judged after a quiet moment, not when it arrives.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tuf.api.metadata import Metadata, Snapshot

from agent.store.state import StateFile
from agent.trust.clock import Clock
from wire import topics
from wire.chunks import digest
from wire.errors import OutOfStep, WireError
from wire.metadata import ROLE_LIMIT, ROOT_LIMIT, TIMESTAMP_LIMIT
from wire.trust import MAX_DELEGATIONS, MAX_ROOTS, TrustedSet

log = logging.getLogger("agent.trust.keeper")

BUFFER_LIMIT: Final = 4 * ROLE_LIMIT
"""Bytes that may wait: far above what a fleet publishes, far below the memory of a small board."""
_LIMITS: Final = {"root": ROOT_LIMIT, "timestamp": TIMESTAMP_LIMIT}


@dataclass(frozen=True)
class Settled:
    """What an offer made of the trusted set. `rotated`: by new online keys, which void what the old ones said."""

    changed: bool
    rotated: bool


class TrustKeeper:
    """The trusted set of a device, saved after every change. Raises `WireError` when what was saved does not verify.

    Documents are taken by the signed time, so that a device whose clock stands at 2100 still learns who may tell it the
    time; whether what is held is fresh enough to install by is asked with `Clock.now` (`TrustedSet.release`).
    """

    def __init__(self, state: StateFile, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._unsaved = self._rotated = False
        self._buffer: dict[str, bytes] = {}
        self._refused: dict[str, WireError] = {}
        self._judged: dict[str, str] = {}
        self.trusted = TrustedSet.from_documents(state.trust_documents())

    def take(self, topic: topics.TrustRoot | topics.TrustRole, payload: bytes) -> None:
        """Buffer one document; one of each name stays, and no more names and bytes than trusted metadata can have."""
        name = f"root/{topic.version}" if isinstance(topic, topics.TrustRoot) else topic.role
        others = [len(data) for held, data in self._buffer.items() if held != name]
        fits = len(others) < MAX_ROOTS + MAX_DELEGATIONS and sum(others) + len(payload) <= BUFFER_LIMIT
        sound = len(payload) <= _LIMITS.get(name.partition("/")[0], ROLE_LIMIT)
        if fits and sound and self._judged.get(name) != digest(payload):
            self._buffer[name] = payload

    def start_over(self) -> None:
        """A new connection brings all that is retained again: what waited of an older one must not take its room."""
        self._buffer.clear()
        self._refused.clear()

    def forget_judgements(self) -> None:
        """It is another time: what was refused before may be good now, when it comes again."""
        self._judged.clear()

    def settle(self) -> Settled:
        """Offer everything that is buffered. Raises `Unavailable` for the disk; what it did not take is saved later."""
        before, keys = dict(self.trusted.documents), self.trusted.online_keys()
        self._offer()
        rotated = keys != self.trusted.online_keys()
        if rotated:
            self._clock.forget()
            self._offer()
        self._unsaved |= self.trusted.documents != before
        self._rotated |= rotated
        settled = Settled(self._unsaved, self._rotated)
        self._save()
        return settled

    def _offer(self) -> None:
        refusals = self.trusted.offer(self._buffer, self._clock.signed())
        self._refused = {self._offered_as(refusal.document): refusal.error for refusal in refusals}
        self._buffer = {name: data for name, data in self._buffer.items() if not self._is_done(name, data)}

    def _save(self) -> None:
        if self._unsaved:
            self._state.save_trust(self.trusted.documents, self._floors(), forget_time=self._rotated)
            self._unsaved = self._rotated = False

    def _floors(self) -> dict[str, int]:
        try:
            return self.trusted.floors()
        except WireError as e:
            log.warning("no floor is taken from the metadata (%s): those known stay", e)
            return {}

    def speaks_now(self) -> bool:
        """Whether the targets metadata held, which names the fleet key, is the one that the trusted snapshot names.

        False right after the online keys were rotated: an old fleet key is still believed for what does not last, and
        must not move the time again, which only another rotation would undo.
        """
        data = self.trusted.documents.get("snapshot")
        if data is None:
            return False
        named = Metadata[Snapshot].from_bytes(data).signed.meta.get("targets.json")
        return named is not None and named.version == self.trusted.versions().get("targets")

    def fresh_until(self) -> datetime | None:
        """When the trusted timestamp metadata expires; None when none is held."""
        data = self.trusted.documents.get("timestamp")
        expires: datetime | None = Metadata[Any].from_bytes(data).signed.expires if data else None
        return expires

    def _offered_as(self, document: str) -> str:
        """The name in the buffer: a root that is refused is the next one."""
        return f"root/{self.trusted.root_version + 1}" if document == "root" else document

    def _is_done(self, name: str, data: bytes) -> bool:
        if name.startswith("root/"):
            return int(name.removeprefix("root/")) <= self.trusted.root_version
        return self.trusted.documents.get(name) == data

    def judge(self) -> dict[str, WireError]:
        """After a quiet moment: what is still refused and not just out of step, by document name. It is forgotten."""
        bad = {name: e for name, e in self._refused.items() if not isinstance(e, OutOfStep) and name in self._buffer}
        for name in bad:
            self._judged[name] = digest(self._buffer.pop(name))
        return bad
