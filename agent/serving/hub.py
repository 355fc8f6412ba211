"""What the connections of one server share: what answers, who is there, and what they may take. It knows no socket."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from agent.errors import AgentError
from agent.serving.exchange import Reply, Request

if TYPE_CHECKING:
    from agent.serving.http1 import Connection

READ: Final = 64 * 1024
"""Bytes that are read at once."""

Door = Callable[[Mapping[str, str]], AgentError | None]
"""Who may come in, by the header fields: why not, or None."""


class Routes(Protocol):
    """What answers. `handle` replies at once where nothing has to be waited for, and raises nothing of the agent's."""

    def handle(self, request: Request) -> Reply | Coroutine[Any, Any, Reply]:
        """The reply to a request, refusals too."""

    def refuse(self, path: str, error: AgentError) -> Reply:
        """The reply that says why not."""


@dataclass(eq=False)
class Hub:
    """What connections share. `body`: largest body in bytes; `most`: connections of each door at one time."""

    routes: Routes
    body: int
    most: int
    connections: set[Connection] = field(default_factory=set)
    held: bytearray = field(default_factory=lambda: bytearray(READ))
    """What was read last, by whichever connection: it is parsed before the loop goes on."""
    buffer: memoryview = field(init=False)
    statuses: Counter[int] = field(default_factory=Counter)
    """Replies by status code."""
    closing: bool = False
    empty: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last connection ends while it is closing."""

    def __post_init__(self) -> None:
        self.buffer = memoryview(self.held)

    def sweep(self, now: float) -> None:
        """End what has been silent for too long; call it every second."""
        for connection in [c for c in self.connections if c.deadline < now]:
            connection.expire()

    def close(self) -> None:
        """Take no more requests; those under way are still answered."""
        self.closing = True
        for connection in list(self.connections):
            connection.finish()
        self._look()

    def left(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        self._look()

    def _look(self) -> None:
        if self.closing and not self.connections:
            self.empty.set()
