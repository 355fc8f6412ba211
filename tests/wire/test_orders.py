"""What makes a device act: only what is addressed to it, newer than the last, and not late."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trust_repository import new_signer

from wire.admission import check_order, check_release
from wire.chunks import digest
from wire.document import dump_json
from wire.dsse import open_by_key, seal
from wire.errors import Incompatible, Malformed, Untrusted
from wire.messages import MachineState, Timing
from wire.orders import MAX_JOBS, MAX_OFFERS, Ack, Command, DeltaOffer, Desired, DesiredModel, MeasureJob, Order
from wire.release import Release, floors
from wire.shadow import ShadowModel
from wire.units import instant

ISSUED = "2026-11-22T08:00:00.000Z"
EXPIRES = "2026-11-22T09:00:00.000Z"
NOW = instant("2026-11-22T08:30:00.000Z")
DEVICE = "kitchen-1"
TARGET = "models/intents/kitchen/1.0.0/x86-64"
HEAD = {"device": DEVICE, "epoch": 2, "seq": 5, "issued": ISSUED, "expires": EXPIRES}
ORDERS: tuple[Order, ...] = (
    Desired(**HEAD, models=(DesiredModel(target=TARGET, digest=digest(b"m"), rollout="r"),), keys="AA=="),
    Ack(**HEAD, nonce="n", boot="b", stored=3, desired_epoch=2, desired_seq=5),
    Command(**HEAD, action="report"),
)
KINDS = pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)
SIGNER = new_signer()


@KINDS
def test_an_order_for_this_device_newer_than_the_last_is_followed(order: Order) -> None:
    check_order(order, device=DEVICE, last=(2, 4), now=NOW)
    assert (order.number, order.time) == ((2, 5), instant(ISSUED))


@KINDS
def test_an_order_for_another_device_is_refused(order: Order) -> None:
    """Attack: the broker gives one device what the fleet said to another."""
    with pytest.raises(Untrusted, match="sent to kitchen-2"):
        check_order(order, device="kitchen-2", last=(0, 0), now=NOW)


@KINDS
@given(last=st.tuples(st.integers(0, 4), st.integers(0, 9)))
def test_an_order_is_followed_only_above_the_last_epoch_and_number(order: Order, last: tuple[int, int]) -> None:
    """Attack: replay. A fleet that came back from a backup counts again from 1, in a higher epoch."""
    if order.number > last:
        check_order(order, device=DEVICE, last=last, now=NOW)
        return
    with pytest.raises(Untrusted, match="not above"):
        check_order(order, device=DEVICE, last=last, now=NOW)


@KINDS
@given(seconds=st.integers(-10_000, 10_000))
def test_an_order_is_late_from_its_expiry_on(order: Order, seconds: int) -> None:
    now: datetime = instant(EXPIRES) + timedelta(seconds=seconds)
    if seconds < 0:
        check_order(order, device=DEVICE, last=(0, 0), now=now)
        return
    with pytest.raises(Untrusted, match="expired"):
        check_order(order, device=DEVICE, last=(0, 0), now=now)


@KINDS
@given(bit=st.integers(0))
def test_an_order_with_any_bit_of_its_payload_flipped_is_refused(order: Order, bit: int) -> None:
    envelope = json.loads(seal(order, SIGNER))
    payload = bytearray(base64.b64decode(envelope["payload"]))
    payload[(bit // 8) % len(payload)] ^= 1 << bit % 8
    envelope["payload"] = base64.b64encode(payload).decode()
    with pytest.raises(Untrusted):
        open_by_key(dump_json(envelope), type(order), SIGNER.public_key)


@KINDS
def test_no_kind_of_order_is_taken_for_another(order: Order) -> None:
    """Attack: the fleet's own signature under one kind, sent where another is read."""
    sealed = seal(order, SIGNER)
    for other in {type(o) for o in ORDERS} - {type(order)}:
        with pytest.raises(Untrusted, match="expected application"):
            open_by_key(sealed, other, SIGNER.public_key)
    assert open_by_key(sealed, type(order), SIGNER.public_key) == order


def test_a_desired_state_that_names_a_model_twice_is_malformed() -> None:
    model = DesiredModel(target=TARGET, digest=digest(b"m"))
    with pytest.raises(Malformed, match="one model name stands twice"):
        Desired(**HEAD, models=(model, replace(model, target="models/other/kitchen/1.0.0/x86-64")))


def test_what_is_in_shadow_has_a_model_beside_it_is_one_a_name_and_within_bounds() -> None:
    model = DesiredModel(target=TARGET, digest=digest(b"m"))
    shadow = ShadowModel(target=TARGET.replace("1.0.0", "2.0.0"), digest=digest(b"s"))
    assert Desired(**HEAD, models=(model,), shadows=(shadow,)).shadows == (shadow,)
    with pytest.raises(Malformed, match="of none that stands in it"):
        Desired(**HEAD, models=(), shadows=(shadow,))
    with pytest.raises(Malformed, match="one a name"):
        Desired(**HEAD, models=(model,), shadows=(shadow, replace(shadow, share=3)))
    for wrong in ({"share": 0}, {"share": 101}, {"cpu": 0}, {"memory": -1}, {"max_c": math.nan}, {"max_c": 121.0}):
        with pytest.raises(Malformed, match="expected"):
            replace(shadow, **wrong)


def test_an_agent_that_does_not_know_of_shadows_passes_them_over() -> None:
    """A shadow in the list of models would be installed by an older agent, and would answer."""

    @dataclass(frozen=True, kw_only=True)
    class OlderDesired(Order):
        PAYLOAD_TYPE = Desired.PAYLOAD_TYPE
        models: tuple[DesiredModel, ...]

    model = DesiredModel(target=TARGET, digest=digest(b"m"))
    shadow = ShadowModel(target=TARGET.replace("1.0.0", "2.0.0"), digest=digest(b"s"))
    desired = Desired(**HEAD, models=(model,), shadows=(shadow,))
    older = OlderDesired.from_bytes(desired.to_bytes())
    assert older.models == (model,)
    assert Desired.from_bytes(older.to_bytes()).shadows == (shadow,)


# --- releases

RELEASE = Release(TARGET, digest(b"m"), 1, "x86-64", "onnxruntime", counter=7, floor=5)
FITS = {"digest": digest(b"m"), "profile": "x86-64", "runtimes": frozenset({"onnxruntime"}), "floor": 0}


def test_a_release_as_desired_may_be_installed() -> None:
    check_release(RELEASE, **FITS)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"digest": digest(b"other")}, Untrusted),
        ({"profile": "raspberry-pi-4"}, Incompatible),
        ({"runtimes": frozenset({"litert"})}, Incompatible),
        ({"floor": 8}, Untrusted),
    ],
)
def test_a_release_that_does_not_fit_is_refused(changes: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        check_release(RELEASE, **{**FITS, **changes})  # type: ignore[arg-type]


@given(counter=st.integers(0, 20), own=st.integers(0, 20), seen=st.integers(0, 20))
def test_a_release_is_installed_only_at_or_above_the_highest_floor(counter: int, own: int, seen: int) -> None:
    """Attack: downgrade to a release with a known fault. The floor of the release and the one seen both bind."""
    release = replace(RELEASE, counter=counter, floor=own)
    if counter >= max(own, seen):
        check_release(release, **{**FITS, "floor": seen})
        return
    with pytest.raises(Untrusted, match="below the floor"):
        check_release(release, **{**FITS, "floor": seen})


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=12))
def test_the_floor_of_a_model_is_the_highest_that_any_of_its_releases_names(named: list[tuple[str, int]]) -> None:
    releases = [replace(RELEASE, target=f"models/f/{name}/1/p", floor=floor) for name, floor in named]
    expected = {f"f/{name}": max(f for n, f in named if n == name) for name, _ in named}
    assert floors(releases) == {model: floor for model, floor in expected.items() if floor}


# --- measuring jobs -----------------------------------------------------------------------------------------------

JOB = MeasureJob(id="m-1", target=TARGET, digest=digest(b"m"), rounds=10)
IDLE = MachineState(at=ISSUED, throttled=False, throttle_events=3, throttle_bits=0x50000)


def timing(before: MachineState, after: MachineState) -> Timing:
    figures = dict.fromkeys(("p50_ms", "p50_low", "p50_high", "p99_ms", "p99_low", "p99_high", "load_ms"), 1.0)
    return Timing(
        runtime="onnxruntime 1", rounds=1, n=5, confidence=0.95, memory=1, before=before, after=after, **figures
    )


def test_a_desired_state_names_each_measuring_job_once_and_not_too_many() -> None:
    desired = replace(ORDERS[0], measure=(JOB, replace(JOB, id="m-2")))
    assert Desired.from_bytes(desired.to_bytes()) == desired
    with pytest.raises(Malformed, match="stands twice"):
        replace(desired, measure=(JOB, JOB))
    with pytest.raises(Malformed, match="at most"):
        replace(desired, measure=tuple(replace(JOB, id=f"m-{i}") for i in range(MAX_JOBS + 1)))


@pytest.mark.parametrize("change", [{"rounds": 0}, {"rounds": 1001}, {"target": "models/x"}, {"id": ""}])
def test_a_measuring_job_out_of_bounds_is_malformed(change: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        replace(JOB, **change)


@pytest.mark.parametrize(
    ("change", "throttled"),
    [
        ({}, False),
        ({"throttled": True}, True),
        ({"throttle_events": 4}, True),
        ({"throttle_bits": 0x70000}, True),  # capped since the start of the machine, and not before the first look
        ({"throttle_bits": 0x10000}, False),  # another program has reset the bits
    ],
)
def test_a_timing_knows_whether_the_clock_was_held_down_in_between(change: dict[str, object], throttled: bool) -> None:
    assert timing(IDLE, replace(IDLE, **change)).throttled is throttled


def test_a_machine_that_says_nothing_of_throttling_is_not_said_to_run_freely() -> None:
    silent = MachineState(at=ISSUED)
    assert timing(silent, silent).throttled is None


OFFER = DeltaOffer(blob=digest(b"new"), base=digest(b"old"), delta=digest(b"delta"), size=9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"blob": "new"},
        {"size": 0},
        {"size": 300_000},
        {"chunks": digest(b"list")},
        {"chunks": "list", "chunks_size": 9},
        {"chunks_size": 9},
        {"chunks": digest(b"list"), "chunks_size": 300_000},
        {"chunks": digest(b"list"), "chunks_size": -1},
    ],
)
def test_an_offer_that_could_not_travel_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        replace(OFFER, **wrong)


def test_a_desired_state_offers_a_few_deltas_and_an_old_reader_keeps_what_it_does_not_know() -> None:
    desired = Desired(**HEAD, models=(), offers=(OFFER,) * MAX_OFFERS)
    assert Desired.from_bytes(desired.to_bytes()) == desired
    assert Desired.from_bytes(Desired(**HEAD, models=()).to_bytes().replace(b'"offers":[],', b"")).offers == ()
    with pytest.raises(Malformed, match="17 offers"):
        replace(desired, offers=(OFFER,) * (MAX_OFFERS + 1))
