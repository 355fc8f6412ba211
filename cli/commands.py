"""The tree of commands."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from cli import (
    alert,
    audit,
    authority,
    backup,
    build,
    dataset,
    device,
    drift,
    evidence,
    gateway,
    measure,
    model,
    profile,
    release,
    rollout,
    status,
    token,
    tune,
    up,
    user,
)
from cli import compile as compile_commands
from cli.demo import command as demo
from cli.simulate import command as simulate

app = typer.Typer(
    name="shoal",
    help="Compile small models for each device, sign them, roll them out over MQTT, and see how they do.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def _main(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show_version:
        typer.echo(f"shoal {version('shoal')}")
        raise typer.Exit


app.command("up")(up.up)
app.command("status")(status.status)
app.command("login")(user.login)
app.command("logout")(user.logout)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.command("tune")(tune.tune)
app.command("demo")(demo.demo)
app.command("simulate")(simulate.simulate)
app.add_typer(compile_commands.app, name="compile")
app.add_typer(build.app, name="build")
app.add_typer(dataset.app, name="dataset")
app.add_typer(profile.app, name="profile")
app.add_typer(release.app, name="release")
app.add_typer(device.app, name="device")
app.add_typer(alert.app, name="alert")
app.add_typer(authority.app, name="authority")
app.add_typer(evidence.app, name="evidence")
app.add_typer(model.app, name="model")
app.add_typer(measure.app, name="measure")
app.add_typer(rollout.app, name="rollout")
app.add_typer(drift.app, name="drift")
app.add_typer(user.app, name="user")
app.add_typer(token.app, name="token")
app.add_typer(audit.app, name="audit")
app.add_typer(gateway.app, name="gateway")
