"""Architectures by their shape alone: random weights, so agreement with the source counts; and a net that learnt.

Each is compiled for every shipped profile that the rules allow; a few recipes stand for all of a runtime.
"""

# ruff: noqa: PLC0415  torch takes seconds: only the tests that make a model wait for it
from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from compiler_process import SECONDS, build, rows, write_rows

from cli.profile import load, names
from compiler.plan.recipes import RECIPES
from compiler.plan.rules import refusal
from compiler.sources.read import read
from wire.build import BuildJob, Data
from wire.profile import Profile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5 * SECONDS)]
TRIED = ("onnx-int8-dynamic", "litert-int8-dynamic", "onnx-int8-weights", "litert-fp32", "tensorrt-fp16")
TEXT = {
    "TinyBERT": (
        "Bert",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    ),
    "DistilBERT": ("DistilBert", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
    "MobileBERT": (
        "MobileBert",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "embedding_size": 16,
            "true_hidden_size": 32,
            "intra_bottleneck_size": 32,
        },
    ),
}
NET = """
from pathlib import Path
import numpy as np
import torch
from torch import nn

def make():
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )
    with np.load(Path(__file__).with_name("weights.npz")) as saved:
        net.load_state_dict({name: torch.from_numpy(saved[name]) for name in saved})
    return net
"""
DESCRIPTION = """
task = "image-classification"
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
activation = "softmax"
files = ["weights.npz"]

[image]
height = 8
width = 8
channels = 1
layout = "NCHW"

[[inputs]]
name = "picture"
dtype = "float32"
shape = [1, 1, 8, 8]
"""


def allowed(source: str, describe: Path | None, *, calibrated: bool) -> tuple[Profile, ...]:
    """The shipped profiles for which the rules leave one of the recipes that are tried here."""
    described = read(source, describe)
    profiles = [load(name) for name in names()]
    recipes = [RECIPES[name] for name in TRIED]
    return tuple(
        p
        for p in profiles
        if not all(refusal(r, p, described, calibrated=calibrated, workers=()) is not None for r in recipes)
    )


def compiled(job: BuildJob) -> set[str]:
    """The profiles that got a bundle."""
    run = build(job)
    assert run.code == 0, (run.last, run.errors[-2000:])
    return {line.profile or "" for line in run.lines if line.event == "variant"}


@pytest.mark.parametrize("name", TEXT)
def test_a_text_model_of_random_weights_compiles_for_every_profile_that_allows_it(
    name: str, encoder: Path, tmp_path: Path
) -> None:
    import torch
    import transformers

    kind, sizes = TEXT[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=300, max_position_embeddings=64, num_labels=4, initializer_range=0.5, **sizes
    )
    folder = tmp_path / "model"
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folder)
    shutil.copyfile(encoder / "tokenizer.json", folder / "tokenizer.json")
    texts = [{"text": row["text"]} for row in rows(2, 320)]
    profiles = allowed(str(folder), None, calibrated=False)
    job = BuildJob(
        family="home",
        name="random",
        version="1",
        source=str(folder),
        test=Data(path=str(write_rows(tmp_path / "texts.jsonl", texts))),
        output=str(tmp_path / "out"),
        cache=str(tmp_path / "cache"),
        profiles=profiles,
        recipes=TRIED,
        max_drop=20.0,
    )
    assert len(profiles) >= 6
    assert compiled(job) == {p.name for p in profiles}


def test_a_net_that_learnt_digits_compiles_for_every_profile_that_allows_it(tmp_path: Path) -> None:
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures, labels = (digits.images * 15.9).astype(np.uint8)[..., None], digits.target
    torch.manual_seed(0)
    torch.set_num_threads(1)
    namespace: dict[str, object] = {"__file__": str(tmp_path / "digits.py")}
    (tmp_path / "digits.py").write_text(NET)
    (tmp_path / "digits.toml").write_text(DESCRIPTION)
    np.savez(tmp_path / "weights.npz")
    exec(compile(NET.replace("net.load_state_dict", "_ = (lambda d: None)"), "digits.py", "exec"), namespace)
    net = namespace["make"]()  # type: ignore[operator]
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    x = torch.tensor(pictures[:1000].astype(np.float32) / 255).permute(0, 3, 1, 2)
    for _ in range(120):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), torch.tensor(labels[:1000])).backward()
        optimizer.step()
    np.savez(tmp_path / "weights.npz", **{name: value.numpy() for name, value in net.state_dict().items()})
    np.savez(tmp_path / "test.npz", x=pictures[1000:], y=labels[1000:])
    np.savez(tmp_path / "calibration.npz", x=pictures[:100], y=labels[:100])
    source, describe = "python:digits:make", tmp_path / "digits.toml"
    profiles = allowed(source, describe, calibrated=True)
    job = BuildJob(
        family="home",
        name="digits",
        version="1",
        source=source,
        describe=str(describe),
        test=Data(path=str(tmp_path / "test.npz")),
        calibration=Data(path=str(tmp_path / "calibration.npz")),
        output=str(tmp_path / "out"),
        cache=str(tmp_path / "cache"),
        profiles=profiles,
        recipes=TRIED,
        max_drop=3.0,
    )
    assert {p.name for p in profiles} >= {"x86-64", "raspberry-pi-4", "android-arm64", "jetson-orin-nano"}
    assert compiled(job) == {p.name for p in profiles}
