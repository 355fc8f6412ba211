from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agent.store.state import LONGEST_REASON, StateFile
from agent.trust.security import MINUTE, OTHERS, PER_MINUTE, SecurityLog

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)


class Watched:
    """A security log whose minutes pass by hand."""

    def __init__(self, state: StateFile) -> None:
        self.at = 0.0
        self.changes = self.writes = 0
        self.state = state
        state._db.set_trace_callback(self._count)
        self.log = SecurityLog(state, now=lambda: NOW, uptime=lambda: self.at, on_change=self._change)

    def _count(self, sql: str) -> None:
        self.writes += sql == "COMMIT"

    def _change(self) -> None:
        self.changes += 1

    def shown(self) -> list[tuple[str, str]]:
        return [(event.subject, event.reason) for event in self.state.security()]


@pytest.fixture
def watched(tmp_path):
    state = StateFile.open(tmp_path / "agent.db")
    yield Watched(state)
    state.close()


def test_equal_events_within_a_minute_become_one_that_counts_them(watched) -> None:
    """Attack: somebody sends 413 forged acknowledgements to wear out the flash card."""
    for _ in range(413):
        watched.log.note("acknowledgement", "not signed by the fleet")
    assert (watched.shown(), watched.writes) == ([("acknowledgement", "not signed by the fleet")], 1)
    watched.at += MINUTE
    watched.log.fold_when_due()
    assert watched.shown() == [("acknowledgement", "not signed by the fleet ... and 412 more")]
    assert (watched.writes, watched.changes) == (2, 2)
    watched.log.note("acknowledgement", "not signed by the fleet")
    assert len(watched.shown()) == 2


def test_many_different_events_in_a_minute_take_a_bounded_number_of_writes_and_of_memory(watched) -> None:
    """Attack: every forgery has another subject."""
    for i in range(1000):
        watched.log.note(f"document {i}", "forged")
    assert (len(watched.shown()), watched.writes) == (PER_MINUTE + 1, PER_MINUTE + 1)
    assert watched.shown()[-1] == (OTHERS, f"document {PER_MINUTE}: forged")
    assert len(watched.log._noted) == PER_MINUTE + 1
    watched.log.fold()
    assert watched.writes == PER_MINUTE + 2
    assert watched.shown()[-1][1].endswith(f"forged ... and {1000 - PER_MINUTE - 1} more")


def test_the_count_stands_behind_a_long_reason(watched) -> None:
    for _ in range(2):
        watched.log.note("x" * 1000, "y" * 1000)
    watched.log.fold()
    ((_, reason),) = watched.shown()
    assert len(reason) == LONGEST_REASON
    assert reason.endswith("y ... and 1 more")


def test_a_quiet_minute_writes_nothing(watched) -> None:
    watched.log.note("a", "b")
    for _ in range(5):
        watched.at += MINUTE
        watched.log.fold_when_due()
    assert (watched.writes, watched.changes) == (1, 1)


def test_a_disk_that_takes_no_event_ends_nothing_and_is_not_asked_again_and_again(watched) -> None:
    """Accident: the disk is full while somebody attacks."""
    watched.state._db.execute(
        "CREATE TRIGGER full BEFORE INSERT ON security BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    )
    watched.writes = 0
    for _ in range(100):
        watched.log.note("a", "b")
    watched.log.fold()
    assert (watched.shown(), watched.writes) == ([], 0)
