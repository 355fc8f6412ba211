"""A tiny source model, made once: a random encoder with a head that was really trained, so accuracy means something."""

from __future__ import annotations

from pathlib import Path

import pytest
from compiler_process import Built, build, make_encoder, make_job, make_source, rows, write_rows

from wire.build import BuildJob


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def source(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(encoder, tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="session")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "test.jsonl", rows(2, 160))


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", rows(1, 64))


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
