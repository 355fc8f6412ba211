"""The login of a person: a file in the user's own configuration folder that only this user may read.

Session(url="https://fleet:8443", ca="-----BEGIN ...", name="alice", token="...", expires="...").save()
session = Session.load()            # None without one
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from cli.errors import BadInput


def session_file() -> Path:
    """`$XDG_CONFIG_HOME/shoal/session.json`, by default under `~/.config`."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "shoal" / "session.json"


@dataclass(frozen=True, kw_only=True)
class Session:
    """A fleet, the CA that its certificate must come from (PEM), and a token of a user until `expires` (RFC 3339)."""

    url: str
    ca: str
    name: str
    token: str
    expires: str

    def save(self) -> Path:
        """Write it whole or not at all."""
        path = session_file()
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # 0600 from the first moment
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(self), file)
        Path(temporary).replace(path)
        return path

    @classmethod
    def load(cls) -> Session | None:
        """The login of this user, if there is one. Raises `BadInput` for a file that makes no sense."""
        path = session_file()
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError) as e:
            raise BadInput(f"{path}: not what `shoal login` writes: run `shoal logout`, then log in again") from e

    @staticmethod
    def forget() -> bool:
        """Remove the file. True when there was one."""
        path = session_file()
        found = path.exists()
        path.unlink(missing_ok=True)
        return found
