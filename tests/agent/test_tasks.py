"""Every task: a real bundle in ONNX, self-tested in a process and served over the real local API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_client import Client
from local_stage import opened, served, store_of
from tiny_bundle import TinyBundle, make_layout, write_bundle
from tiny_tasks import FRAME, HOP, TASKS, TEXT

from agent.errors import Incompatible
from agent.life.telemetry import WindowMeter
from agent.serving.bundles import Model
from agent.serving.selftest import self_test
from wire.pipeline import Golden

Story = Callable[[Client, WindowMeter], Coroutine[Any, Any, None]]


@pytest.fixture
def serve(short_folder: Path) -> Callable[[TinyBundle, Story], None]:
    """Run a story against a bundle that is served as `kitchen` on a socket."""

    def run(bundle: TinyBundle, story: Story) -> None:
        async def body() -> None:
            async with served(short_folder, opened(bundle)) as local:
                await story(local.client, local.meter)

        asyncio.run(body())

    return run


def tensor(name: str, datatype: str, values: Any) -> dict[str, Any]:
    array = np.asarray(values)
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.reshape(-1).tolist()}


async def ask(client: Client, *inputs: dict[str, Any]) -> tuple[int, Any]:
    return await asyncio.to_thread(client.ask, "POST", "/v2/models/kitchen/infer", {"inputs": inputs})


async def outputs(client: Client, *inputs: dict[str, Any]) -> dict[str, Any]:
    """Each output of an answer as an array; its metadata must agree with it."""
    status, value = await ask(client, *inputs)
    assert status == 200, value
    _, about = await asyncio.to_thread(client.ask, "GET", "/v2/models/kitchen")
    said = {t["name"]: t for t in about["outputs"]}
    for one in value["outputs"]:
        assert one["datatype"] == said[one["name"]]["datatype"], one["name"]
        assert fits(one["shape"], said[one["name"]]["shape"]), (one["shape"], said[one["name"]])
    return {one["name"]: np.asarray(one["data"]).reshape(one["shape"]) for one in value["outputs"]}


def fits(shape: list[int], said: list[int]) -> bool:
    return len(shape) == len(said) and all(want in (-1, n) for n, want in zip(shape, said, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_the_golden_set_of_every_task_holds_in_the_self_test(tmp_path: Path, task: str) -> None:
    bundle = TASKS[task].write(tmp_path)
    outcome = asyncio.run(self_test(store_of(bundle).folder, bundle.digest, 60, {}))
    assert outcome.fault is None
    assert outcome.load_ms > 0


@pytest.mark.parametrize("task", TASKS)
def test_another_answer_than_the_golden_one_is_refused_in_every_task(tmp_path: Path, task: str) -> None:
    """Accident: the weights changed after the golden set was made."""
    sound = TASKS[task]
    name, values = next(iter(sound.cases[0][1].items()))
    moved = [(sound.cases[0][0], {**sound.cases[0][1], name: values + values.dtype.type(1)}, sound.cases[0][2])]
    bundle = replace(sound, cases=moved).write(tmp_path)
    with pytest.raises(Incompatible, match=f"1 of 1 golden cases do not hold: output {name} is .* away"):
        asyncio.run(self_test(store_of(bundle).folder, bundle.digest, 60, {}))


def test_each_word_gets_its_label(tmp_path: Path, serve) -> None:
    task = TASKS["token-classification"]

    async def story(client: Client, meter: WindowMeter) -> None:
        given = await outputs(client, tensor("text", "BYTES", [TEXT]))
        ((_, expected, labels),) = task.cases
        assert given["words"].tolist() == TEXT.split()
        assert given["label"].tolist() == list(labels)
        assert np.allclose(given["scores"], expected["scores"], atol=1e-5)
        assert np.allclose(given["score"], expected["scores"].max(axis=1), atol=1e-5)
        (stats,) = meter.close()
        assert sum(stats.labels.values()) == len(labels)

    serve(task.write(tmp_path), story)


def test_words_that_do_not_fit_are_left_out_and_a_text_without_words_has_none(tmp_path: Path, serve) -> None:
    async def story(client: Client, _meter: WindowMeter) -> None:
        given = await outputs(client, tensor("text", "BYTES", ["on " * 20]))
        assert given["words"].tolist() == ["on"] * 6  # of 8 tokens, two are the frame's
        assert given["scores"].shape == (6, 2)
        given = await outputs(client, tensor("text", "BYTES", ["  "]))
        assert (given["words"].shape, given["label"].shape, given["scores"].shape) == ((0,), (0,), (0, 2))

    serve(TASKS["token-classification"].write(tmp_path), story)


def test_only_one_text_at_a_time_is_split_into_words(tmp_path: Path, serve) -> None:
    async def story(client: Client, _meter: WindowMeter) -> None:
        status, value = await ask(client, tensor("text", "BYTES", ["on", "off"]))
        assert (status, value["error"]) == (400, "inputs[0].data: 2 texts, expected 1 to 1")

    serve(TASKS["token-classification"].write(tmp_path), story)


def test_texts_become_vectors_of_length_1(tmp_path: Path, serve) -> None:
    task = TASKS["sentence-embedding"]

    async def story(client: Client, meter: WindowMeter) -> None:
        given = await outputs(client, tensor("text", "BYTES", [TEXT, "play music"]))
        assert given["embedding"].shape == (2, 2)
        assert np.allclose(given["embedding"][0], task.cases[0][1]["embedding"], atol=1e-5)
        assert np.allclose(np.linalg.norm(given["embedding"], axis=1), 1)
        (stats,) = meter.close()
        assert (stats.requests, stats.labels, sum(stats.confidence.bins)) == (1, {}, 0)

    serve(task.write(tmp_path), story)


@pytest.mark.parametrize("size", [(4, 4), (9, 2)])
def test_a_picture_of_any_size_gets_a_label_and_feedback_is_counted(tmp_path: Path, serve, size) -> None:
    async def story(client: Client, meter: WindowMeter) -> None:
        picture = np.zeros((1, *size, 3), np.uint8)
        picture[..., 2] = 255
        status, value = await ask(client, tensor("image", "UINT8", picture))
        assert status == 200
        label, score, scores = value["outputs"]
        assert (label["data"], scores["shape"]) == (["blue"], [1, 3])
        assert score["data"] == [max(scores["data"])]
        feedback = {"request": value["id"], "label": "blue"}
        assert (await asyncio.to_thread(client.ask, "POST", "/shoal/feedback", feedback))[1]["correct"]
        (stats,) = meter.close()
        assert (stats.labels, stats.feedback_correct) == ({"blue": 1}, 1)

    serve(TASKS["image-classification"].write(tmp_path), story)


@pytest.mark.parametrize(("samples", "labels"), [(1, 1), (FRAME, 1), (FRAME + HOP - 1, 1), (FRAME + 2 * HOP, 3)])
def test_each_whole_frame_of_a_sound_gets_a_label(tmp_path: Path, serve, samples, labels) -> None:
    async def story(client: Client, _meter: WindowMeter) -> None:
        given = await outputs(client, tensor("audio", "FP32", np.zeros((1, samples))))
        assert given["label"].tolist() == ["quiet"] * labels
        assert given["scores"].shape == (labels, 2)

    serve(TASKS["audio-frames"].write(tmp_path), story)


def test_a_sound_without_labels_gives_what_the_graph_gives_for_each_frame(tmp_path: Path, serve) -> None:
    task = TASKS["audio-frames"]
    around = replace(task.pipeline, labels=None, activation="none")
    logits = np.float32([[1, -1], [-8, 8]])
    plain = replace(task, pipeline=around, labels=(), cases=[(task.cases[0][0], {"logits": logits}, ())])

    async def story(client: Client, _meter: WindowMeter) -> None:
        given = await outputs(client, tensor("audio", "FP32", plain.cases[0][0]["audio"][None]))
        assert np.allclose(given["logits"], logits, atol=1e-5)

    serve(plain.write(tmp_path), story)


def test_tensors_go_in_and_come_out_in_their_own_types(tmp_path: Path, serve) -> None:
    async def story(client: Client, _meter: WindowMeter) -> None:
        a, b = np.int64([[2**40, -1]]), np.float32([[0.25]])
        given = await outputs(client, tensor("b", "FP32", b), tensor("a", "INT64", a))
        assert given["minus"].tolist() == [[-(2**40), 1]]
        assert given["double"].tolist() == [[0.5]]
        _, about = await asyncio.to_thread(client.ask, "GET", "/v2/models/kitchen")
        assert about["platform"] == "shoal_onnxruntime"
        assert about["inputs"] == [
            {"name": "a", "datatype": "INT64", "shape": [1, 2]},
            {"name": "b", "datatype": "FP32", "shape": [1, -1]},
        ]

    serve(TASKS["tensors"].write(tmp_path), story)


A, B = tensor("a", "INT64", [[1, 2]]), tensor("b", "FP32", [[1.5]])


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([A], r"expected a INT64 [1, 2], b FP32 [1, -1]; missing: b"),
        ([A, B, B], "one each"),
        ([A, A], "missing: b"),
        ([A, {**B, "datatype": "FP64"}], "inputs[1]: tensor b has datatype 'FP64', expected FP32"),
        ([{**A, "shape": [2, 1]}, B], "inputs[0]: shape [2, 1], expected [1, 2]"),
        ([A, tensor("b", "FP32", [[1], [2]])], "inputs[1]: shape [2, 1], expected [1, -1]"),
        ([A, {**B, "shape": [1, 10**12]}], "does not fit the shape"),
        ([{**A, "data": [1]}, B], "does not fit the shape"),
        ([{**A, "data": [[1], [2, 3]]}, B], "does not fit the shape"),
        ([{**A, "data": [1.5, 2]}, B], "expected numbers of datatype INT64"),
        ([{**A, "data": ["1", "2"]}, B], "expected numbers of datatype INT64"),
        ([{**A, "data": None}, B], "expected numbers of datatype INT64"),
        ([{**A, "data": [True, False]}, B], "expected numbers of datatype INT64"),
        ([{**A, "data": [2**63, 2**63]}, B], "out of the range of INT64"),
        ([{**A, "data": [2**90, 0]}, B], "expected numbers of datatype INT64"),
        ([A, {**B, "data": [1e300]}], "out of the range of FP32"),
    ],
)
def test_tensors_of_another_form_are_refused_with_what_to_send_instead(tmp_path: Path, serve, inputs, said) -> None:
    async def story(client: Client, meter: WindowMeter) -> None:
        status, value = await ask(client, *inputs)
        assert status == 400
        assert said in value["error"]
        assert meter.close() == ()  # nothing against the model

    serve(TASKS["tensors"].write(tmp_path), story)


@pytest.mark.parametrize(
    ("task", "given", "said"),
    [
        ("image-classification", tensor("image", "UINT8", np.zeros((1, 4, 4, 1), np.uint8)), "expected [1, -1, -1, 3]"),
        ("image-classification", tensor("picture", "UINT8", np.zeros((1, 4, 4, 3))), "missing: image"),
        ("image-classification", {**tensor("image", "UINT8", np.full((1, 1, 1, 3), 256))}, "out of the range of UINT8"),
        ("audio-frames", tensor("audio", "FP32", [0.5]), "expected [1, -1]"),
        ("audio-frames", {**tensor("audio", "FP32", [[0.5]]), "shape": [1, 0]}, "expected [1, -1]"),
        ("sentence-embedding", tensor("audio", "FP32", [[0.5]]), "expected the tensor 'text'"),
    ],
)
def test_the_input_of_another_task_is_refused_with_what_to_send_instead(
    tmp_path: Path, serve, task, given, said
) -> None:
    async def story(client: Client, _meter: WindowMeter) -> None:
        status, value = await ask(client, given)
        assert status == 400
        assert said in value["error"]

    serve(TASKS[task].write(tmp_path), story)


def test_a_bundle_whose_golden_set_belongs_to_another_task_is_refused(tmp_path: Path) -> None:
    """Accident: files of two bundles were mixed."""
    golden = TASKS["sentence-embedding"].golden()
    picture = TASKS["image-classification"]
    model = Model.load(opened(picture.write(tmp_path / "sound")), {})
    assert model.runtime.startswith("onnxruntime ")
    mixed = write_bundle(
        tmp_path / "mixed",
        [
            ("model", "model.onnx", picture.model),
            ("pipeline", "pipeline.json", picture.pipeline.to_bytes()),
            ("labels", "labels.json", json.dumps({"labels": list(picture.labels)}).encode()),
            ("golden", "golden.json", Golden(max_abs=golden.max_abs, cases=golden.cases).to_bytes()),
        ],
    )
    with pytest.raises(Incompatible, match="expected an array 'image', got a text"):
        asyncio.run(self_test(store_of(mixed).folder, mixed.digest, 60, {}))


def test_a_bundle_without_the_tokenizer_that_its_pipeline_names_is_refused(tmp_path: Path) -> None:
    sound = make_layout(tmp_path / "sound", rows=64)
    files = [
        (f.role, f.path, sound.blob(f.digest).read_bytes())
        for f in sound.manifest.files
        if f.role not in ("tokenizer", "chunks")
    ]
    bundle = write_bundle(tmp_path / "less", files)
    with pytest.raises(Incompatible, match="0 files of role 'tokenizer', expected 1"):
        asyncio.run(self_test(store_of(bundle).folder, bundle.digest, 60, {}))


def test_an_engine_of_tensorrt_is_refused_with_the_reason(tmp_path: Path) -> None:
    bundle = replace(TASKS["tensors"], runtime="tensorrt").write(tmp_path)
    with pytest.raises(Incompatible, match="engine is built on the device by a worker that this agent lacks"):
        Model.load(opened(bundle), {})
