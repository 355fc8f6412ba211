"""The errors of the command line.

    CliError
    ├── BadInput      what the operator gave is not right: nothing was changed
    ├── Refused       the fleet, the compiler or a check said no, and why
    │   └── Infeasible  no variant of a profile holds what was asked for; carries its own exit code
    ├── Stopped       Ctrl-C, after everything that was started has ended
    └── Unavailable   what we need is not there: the fleet, a program, a file

`exit_code` is what the process ends with. Every other error of Shoal's packages is translated in `cli.main`.
"""

from __future__ import annotations


class CliError(Exception):
    """Root of the errors of commands; the message says what to do."""

    exit_code = 1


class BadInput(CliError):
    """A file, name, unit or option that cannot be used."""


class Refused(CliError):
    """A request that was understood and turned down."""


class Infeasible(Refused):
    """No variant of a profile holds the accuracy asked for."""

    exit_code = 3


class Stopped(CliError):
    """The operator stopped the command."""

    exit_code = 130


class Unavailable(CliError):
    """The fleet does not answer, or a program is missing."""

    exit_code = 4
