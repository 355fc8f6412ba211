"""A founded trust folder for the tests of who signs what."""

from __future__ import annotations

from pathlib import Path

import pytest
from offline_signers import Desk, OnlineSide, found


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Family intents, two release keys, every key at hand in `tmp_path / "trust"`."""
    return found(tmp_path / "trust", OnlineSide())
