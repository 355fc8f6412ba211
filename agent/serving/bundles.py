"""A bundle that is whole in the store, and the model that it makes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from agent.errors import Incompatible, Malformed, Unavailable
from agent.store.blobs import Blobs
from wire.bundle import BundleManifest, Role
from wire.errors import Malformed as MalformedByWire
from wire.errors import WireError
from wire.pipeline import Golden, Labels, Pipeline

if TYPE_CHECKING:
    from agent.serving.runtimes import LoadedGraph
    from wire.processing import Array, Example, Processor, Result


@dataclass(frozen=True)
class Bundle:
    """The documents of a bundle, parsed, and where its model file stands, with what the runtime finds beside it."""

    digest: str
    manifest: BundleManifest
    pipeline: Pipeline
    labels: tuple[str, ...]
    golden: Golden
    tokenizer: bytes | None
    model: Path
    files: Mapping[str, Path]

    @classmethod
    def open(cls, store: Blobs, digest: str) -> Self:
        """Read it from the store. Raises `Incompatible` when its parts do not fit, `Unavailable`, and `WireError`."""
        manifest = BundleManifest.from_bytes(store.read(digest))
        pipeline = Pipeline.from_bytes(store.read(manifest.file("pipeline").digest))
        labels = _named_file(store, manifest, "labels", pipeline.labels)
        tokenizer = _named_file(store, manifest, "tokenizer", pipeline.tokenizer.file if pipeline.tokenizer else None)
        files = {file.path: _sound(store, file.digest) for file in manifest.loaded}
        return cls(
            digest=digest,
            manifest=manifest,
            pipeline=pipeline,
            labels=Labels.from_bytes(labels).labels if labels is not None else (),
            golden=Golden.from_bytes(store.read(manifest.file("golden").digest)),
            tokenizer=tokenizer,
            model=files[manifest.file("model").path],
            files=files,
        )


def _named_file(store: Blobs, manifest: BundleManifest, role: Role, named: str | None) -> bytes | None:
    """The file of a role, where the pipeline names one. Raises `Incompatible` when the bundle calls it otherwise."""
    if named is None:
        return None
    file = manifest.file(role)
    if file.path != named:
        raise Incompatible(f"bundle {manifest.target}: pipeline names {role} {named!r}, the bundle has {file.path!r}")
    return store.read(file.digest)


def _sound(store: Blobs, name: str) -> Path:
    """Hashed like every other file: flipped bits on a memory card would load, and answer wrong."""
    if not store.is_sound(name):
        raise Unavailable(f"{store.path(name)}: absent, or the disk changed it: check the disk, and roll it out again")
    return store.path(name)


def prepare() -> None:
    """Call it before the first `Model.load` of a text model, on a thread that lives as long as the process.

    kitoken 0.11.1 carries an allocator that ties itself to the thread that loads the library: imported on a worker
    thread that ended, it took the process down with a segmentation fault.
    """
    import kitoken  # noqa: F401, PLC0415  7 MB that a device without a text model does not pay


class Loaded(Protocol):
    """A loaded bundle of any task. Blocking, and for one thread at a time."""

    def answer(self, example: Example) -> Result:
        """One answer; see `Model.answer`."""

    @property
    def runtime(self) -> str:
        """The runtime with its version."""

    def close(self) -> None:
        """Give back what the runtime holds; a worker process ends."""


def load_model(bundle: Bundle, workers: Mapping[str, str]) -> Loaded:
    """Load a bundle of any task. Raises as `Model.load` does."""
    if bundle.pipeline.language is None:
        return Model.load(bundle, workers)
    from agent.serving.language import LanguageModel  # noqa: PLC0415  numpy comes with a model, not with the agent

    return LanguageModel.load(bundle, workers)


class Model:
    """A loaded bundle: examples in, results out. Blocking, and for one thread at a time."""

    def __init__(self, processor: Processor, graph: LoadedGraph) -> None:
        self._processor = processor
        self._graph = graph

    @classmethod
    def load(cls, bundle: Bundle, workers: Mapping[str, str]) -> Self:
        """Load the runtime and the graph; `workers` name the Python of runtimes in processes.

        Raises `Incompatible`, and `Unavailable` when a worker process does not start.
        """
        from agent.serving.runtimes import load_graph  # noqa: PLC0415
        from wire.processing import Processor  # noqa: PLC0415  numpy comes with the first model, not with the agent

        try:
            processor = Processor(bundle.pipeline, bundle.labels, bundle.tokenizer)
        except WireError as e:
            raise Incompatible(f"bundle {bundle.manifest.target}: {e}") from e
        return cls(processor, load_graph(bundle.manifest.runtime, bundle.model, bundle.pipeline, workers))

    def answer(self, example: Example) -> Result:
        """One answer. Raises `Malformed` for an example of the wrong form, `Incompatible` for a graph that fails.

        And `Unavailable` when a worker process died or hung.

        Each example runs by itself, as in the golden set: the scales of dynamic int8 depend on the whole tensor, so a
        neighbour in a batch would change an answer.
        """
        try:
            result = self._processor.run(example, self._graph.run)
        except MalformedByWire as e:
            raise Malformed(str(e)) from e
        except WireError as e:
            raise Incompatible(str(e)) from e
        for values in result.outputs.values():
            # The sum of the squares is finite if all are, but for an overflow, and found in half the time.
            flat = values if values.ndim == 1 else values.reshape(-1)
            if not math.isfinite(flat.dot(flat)):
                _look_closer(values, example)
        return result

    def count_tokens(self, text: str) -> int:
        """How many tokens of a text reach the graph, frame tokens among them."""
        return self._processor.count_tokens(text)

    @property
    def runtime(self) -> str:
        """The runtime with its version."""
        return self._graph.runtime

    def close(self) -> None:
        """Give back what the runtime holds; a worker process ends."""
        self._graph.close()


def _look_closer(output: Array, example: Example) -> None:
    """Raises `Incompatible` for numbers that are none: JSON has none for them.

    And `Malformed` when what came in held such already: that is nothing against the model.
    """
    import numpy as np  # noqa: PLC0415  it came with the model, not with the agent

    if np.isfinite(output).all():
        return
    for name, values in example.items() if not isinstance(example, str) else ():
        if not np.isfinite(values).all():
            raise Malformed(f"input {name}: holds NaN or infinity")
    raise Incompatible("the graph gave numbers that are none")
