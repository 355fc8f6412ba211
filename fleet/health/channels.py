"""Sending a message to its channel: HTTPS with a signature, or SMTP. Blocks: never called where the fleet decides.

send(channel, document, now=time.time())           # raises Unavailable with what went wrong
"""

from __future__ import annotations

import http.client
import json
import smtplib
import ssl
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from fleet.errors import Unavailable
from fleet.health.messages import mail, signature
from fleet.health.rules import Channel


def send(channel: Channel, value: dict[str, Any], now: float) -> None:
    """Hand a message over. Raises `Unavailable`: it has to be sent again, under the same id."""
    try:
        if channel.kind == "webhook":
            _post(channel, value, now)
        else:
            _mail(channel, value)
    except (OSError, http.client.HTTPException, smtplib.SMTPException, ValueError) as e:
        raise Unavailable(f"channel {channel.name}: {type(e).__name__}: {e}") from e


def _post(channel: Channel, value: dict[str, Any], now: float) -> None:
    """Redirects are not followed: the signature would go to whom nobody named."""
    address, body = urlsplit(channel.url), json.dumps(value).encode()
    headers = {"Content-Type": "application/json", "Shoal-Message": value["id"], "User-Agent": "shoal"}
    if channel.secret_file is not None:
        headers["Shoal-Signature"] = signature(channel.secret_file.read_bytes().strip(), int(now), body)
    host = address.hostname or ""
    kind: type[http.client.HTTPConnection] = http.client.HTTPConnection
    more: dict[str, Any] = {}
    if address.scheme == "https":
        kind, more = http.client.HTTPSConnection, {"context": _tls(channel)}
    with closing(kind(host, address.port, timeout=channel.timeout, **more)) as connection:
        path = (address.path or "/") + (f"?{address.query}" if address.query else "")
        connection.request("POST", path, body, headers)
        status = connection.getresponse().status
    if not 200 <= status < 300:
        raise Unavailable(f"channel {channel.name}: {host} answered {status}")


def _mail(channel: Channel, value: dict[str, Any]) -> None:
    made = mail(channel, value)
    if channel.security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(
            channel.host, channel.port, timeout=channel.timeout, context=_tls(channel)
        )
    else:
        server = smtplib.SMTP(channel.host, channel.port, timeout=channel.timeout)
    with server:
        if channel.security == "starttls":
            server.starttls(context=_tls(channel))
        if channel.password_file is not None:
            server.login(channel.user, channel.password_file.read_text().strip())
        server.send_message(made)


def _tls(channel: Channel) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=None if channel.ca_file is None else str(channel.ca_file))
