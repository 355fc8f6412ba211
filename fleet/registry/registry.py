"""What the registry holds: the released models with their versions, aliases and lineage, and who runs them.

A version is what the release role listed; nothing is a version here that was not signed. So the registry adds only what
no signature says: which version people mean by a name, and what became of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlmodel import Session, col, select

from fleet import agreements, devices, measuring
from fleet.access import Caller
from fleet.errors import Malformed, NotFound
from fleet.health.status import Hearing
from fleet.intervals import wilson
from fleet.registry import aliases
from fleet.registry.observed import Observe, Observed
from fleet.registry.suggest import Candidate, Latency, Quality
from fleet.store.blobs import BlobStore
from fleet.store.tables import Device, EvidenceRow, RolloutDevice, RolloutRow
from fleet.trust.repository import ListedRelease, Repository
from wire.bundle import split_target
from wire.errors import WireError
from wire.evidence import Evidence, Measurement
from wire.lineage import Lineage

DEVICES_SHOWN: Final = 200
ROLLOUTS_SHOWN: Final = 20


@dataclass(frozen=True, kw_only=True)
class Registry:
    """Reads releases, evidence and devices together. `observe` brings what the fleet saw of releases in use."""

    repository: Repository
    blobs: BlobStore
    observe: Observe
    hearing: Callable[[], Hearing]

    def models(self, session: Session) -> list[dict[str, Any]]:
        """Every model by name: its versions, the aliases of each, and how many devices run it."""
        active, named = devices.active_counts(session, self.hearing()), aliases.by_version(session)
        return [
            {
                "model": model,
                "versions": [
                    {
                        "version": version,
                        "aliases": named.get((model, version), []),
                        "profiles": sorted(releases),
                        "devices": sum(active.get(r.release.digest, (0, 0))[0] for r in releases.values()),
                        "devices_online": sum(active.get(r.release.digest, (0, 0))[1] for r in releases.values()),
                    }
                    for version, releases in versions.items()
                ],
            }
            for model, versions in self._models().items()
        ]

    def show(self, session: Session, model: str) -> dict[str, Any]:
        """One model, with what its aliases meant. Raises `NotFound`."""
        found = next((one for one in self.models(session) if one["model"] == model), None)
        if found is None:
            raise _no_model(model)
        return {
            **found,
            "aliases": {row.alias: row.version for row in aliases.of_model(session, model)},
            "moves": aliases.moves(session, model),
        }

    def check_version(self, model: str, version: str) -> None:
        """Raises `NotFound` for a version of which nothing is released."""
        versions = self._models().get(model)
        if versions is None:
            raise _no_model(model)
        if version not in versions:
            there = ", ".join(versions)
            raise NotFound(f"{model} {version[:64]}: no release of this version is listed; there are {there}")

    def lineage(self, session: Session, model: str, version: str, caller: Caller) -> dict[str, Any]:
        """From source and data to bundles to the caller's devices. `version` may be an alias. Raises `NotFound`."""
        version = aliases.resolve(session, model, version)
        self.check_version(model, version)
        releases = self._models()[model][version]
        return {
            "model": model,
            "version": version,
            "aliases": aliases.by_version(session).get((model, version), []),
            "bundles": [self._bundle(session, releases[profile], caller) for profile in sorted(releases)],
            "rollouts": _rollouts(session, model, version),
        }

    def candidates(self, session: Session, profile: str, caller: Caller) -> list[Candidate]:
        """Every release of a profile with all that is known of it."""
        listed = [r for _, r in sorted(self.repository.releases.items()) if r.manifest.profile == profile]
        active, named = devices.active_counts(session, self.hearing()), aliases.by_version(session)
        measured, agreed = measuring.by_digest(session, caller), agreements.by_digest(session)
        observed = self.observe(session, [r.release.digest for r in listed])
        found = []
        for one in listed:
            digest, evidence = one.release.digest, _evidence(session, one.release.digest)
            found.append(
                Candidate(
                    target=one.release.target,
                    digest=digest,
                    task=evidence.task if evidence else "",
                    profile=profile,
                    size=one.manifest.size,
                    devices=active.get(digest, (0, 0))[0],
                    aliases=tuple(named.get((one.release.model, one.manifest.version), ())),
                    latencies=tuple(_latencies(observed.get(digest), measured.get(digest, ()), evidence)),
                    qualities=tuple(_qualities(observed.get(digest), agreed.get(digest), evidence)),
                )
            )
        return found

    def _models(self) -> dict[str, dict[str, dict[str, ListedRelease]]]:
        """Releases by model, version and profile; versions in the order of their counters."""
        found: dict[str, dict[str, dict[str, ListedRelease]]] = {}
        by_age = sorted(self.repository.releases.values(), key=lambda r: (r.release.model, r.release.counter))
        for one in by_age:
            versions = found.setdefault(one.release.model, {})
            versions.setdefault(one.manifest.version, {})[one.manifest.profile] = one
        return found

    def _bundle(self, session: Session, listed: ListedRelease, caller: Caller) -> dict[str, Any]:
        running = list(_running(session, listed.release.digest, caller))
        evidence = _evidence(session, listed.release.digest)
        made = self._made(listed)
        return {
            "target": listed.release.target,
            "digest": listed.release.digest,
            "counter": listed.release.counter,
            "profile": listed.manifest.profile,
            "runtime": listed.manifest.runtime,
            "precision": listed.manifest.precision,
            "bytes": listed.manifest.size,
            "lineage": made.to_value() if made else None,
            "decision": evidence.decision.to_value() if evidence else None,
            "registered": evidence.registered if evidence else "",
            "devices": len(running),
            "running": running[:DEVICES_SHOWN],
        }

    def _made(self, listed: ListedRelease) -> Lineage | None:
        """What it was made of; None for a bundle that does not say, or whose file was lost here."""
        try:
            return Lineage.from_bytes(self.blobs.read(listed.manifest.file("lineage").digest))
        except (NotFound, Malformed, WireError):
            return None


def split_model(model: str) -> tuple[str, str]:
    """Family and name. Raises wire's `Malformed`."""
    family, name, _, _ = split_target(f"models/{model}/0/x")
    return family, name


def _no_model(model: str) -> NotFound:
    return NotFound(f"model {model[:130]!r}: nothing of it is released: `shoal model versions` shows those there are")


def _running(session: Session, digest: str, caller: Caller) -> Iterator[str]:
    query = select(Device).where(col(Device.reported).contains(digest), col(Device.state) == "enrolled")
    if caller.groups:
        query = query.where(col(Device.group).in_(sorted(caller.groups)))
    for device in session.exec(query.order_by(col(Device.id))):
        report = devices.last_report(device)
        if report is not None and any(s.slot == "active" and s.digest == digest for s in report.slots):
            yield device.id


def _rollouts(session: Session, model: str, version: str) -> list[dict[str, Any]]:
    family, name = split_model(model)
    mine = (RolloutRow.family == family, RolloutRow.name == name, RolloutRow.version == version)
    rows = session.exec(select(RolloutRow).where(*mine).order_by(col(RolloutRow.started).desc()).limit(ROLLOUTS_SHOWN))
    shown = []
    for row in rows:
        states = session.exec(select(RolloutDevice.state).where(RolloutDevice.rollout == row.id)).all()
        shown.append(
            {
                "rollout": row.id,
                "state": row.state,
                "started": row.started,
                "reasons": json.loads(row.reasons),
                "devices": len(states),
            }
        )
    return shown


def _evidence(session: Session, digest: str) -> Evidence | None:
    row = session.get(EvidenceRow, digest)
    return Evidence.from_bytes(row.document.encode()) if row else None


def _latencies(
    observed: Observed | None, jobs: Sequence[Mapping[str, Any]], evidence: Evidence | None
) -> Iterator[Latency]:
    if observed is not None and (p50 := observed.latency_ms.quantile(0.5)) is not None:
        yield Latency(ground="fleet", p50_ms=p50, n=observed.latency_ms.count, devices=observed.devices)
    taken = [Measurement.from_value(value) for job in jobs for value in job["measurements"]]
    for figure in (*taken, *(evidence.measurements if evidence else ())):
        if figure.metric == "latency_p50":
            yield Latency(ground=figure.kind, p50_ms=figure.value, low=figure.low, high=figure.high, n=figure.n)


def _qualities(
    observed: Observed | None, agreed: Mapping[str, Any] | None, evidence: Evidence | None
) -> Iterator[Quality]:
    corrected = agreed["accuracy"] if agreed else None
    if corrected is not None and agreed is not None:
        yield Quality(ground="fleet", metric="accuracy, corrected", n=agreed["labelled"], **_interval(corrected))
    elif observed is not None and observed.feedback_total:
        right, n = observed.feedback_correct, observed.feedback_total
        low, high = wilson(right / n, n)
        yield Quality(ground="fleet", metric="accuracy", value=right / n, low=low, high=high, n=n)
    figure = evidence.get(evidence.decision.metric) if evidence else None
    if figure is not None:
        if figure.low is not None and figure.high is not None:
            low, high = figure.low, figure.high
        else:
            low, high = wilson(figure.value, figure.n)
        yield Quality(ground="build", metric=figure.metric, value=figure.value, low=low, high=high, n=figure.n)


def _interval(estimate: Mapping[str, float]) -> dict[str, float]:
    return {name: estimate[name] for name in ("value", "low", "high")}
