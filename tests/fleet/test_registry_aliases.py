"""Aliases in the database: who may move which, what each meant, and a small model that any order must follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fleet.access import Caller
from fleet.errors import Conflict, Forbidden, NotFound
from fleet.registry import aliases
from fleet.registry.aliases import AliasChange
from fleet.store.database import Database
from wire.errors import Malformed

MODEL = "intents/kitchen"
NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)
ADMIN = Caller("ann", frozenset({"admin"}))
APPROVER = Caller("bob", frozenset({"approver"}))
MANAGER = Caller("cleo", frozenset({"release-manager"}))
OPERATOR = Caller("dan", frozenset({"operator"}))


@pytest.fixture
def database() -> Iterator[Database]:
    with closing(Database("sqlite://")) as database:
        yield database


def move(database: Database, alias: str, version: str, caller: Caller = ADMIN, **more: Any) -> Any:
    with database.transaction() as session:
        return aliases.change(session, MODEL, AliasChange(alias=alias, version=version, **more), caller, NOW)


def meant(database: Database, alias: str, model: str = MODEL) -> str:
    with database.transaction() as session:
        return aliases.resolve(session, model, f"@{alias}")


def test_an_alias_means_the_version_it_was_set_to_and_its_moves_are_kept(database: Database) -> None:
    move(database, "production", "1.0.0", APPROVER, reason="first")
    move(database, "production", "1.1.0", ADMIN, reason="better on kettles")
    assert meant(database, "production") == "1.1.0"
    with database.transaction() as session:
        newest, oldest = aliases.moves(session, MODEL)
    assert (newest["was"], newest["version"], newest["who"], newest["reason"]) == (
        "1.0.0",
        "1.1.0",
        "ann",
        "better on kettles",
    )
    assert (oldest["was"], oldest["version"], oldest["who"]) == ("", "1.0.0", "bob")


@pytest.mark.parametrize(("caller", "may"), [(ADMIN, True), (APPROVER, True), (MANAGER, False), (OPERATOR, False)])
def test_production_is_for_those_who_may_promote(database: Database, caller: Caller, may: bool) -> None:
    if may:
        assert move(database, "production", "1.0.0", caller)
        return
    with pytest.raises(Forbidden, match=r"models\.promote"):
        move(database, "production", "1.0.0", caller)
    with pytest.raises(NotFound):
        meant(database, "production")


@pytest.mark.parametrize(("caller", "may"), [(ADMIN, True), (APPROVER, True), (MANAGER, True), (OPERATOR, False)])
def test_other_aliases_are_for_those_who_publish_too(database: Database, caller: Caller, may: bool) -> None:
    if may:
        assert move(database, "staging", "1.0.0", caller)
    else:
        with pytest.raises(Forbidden, match=r"models\.alias"):
            move(database, "staging", "1.0.0", caller)


def test_removing_production_is_as_protected_as_setting_it(database: Database) -> None:
    move(database, "production", "1.0.0")
    with pytest.raises(Forbidden):
        move(database, "production", "", MANAGER)
    assert meant(database, "production") == "1.0.0"
    move(database, "production", "", APPROVER)
    with pytest.raises(NotFound, match="it has none"):
        meant(database, "production")


def test_the_same_again_changes_nothing(database: Database) -> None:
    move(database, "staging", "1.0.0")
    assert move(database, "staging", "1.0.0") is None
    with database.transaction() as session:
        assert len(aliases.moves(session, MODEL)) == 1


def test_whoever_saw_another_version_moves_nothing(database: Database) -> None:
    move(database, "staging", "1.0.0", was="")
    with pytest.raises(Conflict, match=r"means 1\.0\.0 and not nothing any more"):
        move(database, "staging", "1.1.0", was="")
    with pytest.raises(Conflict, match=r"not 0\.9\.0 any more"):
        move(database, "staging", "1.1.0", was="0.9.0")
    move(database, "staging", "1.1.0", was="1.0.0")
    assert meant(database, "staging") == "1.1.0"


def test_a_version_stands_for_itself_and_an_unknown_alias_names_those_there_are(database: Database) -> None:
    move(database, "staging", "1.0.0")
    with database.transaction() as session:
        assert aliases.resolve(session, MODEL, "3.0.0") == "3.0.0"
        with pytest.raises(NotFound, match="it has @staging"):
            aliases.resolve(session, MODEL, "@production")


def test_a_name_that_could_be_anything_else_is_no_alias(database: Database) -> None:
    for bad in ("", "@x", "a/b", "Production", "x" * 65):
        with pytest.raises(Malformed):
            move(database, bad, "1.0.0")


MODELS = st.sampled_from(["intents/kitchen", "intents/garage"])
ALIASES = st.sampled_from(["production", "staging", "canary"])
VERSIONS = st.sampled_from(["1.0.0", "1.1.0", "2.0.0"])


class AliasWalk(RuleBasedStateMachine):
    """Any order of moves, removals and restarts against a dictionary."""

    @initialize()
    def begin(self) -> None:
        self.database = Database("sqlite://")
        self.expected: dict[tuple[str, str], str] = {}
        self.count = 0

    @rule(model=MODELS, alias=ALIASES, version=VERSIONS, caller=st.sampled_from([ADMIN, MANAGER]))
    def set(self, model: str, alias: str, version: str, caller: Caller) -> None:
        asked = AliasChange(alias=alias, version=version)
        allowed = caller is ADMIN or alias != "production"
        with self.database.transaction() as session:
            if not allowed:
                with pytest.raises(Forbidden):
                    aliases.change(session, model, asked, caller, NOW + timedelta(seconds=self.count))
                return
            moved = aliases.change(session, model, asked, caller, NOW + timedelta(seconds=self.count))
        assert (moved is None) == (self.expected.get((model, alias)) == version)
        self.count += moved is not None
        self.expected[model, alias] = version

    @rule(model=MODELS, alias=ALIASES)
    def remove(self, model: str, alias: str) -> None:
        with self.database.transaction() as session:
            if (model, alias) in self.expected:
                aliases.change(session, model, AliasChange(alias=alias), ADMIN, NOW)
                del self.expected[model, alias]
                self.count += 1
            else:
                with pytest.raises(NotFound):
                    aliases.change(session, model, AliasChange(alias=alias), ADMIN, NOW)

    @invariant()
    def means_what_it_was_set_to(self) -> None:
        with self.database.transaction() as session:
            found = {
                (m, row.alias): row.version
                for m in ("intents/kitchen", "intents/garage")
                for row in aliases.of_model(session, m)
            }
            moves = sum(len(aliases.moves(session, m)) for m in ("intents/kitchen", "intents/garage"))
        assert found == self.expected
        assert moves == self.count

    def teardown(self) -> None:
        self.database.close()


TestAliasWalk = AliasWalk.TestCase
TestAliasWalk.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)


def test_aliases_survive_a_restart(tmp_path: Path) -> None:
    with closing(Database.in_folder(tmp_path)) as database:
        move(database, "production", "1.0.0")
    with closing(Database.in_folder(tmp_path)) as database:
        assert meant(database, "production") == "1.0.0"
