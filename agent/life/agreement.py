"""Counts how often this device's answers agree with the cloud's, and with the truth where an app tells it.

Holds the ids of requests, never a text or a label. What a window counted goes into its telemetry.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final

from wire.agreement import Agreement

RECENT: Final = 1000
"""Checks on which a true label can still come."""
Key = tuple[str, str, int]
"""Model, digest and stratum."""


class AgreementMeter:
    """The open window, by model, digest and stratum."""

    def __init__(self) -> None:
        self._counts: dict[Key, Counter[str]] = {}
        self._routes: dict[tuple[str, str], Counter[str]] = {}
        self._recent: OrderedDict[str, tuple[Key, bool]] = OrderedDict()

    def answered(self, key: Key) -> None:
        """The device has an answer, wherever the one that is given comes from."""
        self._of(key)["answers"] += 1

    def routed(self, model: str, digest: str, where: str, reason: str) -> None:
        """A request was decided."""
        self._routes.setdefault((model, digest), Counter())[f"{where} {reason}"] += 1

    def checked(self, request: str, key: Key, *, agreed: bool) -> None:
        """The cloud was asked the same."""
        self._of(key).update(checked=1, agreed=int(agreed))
        self._recent[request] = (key, agreed)
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def labelled(self, request: str, *, right: bool) -> None:
        """The true label of an answer is known. One that was not checked, or is told twice, says nothing here."""
        found = self._recent.pop(request, None)
        if found is not None:
            key, agreed = found
            self._of(key)[f"{'right' if right else 'wrong'}_{'agreed' if agreed else 'differed'}"] += 1

    def close(self) -> dict[tuple[str, str], tuple[tuple[Agreement, ...], dict[str, int]]]:
        """What the window held, by model and digest: agreement, and requests by where and why; then empty."""
        counts, self._counts = self._counts, {}
        routes, self._routes = self._routes, {}
        found: dict[tuple[str, str], list[Agreement]] = {key: [] for key in routes}
        for (model, digest, number), seen in sorted(counts.items()):
            found.setdefault((model, digest), []).append(Agreement.from_value({"stratum": number, **seen}))
        return {key: (tuple(each), dict(routes.get(key, {}))) for key, each in found.items()}

    def _of(self, key: Key) -> Counter[str]:
        return self._counts.setdefault(key, Counter())
