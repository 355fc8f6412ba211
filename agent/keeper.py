"""Trusted metadata as it arrives: in any order, in pieces, again and again.

Documents are buffered by name and offered as one set whenever something comes. What is refused may only be early (a
timestamp before the root that names its key), so it is judged after a quiet moment, not when it arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from agent.state import StateFile
from wire import topics
from wire.chunks import digest
from wire.errors import OutOfStep, WireError
from wire.trust import MAX_DELEGATIONS, MAX_ROOTS, ROLE_LIMIT, ROOT_LIMIT, TIMESTAMP_LIMIT, TrustedSet

BUFFER_LIMIT: Final = 4 * ROLE_LIMIT
"""Bytes that may wait: far above what a fleet publishes, far below the memory of a small board."""
_LIMITS: Final = {"root": ROOT_LIMIT, "timestamp": TIMESTAMP_LIMIT}


class TrustKeeper:
    """The trusted set of a device, saved after every change. Raises `WireError` when what was saved does not verify."""

    def __init__(self, state: StateFile, now: Callable[[], datetime]) -> None:
        self._state = state
        self._now = now
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

    def settle(self) -> bool:
        """Offer everything that is buffered. Whether the trusted set changed."""
        before = dict(self.trusted.documents)
        refusals = self.trusted.offer(self._buffer, self._now())
        self._refused = {self._offered_as(refusal.document): refusal.error for refusal in refusals}
        held = self.trusted.documents
        self._buffer = {name: data for name, data in self._buffer.items() if not self._is_done(name, data)}
        if held == before:
            return False
        self._state.save_trust(held)
        return True

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
