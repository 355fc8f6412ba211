"""Who may say what: The Update Framework, as a value that takes bytes in and gives verified facts out.

Guarantees (TUF specification 1.0.34, section 5): nothing is reachable here that did not verify; versions never
go back; a document is believed only with the threshold of *distinct keys* of the role that its delegator names.
It reads no clock: `now` is an argument. Expiry blocks what is new and never what was trusted before, so a device
that was off for a year still serves its model.

    trust = TrustedSet.from_root(kit_root)
    refused = trust.offer({"root/2": ..., "timestamp": ..., "snapshot": ..., "targets": ..., "release-x": ...}, now)
    release = trust.release("models/intents/kitchen/1.0.0/raspberry-pi-4", now)
    save(trust.documents)                       # and later: TrustedSet.from_documents(saved)

Documents are named `root/<version>` when offered, and `root`, `timestamp`, `snapshot`, `targets`, `release-<family>`
when held. Beside the TUF roles stands `fleet`, delegated by targets without any path: it signs statements
(`wire.dsse`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from wire.bundle import split_target
from wire.errors import Malformed, OutOfStep, Untrusted, WireError
from wire.metadata import (
    ROLE_LIMIT,
    ROOT_LIMIT,
    TIMESTAMP_LIMIT,
    check_distinct_keys,
    check_fresh,
    check_named,
    check_signed,
    check_version,
    is_signed,
    parse,
)
from wire.release import Release, floors, release_of, releases_of

MAX_ROOTS: Final = 256
MAX_DELEGATIONS: Final = 32


@dataclass(frozen=True)
class Refusal:
    """An offered document that was not taken, and why."""

    document: str
    error: WireError


class NotHeld(OutOfStep):
    """The metadata of a role on the way to a target has not arrived: `role` names it, so that it can be fetched."""

    def __init__(self, target: str, role: str) -> None:
        super().__init__(f"{target}: the metadata of role {role} has not arrived yet")
        self.role = role


class TrustedSet:
    """The verified metadata. Mutable only through `offer`, which never lets it go back."""

    def __init__(self, root: Metadata[Root], data: bytes) -> None:
        self._root = root
        self._timestamp: Metadata[Timestamp] | None = None
        self._snapshot: Metadata[Snapshot] | None = None
        self._targets: dict[str, Metadata[Targets]] = {}
        self.documents: dict[str, bytes] = {"root": data}
        """The signed bytes that are trusted, by name: what a program saves."""

    # --- making one -------------------------------------------------------------------------------------------

    @classmethod
    def from_root(cls, data: bytes) -> TrustedSet:
        """Start from a root that is trusted because of how it came: in an enrolment kit. Raises `WireError`."""
        root = parse(data, "root", Root, ROOT_LIMIT)
        check_distinct_keys(root.signed.keys, "root")
        check_signed(root.signed.verify_delegate, "root", root)
        return cls(root, data)

    @classmethod
    def from_documents(cls, documents: Mapping[str, bytes]) -> TrustedSet:
        """The set that was saved. Its expiry is not asked: it was fresh when it was taken. Raises `WireError`."""
        if "root" not in documents:
            raise Malformed("trusted metadata: no root: enrol this device again")
        trust = cls.from_root(documents["root"])
        trust._load(documents)  # noqa: SLF001  its own class
        return trust

    def _load(self, documents: Mapping[str, bytes]) -> None:
        """Take back what was saved. A document whose signers were rotated out since is dropped, not believed."""
        by_root = self._root.signed.verify_delegate
        if "timestamp" in documents:
            timestamp = parse(documents["timestamp"], "timestamp", Timestamp, TIMESTAMP_LIMIT)
            if is_signed(by_root, "timestamp", timestamp):
                self._timestamp, self.documents["timestamp"] = timestamp, documents["timestamp"]
        if "snapshot" in documents:
            snapshot = parse(documents["snapshot"], "snapshot", Snapshot, ROLE_LIMIT)
            if is_signed(by_root, "snapshot", snapshot):
                self._snapshot, self.documents["snapshot"] = snapshot, documents["snapshot"]
        for name, delegator in self._roles():
            if name in documents:
                targets = parse(documents[name], name, Targets, ROLE_LIMIT)
                if is_signed(self._verifier(delegator), name, targets):
                    self._targets[name], self.documents[name] = targets, documents[name]

    # --- taking what is new -----------------------------------------------------------------------------------

    def offer(self, offered: Mapping[str, bytes], now: datetime) -> tuple[Refusal, ...]:
        """Take whatever verifies, in the order of the specification; what does not is named with its reason.

        A document that is offered unchanged is neither taken nor refused. A refusal stops the roles that depend on
        the refused one, and keeps what was taken before it, as sections 5.3 to 5.6 ask.
        """
        steps: tuple[tuple[str, Callable[[Mapping[str, bytes], datetime], None]], ...] = (
            ("root", self._take_roots),
            ("timestamp", self._take_timestamp),
            ("snapshot", self._take_snapshot),
        )
        for name, take in steps:
            try:
                take(offered, now)
            except WireError as e:
                return (Refusal(name, e),)
        return tuple(self._take_all_targets(offered, now))

    def _is_new(self, name: str, offered: Mapping[str, bytes]) -> bool:
        return name in offered and self.documents.get(name) != offered[name]

    def _take_roots(self, offered: Mapping[str, bytes], now: datetime) -> None:
        for _ in range(MAX_ROOTS):
            name = f"root/{self.root_version + 1}"
            if name not in offered:
                break
            self._take_root(offered[name])
        check_fresh(self._root.signed.expires, f"root/{self.root_version}", now)

    def _take_root(self, data: bytes) -> None:
        new = parse(data, "root", Root, ROOT_LIMIT)
        if new.signed.version != self.root_version + 1:
            raise Untrusted(f"root: version {new.signed.version} after {self.root_version}, expected the next one")
        check_distinct_keys(new.signed.keys, "root")
        check_signed(self._root.signed.verify_delegate, "root", new)
        check_signed(new.signed.verify_delegate, "root", new)
        # Fast-forward attacks are undone by rotating the online keys (5.3.11): their old versions must not bind us.
        roles = ("timestamp", "snapshot")
        rotated = any(set(self.root.roles[r].keyids) != set(new.signed.roles[r].keyids) for r in roles)
        self._root, self.documents["root"] = new, data
        for role in roles if rotated else ():
            self.documents.pop(role, None)
        self._drop_unsigned()

    def _drop_unsigned(self) -> None:
        """A key that was taken from a role is believed no more, for what is held as for what comes."""
        held, self.documents = self.documents, {"root": self.documents["root"]}
        self._timestamp = self._snapshot = None
        self._targets = {}
        self._load(held)

    def _take_timestamp(self, offered: Mapping[str, bytes], now: datetime) -> None:
        if not self._is_new("timestamp", offered):
            return
        new = parse(offered["timestamp"], "timestamp", Timestamp, TIMESTAMP_LIMIT)
        check_signed(self._root.signed.verify_delegate, "timestamp", new)
        old = self._timestamp
        if old is not None:
            if new.signed.version == old.signed.version:
                return  # the one that is held stays, and that is no fault (5.4.3.1)
            check_version("timestamp", new.signed.version, at_least=old.signed.version)
            was, is_now = old.signed.snapshot_meta.version, new.signed.snapshot_meta.version
            check_version("snapshot named by the timestamp", is_now, at_least=was)
        check_fresh(new.signed.expires, "timestamp", now)
        self._timestamp, self.documents["timestamp"] = new, offered["timestamp"]

    def _take_snapshot(self, offered: Mapping[str, bytes], now: datetime) -> None:
        if not self._is_new("snapshot", offered):
            return
        if self._timestamp is None:
            raise OutOfStep("snapshot: there is no trusted timestamp that names it yet")
        data = offered["snapshot"]
        new = parse(data, "snapshot", Snapshot, ROLE_LIMIT)
        check_signed(self._root.signed.verify_delegate, "snapshot", new)
        check_named(self._timestamp.signed.snapshot_meta, "snapshot", new.signed.version, data)
        for filename, meta in (self._snapshot.signed.meta if self._snapshot else {}).items():
            if filename not in new.signed.meta:
                raise Untrusted(f"snapshot: {filename} is gone; a role once listed stays listed")
            check_version(f"{filename} in the snapshot", new.signed.meta[filename].version, at_least=meta.version)
        check_fresh(new.signed.expires, "snapshot", now)
        self._snapshot, self.documents["snapshot"] = new, data

    def _take_all_targets(self, offered: Mapping[str, bytes], now: datetime) -> list[Refusal]:
        """Targets first, then every role it delegates to; one role's fault does not hold back another's."""
        refused: list[Refusal] = []
        for name, delegator in self._roles():
            try:
                if self._is_new(name, offered):
                    self._take_targets(name, delegator, offered[name], now)
            except WireError as e:
                refused.append(Refusal(name, e))
        return refused

    def _roles(self) -> Iterator[tuple[str, str]]:
        """Targets roles with their delegators, breadth first; follows what is taken while it is walked."""
        queue: list[tuple[str, str]] = [("targets", "root")]
        seen: set[str] = set()
        while queue and len(seen) < MAX_DELEGATIONS:
            name, delegator = queue.pop(0)
            if name not in seen:
                seen.add(name)
                yield name, delegator
                queue += [(child, name) for child in self._delegated(name)]

    def _take_targets(self, name: str, delegator: str, data: bytes, now: datetime) -> None:
        if self._snapshot is None:
            raise OutOfStep(f"{name}: there is no trusted snapshot that names it yet")
        named = self._snapshot.signed.meta.get(f"{name}.json")
        if named is None:
            raise OutOfStep(f"{name}: the snapshot does not list it")
        new = parse(data, name, Targets, ROLE_LIMIT)
        check_signed(self._verifier(delegator), name, new)
        check_named(named, name, new.signed.version, data)
        if new.signed.delegations is not None:
            check_distinct_keys(new.signed.delegations.keys, name)
        check_fresh(new.signed.expires, name, now)
        self._targets[name], self.documents[name] = new, data
        if new.signed.delegations is not None:
            self._drop_unsigned()

    def _verifier(self, delegator: str) -> Callable[..., None]:
        signed = self._root.signed if delegator == "root" else self._targets[delegator].signed
        return signed.verify_delegate

    # --- asking -----------------------------------------------------------------------------------------------

    @property
    def root_version(self) -> int:
        """Version of the trusted root."""
        return self._root.signed.version

    @property
    def root(self) -> Root:
        """The trusted root: who may sign timestamp, snapshot and targets."""
        return self._root.signed

    def targets(self, role: str = "targets") -> Targets:
        """The trusted metadata of targets or a delegated role. Raises `Untrusted` when none is held."""
        if role not in self._targets:
            raise Untrusted(f"{role}: no trusted metadata yet: wait for the fleet, or enrol with a newer kit")
        return self._targets[role].signed

    def versions(self) -> dict[str, int]:
        """Version by document name, of everything held."""
        held: dict[str, Metadata[Any]] = {"root": self._root, **self._targets}
        held |= {k: v for k, v in (("timestamp", self._timestamp), ("snapshot", self._snapshot)) if v is not None}
        return {name: md.signed.version for name, md in held.items()}

    def release(self, target: str, now: datetime) -> Release:
        """The release at a target path, when every document on the way to it is current and unexpired.

        Raises `Untrusted` when the path is not listed, a role on the way is missing, out of step with the snapshot
        or expired, and `Malformed` when the entry lacks our fields.
        """
        split_target(target)
        return release_of(target, self.target_file(target, now))

    def target_file(self, target: str, now: datetime) -> TargetFile:
        """The entry of the first role that lists a target path, whatever the path: plain TUF. Raises `Untrusted`."""
        self.check_current("timestamp", now)
        self.check_current("snapshot", now)
        for role in self.search(target):
            self.check_current(role, now)
            found = self._targets[role].signed.targets.get(target)
            if found is not None:
                return found
        raise Untrusted(f"{target}: no release role lists it: sign and publish it first")

    def releases(self) -> Iterator[Release]:
        """Every target that is listed by the role that may list it, fresh or not.

        Raises `Malformed` for an entry without our fields, and as `search` does.
        """
        for role in sorted(self._targets):
            yield from self._listed_by(role)

    def _listed_by(self, role: str) -> Iterator[Release]:
        return (r for r in releases_of(self._targets[role].signed) if role in self.search(r.target))

    def _readable(self, role: str) -> tuple[Release, ...]:
        try:
            return tuple(self._listed_by(role))
        except WireError:
            return ()

    def floors(self) -> dict[str, int]:
        """The floor of each model (`wire.release`), over every release that is listed. Keep the highest ever seen.

        A role that lists what we cannot read tells none, and hides nobody else's.
        """
        return floors(release for role in self._targets for release in self._readable(role))

    def authorities(self) -> tuple[str, ...]:
        """The certificate authorities (PEM) that targets metadata names for broker and fleet; empty when it names none.

        Signed offline, so that a fleet in hostile hands cannot move devices to another authority.
        """
        custom = self._targets["targets"].signed.unrecognized_fields.get("custom") if "targets" in self._targets else {}
        named = custom.get("authorities", []) if isinstance(custom, dict) else []
        if not isinstance(named, list) or not all(isinstance(pem, str) for pem in named):
            raise Malformed("targets: custom field authorities is not a list of texts")
        return tuple(named)

    def online_keys(self) -> frozenset[str]:
        """Ids of the timestamp and snapshot keys. When they change, what the old ones could fast-forward is void."""
        return frozenset(k for role in ("timestamp", "snapshot") for k in self.root.roles[role].keyids)

    def search(self, target: str) -> Iterator[str]:
        """Roles that may list a target, in pre-order (specification 5.6.7), targets first.

        A role that two others delegate to is believed only with the keys of the one that leads to this target.
        Raises `NotHeld` where the way leads to a role that is not here, `Untrusted` where it is not signed for it.
        """
        found: set[str] = set()
        verified_for = dict(self._roles())
        stack = [("targets", "root")]
        while stack and len(found) < MAX_DELEGATIONS:
            name, delegator = stack.pop()
            if name in found:
                continue
            if name not in self._targets:
                raise NotHeld(target, name)
            if verified_for.get(name) != delegator:
                check_signed(self._verifier(delegator), name, self._targets[name])
            found.add(name)
            yield name
            delegations = self._targets[name].signed.delegations
            children: list[tuple[str, str]] = []
            for child, terminating in delegations.get_roles_for_target(target) if delegations else ():
                children.append((child, name))
                if terminating:
                    stack.clear()
                    break
            stack += reversed(children)

    def _delegated(self, name: str) -> list[str]:
        delegations = self._targets[name].signed.delegations if name in self._targets else None
        roles = (delegations.roles or {}) if delegations else {}
        return [role.name for role in roles.values() if role.paths or role.path_hash_prefixes]

    def check_current(self, name: str, now: datetime) -> None:
        """The held document is the one that its delegator names today, and has not expired. Raises `Untrusted`."""
        named: MetaFile | None = None
        md: Metadata[Any] | None
        if name == "timestamp":
            md = self._timestamp
        elif name == "snapshot":
            md, named = self._snapshot, self._timestamp.signed.snapshot_meta if self._timestamp else None
        else:
            md = self._targets.get(name)
            named = self._snapshot.signed.meta.get(f"{name}.json") if self._snapshot else None
        if md is None:
            raise Untrusted(f"{name}: no trusted metadata yet: wait for the fleet")
        if name != "timestamp" and (named is None or named.version != md.signed.version):
            raise Untrusted(f"{name}: version {md.signed.version} is not the one listed now: wait for the fleet")
        check_fresh(md.signed.expires, name, now)
