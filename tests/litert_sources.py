"""Small sources for the tests of LiteRT passes and runtimes, and a pass as the process that it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from compiler_process import make_encoder, make_source, rows, write_rows

from compiler.passes.job import PassJob

NETWORKS = '''
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, a, b):
        return self.layer(a) + b, torch.tanh(a)


class Branch(nn.Module):
    """Which way it goes depends on the numbers: a trace knows one way only."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x * 3


def net():
    torch.manual_seed(0)
    return Net()


def pair():
    torch.manual_seed(0)
    return Pair()


def branch():
    return Branch()
'''
DESCRIPTIONS = {
    "net": """
task = "image-classification"
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
[image]
height = 8
width = 8
channels = 1
layout = "NCHW"
[[inputs]]
name = "pixels"
dtype = "float32"
shape = [1, 1, 8, 8]
[[outputs]]
name = "logits"
dtype = "float32"
shape = [1, 10]
""",
    "pair": """
[[inputs]]
name = "left"
dtype = "float32"
shape = [1, 4]
[[inputs]]
name = "right"
dtype = "float32"
shape = [1, 3]
[[outputs]]
name = "sum"
dtype = "float32"
shape = [1, 3]
[[outputs]]
name = "tanh"
dtype = "float32"
shape = [1, 4]
""",
    "branch": """
[[inputs]]
name = "x"
dtype = "float32"
shape = [1, 4]
[[outputs]]
name = "y"
dtype = "float32"
shape = [1, 4]
""",
}


@dataclass(frozen=True)
class Ended:
    """A finished pass: what it says of itself at the end, and its standard error."""

    facts: dict[str, Any]
    errors: str

    @property
    def ok(self) -> bool:
        return bool(self.facts.get("ok"))

    @property
    def message(self) -> str:
        return f"{self.facts.get('error')}: {self.facts.get('message')}"


@dataclass(frozen=True)
class Sources:
    """A folder with networks as `python:` sources, and with a text encoder."""

    folder: Path

    def job(self, name: str, source: str, made: Path, **rest: Any) -> PassJob:
        """`source` is the name of a network, or `encoder`."""
        known = source in DESCRIPTIONS
        return PassJob(
            name=name,
            source=f"python:networks:{source}" if known else str(self.folder / source),
            describe=str(self.folder / f"{source}.toml") if known else None,
            made=str(made),
            **rest,
        )

    def describe(self, name: str, text: str) -> Path:
        """Another description beside the networks."""
        path = self.folder / f"{name}.toml"
        path.write_text(text)
        return path


def make_sources(folder: Path) -> Sources:
    """Networks with random weights, and pictures to calibrate with, `pictures.npz`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "networks.py").write_text(NETWORKS)
    sources = Sources(folder)
    for name, text in DESCRIPTIONS.items():
        sources.describe(name, text)
    np.savez(folder / "pictures.npz", x=pictures(32), y=np.arange(32) % 10)
    return sources


def add_encoder(sources: Sources) -> Sources:
    """A small text classifier `encoder`, and texts to calibrate with, `texts.jsonl`."""
    import torch  # noqa: PLC0415  seconds, for the tests that ask for it

    torch.set_num_threads(1)
    make_source(make_encoder(sources.folder / "plain"), sources.folder / "encoder")
    write_rows(sources.folder / "texts.jsonl", rows(3))
    return sources


def pictures(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """`n` pictures of noise, uint8 `[n, 8, 8, 1]`."""
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)


def run_pass(job: PassJob, **environment: str) -> Ended:
    """Run one pass as the workshop does."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "compiler", "pass"],
        input=job.to_bytes(),
        capture_output=True,
        check=False,
        timeout=220,
        env={**os.environ, **environment},
    )
    lines = done.stdout.splitlines()
    return Ended(json.loads(lines[-1]) if lines else {}, done.stderr.decode())


def made(job: PassJob, **environment: str) -> Path:
    """The file of a pass that must succeed."""
    ended = run_pass(job, **environment)
    assert ended.ok, (ended.facts, ended.errors)
    return job.output
