"""Metrics as text for Prometheus (exposition format 0.0.4). Pure.

"".join(family("shoal_devices", "Devices by status.", "gauge", [((("status", "online"),), 3)]))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal

MEDIA_TYPE: Final = "text/plain; version=0.0.4"
Labels = tuple[tuple[str, str], ...]


def family(
    name: str, about: str, kind: Literal["counter", "gauge"], values: Iterable[tuple[Labels, float]]
) -> Iterator[str]:
    """One metric with all its values, in the order of their labels."""
    yield f"# HELP {name} {about}\n# TYPE {name} {kind}\n"
    for labels, value in sorted(values):
        yield f"{name}{labels_text(labels)} {float(value):.17g}\n"


def labels_text(labels: Labels) -> str:
    """`{a="b"}`; empty for none."""
    if not labels:
        return ""
    escaped = ((name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels)
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"
