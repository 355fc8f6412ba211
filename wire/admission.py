"""Whether a device may act: the last decision before anything is fetched or installed.

check_desired(desired, device="kitchen-1", last=(1, 41), now=now)
check_release(trust.release(model.target, now), digest=model.digest, profile=..., runtimes=..., highest=...)
"""

from __future__ import annotations

from datetime import datetime

from wire.errors import Incompatible, Untrusted
from wire.messages import Desired
from wire.trust import Release, check_fresh
from wire.units import instant


def check_desired(desired: Desired, *, device: str, last: tuple[int, int], now: datetime) -> None:
    """Whether a device may act on a desired state that the fleet role signed. Raises `Untrusted`.

    It must name this device, stand above the last `(epoch, seq)` acted on, and not have expired.
    """
    if desired.device != device:
        raise Untrusted(f"desired state of {desired.device}: sent to {device}")
    if (desired.epoch, desired.seq) <= last:
        raise Untrusted(f"desired state {desired.epoch}.{desired.seq} of {device}: not above {last[0]}.{last[1]}")
    check_fresh(instant(desired.expires), f"desired state {desired.epoch}.{desired.seq} of {device}", now)


def check_release(release: Release, *, digest: str, profile: str, runtimes: frozenset[str], highest: int) -> None:
    """Whether a device may install a listed release that its desired state names.

    Raises `Untrusted` for another digest or a counter below `highest`, the floor, and `Incompatible` for another
    profile or a runtime that the device does not have.
    """
    if release.digest != digest:
        raise Untrusted(f"{release.target}: the fleet names {digest}, the release role {release.digest}")
    if release.profile != profile:
        raise Incompatible(f"{release.target}: made for profile {release.profile}, this device is {profile}")
    if release.runtime not in runtimes:
        raise Incompatible(
            f"{release.target}: needs runtime {release.runtime}, installed: {', '.join(sorted(runtimes))}"
        )
    if release.counter < highest:
        raise Untrusted(f"{release.target}: counter {release.counter} is below the floor {highest}")
