"""Whether a device may act: the last decision before anything is fetched, installed, done or forgotten.

check_order(desired, device="kitchen-1", last=(1, 41), now=now)
check_release(trust.release(model.target, now), digest=model.digest, profile=..., runtimes=..., floor=...)
"""

from __future__ import annotations

from datetime import datetime

from wire.errors import Incompatible, Untrusted
from wire.metadata import check_fresh
from wire.orders import Order
from wire.release import Release
from wire.units import instant


def check_order(order: Order, *, device: str, last: tuple[int, int], now: datetime) -> None:
    """Whether a device may act on what the fleet role signed. Raises `Untrusted`.

    It must name this device, stand above the last `(epoch, seq)` of its kind, and not have expired.
    """
    what = f"{type(order).__name__.lower()} {order.epoch}.{order.seq}"
    if order.device != device:
        raise Untrusted(f"{what} of {order.device}: sent to {device}")
    if order.number <= last:
        raise Untrusted(f"{what} of {device}: not above {last[0]}.{last[1]}")
    check_fresh(instant(order.expires), f"{what} of {device}", now)


def check_release(release: Release, *, digest: str, profile: str, runtimes: frozenset[str], floor: int) -> None:
    """Whether a device may install a listed release that its desired state names.

    Raises `Untrusted` for another digest or a counter below `floor`, the highest that this device has seen for the
    model, and `Incompatible` for another profile or a runtime that the device does not have.
    """
    if release.digest != digest:
        raise Untrusted(f"{release.target}: the fleet names {digest}, the release role {release.digest}")
    if release.profile != profile:
        raise Incompatible(f"{release.target}: made for profile {release.profile}, this device is {profile}")
    if release.runtime not in runtimes:
        raise Incompatible(
            f"{release.target}: needs runtime {release.runtime}, installed: {', '.join(sorted(runtimes))}; install it "
            "on the device (shoal[litert], or the setting 'workers'), or compile with a recipe of another runtime"
        )
    if release.counter < max(floor, release.floor):
        raise Untrusted(f"{release.target}: counter {release.counter} is below the floor {max(floor, release.floor)}")
