"""The passes that end in an ONNX file, on a tiny encoder, a tiny convolutional network and a graph of two inputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from compiler_process import make_encoder, rows
from onnx import TensorProto, helper, numpy_helper

from compiler.errors import Incompatible, Malformed
from compiler.passes import onnx_file, samples
from compiler.passes.job import PassJob
from compiler.passes.onnx_groups import groups
from compiler.passes.onnx_static import feeds
from compiler.passes.table import PASSES
from compiler.passes.tensorrt import check_tensorrt
from compiler.sources.read import read

QUANTIZED = ("onnx.fp16", "onnx.int8-dynamic", "onnx.int8-static", "onnx.int8-weights", "onnx.int4-weights")
# How near each precision must stay to the fp32 graph, as a cosine: what was measured, with room.
NEAR = {"onnx.fp16": 0.9999, "onnx.int4-weights": 0.95}
OLDER = {"opset": 13, "ir": 7}
CHILD = """
import sys
from compiler.passes.job import PassJob
from compiler.passes.table import PASSES
for line in sys.stdin.buffer:
    job = PassJob.from_bytes(line)
    PASSES[job.name](job)
"""


class Bench:
    """A source with its calibration examples, and the folder in which passes leave their files."""

    def __init__(self, source: Path, calibration: Path, folder: Path) -> None:
        self.source, self.calibration, self.folder = source, calibration, folder

    def job(self, name: str, given: str | None, made: str, **parameters: Any) -> PassJob:
        return PassJob(
            name=name,
            parameters={"opset": 17, "ir": 8, **parameters},
            source=str(self.source),
            given=str(self.folder / given) if given else None,
            calibration=str(self.calibration),
            made=str(self.folder / made),
        )

    def run(self, name: str, given: str | None, made: str, **parameters: Any) -> Path:
        job = self.job(name, given, made, **parameters)
        PASSES[name](job)
        return job.output

    def answers(self, path: Path) -> np.ndarray:
        """Every output on some examples, each of length 1, side by side."""
        graph = onnx_file.session(path)
        found = [v.ravel() for feed in feeds(self.job("", None, ""))[:8] for v in graph(feed).values()]
        return np.concatenate([v / np.linalg.norm(v) for v in found])

    def near(self, path: Path, other: str = "prepared.onnx") -> float:
        a, b = self.answers(path), self.answers(self.folder / other)
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def children(jobs: Sequence[PassJob], cwd: Path, **environment: str) -> None:
    """Run jobs one after the other in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=b"".join(job.to_bytes().strip() + b"\n" for job in jobs),
        capture_output=True,
        check=False,
        timeout=300,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(str(path)).graph.node]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A sentence encoder of two layers, exported and prepared."""
    folder = tmp_path_factory.mktemp("text")
    source = make_encoder(folder / "source")
    modules = [{"type": "models.Transformer", "path": ""}, {"type": "models.Pooling", "path": "1_Pooling"}]
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}')
    (folder / "calibration.jsonl").write_text("".join(json.dumps({"text": r["text"]}) + "\n" for r in rows(1)))
    bench = Bench(source, folder / "calibration.jsonl", folder)
    cls = bench.job("onnx.export", None, "cls.onnx", pooling="cls")
    children([*start(bench), cls, bench.job("onnx.export", None, "13.onnx", **OLDER)], folder)
    return bench


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A convolutional network with random weights, as TorchScript."""
    import torch  # noqa: PLC0415  seconds: only for the tests that need it

    folder = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(144, 10),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is old, and a source all the same
        torch.jit.trace(net.eval(), torch.rand(1, 1, 8, 8)).save(str(folder / "net.pt"))
    (folder / "net.toml").write_text(
        f'task = "image-classification"\nlabels = {json.dumps([str(i) for i in range(10)])}\nactivation = "softmax"\n'
        '[image]\nheight = 8\nwidth = 8\nchannels = 1\nlayout = "NCHW"\nscale = 0.0625\n'
        '[[inputs]]\nname = "image"\ndtype = "float32"\nshape = [1, 1, 8, 8]\n'
        '[[outputs]]\nname = "logits"\ndtype = "float32"\nshape = [1, 10]\n'
    )
    images = np.random.default_rng(0).integers(0, 17, (40, 8, 8, 1)).astype(np.uint8)
    np.savez(folder / "calibration.npz", x=images)
    bench = Bench(folder / "net.pt", folder / "calibration.npz", folder)
    children(start(bench), folder)
    return bench


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A graph of two inputs and two outputs, with its weights in a file beside it."""
    folder = tmp_path_factory.mktemp("arrays")
    onnx.save(two_inputs(), folder / "graph.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    random = np.random.default_rng(1)
    values = {"a": random.normal(size=(40, 8)), "b": random.normal(size=(40, 4))}
    np.savez(folder / "calibration.npz", **{k: v.astype(np.float32) for k, v in values.items()})
    bench = Bench(folder / "graph.onnx", folder / "calibration.npz", folder)
    for job in start(bench):
        PASSES[job.name](job)
    return bench


def start(bench: Bench) -> list[PassJob]:
    return [
        bench.job("onnx.export", None, "exported.onnx"),
        bench.job("onnx.prepare", "exported.onnx", "prepared.onnx"),
    ]


def two_inputs(opset: int = 17, ir: int = 8, between: str = "Relu") -> onnx.ModelProto:
    random = np.random.default_rng(0)
    weights = {"v": random.normal(size=(12, 400)), "w": random.normal(size=(400, 3))}
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
        helper.make_node("MatMul", ["c", "v"], ["z"]),
        helper.make_node(between, ["z"], ["q"]),
        helper.make_node("MatMul", ["q", "w"], ["y"]),
    ]
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [tensor("a", TensorProto.FLOAT, [1, 8]), tensor("b", TensorProto.FLOAT, [1, 4])],
        [tensor("y", TensorProto.FLOAT, [1, 3]), tensor("z", TensorProto.FLOAT, [1, 400])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


@pytest.fixture
def alone(arrays: Bench, tmp_path: Path) -> Bench:
    """The bench of arrays with a folder of the test's own."""
    return Bench(tmp_path / "source.onnx", arrays.calibration, tmp_path)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("kind", ["text", "pictures", "arrays"])
def test_every_precision_stays_near_the_fp32_graph(kind: str, name: str, request: pytest.FixtureRequest) -> None:
    bench = request.getfixturevalue(kind)
    made = bench.run(name, "prepared.onnx", f"{name}.onnx")
    onnx.checker.check_model(str(made))
    assert made.stat().st_size < (bench.folder / "prepared.onnx").stat().st_size
    assert bench.near(made) > NEAR.get(name, 0.99)
    changed = bench.answers(made) != bench.answers(bench.folder / "prepared.onnx")
    assert changed.any(), "something was rounded"


@pytest.mark.slow
def test_every_pass_gives_the_same_bytes_in_another_folder_and_with_another_hash_seed(
    text: Bench, pictures: Bench, tmp_path: Path
) -> None:
    made: list[dict[str, bytes]] = []
    for seed in ("1", "2"):
        folder = tmp_path / f"run-{seed}" / ("deeper" * int(seed))
        folder.mkdir(parents=True)
        jobs = []
        for name, bench in {"text": text, "pictures": pictures}.items():
            here = Bench(bench.source, bench.calibration, folder / name)
            here.folder.mkdir()
            jobs += [*start(here)]
            jobs += [here.job(n, "prepared.onnx", f"{n}.onnx") for n in QUANTIZED]
            jobs += [here.job(n, "prepared.onnx", f"{n}.onnx", tensorrt="8.6") for n in PASSES if "tensorrt" in n]
        children(jobs, folder, PYTHONHASHSEED=seed, OMP_NUM_THREADS=seed)
        made.append({str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.onnx"))})
    assert len(made[0]) == 2 * (2 + len(QUANTIZED) + 2)
    assert [name for name in made[0] if made[0][name] != made[1][name]] == []
    places = re.compile(rb"\.py\b|/site-packages|" + re.escape(str(tmp_path).encode()))
    assert [name for name, data in made[0].items() if places.search(data)] == []


def test_an_exported_text_model_takes_any_number_of_rows_and_tokens(text: Bench) -> None:
    graph = onnx_file.session(text.folder / "exported.onnx")
    for batch, tokens in ((1, 3), (3, 21)):
        ids = np.full((batch, tokens), 7, np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        assert [v.shape for v in graph(feed).values()] == [(batch, 32)]


def test_another_pooling_gives_another_model(text: Bench) -> None:
    assert text.near(text.folder / "cls.onnx") < 0.99


def test_a_transformer_has_a_group_for_each_layer(text: Bench, pictures: Bench) -> None:
    assert groups(text.folder / "exported.onnx") == ["embeddings", "layer.0", "layer.1"]
    assert groups(text.folder / "prepared.onnx") == ["embeddings", "layer.0", "layer.1"]
    assert groups(pictures.folder / "prepared.onnx") == ["/0/Conv", "/3/Conv", "/7/Gemm"]


@pytest.mark.parametrize("name", [n for n in QUANTIZED if n != "onnx.fp16"])
def test_a_group_that_is_kept_float_is_not_quantized(text: Bench, name: str) -> None:
    whole = text.run(name, "prepared.onnx", "whole.onnx")
    part = text.run(name, "prepared.onnx", "part.onnx", keep_float=["layer.1", "embeddings"])
    shapes = floats(part)
    assert max(shapes - floats(whole)) == (219, 32), "the embeddings are float again"
    assert part.stat().st_size > whole.stat().st_size
    assert text.near(part) > text.near(whole)


def floats(path: Path) -> set[tuple[int, ...]]:
    weights = onnx.load(str(path)).graph.initializer
    return {tuple(t.dims) for t in weights if t.data_type == TensorProto.FLOAT and len(t.dims) == 2}


def test_a_linear_layer_at_the_end_of_a_network_can_be_kept_float(pictures: Bench) -> None:
    with pytest.raises(Incompatible, match="none of the weights that this precision quantizes, or all are kept float"):
        pictures.run("onnx.int8-dynamic", "prepared.onnx", "kept.onnx", keep_float=["/7/Gemm"])
    made = pictures.run("onnx.int8-static", "prepared.onnx", "kept.onnx", keep_float=["/7/Gemm"])
    whole = pictures.run("onnx.int8-static", "prepared.onnx", "whole.onnx")
    assert operators(made).count("QuantizeLinear") < operators(whole).count("QuantizeLinear")


def test_a_group_that_does_not_exist_is_named(text: Bench) -> None:
    with pytest.raises(Malformed, match=r"no group 'layer\.7'; this graph has embeddings, layer\.0, layer\.1"):
        text.run("onnx.int8-dynamic", "prepared.onnx", "no.onnx", keep_float=["layer.7"])


def test_weights_get_seven_bits_unless_the_processor_is_known_to_take_eight(text: Bench) -> None:
    seven = text.run("onnx.int8-dynamic", "prepared.onnx", "seven.onnx")
    eight = text.run("onnx.int8-dynamic", "prepared.onnx", "eight.onnx", reduce_range=False)
    assert (largest_int8(seven), largest_int8(eight)) == (64, 127)


def largest_int8(path: Path) -> int:
    graph = onnx.load(str(path)).graph
    used = {n.input[1] for n in graph.node if n.op_type == "MatMulInteger"}
    return max(int(np.abs(numpy_helper.to_array(t).astype(int)).max()) for t in graph.initializer if t.name in used)


def test_a_graph_of_two_inputs_keeps_its_names_and_takes_its_weights_in(arrays: Bench) -> None:
    model = onnx.load(str(arrays.folder / "prepared.onnx"), load_external_data=False)
    assert ([i.name for i in model.graph.input], [o.name for o in model.graph.output]) == (["a", "b"], ["y", "z"])
    assert all(t.data_location == TensorProto.DEFAULT for t in model.graph.initializer)


def test_a_newer_opset_is_converted_down(alone: Bench) -> None:
    onnx.save(two_inputs(opset=22, ir=10), alone.source)
    model = onnx.load(str(alone.run("onnx.export", None, "made.onnx")))
    assert ([(o.domain, o.version) for o in model.opset_import], model.ir_version) == ([("", 17)], 8)


def test_an_operator_that_the_opset_does_not_have_is_named(alone: Bench) -> None:
    onnx.save(two_inputs(opset=20, ir=9, between="Gelu"), alone.source)
    with pytest.raises(Incompatible, match="no way from opset 20 to 17: No Previous Version of Gelu exists"):
        alone.run("onnx.export", None, "made.onnx")
    assert alone.run("onnx.export", None, "made.onnx", opset=20, ir=9).exists()


def test_a_type_that_is_newer_than_the_ir_is_named(alone: Bench) -> None:
    model = two_inputs(opset=17, ir=10)
    small = helper.make_tensor("small", TensorProto.INT4, [2, 2], [1, 2, 3, 4])
    model.graph.initializer.append(small)
    with pytest.raises(Incompatible, match="type INT4 came with IR 10, the runtime of the profile reads up to IR 8"):
        onnx_file.finish(model, alone.job("onnx.export", None, "made.onnx"))


def test_kernels_and_operators_of_somebody_else_are_refused(alone: Bench) -> None:
    model = two_inputs()
    model.graph.node[2].domain = "com.microsoft.nchwc"
    with pytest.raises(Incompatible, match=r"custom operator com\.microsoft\.nchwc::Relu"):
        onnx_file.finish(model, alone.job("onnx.prepare", None, "made.onnx"))


def test_weights_that_were_inputs_can_not_be_set_from_outside(alone: Bench) -> None:
    model = two_inputs(opset=8, ir=3)
    for name, shape in (("v", [12, 400]), ("w", [400, 3])):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.save(model, alone.source)
    made = onnx.load(str(alone.run("onnx.export", None, "exported.onnx")))
    assert [i.name for i in made.graph.input] == ["a", "b"]
    prepared = alone.run("onnx.prepare", "exported.onnx", "prepared.onnx")
    assert onnx_file.opset(onnx.load(str(prepared))) == 13, "what the quantizers need"


def test_a_quantized_graph_is_not_quantized_again(arrays: Bench) -> None:
    arrays.run("onnx.int8-static", "prepared.onnx", "once.onnx")
    with pytest.raises(Incompatible, match=r"quantized already \(DequantizeLinear, QuantizeLinear\)"):
        arrays.run("onnx.int8-dynamic", "once.onnx", "twice.onnx")


def test_a_graph_without_weights_is_not_quantized(alone: Bench) -> None:
    model = two_inputs()
    del model.graph.initializer[:], model.graph.node[1:], model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 12]))
    onnx.save(model, alone.folder / "plain.onnx")
    for name in QUANTIZED[1:]:
        with pytest.raises(Incompatible, match="no matrix of float32 weights"):
            alone.run(name, "plain.onnx", "made.onnx")


def test_a_pass_that_observes_says_so_when_there_is_nothing_to_observe(arrays: Bench) -> None:
    job = replace(arrays.job("onnx.int8-static", "prepared.onnx", "never.onnx"), calibration=None)
    with pytest.raises(Malformed, match=r"onnx\.int8-static: it needs calibration examples"):
        PASSES[job.name](job)


def test_a_graph_that_answers_otherwise_than_its_source_is_refused(arrays: Bench) -> None:
    source = read(str(arrays.source), None)
    tried = samples.samples(source, source.inputs)
    right = onnx_file.session(arrays.source)

    def wrong(by: float) -> Any:
        return lambda feed: {k: v + np.float32(by) for k, v in right(feed).items()}

    samples.check_close(source, "ONNX", tried, right, wrong(1e-4))
    for by in (0.2, float("nan")):
        with pytest.raises(Incompatible, match=r"output y of its ONNX graph is \S+ off on a sample"):
            samples.check_close(source, "ONNX", tried, right, wrong(by))


def test_tensorrt_8_2_gets_norms_in_small_operators_and_symmetric_pairs(text: Bench) -> None:
    text.run("onnx.prepare", "13.onnx", "13p.onnx", **OLDER)
    text.run("tensorrt.ready", "13p.onnx", "ready.onnx", **OLDER)
    made = text.run("tensorrt.int8-static", "13p.onnx", "pairs.onnx", **OLDER)
    check_tensorrt(made, "8.2.1")
    assert text.near(made) > 0.99
    model = onnx.load(str(made))
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) >= 2 * 2 * 6, "six products a layer"
    assert not any(values[n.input[2]].any() for n in pairs)
    assert {values[n.input[2]].dtype for n in pairs} == {np.dtype(np.int8)}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("prepared.onnx", "opset 17, TensorRT 8.2 reads up to 13"),
        ("onnx.int8-dynamic", "TensorRT 10.3 has no operator DynamicQuantizeLinear, MatMulInteger"),
        ("onnx.int4-weights", "TensorRT 10.3 has no operator com.microsoft::MatMulNBits"),
        ("onnx.int8-static", "TensorRT 10.3 wants a constant scale above 0 and a zero point of 0"),
    ],
)
def test_what_tensorrt_does_not_take_is_named(arrays: Bench, name: str, words: str) -> None:
    path = arrays.folder / name
    if name in PASSES:
        path = arrays.run(name, "prepared.onnx", f"for-{name}.onnx")
    with pytest.raises(Incompatible, match=re.escape(words)):
        check_tensorrt(path, "8.2" if "8.2" in words else "10.3")


def test_a_layer_norm_is_refused_until_the_parser_knows_it(text: Bench) -> None:
    with pytest.raises(Incompatible, match=r"TensorRT 8\.5 has no operator LayerNormalization"):
        check_tensorrt(text.folder / "prepared.onnx", "8.5")
    check_tensorrt(text.folder / "prepared.onnx", "8.6")
