"""The LiteRT and TorchScript passes, each in the process that it is, on small networks with random weights."""

# ruff: noqa: PLC0415  torch takes seconds: only the tests that ask it wait for it

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from litert_sources import Sources, add_encoder, made, make_sources, pictures, run_pass

from compiler.passes import litert_file, litert_quantize
from compiler.runtimes import open_graph
from compiler.sources.read import read
from compiler.sources.source import Source
from compiler.variant import pipeline_of
from wire.processing import Processor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(480),  # the libraries alone take ten seconds, and more on a busy machine
    pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch has no wheel for this machine"),
]
QUANTIZED = ("litert.fp16", "litert.int8-weights", "litert.int8-dynamic", "litert.int8-static")
CALIBRATION = {"net": "pictures.npz", "encoder": "texts.jsonl"}
LENGTHS = {"net": [], "encoder": [8, 16]}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return add_encoder(make_sources(tmp_path_factory.mktemp("litert") / "sources"))


@pytest.fixture(scope="session")
def net(sources: Sources) -> Path:
    """The small CNN in fp32."""
    return made(sources.job("litert.convert", "net", sources.folder / "net.tflite"))


@pytest.fixture(scope="session")
def encoder(sources: Sources) -> Path:
    """The text encoder in fp32, with signatures for 8 and 16 tokens."""
    out = sources.folder / "encoder.tflite"
    return made(sources.job("litert.convert", "encoder", out, parameters={"lengths": LENGTHS["encoder"]}))


@pytest.fixture(scope="session")
def quantized(sources: Sources, net: Path, encoder: Path) -> dict[tuple[str, str], Path]:
    """Every quantized file of both, by source and pass."""
    return {
        (source, name): made(quantize(sources, name, source, given, sources.folder / f"{source}-{name}.tflite"))
        for source, given in (("net", net), ("encoder", encoder))
        for name in QUANTIZED
    }


def quantize(sources: Sources, name: str, source: str, given: Path, out: Path, **parameters: Any) -> Any:
    calibration = str(sources.folder / CALIBRATION[source]) if name.endswith("static") else None
    return sources.job(name, source, out, given=str(given), calibration=calibration, parameters=parameters)


def source_of(sources: Sources, name: str) -> Source:
    job = sources.job("", name, Path())
    return read(job.source, Path(job.describe) if job.describe else None)


def answers(sources: Sources, source: str, path: Path) -> np.ndarray[Any, Any]:
    """The graph's first output for some examples."""
    around = pipeline_of(source_of(sources, source), "litert", tuple(LENGTHS[source]))
    processor, graph = Processor(*around), open_graph("litert", path, around.pipeline)
    given: list[Any] = [{"image": x} for x in pictures(16, seed=1)]
    if source == "encoder":
        given = ["lamp", "turn the lamp on", "watch the door and the gate and the bolt and lock it now please"]
    return np.stack([graph(processor.feeds(one)[0])["output_0"][0] for one in given])


def test_a_converted_network_answers_as_its_module_does(sources: Sources, net: Path) -> None:
    import torch

    from compiler.sources.module import load

    module = load(source_of(sources, "net"))
    batch = torch.from_numpy(pictures(16, seed=1).transpose(0, 3, 1, 2).astype(np.float32) / 255)
    with torch.no_grad():
        expected = module(batch).numpy()
    assert np.abs(answers(sources, "net", net) - expected).max() < 1e-5


def test_one_file_serves_two_lengths_and_both_signatures_share_the_weights(encoder: Path) -> None:
    model = litert_file.read(encoder)
    assert litert_file.signatures(model) == {"tokens_8": 8, "tokens_16": 16}
    tables = [
        graph.tensors[operator.inputs[1]].buffer
        for graph in model.subgraphs
        for name, operator in litert_file.operators(model, graph)
        if name == "EMBEDDING_LOOKUP"
    ]
    assert len(tables) == 2 * len(set(tables))


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("source", ["net", "encoder"])
def test_a_quantized_file_is_smaller_close_and_takes_what_the_fp32_file_takes(
    sources: Sources, net: Path, encoder: Path, quantized: dict[tuple[str, str], Path], source: str, name: str
) -> None:
    whole = {"net": net, "encoder": encoder}[source]
    path = quantized[source, name]
    assert path.stat().st_size < whole.stat().st_size
    expected, got = answers(sources, source, whole), answers(sources, source, path)
    assert np.abs(got - expected).max() > 0
    likeness = float(np.corrcoef(expected.ravel(), got.ravel())[0, 1])
    assert likeness > (0.9 if name.endswith("static") else 0.99), likeness


def test_static_int8_of_a_cnn_runs_in_integers_and_that_of_a_transformer_in_its_products(
    quantized: dict[tuple[str, str], Path],
) -> None:
    def kinds(path: Path, operator: str) -> set[str]:
        model = litert_file.read(path)
        graph = model.subgraphs[0]
        return {
            litert_file.kind(graph, found.inputs[0])
            for name, found in litert_file.operators(model, graph)
            if name == operator
        }

    assert kinds(quantized["net", "litert.int8-static"], "MAX_POOL_2D") == {"INT8"}
    assert kinds(quantized["encoder", "litert.int8-static"], "FULLY_CONNECTED") == {"INT8"}
    assert kinds(quantized["encoder", "litert.int8-static"], "SOFTMAX") == {"FLOAT32"}


def test_static_int8_depends_on_the_examples(sources: Sources, net: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "dark.npz", x=pictures(32) // 16, y=np.arange(32) % 10)
    job = quantize(sources, "litert.int8-static", "net", net, tmp_path / "light.tflite")
    other = sources.job(
        job.name, "net", tmp_path / "dark.tflite", given=str(net), calibration=str(tmp_path / "dark.npz")
    )
    assert made(job).read_bytes() != made(other).read_bytes()


def test_groups_are_blocks_and_single_layers_in_the_order_of_the_graph(net: Path, encoder: Path) -> None:
    assert litert_quantize.groups(net) == ["body.0", "body.3", "head"]
    blocks = [group for group in litert_quantize.groups(encoder) if group.split(".")[-1].isdigit()]
    assert [group.split(".")[-1] for group in blocks] == ["0", "1"]


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_group_that_is_kept_stays_float_in_every_signature(
    sources: Sources, encoder: Path, tmp_path: Path, name: str
) -> None:
    kept = next(group for group in litert_quantize.groups(encoder) if group.endswith(".1"))
    path = made(quantize(sources, name, "encoder", encoder, tmp_path / "kept.tflite", keep_float=[kept]))
    model = litert_file.read(path)
    plain = {layer.scope for layer in litert_file.layers(litert_file.read(encoder)) if layer.group == kept}
    for graph in model.subgraphs:
        weights = {
            graph.tensors[operator.outputs[0]].name.decode() + ";": litert_file.kind(graph, operator.inputs[1])
            for operator_name, operator in litert_file.operators(model, graph)
            if operator_name == "FULLY_CONNECTED"
            and model.buffers[graph.tensors[operator.inputs[1]].buffer].data is not None
        }
        assert {kind for scope, kind in weights.items() if scope in plain} == {"FLOAT32"}
        assert "FLOAT32" not in {kind for scope, kind in weights.items() if scope not in plain}


def test_a_group_that_is_not_there_is_named(sources: Sources, net: Path, tmp_path: Path) -> None:
    ended = run_pass(quantize(sources, "litert.int8-dynamic", "net", net, tmp_path / "x", keep_float=["body.9"]))
    assert "no group of layers 'body.9'" in ended.message


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantized_file_is_not_quantized_again(
    sources: Sources, quantized: dict[tuple[str, str], Path], tmp_path: Path, name: str
) -> None:
    given = quantized["net", "litert.int8-weights"]
    ended = run_pass(quantize(sources, name, "net", given, tmp_path / "x"))
    assert "Incompatible: graph: it is quantized already" in ended.message


def test_a_tflite_source_goes_in_as_it_is(
    sources: Sources, quantized: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    path = quantized["net", "litert.int8-static"]
    job = sources.job("litert.convert", path.name, tmp_path / "made.tflite")
    assert made(job).read_bytes() == path.read_bytes()


def test_what_has_no_way_to_litert_says_so(sources: Sources, tmp_path: Path) -> None:
    import onnx

    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "g.onnx")
    ended = run_pass(sources.job("litert.convert", str(tmp_path / "g.onnx"), tmp_path / "x"))
    assert "no converter from ONNX to LiteRT" in ended.message

    traced = made(sources.job("torch.trace", "pair", tmp_path / "pair.pt"))
    described = sources.describe("pair-archive", (sources.folder / "pair.toml").read_text())
    job = sources.job("litert.convert", str(traced), tmp_path / "x")
    ended = run_pass(type(job)(name=job.name, source=job.source, describe=str(described), made=job.made))
    assert "TorchScript is none" in ended.message


def test_a_network_of_any_size_needs_a_size(sources: Sources, tmp_path: Path) -> None:
    open_sized = sources.describe("open", (sources.folder / "branch.toml").read_text().replace("[1, 4]", "[1, -1]"))
    job = sources.job("litert.convert", "branch", tmp_path / "x")
    ended = run_pass(type(job)(name=job.name, source=job.source, describe=str(open_sized), made=job.made))
    assert "input x has the shape [1, -1], LiteRT needs fixed sizes" in ended.message


def test_no_length_is_beyond_the_longest_text_of_the_source(sources: Sources, tmp_path: Path) -> None:
    ended = run_pass(sources.job("litert.convert", "encoder", tmp_path / "x", parameters={"lengths": [16, 33]}))
    assert "lengths: 33 tokens, a text of the source has at most 32" in ended.message


def test_a_trace_that_says_something_else_than_its_source_is_refused(sources: Sources, tmp_path: Path) -> None:
    """The trace takes the way of the first sample for all."""
    ended = run_pass(sources.job("torch.trace", "branch", tmp_path / "x.pt"))
    assert "its TorchScript graph is" in ended.message


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_trace_takes_its_inputs_by_the_names_of_the_source(sources: Sources, tmp_path: Path) -> None:
    import torch

    module: Any = torch.jit.load(str(made(sources.job("torch.trace", "pair", tmp_path / "pair.pt"))))
    assert [a.name for a in module.forward.schema.arguments] == ["self", "left", "right"]
    first, second = module(left=torch.ones(1, 4), right=torch.zeros(1, 3))
    assert (tuple(first.shape), tuple(second.shape)) == ((1, 3), (1, 4))


def test_a_torchscript_source_goes_in_as_it_is_if_its_inputs_are_named_rightly(
    sources: Sources, tmp_path: Path
) -> None:
    traced = made(sources.job("torch.trace", "pair", tmp_path / "pair.pt"))
    right = tmp_path / "right.toml"
    right.write_text((sources.folder / "pair.toml").read_text())
    job = sources.job("torch.trace", str(traced), tmp_path / "again.pt")
    job = type(job)(name=job.name, source=job.source, describe=str(right), made=job.made)
    assert made(job).read_bytes() == traced.read_bytes()
    right.write_text(right.read_text().replace('"left"', '"first"'))
    assert "its forward takes left, right, the description names first, right" in run_pass(job).message


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("litert.convert", "encoder"),
        *[(name, "encoder") for name in QUANTIZED],
        ("litert.int8-static", "net"),
        ("torch.trace", "encoder"),
    ],
)
def test_the_same_job_gives_the_same_bytes(
    sources: Sources, net: Path, encoder: Path, tmp_path: Path, name: str, source: str
) -> None:
    """Other folders, another hash seed, another number of threads."""
    elsewhere = Sources(tmp_path / "another" / "place")
    shutil.copytree(sources.folder, elsewhere.folder)
    found = []
    for where, seed, threads in ((sources, "1", "1"), (elsewhere, "2", "4")):
        out = tmp_path / f"made-{seed}"
        if name in ("litert.convert", "torch.trace"):
            lengths = {"lengths": LENGTHS[source]} if LENGTHS[source] else {}
            job = where.job(name, source, out, parameters=lengths)
        else:
            given = tmp_path / f"given-{seed}.tflite"
            given.write_bytes({"net": net, "encoder": encoder}[source].read_bytes())
            job = quantize(where, name, source, given, out)
        found.append(made(job, PYTHONHASHSEED=seed, OMP_NUM_THREADS=threads).read_bytes())
    assert found[0] == found[1]
