"""What a device tells of inputs and answers: once an hour, within 2 KB, and of every kind of input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drift_device import answers
from telemetry_soak import MIB
from tiny_bundle import make_layout
from tiny_tasks import TASKS

from agent.life.telemetry import Recorder, WindowMeter
from agent.serving.bundles import Bundle, Model, prepare
from agent.store.blobs import Blobs
from agent.store.state import StateFile
from wire.messages import Health, InferenceStats, TelemetryRecord
from wire.pipeline import AUDIO, IMAGE
from wire.processing import Example
from wire.shapes import ROOM
from wire.sketch import Histogram, Sketch

DIGEST = "sha256:" + "1" * 64
FEW = ["light-on", "light-off", "music"]
NOTHING: Any = {"labels": {}, "languages": {}, "confidence": Histogram(), "lengths": Sketch()}
HEALTH = Health(cpu_percent=5, memory_used=1, memory_total=2, agent_memory=1, disk_free=1, disk_total=2)


class Hours:
    """A recorder with a clock that is put on: a window a minute."""

    def __init__(self, state: StateFile) -> None:
        self.now = datetime(2026, 11, 23, 9, 0, 20, tzinfo=UTC)
        self.state, self.meter = state, WindowMeter()
        self.recorder = Recorder(
            *(state, self.meter), boot="b", limit=8 * MIB, now=lambda: self.now, health=lambda: HEALTH
        )

    def live(self, minutes: int, labels: list[str], requests: int, *, models: int = 1) -> None:
        """So many windows with so many requests to each model."""
        for _ in range(minutes):
            for i in range(models):
                for result in answers(labels, requests, seed=self.now.minute + 60 * i):
                    self.meter.answered(f"model-{i}", DIGEST, 2.0, (result,))
            self.now += timedelta(minutes=1)
            self.recorder.close_window()

    def told(self) -> Iterator[TelemetryRecord]:
        """Every record, taken away as if it was delivered."""
        while batch := self.state.next_batch():
            yield from (TelemetryRecord.from_bytes(one.record) for one in batch)
            self.state.acknowledged("b", [one.seq for one in batch])


@pytest.fixture
def hours(tmp_path: Path) -> Iterator[Hours]:
    with closing(StateFile.open(tmp_path / "agent.db")) as state:
        yield Hours(state)


def size(record: TelemetryRecord) -> int:
    """Bytes that the record has more than without what inputs and answers look like."""
    bare = replace(record, inference=tuple(replace(one, **NOTHING) for one in record.inference))
    return len(record.to_bytes()) - len(bare.to_bytes())


@pytest.mark.parametrize(
    ("labels", "requests", "models"),
    [(FEW, 10, 1), ([f"a-label-of-forty-characters-number-{i:05}" for i in range(400)], 60, 1), (FEW, 10, 6)],
    ids=["realistic", "400 long labels", "six models"],
)
def test_an_hour_of_sixty_windows_costs_at_most_two_kilobytes(
    hours: Hours, labels: list[str], requests: int, models: int
) -> None:
    hours.live(180, labels, requests, models=models)
    records = [record for record in hours.told() if record.stream == "inference"]
    sizes = [size(record) for record in records]
    by_hour = [sum(sizes[i : i + 60]) for i in range(0, 180, 60)]
    assert len(records) == 180
    assert all(0 < n <= ROOM for n in by_hour), by_hour
    assert sum(n > 0 for n in sizes) == 3, "once an hour"
    told = [one for record in records for one in record.inference]
    assert sum(one.requests for one in told) == 180 * requests * models
    lengths = [one.lengths.buckets.values() for one in told if one.lengths.count]
    assert len(lengths) == 3 * models
    for counts in lengths:
        # Thinned or not, they stand for all: an even sample of each `step`-th is less than one step off.
        step = gcd(*counts)
        assert abs(sum(counts) - 60 * requests) < step


def test_what_is_told_begins_anew_each_hour_and_a_window_without_it_is_as_before(hours: Hours) -> None:
    hours.live(60, ["on"], 1)
    (first,) = [one for record in hours.told() for one in record.inference if one.labels]
    hours.live(60, ["off"], 2)
    (second,) = [one for record in hours.told() for one in record.inference if one.labels]
    assert (first.labels, second.labels) == ({"on": 60}, {"off": 120})
    assert b"labels" not in InferenceStats(model="m", digest=DIGEST, requests=1, errors=0).to_bytes()


def test_a_model_that_answered_in_the_hour_and_not_in_its_last_minute_is_told_of(hours: Hours) -> None:
    hours.live(30, ["on"], 1)
    hours.live(30, ["on"], 0)
    (told,) = [one for record in hours.told() for one in record.inference if one.labels]
    assert (told.requests, told.labels) == (0, {"on": 30})


def test_a_setting_says_how_often(tmp_path: Path) -> None:
    with closing(StateFile.open(tmp_path / "agent.db")) as state:
        hours = Hours(state)
        hours.recorder = Recorder(
            *(state, hours.meter), boot="b", limit=8 * MIB, now=lambda: hours.now, health=lambda: HEALTH, shapes=60.0
        )
        hours.live(5, ["on"], 1)
        assert sum(bool(one.labels) for record in hours.told() for one in record.inference) == 5


LENGTHS: dict[str, tuple[Example, int]] = {
    "image-classification": ({IMAGE: np.zeros((5, 7, 3), np.uint8)}, 105),
    "audio-frames": ({AUDIO: np.zeros(4000, np.float32)}, 4000),
}


@pytest.mark.parametrize("task", LENGTHS)
def test_of_what_is_no_text_the_length_is_in_values_and_there_is_no_language(tmp_path: Path, task: str) -> None:
    example, length = LENGTHS[task]
    found = answer_of(TASKS[task].write(tmp_path), tmp_path, example)
    assert (found.length, found.language) == (length, "")


def test_the_length_of_a_text_counts_what_is_cut_off_too(tmp_path: Path) -> None:
    """A text that the model does not read to its end is what one wants to know of."""
    bundle = make_layout(tmp_path, profile="x86-64", version="1.0.0", rows=64)
    short, long = (answer_of(bundle, tmp_path, "turn the light on" + " please" * n) for n in (0, 40))
    assert (short.length, long.length) == (4, 44)
    assert short.language == "en"


def answer_of(bundle: Any, layout: Path, example: Example) -> Any:
    prepare()
    opened = Bundle.open(Blobs(layout / "blobs" / "sha256", min_free=0), bundle.digest)
    model = Model.load(opened, {"python": sys.executable})
    try:
        return model.answer(example)
    finally:
        model.close()
