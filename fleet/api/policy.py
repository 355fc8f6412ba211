"""Who may call which route: one static table. A route that is not in it answers 403 to everybody.

    rule = rule_of("POST", "/api/v1/devices/kitchen-1/revoke")   # (template, Rule)

What a permission is and which role has it stands in `fleet.access`. Rights within a route, such as the groups of an
operator, are the route's own affair (`Caller.check_group`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from starlette.routing import compile_path


@dataclass(frozen=True)
class Rule:
    """Who may: anybody, any person or program, those with a permission, a device by its certificate."""

    permission: str = ""
    public: bool = False
    """Asked of anybody: what proves who asks stands inside the request, and the route looks at it."""
    anyone: bool = False
    """Any person or program with a credential: the route looks at what they may do to what."""
    device: bool = False
    adopts: bool = False
    """Whether a device gets in with a certificate that a restored fleet has forgotten, too (`fleet.trust.adoption`)."""
    remembered: bool = False
    """Whether who asks is looked up at most once in `fleet.api.known.FOR` seconds."""
    audited: bool = True
    """Whether a call that changes something has an entry of its own in the audit log; a refused one always counts."""


def may(permission: str) -> Rule:
    """Those whose roles have a permission."""
    return Rule(permission=permission)


PUBLIC: Final = Rule(public=True)
ANYONE: Final = Rule(anyone=True)
RENEWAL: Final = Rule(device=True, adopts=True)
CHUNKS: Final = Rule(device=True, audited=False)
# It changes nothing here, and a device calls it as often as it likes: an entry each would fill the disk.
GATEWAY: Final = Rule(permission="gateway.use", device=True, remembered=True, audited=False)

POLICY: Final[Mapping[tuple[str, str], Rule]] = {
    ("GET", "/healthz"): PUBLIC,
    ("GET", "/console"): PUBLIC,  # static files, which ask for a login
    ("GET", "/console/{name}"): PUBLIC,
    ("GET", "/api/v1/status"): may("status.read"),
    ("GET", "/api/v1/profiles"): may("status.read"),
    ("GET", "/metrics"): may("status.read"),
    # alerts
    ("GET", "/api/v1/alerts"): may("status.read"),
    ("POST", "/api/v1/alerts/{alert}/acknowledge"): may("alerts.manage"),
    ("POST", "/api/v1/alerts/silences"): may("alerts.manage"),
    ("DELETE", "/api/v1/alerts/silences/{silence}"): may("alerts.manage"),
    ("POST", "/api/v1/alerts/test"): may("alerts.manage"),
    # enrolment
    ("GET", "/.well-known/est/cacerts"): PUBLIC,
    ("POST", "/.well-known/est/simpleenroll"): PUBLIC,  # a kit's token or a batch's claim certificate
    ("POST", "/.well-known/est/simplereenroll"): RENEWAL,
    ("POST", "/api/v1/renewals"): PUBLIC,  # a statement signed by the key of a certificate that ran out
    # devices
    ("GET", "/api/v1/devices"): may("devices.read"),
    ("POST", "/api/v1/devices"): may("devices.enrol"),
    ("GET", "/api/v1/devices/{device}"): may("devices.read"),
    ("POST", "/api/v1/devices/{device}/accept"): may("devices.enrol"),
    ("POST", "/api/v1/devices/{device}/reject"): may("devices.enrol"),
    ("POST", "/api/v1/devices/{device}/revoke"): may("devices.revoke"),
    ("POST", "/api/v1/devices/{device}/retire"): may("devices.revoke"),
    ("GET", "/api/v1/devices/{device}/history"): may("devices.read"),
    ("POST", "/api/v1/devices/{device}/labels"): may("devices.enrol"),
    ("GET", "/api/v1/inventory"): may("devices.read"),
    ("POST", "/api/v1/inventory"): may("devices.enrol"),
    ("GET", "/api/v1/batches"): may("devices.read"),
    ("POST", "/api/v1/batches"): may("devices.enrol"),
    ("POST", "/api/v1/batches/{batch}/revoke"): may("devices.revoke"),
    ("POST", "/api/v1/devices/{device}/commands"): may("devices.command"),
    # what a device answered may be its log: for those who may ask for it
    ("GET", "/api/v1/devices/{device}/commands"): may("devices.command"),
    ("GET", "/api/v1/devices/{device}/commands/{command}"): may("devices.command"),
    # authorities
    ("GET", "/api/v1/authorities"): may("authorities.read"),
    ("POST", "/api/v1/authorities"): may("authorities.manage"),
    ("POST", "/api/v1/authorities/{fingerprint}/use"): may("authorities.manage"),
    ("DELETE", "/api/v1/authorities/{fingerprint}"): may("authorities.manage"),
    # evidence: of a device by its group, of a model over all devices
    ("GET", "/api/v1/evidence/devices/{device}"): may("devices.read"),
    ("GET", "/api/v1/evidence/models/{family}/{name}/{version}"): may("releases.read"),
    # releases
    ("GET", "/api/v1/trust"): may("releases.read"),
    ("POST", "/api/v1/trust"): may("releases.publish"),
    ("POST", "/api/v1/trust/keys"): may("authorities.manage"),
    ("HEAD", "/api/v1/blobs/{digest}"): may("releases.publish"),
    ("PUT", "/api/v1/blobs/{digest}"): may("releases.publish"),
    ("GET", "/api/v1/blobs/{digest}/chunks"): CHUNKS,
    ("POST", "/api/v1/evidence"): may("releases.publish"),
    ("GET", "/api/v1/models"): may("releases.read"),
    # registry: which alias it is decides what moving it takes (`fleet.registry.aliases`)
    ("GET", "/api/v1/registry/models"): may("releases.read"),
    ("GET", "/api/v1/registry/models/{family}/{name}"): may("releases.read"),
    ("GET", "/api/v1/registry/models/{family}/{name}/versions/{version}/lineage"): may("releases.read"),
    ("POST", "/api/v1/registry/models/{family}/{name}/aliases/{alias}"): may("models.alias"),
    ("POST", "/api/v1/registry/models/{family}/{name}/aliases/{alias}/remove"): may("models.alias"),
    ("GET", "/api/v1/registry/suggest"): may("releases.read"),
    # builds: whoever publishes what is released may have it made here
    ("GET", "/api/v1/datasets"): may("releases.read"),
    ("POST", "/api/v1/datasets"): may("releases.publish"),
    ("GET", "/api/v1/datasets/{dataset}"): may("releases.read"),
    ("GET", "/api/v1/sources"): may("releases.read"),
    ("POST", "/api/v1/sources"): may("releases.publish"),
    ("GET", "/api/v1/builds"): may("releases.read"),
    ("POST", "/api/v1/builds"): may("releases.publish"),
    ("GET", "/api/v1/builds/{build}"): may("releases.read"),
    ("GET", "/api/v1/builds/{build}/logs"): may("releases.read"),
    ("POST", "/api/v1/builds/{build}/cancel"): may("releases.publish"),
    ("GET", "/api/v1/builds/{build}/artifacts"): may("releases.read"),
    ("GET", "/api/v1/builds/{build}/artifacts/{digest}"): may("releases.read"),
    # measuring jobs: a release goes out to a device, which times it and does not run it
    ("GET", "/api/v1/measuring"): may("releases.read"),
    ("POST", "/api/v1/measuring"): may("rollouts.run"),
    ("GET", "/api/v1/measuring/{job}"): may("releases.read"),
    ("POST", "/api/v1/measuring/{job}/cancel"): may("rollouts.run"),
    ("POST", "/api/v1/devices/{device}/shadows"): may("rollouts.run"),
    ("DELETE", "/api/v1/devices/{device}/shadows/{model}"): may("rollouts.run"),
    # rollouts
    ("GET", "/api/v1/rollouts"): may("rollouts.read"),
    ("POST", "/api/v1/rollouts"): may("rollouts.run"),
    ("GET", "/api/v1/rollouts/{rollout}"): may("rollouts.read"),
    ("POST", "/api/v1/rollouts/plan"): may("rollouts.read"),
    ("POST", "/api/v1/rollouts/{rollout}/approve"): may("rollouts.approve"),
    ("POST", "/api/v1/rollouts/{rollout}/pause"): may("rollouts.run"),
    ("POST", "/api/v1/rollouts/{rollout}/resume"): may("rollouts.run"),
    ("POST", "/api/v1/rollouts/{rollout}/retry"): may("rollouts.run"),
    ("POST", "/api/v1/rollouts/{rollout}/abort"): may("rollouts.run"),
    ("POST", "/api/v1/rollouts/{rollout}/rollback"): may("rollouts.run"),
    # drift
    ("GET", "/api/v1/drift"): may("devices.read"),
    ("GET", "/api/v1/drift/models/{digest}"): may("devices.read"),
    # people and programs
    ("POST", "/api/v1/sessions"): PUBLIC,  # name and password
    ("DELETE", "/api/v1/sessions/current"): ANYONE,
    ("GET", "/api/v1/me"): ANYONE,
    ("GET", "/api/v1/users"): may("people.manage"),
    ("POST", "/api/v1/users"): may("people.manage"),
    ("POST", "/api/v1/users/{user}/disable"): may("people.manage"),
    ("POST", "/api/v1/users/{user}/enable"): may("people.manage"),
    ("POST", "/api/v1/users/{user}/password"): ANYONE,  # one's own, with the old one; an admin another's
    ("GET", "/api/v1/tokens"): ANYONE,  # one's own; an admin all
    ("POST", "/api/v1/tokens"): ANYONE,
    ("DELETE", "/api/v1/tokens/{token}"): ANYONE,
    # audit
    ("GET", "/api/v1/audit"): may("audit.read"),
    ("GET", "/api/v1/audit/newest"): may("audit.read"),
    # gateway
    ("POST", "/v1/chat/completions"): GATEWAY,
    ("POST", "/v1/completions"): GATEWAY,
    ("POST", "/v1/embeddings"): GATEWAY,
    ("GET", "/v1/models"): GATEWAY,
    ("GET", "/api/v1/gateway/routes"): may("gateway.read"),
    ("GET", "/api/v1/gateway/usage"): may("gateway.read"),
    ("GET", "/api/v1/gateway/requests"): may("gateway.read"),
    ("GET", "/api/v1/gateway/metrics"): may("gateway.read"),
    ("GET", "/api/v1/gateway/keys"): may("people.manage"),
    ("POST", "/api/v1/gateway/keys"): may("people.manage"),
    ("POST", "/api/v1/gateway/keys/{key}/limits"): may("people.manage"),
}

_PATTERNS: Final[tuple[tuple[str, re.Pattern[str], str], ...]] = tuple(
    (method, compile_path(template)[0], template) for method, template in POLICY if "{" in template
)


def rule_of(method: str, path: str) -> tuple[str, Rule] | None:
    """The template that a request matches, and its rule; None when there is none."""
    rule = POLICY.get((method, path)) if "{" not in path else None
    if rule is not None:
        return path, rule
    for known, pattern, template in _PATTERNS:
        if method == known and pattern.match(path):
            return template, POLICY[method, template]
    return None
