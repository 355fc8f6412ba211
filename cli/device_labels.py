"""`shoal device tag | group | note | history | export | import`: what people say of devices, and what befell them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from cli.client import Fleet
from cli.errors import BadInput
from cli.options import Data
from cli.output import Json, console, show, table
from cli.secret_files import write_secret
from wire.document import check_device, check_file

Device = Annotated[str, typer.Argument(help="Device id.")]
Where = Annotated[str | None, typer.Option(help="Only those of a query: 'profile=x86-64 and tag:kitchen'.")]


def add_to(app: typer.Typer) -> None:
    """The commands below, among those of `shoal device`."""
    # `-lab` takes a tag away and is no option.
    app.command("tag", context_settings={"ignore_unknown_options": True})(tag)
    app.command("group")(group)
    app.command("note")(note)
    app.command("history")(history)
    app.command("export")(export)
    app.command("import")(import_)


def tag(
    device: Device,
    tags: Annotated[list[str], typer.Argument(help="+kitchen gives a tag, -lab takes one away.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Give a device tags, or take some away: queries and rollouts choose by them."""
    wrong = [one for one in tags if one[:1] not in "+-" or not one[1:]]
    if wrong:
        raise BadInput(f"tag {wrong[0]!r}: write +{wrong[0]} to give it, or -{wrong[0]} to take it away")
    asked = {"add": [t[1:] for t in tags if t[0] == "+"], "remove": [t[1:] for t in tags if t[0] == "-"]}
    value = Fleet.connect(data).post(_path(device, "labels"), asked)
    show(value, as_json, f"{device}: {', '.join(value['tags']) or 'no tag'}")


def group(
    device: Device,
    name: Annotated[str, typer.Argument(help="Group of devices that the same people operate.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Put a device into another group."""
    value = Fleet.connect(data).post(_path(device, "labels"), {"group": name})
    show(value, as_json, f"{device}: in group {value['group']}")


def note(
    device: Device,
    text: Annotated[str, typer.Argument(help="The note, in the place of the one before; '' takes it away.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Write a note on a device."""
    value = Fleet.connect(data).post(_path(device, "labels"), {"note": text})
    show(value, as_json, f"{device}: noted")


def history(
    device: Device,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Entries, the newest of all.")] = 50,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show what ran on a device when and why it changed, and what else happened to it."""
    value = Fleet.connect(data).get(_path(device, f"history?limit={limit}"))
    runs = [[r["model"], r["target"], _time(r["since"]), _time(r["until"]) or "now", r["why"]] for r in value["models"]]
    entries = [[_time(e["at"]), e["what"], e["text"], e["who"]] for e in value["entries"]]
    show(value, as_json, table(f"What ran on {device}", ("Model", "Release", "Since", "Until", "Why"), _plain(runs)))
    if not as_json:
        console.print(table("What happened", ("At", "What", "How", "Who"), _plain(entries)))


def export(where: Where = None, data: Data = None) -> None:
    """Print id, profile, group, tags and note of every device as CSV."""
    path = "/api/v1/inventory" + (f"?{urlencode({'where': where})}" if where else "")
    typer.echo(Fleet.connect(data).get_bytes(path), nl=False)


def import_(
    file: Annotated[Path, typer.Argument(help="CSV file as 'shoal device export' prints it.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every line, say what would be, change nothing.")
    ] = False,
    kits: Annotated[
        Path | None, typer.Option(help="Folder for the kits of devices that are new.  [default: .]")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make kits for the devices of a file that are new, and change group, tags and note of the others: all or none."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise BadInput(f"{file}: cannot be read: {e}") from e
    folder = kits or Path()
    if not dry_run and not folder.is_dir():
        raise BadInput(f"{folder}: there is no such folder: make it for the kits")
    value = Fleet.connect(data).post("/api/v1/inventory", {"csv": text, "dry_run": dry_run})
    paths = [] if dry_run else [_write_kit(folder, kit) for kit in value.pop("kits")]
    would = "would be " if dry_run else ""
    words = f"{len(value['created'])} {would}new, {len(value['changed'])} {would}changed, {value['same']} as they are"
    shown = {**{k: v for k, v in value.items() if k != "kits"}, "kits": [str(p) for p in paths]}
    show(shown, as_json, words + (f"; {len(paths)} kits in {folder}" if paths else ""))


def _write_kit(folder: Path, kit: dict[str, Any]) -> Path:
    path = folder / check_file(f"{check_device(kit['device'], 'device')}.kit".lstrip("-"), "kit")
    path.unlink(missing_ok=True)
    write_secret(path, json.dumps(kit))
    return path


def _plain(rows: list[list[Any]]) -> list[list[Any]]:
    """Texts of devices and people are no markup of ours."""
    return [[cell.replace("[", r"\[") if isinstance(cell, str) else cell for cell in row] for row in rows]


def _time(at: str | None) -> str | None:
    return at[:19].replace("T", " ") if at else None


def _path(device: str, *more: str) -> str:
    return "/".join(("/api/v1/devices", check_device(device, "device"), *more))
