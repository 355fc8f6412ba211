"""`scripts/check-attacks`: takes every defence of `mutations.toml` out, one at a time, and runs the test of its attack.

Each job works on a copy of the packages in a scratch folder. A mutation that survives (its test still passes), a test
that fails without any mutation, and a table that does not fit the code end it with exit code 1.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutations import ROOT, Mutation, mutations, named

COPIED = ("wire", "agent", "fleet", "compiler", "cli", "firmware-profiles", "tests", "pyproject.toml")
BITES = "bites"
LONGEST = 900
"""Seconds for one run of pytest: all tests of the table together take a few minutes on two cores."""


class Copy:
    """A copy of the packages to take defences out of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COPIED:
            source = ROOT / name
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(source, folder)

    def verdict(self, mutation: Mutation) -> str:
        """`BITES`, or what happened instead."""
        path = self.folder / mutation.file
        sound = path.read_text()
        try:
            path.write_text(mutation.applied(sound))
            code, said = self.run(mutation.test)
        except ValueError as e:
            return str(e)
        finally:
            path.write_text(sound)
        if code == 1 and re.search(r"\d+ failed", said) and not re.search(r"\d+ error", said):
            return BITES
        return "SURVIVES" if code == 0 else f"NO VERDICT: pytest ended with {code}: {said[-1500:]}"

    def run(self, *tests: str) -> tuple[int, str]:
        """Exit code and output of the tests, with the packages of this copy."""
        # Bytecode is known by the second and the size of its source: a mutation may have both in common with another.
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
        command.append(f"--basetemp={self.folder / 'tmp'}")
        command += [f"tests/{test}" for test in tests]
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=LONGEST, check=False
            )
        except subprocess.TimeoutExpired:
            return -1, f"not through after {LONGEST} s"
        return done.returncode, done.stdout + done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(prog="check-attacks", description="takes every defence out, one at a time")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="in parallel (default 2)")
    parser.add_argument("--only", default="", help="those with this text in test, file or defence")
    options = parser.parse_args()
    chosen = [m for m in mutations() if options.only in f"{m.test} {m.file} {m.defence}"]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="shoal-attacks-") as scratch:
        copies = [Copy(_folder(Path(scratch) / str(i))) for i in range(options.jobs)]
        code, said = copies[0].run(*sorted({m.test for m in chosen}))
        if code != 0:
            print(said, "\ncheck-attacks: the tests fail before any defence is taken out", sep="")
            return 1
        verdicts = _run(copies, chosen)
    return _report(chosen, verdicts, time.monotonic() - begun)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _run(copies: list[Copy], chosen: list[Mutation]) -> list[str]:
    free: queue.Queue[Copy] = queue.Queue()
    for copy in copies:
        free.put(copy)

    def one(mutation: Mutation) -> str:
        copy = free.get()
        try:
            return copy.verdict(mutation)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as pool:
        return list(pool.map(one, chosen))


def _report(chosen: list[Mutation], verdicts: list[str], took: float) -> int:
    attacks = named()
    rows = [
        (
            attacks.get(m.test, "") or m.test.partition("::")[2][5:].replace("_", " "),
            f"{m.defence} ({m.file})",
            m.test.partition("::")[2],
            verdict,
        )
        for m, verdict in zip(chosen, verdicts, strict=True)
    ]
    print("| attack | defence taken out | test | verdict |\n| --- | --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    bites = verdicts.count(BITES)
    print(f"\n{bites} of {len(chosen)} tests saw that their defence was gone; {took:.0f} s")
    return 0 if bites == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
