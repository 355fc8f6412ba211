"""A bundle that is whole in the store, and the classifier that it makes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from agent.blobs import Blobs
from agent.errors import Incompatible, Unavailable
from wire.bundle import BundleManifest, Golden, Labels, Pipeline

if TYPE_CHECKING:
    from agent.serving.pipeline import Encoder
    from agent.serving.runtimes import Run


@dataclass(frozen=True)
class Bundle:
    """The documents of a bundle, parsed, and where its model file stands."""

    digest: str
    manifest: BundleManifest
    pipeline: Pipeline
    labels: Labels
    golden: Golden
    tokenizer: bytes
    model: Path

    @classmethod
    def open(cls, store: Blobs, digest: str) -> Self:
        """Read it from the store. Raises `Incompatible` when its parts do not fit, `Unavailable`, and `WireError`."""
        manifest = BundleManifest.from_bytes(store.read(digest))
        pipeline = Pipeline.from_bytes(store.read(manifest.file("pipeline").digest))
        for role, named in (("tokenizer", pipeline.tokenizer.file), ("labels", pipeline.labels)):
            path = manifest.file(role).path  # type: ignore[arg-type]
            if path != named:
                raise Incompatible(
                    f"bundle {manifest.target}: pipeline names {role} {named!r}, the bundle has {path!r}"
                )
        return cls(
            digest=digest,
            manifest=manifest,
            pipeline=pipeline,
            labels=Labels.from_bytes(store.read(manifest.file("labels").digest)),
            golden=Golden.from_bytes(store.read(manifest.file("golden").digest)),
            tokenizer=store.read(manifest.file("tokenizer").digest),
            model=_model_file(store, manifest),
        )


def _model_file(store: Blobs, manifest: BundleManifest) -> Path:
    """Hashed like every other file: flipped bits on a memory card would load, and answer wrong."""
    name = manifest.file("model").digest
    if not store.is_sound(name):
        raise Unavailable(f"{store.path(name)}: absent, or the disk changed it: check the disk, and roll it out again")
    return store.path(name)


@dataclass(frozen=True)
class Prediction:
    """What the model says of one text: `scores` [classes] in the order of the labels, the best label and its score."""

    label: str
    score: float
    scores: tuple[float, ...]


def prepare() -> None:
    """Call it before the first `Classifier.load`, on a thread that lives as long as the process.

    kitoken 0.11.1 carries an allocator that ties itself to the thread that loads the library: imported on a worker
    thread that ended, it took the process down with a segmentation fault.
    """
    import kitoken  # noqa: F401, PLC0415  7 MB that a device without a model does not pay


class Classifier:
    """A loaded bundle: texts in, predictions out. Blocking, and for one thread at a time."""

    def __init__(self, bundle: Bundle, encoder: Encoder, run: Run) -> None:
        self._pipeline = bundle.pipeline
        self._labels = bundle.labels.labels
        self._encoder = encoder
        self._run = run

    @classmethod
    def load(cls, bundle: Bundle) -> Self:
        """Load the runtime and the graph. Raises `Incompatible`."""
        from agent.serving.pipeline import Encoder  # noqa: PLC0415  numpy comes with the first model, not with the agent
        from agent.serving.runtimes import load_graph  # noqa: PLC0415

        encoder = Encoder(bundle.pipeline, bundle.tokenizer)
        return cls(bundle, encoder, load_graph(bundle.manifest.runtime, bundle.model, bundle.pipeline.output))

    def classify(self, texts: tuple[str, ...]) -> tuple[Prediction, ...]:
        """One prediction per text. Raises `Incompatible` when the graph does not give what the labels expect.

        Each text runs by itself, as in the golden set: the scales of dynamic int8 depend on the whole tensor, so a
        neighbour in a batch would change an answer.
        """
        return tuple(self._classify(text) for text in texts)

    def _classify(self, text: str) -> Prediction:
        from agent.serving.pipeline import softmax  # noqa: PLC0415

        rows = self._pipeline.batch or 1
        logits = self._run(self._encoder((text,) * rows))
        if logits.shape != (rows, len(self._labels)):
            raise Incompatible(f"the graph gave {logits.shape}, expected ({rows}, {len(self._labels)})")
        scores = softmax(logits) if self._pipeline.activation == "softmax" else logits
        return self._prediction(tuple(map(float, scores[0])))

    def _prediction(self, scores: tuple[float, ...]) -> Prediction:
        if not all(map(math.isfinite, scores)):
            raise Incompatible("the graph gave scores that are not numbers")  # and JSON has none for them
        best = max(scores)
        return Prediction(self._labels[scores.index(best)], best, scores)
