"""The interval of a share: that of the paper, around the share, within 0 and 1."""

from __future__ import annotations

import math
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import fleet
from fleet.intervals import wilson


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_the_interval_of_a_share_holds_it_and_stays_within_0_and_1(right: int, n: int) -> None:
    right = min(right, n)
    low, high = wilson(right / n, n)
    assert 0 <= low <= right / n <= high <= 1
    assert low < high


def test_the_interval_is_that_of_the_paper() -> None:
    low, high = wilson(0.8, 10)
    assert math.isclose(low, 0.4902, abs_tol=1e-4)
    assert math.isclose(high, 0.9433, abs_tol=1e-4)


def test_of_nothing_it_is_everything_and_a_lie_is_the_end_of_the_scale() -> None:
    assert wilson(0.0, 0) == (0.0, 1.0)
    assert wilson(1.5, 10) == wilson(1.0, 10)
    assert wilson(-0.5, 10) == wilson(0.0, 10)


def test_it_is_written_in_one_place() -> None:
    found = [path for path in Path(fleet.__file__).parent.rglob("*.py") if re.search(r"def wilson\b", path.read_text())]
    assert [path.name for path in found] == ["intervals.py"]
