"""Aliases: names that stand for one version of a model, moved by people who may; what they ever meant is kept.

    move = aliases.change(session, model, AliasChange(alias="production", version="1.2.0"), caller, now)
    aliases.resolve(session, "intents/kitchen", "@production")      # "1.2.0"

`production` is protected: it says what the fleet relies on, so it takes the permission `models.promote`. Whoever
publishes releases may move any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlmodel import Session, col, select

from fleet.access import Caller
from fleet.errors import Conflict, NotFound
from fleet.store.registry_tables import AliasMove, AliasRow
from wire.document import check_name
from wire.units import show_instant

PROTECTED: Final = frozenset({"production"})
PROMOTE: Final = "models.promote"
MOVE: Final = "models.alias"
MARK: Final = "@"
"""What stands before an alias where a version could stand."""
MOVES_SHOWN: Final = 50


@dataclass(frozen=True, kw_only=True)
class AliasChange:
    """What an alias shall mean. No `version`: it goes.

    `was` is what whoever asks believes it to mean, "" for nothing at all; None: whatever it is.
    """

    alias: str
    version: str = ""
    reason: str = ""
    was: str | None = None


def check_may(caller: Caller, alias: str) -> None:
    """Raises `Forbidden` for an alias that the caller may not move."""
    caller.check(PROMOTE if alias in PROTECTED else MOVE)


def change(session: Session, model: str, asked: AliasChange, caller: Caller, now: datetime) -> AliasMove | None:
    """Move an alias; None when it means that already. The version's being there is the caller's to check.

    Raises wire's `Malformed` for a bad name, `Forbidden`, `NotFound` for one to remove that is not there, and
    `Conflict` when it means something else than `was`.
    """
    check_name(asked.alias, f"alias of {model}")
    check_may(caller, asked.alias)
    row = session.get(AliasRow, (model, asked.alias))
    meant = row.version if row else ""
    if meant == asked.version != "":
        return None
    if asked.was is not None and asked.was != meant:
        raise Conflict(
            f"alias {asked.alias} of {model}: means {meant or 'nothing'} and not {asked.was or 'nothing'} any more: "
            "somebody moved it: look at it, and ask again"
        )
    if row is None and not asked.version:
        raise NotFound(f"alias {asked.alias} of {model}: there is none: `shoal model alias list` shows those there are")
    if row is not None:
        session.delete(row)
        session.flush()
    at = show_instant(now)
    if asked.version:
        session.add(AliasRow(model=model, alias=asked.alias, version=asked.version, who=caller.name, at=at))
    move = AliasMove(
        model=model,
        alias=asked.alias,
        was=meant,
        version=asked.version,
        who=caller.name,
        at=at,
        reason=asked.reason[:500],
    )
    session.add(move)
    session.flush()
    return move


def newest_move(session: Session, model: str, alias: str) -> AliasMove | None:
    """How an alias came to mean what it does now."""
    mine = select(AliasMove).where(AliasMove.model == model, AliasMove.alias == alias)
    return session.exec(mine.order_by(col(AliasMove.id).desc()).limit(1)).first()


def resolve(session: Session, model: str, version: str) -> str:
    """A version as it stands, or what an alias (`@production`) means now. Raises `NotFound`."""
    if not version.startswith(MARK):
        return version
    row = session.get(AliasRow, (model, version.removeprefix(MARK)))
    if row is None:
        named = ", ".join(MARK + one.alias for one in of_model(session, model)) or "none"
        raise NotFound(f"{model} {version[:64]}: there is no such alias; it has {named}")
    return row.version


def of_model(session: Session, model: str) -> Sequence[AliasRow]:
    """The aliases of a model, by name."""
    return session.exec(select(AliasRow).where(AliasRow.model == model).order_by(col(AliasRow.alias))).all()


def by_version(session: Session) -> dict[tuple[str, str], list[str]]:
    """The aliases of every model and version."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in session.exec(select(AliasRow).order_by(col(AliasRow.alias))):
        found.setdefault((row.model, row.version), []).append(row.alias)
    return found


def moves(session: Session, model: str) -> list[dict[str, Any]]:
    """How the aliases of a model moved, the newest first."""
    query = select(AliasMove).where(AliasMove.model == model).order_by(col(AliasMove.id).desc()).limit(MOVES_SHOWN)
    return [view(row) for row in session.exec(query)]


def view(move: AliasMove) -> dict[str, Any]:
    """A move as the API shows it."""
    return {name: getattr(move, name) for name in ("alias", "was", "version", "who", "at", "reason", "rollout")}
