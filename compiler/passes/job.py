"""What a pass is given, and what it promises.

A pass is a function of one `PassJob` that writes the file `made`. It runs in a process of its own
(`python -m compiler pass`), so its memory comes back and its crash is a failed candidate. The same job gives the
same bytes: what it makes is kept in the cache under the digest of everything that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wire.document import Document

JSON = Any


@dataclass(frozen=True, kw_only=True)
class PassJob(Document):
    """One pass: its name in `compiler.plan.recipes.PASSES`, its parameters, and where things lie.

    `given` is what the pass before it made (None for the first), `source` and `describe` the source model for the first
    pass, `calibration` a file of examples for passes that observe or fit, `made` the file to write. `parameters`
    hold nothing but JSON, and no path: they are part of the cache's key and of the bundle's lineage. Known ones:

    opset, ir       newest ONNX opset and IR of the runtime
    lengths         token counts of a graph without dynamic shapes, ascending
    reduce_range    seven bits for dynamic int8 (default true): processors without VNNI or dotprod saturate at eight
    tensorrt        version of TensorRT's ONNX parser ("10.3")
    keep_float      names of groups of layers that are not quantized
    pooling         another pooling than the source's own: for the saboteur only
    keep            share of the neurons of each feed-forward block that is kept; the rest is pruned (default 1)
    """

    name: str
    parameters: Mapping[str, JSON] = field(default_factory=dict)
    source: str
    describe: str | None = None
    given: str | None = None
    calibration: str | None = None
    made: str

    @property
    def input(self) -> Path:
        """What the pass before made."""
        assert self.given is not None
        return Path(self.given)

    @property
    def output(self) -> Path:
        """What to write."""
        return Path(self.made)


Pass = Callable[[PassJob], None]
"""Raises `Incompatible` when the source cannot be expressed that way, `Malformed` when it is broken."""
