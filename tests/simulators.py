"""The simulators and fixtures of another folder's `conftest.py`, for tests that stand elsewhere.

agent = simulator("agent")
sim, new_device = agent.sim, agent.new_device     # fixtures: pytest finds them by these names
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def simulator(folder: str) -> ModuleType:
    """`tests/<folder>/conftest.py` as a module of its own, loaded once."""
    name = f"{folder}_simulator"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / folder / "conftest.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
