"""Messages of alerts in words, as JSON and as mail; and how JSON is signed. Pure."""

from __future__ import annotations

import hashlib
import hmac
from email.message import EmailMessage
from typing import Any

from fleet.health.alerting import Message
from fleet.health.rules import KINDS, Channel
from wire.units import show_instant

_WORDS = {"open": "", "repeat": "still: ", "recovered": "over: "}


def title(message: Message) -> str:
    """One line: `kitchens-offline: 1000 devices`."""
    of = KINDS[message.kind].of if message.kind in KINDS else ""
    subject = f"{message.count} {of}s" if message.count > 1 else next(iter(message.subjects), "")
    return f"{_WORDS.get(message.what, '')}{message.rule}: {subject}"


def lines(message: Message) -> list[str]:
    """What is wrong, or was, subject by subject."""
    named = [f"{subject}: {text}" for subject, text in zip(message.subjects, message.texts, strict=True)]
    more = message.count - len(named)
    return [*named, *([f"and {more} more"] if more else [])]


def document(message: Message, fleet: str) -> dict[str, Any]:
    """The body of a webhook. `text` is what the incoming webhooks of chat programs show."""
    return {
        "id": message.id,
        "fleet": fleet,
        "what": message.what,
        "rule": message.rule,
        "kind": message.kind,
        "severity": message.severity,
        "at": show_instant(message.at),
        "count": message.count,
        "subjects": list(message.subjects),
        "texts": list(message.texts),
        "alerts": list(message.alerts),
        "title": title(message),
        "text": "\n".join([title(message), *lines(message)]),
    }


def signature(secret: bytes, at: int, body: bytes) -> str:
    """The header `Shoal-Signature`: HMAC-SHA256 (RFC 2104) over the time in seconds, a dot and the body.

    A receiver refuses what is older than some minutes: somebody may have recorded it.
    """
    mac = hmac.new(secret, f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={mac}"


def mail(channel: Channel, value: dict[str, Any]) -> EmailMessage:
    """A mail of a message's document. What devices and people wrote cannot add a header."""
    made = EmailMessage()
    made["Subject"] = "".join(c if c.isprintable() else " " for c in f"[{value['severity']}] {value['title']}")[:200]
    made["From"], made["To"] = channel.sender, ", ".join(channel.to)
    made["Message-ID"] = f"<{value['id']}@shoal.invalid>"
    made["Auto-Submitted"] = "auto-generated"
    made.set_content(f"{value['text']}\n\n{value['fleet']}, {value['at']}, message {value['id']}\n")
    return made
