"""The audit log: what gets in, and that no change of it goes unseen."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fleet_process import ApiError, FleetProcess, initialise_trust, new_signer

from fleet.audit import Audit, Deed
from fleet.folding import OTHERS, WINDOW, Folding
from fleet.store.database import Database
from fleet.store.tables import MetaRow
from fleet.trust.keys import OnlineKeys
from wire.audit import AuditEntry, AuditHead, check_log, open_head, seal_head
from wire.chunks import digest
from wire.errors import Malformed, Untrusted

AT = "2026-11-22T08:00:00.000Z"
DEED = Deed(who="alice", action="POST /x", subject="/x", source="10.0.0.1", outcome="200")


# --- the value ----------------------------------------------------------------------------------------------------


def log_of(count: int) -> list[AuditEntry]:
    entries: list[AuditEntry] = []
    for seq in range(1, count + 1):
        entry = AuditEntry(seq=seq, at=AT, who="alice", action=f"act {seq}", subject="s", source="x", outcome="200")
        entries.append(replace(entry, hash=entry.after(entries[-1].hash if entries else "")))
    return entries


def head_of(entries: list[AuditEntry]) -> AuditHead:
    return AuditHead(seq=len(entries), hash=entries[-1].hash, at=AT)


def test_a_log_that_was_left_alone_is_whole() -> None:
    entries = log_of(5)
    assert check_log(entries, head_of(entries), [head_of(entries[:3])]) == 5


@pytest.mark.parametrize("name", ["at", "who", "action", "subject", "source", "outcome", "detail", "hash"])
def test_an_edit_of_any_column_is_found_at_its_entry(name: str) -> None:
    entries = log_of(5)
    entries[2] = replace(entries[2], **{name: "edited"})
    with pytest.raises(Untrusted, match="audit entry 3: it does not fit its hash"):
        check_log(entries, head_of(log_of(5)))


def test_a_field_that_was_added_is_an_edit() -> None:
    entries = log_of(2)
    entries[0] = replace(entries[0], extra={"note": "x"})
    with pytest.raises(Untrusted, match="audit entry 1"):
        check_log(entries, head_of(log_of(2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: log.pop(2), "audit entry 3: entry 4 stands in its place"),
        (lambda log: log.insert(2, log[0]), "audit entry 3: entry 1 stands in its place"),
        (lambda log: log.reverse(), "audit entry 1: entry 5 stands in its place"),
        (lambda log: log.pop(), "audit entry 5: missing"),
        (lambda log: log.clear(), "audit entry 1: missing"),
        (lambda log: log.extend(log_of(6)[5:]), "audit entry 6: stands behind the signed head"),
    ],
)
def test_a_deletion_an_insertion_another_order_and_a_cut_end_are_found(
    change: Callable[[list[AuditEntry]], Any], message: str
) -> None:
    entries = log_of(5)
    change(entries)
    with pytest.raises(Untrusted, match=message):
        check_log(entries, head_of(log_of(5)))


def test_a_log_that_was_written_anew_from_an_entry_on_is_found_by_the_head() -> None:
    """Attack: an entry is edited and every hash after it is made again; the head cannot be."""
    entries = log_of(5)
    entries[2] = replace(entries[2], who="mallory")
    for i in range(2, 5):
        entries[i] = replace(entries[i], hash=entries[i].after(entries[i - 1].hash))
    with pytest.raises(Untrusted, match="audit entry 5: not the one that the head"):
        check_log(entries, head_of(log_of(5)))


def test_a_cut_log_with_its_old_head_is_found_by_a_head_that_was_saved() -> None:
    """Attack: the last entries go, and the head of before is put back; it was signed in its time."""
    entries = log_of(3)
    assert check_log(entries, head_of(entries)) == 3
    with pytest.raises(Untrusted, match="audit entry 4: missing"):
        check_log(entries, head_of(entries), [head_of(log_of(5))])


def test_a_head_of_another_key_or_another_kind_is_refused() -> None:
    signer, head = new_signer(), head_of(log_of(2))
    assert open_head(seal_head(head, signer), [signer.public_key]) == head
    with pytest.raises(Untrusted, match="not by a key of this fleet"):
        open_head(seal_head(head, new_signer()), [signer.public_key])
    with pytest.raises(Untrusted, match="not by a key of this fleet"):
        open_head(seal_head(head, signer), [])
    value = json.loads(seal_head(head, signer))
    with pytest.raises(Untrusted, match="expected application"):
        open_head(json.dumps({**value, "payloadType": "text/plain"}).encode(), [signer.public_key])
    for wrong in (b"", b"[]", b"{}", b"null"):
        with pytest.raises(Malformed):
            open_head(wrong, [signer.public_key])


# --- folding ------------------------------------------------------------------------------------------------------


def test_one_entry_at_once_and_then_one_a_minute() -> None:
    folding = Folding(most=3)
    assert [folding.is_first("a", 0) for _ in range(4)] == [True, False, False, False]
    assert folding.due(WINDOW - 1) == []
    assert folding.due(WINDOW) == [("a", 3)]
    assert not folding.is_first("a", WINDOW + 1)
    assert folding.due(2 * WINDOW) == [("a", 1)]
    assert folding.due(3 * WINDOW) == []
    assert folding.is_first("a", 3 * WINDOW)


def test_ever_new_sources_count_as_one() -> None:
    """Attack: a flood from more addresses than anybody can remember."""
    folding = Folding(most=3)
    firsts = sum(folding.is_first(f"10.0.{i // 256}.{i % 256}", 0) for i in range(1000))
    assert firsts == 4
    assert folding.due(WINDOW) == [(OTHERS, 996)]
    assert len(folding._windows) == 1


# --- the log of a database ----------------------------------------------------------------------------------------


class Fixture:
    """A log on a database of its own. `open()` is another process, or the same one started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = Database.in_folder(folder)
        self.audit = self.open()

    def open(self) -> Audit:
        self.keys = OnlineKeys.open(self.folder / "keys")
        return Audit(self.database, self.keys, self.folder / "keys", lambda: datetime(2026, 11, 22, 8, tzinfo=UTC))

    def record(self, count: int = 1) -> None:
        for _ in range(count):
            self.audit.record(DEED)

    def sql(self, statement: str) -> None:
        with self.database.transaction() as session:
            session.connection().exec_driver_sql(statement)

    def head(self) -> str:
        with self.database.transaction() as session:
            return session.get_one(MetaRow, "audit-head").value

    def check(self) -> int:
        with self.database.transaction() as session:
            entries = [AuditEntry.from_value(v) for v in self.audit.page(session, after=0, limit=1000)]
        return check_log(entries, open_head(self.head().encode(), [self.keys.fleet.public_key]))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Fixture]:
    fixture = Fixture(tmp_path)
    yield fixture
    fixture.database.close()


def test_entries_follow_each_other_over_a_restart_and_another_process(log: Fixture) -> None:
    log.record(2)
    other = log.open()
    other.record(DEED)
    log.record()
    log.audit = log.open()
    log.record()
    assert log.check() == 5


def test_what_is_rolled_back_leaves_no_entry_and_the_next_one_fits(log: Fixture) -> None:
    log.record()

    def fail() -> None:
        with log.database.transaction() as session:
            log.audit.append(session, DEED)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    log.record()
    assert log.check() == 2


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE audit SET who = 'nobody' WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 2",
        "DELETE FROM audit WHERE seq >= 3",
        "DELETE FROM audit",
        "UPDATE audit SET seq = seq + 10 WHERE seq = 3",
        "INSERT INTO audit SELECT 4, at, who, action, subject, source, outcome, detail, hash FROM audit WHERE seq = 3",
        "DELETE FROM meta WHERE key = 'audit-head'",
        "UPDATE meta SET value = '{}' WHERE key = 'audit-head'",
    ],
)
@pytest.mark.parametrize("restart", [False, True])
def test_damage_is_found_at_once_and_still_when_the_log_went_on(log: Fixture, damage: str, restart: bool) -> None:
    """Attack: the database is changed, and the fleet's next entry would sign what is left."""
    log.record(3)
    log.sql(damage)
    if "meta" not in damage:
        with pytest.raises(Untrusted):
            log.check()
    if restart:
        log.audit = log.open()
    log.record(2)
    with pytest.raises(Untrusted):
        log.check()


def test_an_empty_log_with_no_head_is_not_taken_for_a_new_one_while_the_fleet_runs(log: Fixture) -> None:
    """Attack: the whole log goes, its head too."""
    log.record(3)
    log.sql("DELETE FROM audit")
    log.sql("DELETE FROM meta WHERE key = 'audit-head'")
    log.record()
    with pytest.raises(Untrusted, match="audit entry 1"):
        log.check()


def test_an_old_head_that_is_put_back_is_found_while_the_fleet_runs(log: Fixture) -> None:
    """Attack: the end is cut off and the head of that moment put back: signed, and yet not the newest."""
    log.record(2)
    old = log.head()
    log.record(2)
    log.sql("DELETE FROM audit WHERE seq > 2")
    with log.database.transaction() as session:
        session.merge(MetaRow(key="audit-head", value=old))
    log.record()
    with pytest.raises(Untrusted):
        log.check()


def test_a_head_that_another_key_signed_is_not_built_on(log: Fixture) -> None:
    """Attack: the log is written anew with a key of somebody's own."""
    log.record(3)
    entries = log_of(1)
    log.sql("DELETE FROM audit")
    with log.database.transaction() as session:
        session.merge(MetaRow(key="audit-head", value=seal_head(head_of(entries), new_signer()).decode()))
        columns, values = zip(*entries[0].to_value().items(), strict=True)
        marks = ", ".join("?" * len(values))
        session.connection().exec_driver_sql(f"INSERT INTO audit ({', '.join(columns)}) VALUES ({marks})", values)
    log.audit = log.open()
    log.record()
    with pytest.raises(Untrusted):
        log.check()


def test_after_a_rotation_of_the_fleet_key_the_new_one_signs_and_nothing_breaks(log: Fixture) -> None:
    log.record(2)
    log.keys.prepare("fleet")
    following = log.keys.public_next()["fleet"]["keyid"]
    log.keys.use({"fleet": following})
    log.keys.settle()
    log.audit.tick()
    assert log.check() == 3
    log.audit.tick()
    assert log.check() == 3, "the key did not change again"


def test_a_stop_between_the_rotation_and_the_new_signature_breaks_nothing(log: Fixture) -> None:
    """Accident: killed after the new key took over; the head on the disk is of a key that nobody holds any more."""
    log.record(2)
    log.keys.prepare("fleet")
    log.keys.use({"fleet": log.keys.public_next()["fleet"]["keyid"]})
    log.keys.settle()
    log.audit = log.open()
    log.record()
    assert log.check() == 3


def test_an_entry_is_one_line_of_bounded_length(log: Fixture) -> None:
    """Attack: a line break or a terminal's escape sequence in a path."""
    log.audit.record(replace(DEED, subject="a\nb\x1b[31m" + "x" * 1000))
    with log.database.transaction() as session:
        (entry,) = log.audit.page(session, after=0, limit=10)
    assert entry["subject"].startswith("a?b?[31mx")
    assert len(entry["subject"]) == 400
    assert log.check() == 1


# --- a running fleet ----------------------------------------------------------------------------------------------


def entries_of(fleet: FleetProcess) -> list[dict[str, Any]]:
    return fleet.api("GET", "/api/v1/audit")["entries"]  # type: ignore[no-any-return]


def test_every_change_and_every_refusal_has_an_entry_and_reading_has_none(tmp_path: Path, enrolling: Any) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        before = len(entries_of(fleet))
        for path in ("devices", "status", "models", "trust", "audit"):
            fleet.api("GET", f"/api/v1/{path}")
        assert len(entries_of(fleet)) == before
        new_device("kitchen-1")
        blob = digest(b"x")
        fleet.api("PUT", f"/api/v1/blobs/{blob}", b"x")
        with pytest.raises(ApiError):
            fleet.api("POST", "/api/v1/devices/nobody/revoke", {"reason": "gone"})
        viewer = fleet.api("POST", "/api/v1/tokens", {"name": "eye", "roles": ["viewer"], "program": True})["token"]
        fleet.request("GET", "/api/v1/users", headers={"Authorization": f"Bearer {viewer}"})
        kit, est, upload, revoke, token, peek = entries_of(fleet)[before:]
        assert (kit["who"], kit["action"], kit["outcome"]) == ("token:first", "POST /api/v1/devices", "201")
        assert "kitchen-1" in kit["subject"]
        assert (est["who"], est["action"]) == ("device:kitchen-1", "POST /.well-known/est/simpleenroll")
        assert upload["subject"] == f"/api/v1/blobs/{blob}"
        assert (revoke["subject"], revoke["outcome"]) == ("/api/v1/devices/nobody/revoke", "404")
        assert "nobody" in revoke["detail"]
        assert token["outcome"] == "201"
        assert (peek["who"], peek["action"], peek["outcome"]) == ("token:eye", "GET /api/v1/users", "403")
        assert {e["source"] for e in entries_of(fleet)[before:]} == {"127.0.0.1"}


def test_a_flood_of_refused_requests_leaves_two_entries(tmp_path: Path) -> None:
    """Attack: the disk is filled through the audit log, by somebody without any credential."""
    with FleetProcess(tmp_path / "fleet", http_rate="1000") as fleet:
        before = len(entries_of(fleet))
        for i in range(100):
            status, _ = fleet.request("POST", f"/api/v1/devices/{i}/revoke", {}, headers={"Authorization": "Bearer x"})
            assert status == 401
            assert fleet.request("POST", f"/nothing/{i}")[0] == 404
        (first,) = entries_of(fleet)[before:]
        assert (first["who"], first["outcome"], first["subject"], first["detail"]) == ("-", "401", "", "")
        fleet.stop()
        fleet.start()
        folded = entries_of(fleet)[-1]
        assert (folded["source"], folded["detail"]) == (
            "127.0.0.1",
            "199 more requests of somebody unknown were refused",
        )


def test_a_flood_by_somebody_known_is_folded_too(tmp_path: Path) -> None:
    """Attack: the disk is filled through the audit log, with a token that may do nothing."""
    with FleetProcess(tmp_path / "fleet", http_rate="1000") as fleet:
        eye = {"name": "eye", "roles": ["viewer"], "program": True}
        token = fleet.api("POST", "/api/v1/tokens", eye)["token"]
        before = len(entries_of(fleet))
        for i in range(60):
            path = f"/api/v1/devices/{i}/revoke"
            status, _ = fleet.request("POST", path, {"reason": "x"}, headers={"Authorization": f"Bearer {token}"})
            assert status == 403
        assert [e["who"] for e in entries_of(fleet)[before:]] == ["token:eye"] * 20
        fleet.stop()
        fleet.start()
        folded = entries_of(fleet)[-1]
        assert (folded["who"], folded["detail"]) == ("token:eye", "40 more requests were refused")


def test_requests_of_the_gateway_leave_no_entry_unless_refused(tmp_path: Path, enrolling: Any) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("asker")
        before = len(entries_of(fleet))
        for _ in range(3):
            status, _ = fleet.request("POST", "/v1/chat/completions", {"messages": []}, tls=device.tls())
            assert status == 503  # there is no cloud tier
        assert [e["who"] for e in entries_of(fleet)[before:]] == ["device:asker"]


def test_entries_come_by_pages_and_from_the_end(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet:
        for i in range(5):
            fleet.api("POST", "/api/v1/tokens", {"name": f"t{i}", "roles": ["viewer"], "program": True})
        page = fleet.api("GET", "/api/v1/audit?after=2&limit=2")["entries"]
        assert [e["seq"] for e in page] == [3, 4]
        newest = fleet.api("GET", "/api/v1/audit/newest?limit=2")
        assert [e["seq"] for e in newest] == [6, 5]
        assert fleet.api("GET", "/api/v1/audit/newest?who=fleet")[0]["seq"] == 1
        later = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        assert fleet.api("GET", f"/api/v1/audit/newest?since={later}") == []
        for query in ("limit=0", "limit=1001", "after=-1", "after=99999999999999999999"):
            with pytest.raises(ApiError) as error:
                fleet.api("GET", f"/api/v1/audit?{query}")
            assert error.value.status == 400


def test_the_entry_of_a_request_is_on_the_disk_before_its_answer(tmp_path: Path) -> None:
    """Accident: SIGKILL right after an answer."""
    with FleetProcess(tmp_path / "fleet") as fleet:
        fleet.api("POST", "/api/v1/tokens", {"name": "last", "roles": ["viewer"], "program": True})
        fleet.kill()
        with closing(sqlite3.connect(fleet.data / "fleet.db")) as connection:
            rows = connection.execute("SELECT action, outcome FROM audit ORDER BY seq DESC LIMIT 1").fetchall()
    assert rows == [("POST /api/v1/tokens", "201")]
