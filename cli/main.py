"""`shoal`: one entry, thin commands. Each command imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys

from wire.errors import WireError


def main() -> None:
    """Run the command line; an error becomes one line on standard error and an exit code that is not 0."""
    try:
        from cli.commands import app  # noqa: PLC0415  the agent's extra comes without it
    except ModuleNotFoundError as e:
        sys.exit(f"shoal: {e.name} is not installed: the extras fleet and compiler bring the operator's commands")
    from cli.errors import CliError  # noqa: PLC0415

    try:
        app()
    except CliError as e:
        _fail(str(e), e.exit_code)
    except _package_errors() as e:
        _fail(str(e), 1)
    except OSError as e:
        # A full disk, a folder that may not be written: the system's words and the path say it best.
        _fail(f"{e.filename or 'input or output'}: {e.strerror or e}", 1)
    except KeyboardInterrupt:
        _fail("stopped", 130)


def _package_errors() -> tuple[type[Exception], ...]:
    """The roots of the error trees of the packages that the command has loaded."""
    roots = (("compiler.errors", "CompilerError"), ("fleet.errors", "FleetError"))
    return (WireError, *(getattr(sys.modules[module], name) for module, name in roots if module in sys.modules))


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"shoal: {message}\n")
    sys.exit(code)
