"""The audit log: who did what to what, from where, with what outcome; hash-chained, its head signed by the fleet key.

    audit.append(session, who="token:first", action=..., subject=..., source=..., outcome="201")
    if audit.refused.is_first(source, now): ...     # folded: one entry a source and minute
    audit.page(session, after=0, limit=500)

Never in it: a token, a password, a kit, a body or a query. What it guarantees, and what not, stands in `wire.audit`.
An entry and the head that names it are one transaction. A head that is not ours, or older than one that this process
signed, is not built on: the next entry does not fit the hash before it, so that the damage shows for ever.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key
from sqlalchemy import event
from sqlmodel import Session, col, select

from fleet.errors import Malformed
from fleet.folding import WINDOW, Folding
from fleet.store.database import Database
from fleet.store.files import write
from fleet.store.tables import AuditRow, MetaRow
from fleet.trust.keys import OnlineKeys
from wire.audit import AuditEntry, AuditHead, open_head, seal_head
from wire.errors import WireError
from wire.units import instant, show_instant

SIGNERS = "audit-signers.json"
"""The public keys that ever signed a head: after a rotation of the fleet key the old head is still ours."""
PAGE = 1000
_HEAD = "audit-head"
_LONGEST = 400
_SOURCES, _DEVICES = 64, 4096
_FOLDED = "more of the same"
_DAMAGED = "damaged"
"""Stands for the hash before an entry when the log below it cannot be believed."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Deed:
    """What an entry tells. `outcome` begins with the status code of a request."""

    who: str
    action: str
    subject: str
    source: str
    outcome: str
    detail: str = ""


class Audit:
    """Appends to the log of one database. `folder` is where the online keys lie."""

    def __init__(self, database: Database, keys: OnlineKeys, folder: Path, clock: Callable[[], datetime]) -> None:
        self._database, self._keys, self._clock = database, keys, clock
        self._file = folder / SIGNERS
        self._signers = _load_signers(self._file)
        self._newest = 0
        self.refused = Folding(_SOURCES)
        """Refusals of somebody unknown, by address."""
        self.denied = Folding(_DEVICES, each=20)
        """Refusals of somebody known, by name."""
        self.repeated = Folding(_DEVICES)
        """What a device did that was no refusal, by its name: it may ask for a certificate as often as it likes."""

    def record(self, deed: Deed) -> None:
        """Append in a transaction of its own. Raises `StorageFull` or `Unavailable`."""
        with self._database.transaction() as session:
            self.append(session, deed)

    def append(self, session: Session, deed: Deed) -> None:
        """Append in the transaction of what is told, and sign the new head."""
        seq, previous = self._end(session)
        at = show_instant(self._clock())
        entry = AuditEntry(
            seq=seq + 1,
            at=at,
            who=_plain(deed.who),
            action=_plain(deed.action),
            subject=_plain(deed.subject),
            source=_plain(deed.source),
            outcome=_plain(deed.outcome),
            detail=_plain(deed.detail),
        )
        digest = entry.after(previous)
        session.add(AuditRow(**{**entry.to_value(), "hash": digest}))
        self._sign(session, AuditHead(seq=entry.seq, hash=digest, at=at))

    def tick(self) -> None:
        """Record what was folded and whose minute is over, and sign the head again when the fleet key changed."""
        self._record_folded(WINDOW)
        if self._newest and self._keys.fleet.public_key.keyid not in self._signers:
            self.record_key()

    def close(self) -> None:
        """Record what was only counted yet."""
        self._record_folded(0)

    def record_key(self) -> None:
        """Tell that the fleet key is another one; the entry's head is the first that it signs."""
        key = self._keys.fleet.public_key.keyid
        self.record(Deed(who="fleet", action="fleet key changed", subject=key, source="local", outcome="done"))

    def page(self, session: Session, *, after: int, limit: int) -> list[dict[str, Any]]:
        """Entries behind `after`, the oldest first."""
        if not (0 <= after < 2**63 and 1 <= limit <= PAGE):
            raise Malformed(f"audit: after must be 0 or more and limit 1 to {PAGE}")
        query = select(AuditRow).where(col(AuditRow.seq) > after).order_by(col(AuditRow.seq)).limit(limit)
        return [row.model_dump() for row in session.exec(query)]

    def newest(self, session: Session, *, limit: int, who: str = "", since: str = "") -> list[dict[str, Any]]:
        """The newest entries first; `who` as it stands in an entry, `since` an RFC 3339 time."""
        if not 1 <= limit <= PAGE:
            raise Malformed(f"audit: limit must be 1 to {PAGE}")
        query = select(AuditRow).where(col(AuditRow.at) >= (show_instant(instant(since)) if since else ""))
        query = query.where(col(AuditRow.who) == who) if who else query
        return [row.model_dump() for row in session.exec(query.order_by(col(AuditRow.seq).desc()).limit(limit))]

    def head(self, session: Session) -> Any:
        """The signed head as JSON; None when there is none, which is a fault once there are entries."""
        row = session.get(MetaRow, _HEAD)
        try:
            return json.loads(row.value) if row else None
        except ValueError:
            return None

    def _end(self, session: Session) -> tuple[int, str]:
        """Number and hash of the entry that the next one follows."""
        last = session.exec(select(AuditRow).order_by(col(AuditRow.seq).desc()).limit(1)).first()
        row = session.get(MetaRow, _HEAD)
        if row is None and last is None and not self._newest:
            return 0, ""
        try:
            ours = [*self._signers.values(), self._keys.fleet.public_key]
            head = open_head(row.value.encode() if row else b"", ours)
        except WireError as e:
            return self._damaged(last, str(e))
        if last is None or (head.seq, head.hash) != (last.seq, last.hash) or head.seq < self._newest:
            return self._damaged(last, f"its head names entry {head.seq}, its last entry is another one")
        return head.seq, head.hash

    def _damaged(self, last: AuditRow | None, why: str) -> tuple[int, str]:
        _log.error("audit log: damaged: %s: `shoal audit verify` names the place", why)
        return max(self._newest, last.seq if last else 0), _DAMAGED

    def _sign(self, session: Session, head: AuditHead) -> None:
        signer = self._keys.fleet
        self._know(signer.public_key)
        session.merge(MetaRow(key=_HEAD, value=seal_head(head, signer).decode()))
        event.listen(session, "after_commit", lambda _: self._signed(head.seq), once=True)

    def _signed(self, seq: int) -> None:
        self._newest = max(self._newest, seq)

    def _know(self, key: Key) -> None:
        """Keep a key before it signs, on the disk where the private one lies: who writes there can sign anyway."""
        if key.keyid not in self._signers:
            self._signers[key.keyid] = key
            values = {keyid: known.to_dict() for keyid, known in self._signers.items()}
            write(self._file, json.dumps(values).encode())

    def _record_folded(self, window: float) -> None:
        now = time.monotonic()
        for source, count in self.refused.due(now, window=window):
            detail = f"{count} more requests of somebody unknown were refused"
            self.record(Deed(who="-", action=_FOLDED, subject="", source=source, outcome="refused", detail=detail))
        for who, count in self.denied.due(now, window=window):
            detail = f"{count} more requests were refused"
            self.record(Deed(who=who, action=_FOLDED, subject="", source="", outcome="refused", detail=detail))
        for who, count in self.repeated.due(now, window=window):
            detail = f"{count} more requests were answered"
            self.record(Deed(who=who, action=_FOLDED, subject="", source="", outcome="done", detail=detail))


def _plain(text: str) -> str:
    """One line of printable text: an entry is shown on terminals and kept for ever."""
    return "".join(c if c.isprintable() else "?" for c in text[:_LONGEST])


def _load_signers(file: Path) -> dict[str, Key]:
    try:
        values = json.loads(file.read_text())
        return {keyid: Key.from_dict(keyid, dict(value)) for keyid, value in values.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Malformed(f"{file}: not what the fleet writes: put its own file back from a backup") from e
