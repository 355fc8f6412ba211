"""The table of `mutations.toml`: which defence stands against which attack, and the change that takes it out.

[[mutation]]
test = "attacks/test_metadata.py::test_an_old_timestamp_is_refused"   # the attack
defence = "the timestamp's version never goes back"
file = "wire/trust.py"
old = '''text that stands in the file exactly once'''
new = '''what stands there without the defence'''
"""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Mutation:
    """One defence taken out of one file; `test`, below `tests`, must fail then."""

    test: str
    defence: str
    file: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """The file's text without the defence. Raises `ValueError` when the table does not fit the file any more."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.file}: the text of {self.defence!r} stands there {count} times, expected once")
        changed = text.replace(self.old, self.new)
        ast.parse(changed)  # a file that cannot be read would fail every test, and prove nothing
        return changed


def mutations() -> list[Mutation]:
    return [Mutation(**entry) for entry in tomllib.loads((HERE / "mutations.toml").read_text())["mutation"]]


def attacks() -> dict[str, str]:
    """Every test of this folder with the first line of its docstring, which names the attack."""
    found = {}
    for path in sorted(HERE.glob("test_*.py")):
        if path.name != "test_mutations.py":
            found |= tests_in(f"attacks/{path.name}")
    return found


def tests_in(file: str) -> dict[str, str]:
    """The tests of a file below `tests`, as the table names them, with the first lines of their docstrings."""
    functions = [node for node in ast.parse((HERE.parent / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    docstrings = {node.name: ast.get_docstring(node) or "" for node in functions if node.name.startswith("test_")}
    return {f"{file}::{name}": text.partition("\n")[0] for name, text in docstrings.items()}


def named() -> dict[str, str]:
    """Every test of every file that the table names."""
    files = {mutation.test.partition("::")[0] for mutation in mutations()}
    return {test: text for file in sorted(files) for test, text in tests_in(file).items()}
