"""A tiny source model, made once: a random encoder with a head that was really trained, so accuracy means something."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from compiler_process import Built, build, compiler, make_encoder, profile, rows, write_rows

from wire.build import BuildJob

HAS_LITERT = find_spec("litert_torch") is not None
SLOW_RECIPES = ("onnx-int4-weights", *(("litert-fp32", "litert-int8-dynamic") if HAS_LITERT else ()))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def source(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source model that `tune` made."""
    folder = tmp_path_factory.mktemp("source")
    train = write_rows(folder / "train.jsonl", rows(0, 160) + rows(1, 160))
    run = compiler(
        "tune", "--source", str(encoder), "--train", str(train), "--output", str(folder / "model"), "--max-length", "32"
    )
    assert run.code == 0, run.errors
    return folder / "model"


@pytest.fixture(scope="session")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "test.jsonl", rows(2))


@pytest.fixture
def job(source: Path, test_set: Path, tmp_path: Path) -> BuildJob:
    """A job with an output and a cache of its own."""
    return make_job(source, test_set, tmp_path)


@pytest.fixture(scope="session")
def built(source: Path, test_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """One finished build that tests look at and do not change; its cache serves others."""
    job = make_job(source, test_set, tmp_path_factory.mktemp("built"))
    run = build(job)
    assert run.code == 0, (run.lines, run.errors)
    return Built(job, run)


@pytest.fixture(scope="session")
def slow_recipes(source: Path, test_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """One finished build with a profile for each recipe that takes long; each profile has its recipe's name."""
    job = make_job(source, test_set, tmp_path_factory.mktemp("slow"))
    profiles = tuple(profile(name, recipes=(name,)) for name in SLOW_RECIPES)
    job = replace(job, profiles=profiles, max_drop=30.0)
    run = build(job)
    assert run.code == 0, (run.lines, run.errors)
    return Built(job, run)


def make_job(source: Path, test_set: Path, folder: Path) -> BuildJob:
    return BuildJob(
        family="home",
        name="tiny",
        version="1.0.0",
        source=str(source),
        test_set=str(test_set),
        output=str(folder / "out"),
        cache=str(folder / "cache"),
        profiles=(profile(),),
        max_drop=5.0,
    )
