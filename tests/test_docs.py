"""What the docs tell people to type exists: every command with every option."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from agent.main import _parser
from cli.commands import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINES = sorted(
    {
        line.strip().partition("  #")[0]
        for page in PAGES
        for line in page.read_text().splitlines()
        if re.match(r" {4}shoal(-agent)? ", line)
    }
)


def test_the_docs_show_commands() -> None:
    assert len(LINES) > 10


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("shoal ")])
def test_a_command_of_the_docs_exists_with_its_options(line: str) -> None:
    words = shlex.split(line)[1:]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert used <= options, f"{line}: {used - options} is no option of it"


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("shoal-agent ")])
def test_an_agent_command_of_the_docs_parses(line: str) -> None:
    assert _parser().parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
