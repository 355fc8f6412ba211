"""What the audit of the gateway keeps of a request: who, which model, tokens, cost, verdicts, times. Never the text,
unless `audit_text` asks for it.

Records wait in memory and are written together, off the path of requests (`fleet.gateway.book`). At `MOST` of them the
gateway answers nobody any more: a request that could not be recorded is not served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from fleet.gateway.pricing import MOST_STORED, Usage

MOST: Final = 20_000

ANSWERED: Final = "answered"
CACHED: Final = "cached"
BLOCKED: Final = "blocked"
CUT: Final = "blocked-mid-stream"
REFUSED: Final = "refused"
FAILED: Final = "failed"
BROKE_OFF: Final = "broke-off"
LEFT: Final = "client-left"
OUTCOMES: Final = (ANSWERED, CACHED, BLOCKED, CUT, REFUSED, FAILED, BROKE_OFF, LEFT)


@dataclass(slots=True)
class Record:
    """One request. Times are in milliseconds, money in nanos.

    `outcome`: one of `OUTCOMES`. `sent` counts the pieces of a stream that the client was sent.
    """

    at: str
    who: str
    tenant: str
    groups: str
    path: str
    stream: bool = False
    route: str = ""
    upstream: str = ""
    model: str = ""
    outcome: str = FAILED
    status: int = 0
    attempts: int = 0
    fallback: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    nanos: int = 0
    verdicts: str = ""
    sent: int = 0
    first_ms: float | None = None
    total_ms: float = 0.0
    detail: str = ""
    text: str | None = None

    def use(self, usage: Usage, nanos: int) -> None:
        """Note what was used."""
        self.prompt_tokens, self.completion_tokens = usage.prompt, usage.completion
        self.estimated, self.nanos = usage.estimated, nanos

    def to_row(self) -> dict[str, Any]:
        """As a row of the database, which takes neither lone surrogates, nor NUL, nor numbers of over 64 bits."""
        return {name: _storable(getattr(self, name)) for name in self.__slots__}


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        plain = value.isascii() and "\0" not in value
        return value if plain else value.encode("utf-8", "replace").decode().replace("\0", "?")
    return min(value, MOST_STORED) if isinstance(value, int) else value
