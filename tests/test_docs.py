"""What the docs say is so: every command with every option, the table of roles, every setting and its bounds."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from agent.errors import AgentError
from agent.line import link
from agent.main import _parser
from agent.serving import cloud, oip
from agent.settings import AgentSettings
from agent.store.state import SECURITY_KEPT
from agent.trust import security as agent_security
from cli import rollout
from cli.commands import app
from fleet import devices, passwords, throttle
from fleet.access import PERMISSIONS, ROLES
from fleet.api.limits import ANYBODYS, Limits
from fleet.errors import FleetError
from fleet.mqtt import ranges, security
from fleet.rollout.waves import parse_waves
from fleet.rollout.windows import parse_window
from fleet.settings import FleetSettings
from fleet.trust import admission, batches, certificates, revocation, shippable
from wire import kit, ledger, messages, orders, trust
from wire.errors import WireError

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
        # Its own parsing: `shoal compile` names a command of its group where the words name none.
        context = command.make_context(None, words, resilient_parsing=True)
        _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
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


# --- tables -------------------------------------------------------------------------------------------------------

PEOPLE, LIMITS = ROOT / "docs/operate/people-and-audit.md", ROOT / "docs/operate/limits.md"
TOO_MUCH = ("99999999 d", "99999999 GiB", "9" * 20)
"""A duration, a size and a number over every bound."""


def table(page: Path, heading: str) -> list[dict[str, str]]:
    """The first table below a heading, a dict of each row; code marks are taken off."""
    below = page.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in below.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip().strip("`") for cell in line] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_the_table_of_roles_is_the_one_that_the_fleet_goes_by() -> None:
    rows = table(PEOPLE, "What each role may")
    assert [row["permission"] for row in rows if not row["what it allows"]] == []
    assert {row["permission"] for row in rows} == PERMISSIONS
    told = {role: {row["permission"] for row in rows if row[role] == "yes"} for role in ROLES}
    assert told == {role: set(permissions) for role, permissions in ROLES.items()}
    assert list(rows[0]) == ["permission", "what it allows", *ROLES]


def bounds(read: Callable[[str, str], object]) -> str:
    """What a reader of a setting says of a value that is too large: `1 s to 30 d`; empty when it has no bounds."""
    for text in TOO_MUCH:
        try:
            read(text, "docs")
        except (FleetError, AgentError, WireError) as e:
            found = re.search(
                r"expected (?:a number from |a whole number from )?([\d.]+(?: \w+)? to [\d.]+(?: \w+)?)", str(e)
            )
            if found:
                return found[1]
    return ""


def test_every_setting_of_the_fleet_stands_in_the_docs_with_default_and_bounds() -> None:
    rows = {row["name"]: row for row in table(LIMITS, "Settings of the fleet")}
    settings = {f.name: f for f in dataclasses.fields(FleetSettings) if "read" in f.metadata}
    assert list(rows) == list(settings)
    for name, setting in settings.items():
        assert callable(setting.default_factory)
        read = setting.metadata["read"]
        assert read(rows[name]["default"], name) == setting.default_factory(), name
        assert rows[name]["bounds"] == ("" if name.endswith("_port") else bounds(read)), name


def test_every_setting_of_an_agent_stands_in_the_docs_with_default_and_bounds() -> None:
    rows = {row["name"]: row for row in table(LIMITS, "Settings of an agent")}
    settings = {f.name: f for f in dataclasses.fields(AgentSettings) if "parse" in f.metadata}
    assert list(rows) == list(settings)
    assert (rows["socket"]["default"], rows["tcp"]["default"]) == ("agent.sock", "")
    assert settings["tcp"].default is None
    for name in settings.keys() - {"socket", "tcp"}:
        parse = settings[name].metadata["parse"]
        factory = settings[name].default_factory
        default = factory() if callable(factory) else settings[name].default
        assert parse(rows[name]["default"], name) == default, name
        assert rows[name]["bounds"] == bounds(parse), name


KIB, MIB = 1024, 1024 * 1024
FIXED = (
    f"A header has {Limits().header // KIB} KiB and {Limits().header_within:.0f} seconds",
    f"a body may be silent for {Limits().silence:.0f} seconds",
    f"{ANYBODYS // KIB} KiB of body at most",
    f"After {passwords.FREE} failures for one name from one address, or {passwords.FREE_OF_SOURCE} from one address",
    f"{passwords.WAITING} wait",
    f"up to {throttle.LONGEST / 60:.0f} minutes",
    f"A packet has {shippable.MAX_PACKET // MIB} MiB at most",
    f"shut out of the broker for {revocation.HELD_FOR:.0f} seconds",
    f"keeps {security.AT_ONCE} that come at once",
    f"the newest {devices.SECURITY_HELD} stay",
    f"{certificates.AT_MOST} for one device within a day",
    f"A quota of 1 to {batches.MAX_QUOTA:,}, a lifetime of up to {batches.MAX_LIFETIME.days} days",
    f"{trust.MAX_ROOTS} roots in one go, {trust.MAX_DELEGATIONS} roles",
    f"{admission.MAX_AUTHORITIES} certificate authorities",
    f"a root up to {trust.ROOT_LIMIT:,} bytes, a timestamp up to {trust.TIMESTAMP_LIMIT:,}",
    f"other metadata up to {trust.ROLE_LIMIT:,}",
    f"Reports {messages.Reported.LIMIT // KIB} KiB, telemetry batches {messages.TelemetryBatch.LIMIT // KIB} KiB",
    f"desired states {orders.Desired.LIMIT // KIB} KiB, acknowledgements and commands {orders.Ack.LIMIT // KIB} KiB",
    f"a kit {kit.EnrolmentKit.LIMIT // MIB} MiB",
    f"{ranges.AT_ONCE} answers at one time, {ranges.OF_ONE} of them for one device",
    f"Telemetry of one device has {ledger.MAX_STREAMS} streams",
    f"a packet over {link.PACKET_LIMIT // MIB} MiB",
    f"{oip.MOST_TEXTS} texts in a request, {oip.LONGEST_TEXT // KIB} KiB each",
    f"{cloud.AT_ONCE} requests to the cloud tier",
    f"writes {agent_security.PER_MINUTE} different ones a minute",
    f"keeps {SECURITY_KEPT}",
)


@pytest.mark.parametrize("words", FIXED)
def test_the_docs_say_the_limits_that_are_not_settings(words: str) -> None:
    assert words in " ".join(LIMITS.read_text().split())


def test_a_wrong_table_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n## A\n| name | default |\n| --- | --- |\n| `x` | `1 s` |\n## B\n| name |\n| --- |\n| y |\n")
    assert table(page, "A") == [{"name": "x", "default": "1 s"}]
    page.write_text(page.read_text().replace("| `x` | `1 s` |", "| `x` |"))
    with pytest.raises(ValueError, match="zip"):
        table(page, "A")


# --- the pipeline ---------------------------------------------------------------------------------------------------

PIPELINE = ROOT / "docs/start/pipeline.yml"


def pipeline_commands() -> list[str]:
    """Every `shoal` command of the example pipeline, with what the shell would put in for its variables."""
    jobs = yaml.safe_load(PIPELINE.read_text())["jobs"]
    lines = [
        line.strip() for job in jobs.values() for step in job["steps"] for line in step.get("run", "").splitlines()
    ]
    told = {"$MODEL": "intents/home", "$VERSION": "1.0.0", "$(jq -r .rollout canary.json)": "r-1"}
    told["$(jq -r .rollout fleet.json)"] = "r-2"
    for variable, value in told.items():
        lines = [line.replace(variable, value) for line in lines]
    return [line.partition(" > ")[0] for line in lines if line.startswith("shoal ")]


def test_the_pipeline_compiles_signs_publishes_rolls_out_and_waits() -> None:
    said = [" ".join(shlex.split(line)[1:3]) for line in pipeline_commands()]
    start_and_wait = ["rollout start", "rollout watch"]
    assert said == ["compile ./model", "release sign", "release publish", *start_and_wait, *start_and_wait]
    assert not any("$" in line for line in pipeline_commands())


@pytest.mark.parametrize("line", pipeline_commands())
def test_a_command_of_the_pipeline_is_one_with_these_arguments(line: str) -> None:
    """Its own parser takes it whole: a missing argument or a value of the wrong kind is an error here."""
    words = shlex.split(line)[1:]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        context = command.make_context(None, words, resilient_parsing=True)
        _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
    given = command.make_context(None, words).params
    if "waves" in given:
        rollout.TermOptions(**{field.name: given[field.name] for field in rollout.TERMS}).body()
        parse_waves(given["waves"])
        for window in given["window"] or ():
            parse_window(window)
    if "until" in given:
        rollout._wave(given["until"])
        rollout._seconds(given["timeout"])
