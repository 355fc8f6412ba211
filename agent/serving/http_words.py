"""HTTP/1.1 in bytes, apart from any connection: the path of a target, the head of a reply, a head that comes again."""

from __future__ import annotations

import http
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import unquote

import httptools

from agent.serving.exchange import Fields, Reply, Request, lines_of

END: Final = b"\r\n\r\n"
"""Of a head."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_OTHERWISE: Final = frozenset({"transfer-encoding", "expect", "upgrade"})
"""Fields with which a length alone does not say what is done with a message."""
_STATUS: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: " for status in http.HTTPStatus
}


@dataclass(frozen=True, slots=True)
class Known:
    """The head of a request that came in one piece with its body, as the parser read it. An app in a loop repeats it.

    The same bytes at the start of a message, with as many behind them, are the same request but for its body.
    """

    head: bytes
    whole: int
    """Bytes with the body."""
    method: str
    path: str
    fields: Mapping[str, str]

    @classmethod
    def of(cls, data: bytearray, length: int, request: Request) -> Self | None:
        """Of so many bytes of `data`, all of which the parser took for this request; None if it may be otherwise."""
        fields, end = request.headers, data.find(END, 0, length) + len(END)
        framed = fields.get("content-length") == str(len(request.body)) and not _OTHERWISE & fields.keys()
        if not framed or end + len(request.body) != length:
            return None
        return cls(bytes(data[:end]), length, request.method, request.path, request.headers)

    def request(self, body: bytes) -> Request:
        """The request with its next body."""
        return Request(self.method, self.path, self.fields, body)


def head_of(reply: Reply, framing: str, *, keep: bool) -> bytes:
    """The head of a reply; `framing` are the fields that say how long its body is."""
    first = _STATUS.get(reply.status) or f"HTTP/1.1 {reply.status} \r\ncontent-type: "  # the cloud may know others
    fields = reply.headers
    lines = fields.lines if isinstance(fields, Fields) else lines_of(fields)
    end = "\r\n" if keep else "connection: close\r\n\r\n"
    return f"{first}{reply.content_type}\r\n{framing}{lines}{end}".encode("latin-1")


def path_of(url: bytes) -> str:
    """The path of a request target, decoded; of an absolute one too."""
    if not url.startswith(b"/"):
        try:
            url = httptools.parse_url(url).path or b"/"
        except httptools.HttpParserInvalidURLError:
            return url.decode("latin-1")
    path = url.partition(b"?")[0].decode("latin-1")
    return unquote(path, errors="replace") if "%" in path else path
