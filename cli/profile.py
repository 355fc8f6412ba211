"""`shoal profile`: the hardware classes that Shoal compiles for."""

from __future__ import annotations

from importlib.resources import files

import typer

from cli.errors import BadInput
from cli.output import Json, show, table
from wire.profile import Profile

app = typer.Typer(help="The hardware classes that Shoal compiles for.", no_args_is_help=True)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List every profile: its hardware, runtime, recipes and limits."""
    profiles = [load(name) for name in names()]
    rows = [
        [
            p.name,
            p.title,
            p.status,
            p.hardware.cpu,
            p.hardware.memory,
            p.runtimes[0].name,
            ", ".join(p.recipes),
            p.limits.disk,
        ]
        for p in profiles
    ]
    columns = ("Profile", "Hardware", "Status", "CPU", "#Memory", "Runtime", "Recipes", "#Disk limit")
    show([p.to_value() for p in profiles], as_json, table("Profiles", columns, rows))


def names() -> list[str]:
    """Names of the profiles that this installation carries."""
    return sorted(
        f.name.removesuffix(".toml") for f in files("firmware_profiles").iterdir() if f.name.endswith(".toml")
    )


def load(name: str) -> Profile:
    """One profile by name. Raises `BadInput` naming those that exist."""
    if name not in names():
        raise BadInput(f"profile {name!r} is unknown: choose from {', '.join(names())}")
    return Profile.from_toml(files("firmware_profiles").joinpath(f"{name}.toml").read_bytes())
