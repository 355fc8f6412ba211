"""Thresholds are read when a rollout is made; what cannot be read is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import Malformed
from fleet.gates.thresholds import KINDS, Gates, parse, show


@st.composite
def given_gates(draw: st.DrawFn) -> dict[str, Any]:
    """Some gates off or with a limit, some settings."""
    found: dict[str, Any] = {"preset": draw(st.sampled_from(["measured", "install"]))}
    for name, kind in KINDS.items():
        low = 1 if kind.unit == "times" or kind.exclusive else 0
        number = draw(st.none() | st.decimals(low, 99, places=3))
        found[name] = "off" if number is None else f"{number} {kind.unit}"
    found["alpha"] = f"{draw(st.decimals(1, 20, places=2))} %"
    found["fresh"] = draw(st.sampled_from(["10 min", "2 h", "90 s"]))
    found["devices"] = draw(st.integers(1, 100))
    found["small"] = draw(st.sampled_from(["hold", "proceed"]))
    return found


@given(given_gates())
def test_what_was_read_is_written_and_read_again(value: dict[str, Any]) -> None:
    gates = parse(value)
    assert parse(gates.to_value()) == gates
    assert set(gates.limits) == {name for name in KINDS if value[name] != "off"}
    assert len(gates.words()) == len(gates.limits)


def test_the_default_asks_for_evidence_and_install_only_for_installing() -> None:
    assert parse("measured") == parse({}) == Gates()
    assert parse("measured").measuring
    assert not parse("install").measuring
    assert parse("install").limits == {"installs": 0.0}
    assert parse({"preset": "install", "errors": "2 points"}).limits == {"errors": 2.0, "installs": 0.0}


def test_units_mean_what_they_say() -> None:
    gates = parse({"latency": "1.2 times", "accuracy": "0.25 points", "fresh": "10 min", "alpha": "1 %"})
    assert (gates.limits["latency"], gates.limits["accuracy"]) == (1.2, 0.25)
    assert (gates.fresh, gates.alpha) == (timedelta(minutes=10), 0.01)
    assert show("latency", 1.2) == "1.2 times"
    assert any(word.startswith("latency: at most 1.2 times") for word in gates.words())
    assert any(word.startswith("agreement: at least 90 %") for word in gates.words())


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"latency": "fast"}, "gates.latency"),
        ({"latency": ""}, "gates.latency"),
        ({"latency": None}, "gates.latency"),
        ({"latency": 1.1}, "gates.latency"),
        ({"latency": "1.1"}, "gates.latency"),
        ({"latency": "1.1 %"}, "gates.latency"),
        ({"latency": "0.9 times"}, "gates.latency"),
        ({"latency": "nan times"}, "gates.latency"),
        ({"latency": "-2 times"}, "gates.latency"),
        ({"errors": "1e3 points"}, "gates.errors"),
        ({"errors": "101 points"}, "gates.errors"),
        ({"first_errors": "0 %"}, "gates.first_errors"),
        ({"agreement": "OFF"}, "gates.agreement"),
        ({"latencies": "1.1 times"}, "gates.latencies"),
        ({"alpha": "0 %"}, "gates.alpha"),
        ({"alpha": 0.01}, "gates.alpha"),
        ({"devices": 0}, "gates.devices"),
        ({"devices": True}, "gates.devices"),
        ({"devices": "5"}, "gates.devices"),
        ({"fresh": "2"}, "gates.fresh"),
        ({"fresh": "0 ms"}, "gates.fresh"),
        ({"fresh": 7200}, "gates.fresh"),
        ({"small": "maybe"}, "gates.small"),
        ({"preset": "none"}, "gates.preset"),
        ("none", "gates.preset"),
        (["latency"], "gates"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name_and_never_taken_for_no_limit(value: Any, named: str) -> None:
    with pytest.raises(Malformed, match=named):
        parse(value)


def test_alpha_is_shared_by_the_profiles_of_a_rollout() -> None:
    assert Gates().shared_by(10).profiles == 10
    assert Gates().shared_by(0).profiles == 1
    assert "latency" not in Gates().without("latency").limits
