"""What is installed is what stands in the repository."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_package_of_the_repository_is_installed() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {config["package-dir"].get(p, p.replace(".", "/")) for p in config["packages"]}
    tops = ("wire", "agent", "fleet", "compiler", "cli", "firmware-profiles")
    found = {str(init.parent.relative_to(ROOT)) for top in tops for init in (ROOT / top).rglob("__init__.py")}
    assert folders == found
