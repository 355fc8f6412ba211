"""The errors of the compiler, by whose fault it is.

    CompilerError
    ├── Malformed      the source model, test set or job is not what it must be: fix the input
    ├── Incompatible   sound, and not to be compiled for this profile or by this compiler
    │   └── Infeasible no recipe of a profile holds the accuracy; carries its own exit code
    ├── Untrusted      a gate let a broken model pass, or a stored byte changed: the result is not to be believed
    └── Unavailable    a disk, process or package failed; the same job may succeed later

Each message names the path, profile, recipe or digest, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class CompilerError(Exception):
    """Root of every error that the compiler raises. `exit_code` is that of the process that ends with it."""

    exit_code: ClassVar[int] = 1


class Malformed(CompilerError):
    """A file or field of the input is not what it must be."""


class Incompatible(CompilerError):
    """The input is sound, and this compiler or profile cannot serve it."""


class Infeasible(Incompatible):
    """No recipe of a profile holds the accuracy. The message names the nearest candidate."""

    exit_code = 3


class Untrusted(CompilerError):
    """A check that must refuse did not, or a stored blob is not what its digest says."""


class Unavailable(CompilerError):
    """The machine failed: disk, process, package."""
