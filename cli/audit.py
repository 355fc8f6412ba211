"""`shoal audit`: who did what; whether the log is whole; a copy to keep elsewhere.

A copy is two files: `FILE` holds an entry on each line, `FILE.head` the signed head and the metadata that names the key
that signed it. Keep the head where the fleet cannot reach it: only that shows a log that was cut off, or written anew
by who holds the fleet key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.console import RenderableType
from rich.markup import escape
from securesystemslib.signer import Key

from cli.client import Fleet
from cli.errors import BadInput, Refused
from cli.options import Data, Since, since_time
from cli.output import Json, show, table
from wire.audit import AuditEntry, AuditHead, check_log, open_head
from wire.dsse import FLEET_ROLE
from wire.errors import WireError
from wire.trust import TrustedSet

app = typer.Typer(help="Who did what to what, from where, and with what outcome.", no_args_is_help=True)

_PAGE = 1000


@dataclass(frozen=True)
class _Head:
    """A signed head, and what names the fleet key: published metadata, or before there is any what the fleet says."""

    envelope: Any
    trust: Mapping[str, str]
    online: Mapping[str, Any]

    def to_value(self) -> dict[str, Any]:
        return {"head": self.envelope, "trust": dict(self.trust), "online": dict(self.online)}

    def opened(self, anchor: Mapping[str, bytes] | None = None) -> AuditHead:
        """The head, verified by the fleet key that `anchor` names, or else by the one that came with it."""
        documents = anchor or {name: text.encode() for name, text in self.trust.items()}
        keys = _fleet_keys(documents) if documents else [_key(self.online[FLEET_ROLE])]
        return open_head(json.dumps(self.envelope).encode(), keys)


@app.command("list")
def list_(
    since: Since = None,
    who: Annotated[str | None, typer.Option(help="One caller, as the log names it: alice, token:ci.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=_PAGE, help="How many, the newest first.")] = 50,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show the newest entries."""
    query = {"limit": limit, "who": who or "", "since": since_time(since)}
    entries = Fleet.connect(data).get(f"/api/v1/audit/newest?{urlencode(query)}")
    show(entries, as_json, _table(entries))


@app.command()
def verify(
    head: Annotated[Path | None, typer.Option(help="A head that was saved earlier: FILE.head of an export.")] = None,
    file: Annotated[Path | None, typer.Option(help="Verify this export instead of the fleet's log.")] = None,
    trust: Annotated[
        Path | None, typer.Option("--trust", help="Believe the fleet key that the metadata in this folder names.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Find an edit, a deletion, an insertion or a cut end. Exit code 1 names the first entry that does not hold."""
    anchor = _anchor(trust) if trust else None
    entries, newest = _from_file(file) if file else _from_fleet(Fleet.connect(data))
    saved = [_read_head(head).opened()] if head else []
    try:
        signed = newest.opened(anchor)
        count = check_log(entries, signed, saved)
    except WireError as e:
        raise Refused(str(e)) from e
    value = {"entries": count, "head": signed.to_value(), "saved": [h.to_value() for h in saved]}
    since = f", and entry {saved[0].seq} is the one of the head of {saved[0].at}" if saved else ""
    show(value, as_json, f"The audit log is whole: {count} entries, signed {signed.at}{since}.")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="File to write; FILE.head is written beside it.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Copy the whole log and its signed head."""
    signed = _head_file(file)
    for path in (file, signed):
        if path.exists():
            raise BadInput(f"{path}: exists already: choose another name")
    entries, head = _from_fleet(Fleet.connect(data))
    count = 0
    with file.open("w") as lines:
        for entry in entries:
            lines.write(entry.to_bytes().decode() + "\n")
            count += 1
    signed.write_text(json.dumps(head.to_value()))
    value = {"file": str(file), "head": str(signed), "entries": count}
    show(value, as_json, f"{file}: {count} entries; keep {signed} where the fleet cannot reach it")


def _from_fleet(fleet: Fleet) -> tuple[Iterator[AuditEntry], _Head]:
    """The log up to the head of this moment; what is added while it is read is left out."""
    trust, first = fleet.get("/api/v1/trust"), fleet.get(f"/api/v1/audit?limit={_PAGE}")
    if first["head"] is None:
        raise Refused("audit log: the fleet has no signed head: the log was cut off or its head removed")
    head = _Head(first["head"], trust["documents"], trust["online"])
    last = head.opened().seq
    return _pages(fleet, first["entries"], last), head


def _pages(fleet: Fleet, page: list[dict[str, Any]], last: int) -> Iterator[AuditEntry]:
    while page:
        for value in page:
            if value["seq"] > last:
                return
            yield AuditEntry.from_value(value)
        after = page[-1]["seq"]
        page = fleet.get(f"/api/v1/audit?after={after}&limit={_PAGE}")["entries"] if after < last else []


def _from_file(file: Path) -> tuple[Iterator[AuditEntry], _Head]:
    return _lines(file), _read_head(_head_file(file))


def _lines(file: Path) -> Iterator[AuditEntry]:
    try:
        with file.open("rb") as lines:
            for line in lines:
                yield AuditEntry.from_bytes(line)
    except OSError as e:
        raise BadInput(f"{file}: cannot be read: {e.strerror}") from e


def _read_head(file: Path) -> _Head:
    try:
        value = json.loads(file.read_text())
        return _Head(value["head"], value["trust"], value["online"])
    except OSError as e:
        raise BadInput(f"{file}: cannot be read: {e.strerror}: it is written by `shoal audit export`") from e
    except (ValueError, KeyError, TypeError) as e:
        raise BadInput(f"{file}: not a head that `shoal audit export` wrote") from e


def _head_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.head")


def _anchor(folder: Path) -> dict[str, bytes]:
    from cli.trust.folder import TrustFolder  # noqa: PLC0415  what signs is needed here alone

    signed = TrustFolder(folder).book().signed
    if "targets" not in signed:
        raise BadInput(f"{folder}: holds no signed targets metadata: name the folder of `shoal release init`")
    return dict(signed)


def _fleet_keys(documents: Mapping[str, bytes]) -> list[Key]:
    """The keys of the fleet role that root and targets name. Old metadata will do: the head may be as old."""
    newest = max(
        (n for n in documents if n.startswith("root/")), key=lambda n: int(n.removeprefix("root/")), default=""
    )
    if not newest or "targets" not in documents:
        raise Refused("audit log: the metadata has no root or no targets, so no key of the fleet is known")
    held = TrustedSet.from_documents({"root": documents[newest], "targets": documents["targets"]})
    delegations = held.targets().delegations
    role = (delegations.roles or {}).get(FLEET_ROLE) if delegations else None
    if delegations is None or role is None:
        raise Refused("audit log: targets metadata names no key of the fleet")
    return [delegations.keys[keyid] for keyid in role.keyids]


def _key(value: Mapping[str, Any]) -> Key:
    fields = dict(value)
    return Key.from_dict(fields.pop("keyid"), fields)


def _table(entries: list[dict[str, Any]]) -> RenderableType:
    rows = [_row(e) for e in entries]
    return table("Audit log", ("#", "At", "Who", "Action", "Subject", "From", "Outcome"), rows)


def _row(e: dict[str, Any]) -> list[object]:
    outcome = " ".join(filter(None, (e["outcome"], e["detail"])))
    texts = (e["who"], e["action"], e["subject"], e["source"], outcome)
    return [e["seq"], e["at"][:19].replace("T", " "), *map(escape, texts)]
