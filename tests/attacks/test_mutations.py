"""The table of defences fits the code and the tests; `scripts/check-attacks` runs it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("attack_mutations", Path(__file__).with_name("mutations.py"))
assert spec is not None
assert spec.loader is not None
table = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)


def test_every_attack_has_a_defence_that_can_be_taken_out() -> None:
    assert table.attacks().keys() - {mutation.test for mutation in table.mutations()} == set()


def test_every_test_that_the_table_names_is_there() -> None:
    assert {mutation.test for mutation in table.mutations()} - table.named().keys() == set()


def test_every_attack_is_named_in_its_docstring() -> None:
    words = ("Attack: ", "Accident: ", "Recovered: ")
    assert [test for test, attack in table.attacks().items() if not attack.startswith(words)] == []


def test_every_defence_stands_in_its_file_exactly_once() -> None:
    for mutation in table.mutations():
        text = (table.ROOT / mutation.file).read_text()
        assert mutation.applied(text) != text
