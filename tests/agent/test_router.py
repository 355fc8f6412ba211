"""Local or cloud, over the local API's socket: a real model, and a gateway that keeps everything it is sent."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from cloud_stand_in import Recording, recording
from fleet_process import until
from local_client import Client
from local_stage import opened, routed, served
from tiny_bundle import LABELS, make_layout

from agent.life.telemetry import WindowMeter
from agent.serving.api import LocalApi
from agent.serving.exchange import Request
from agent.serving.labels import label_in, question
from agent.serving.router import Router
from wire.agreement import UNSURE
from wire.pipeline import Calibration

SURE, UNSURE_TEXT = "turn the light on", "please kitchen"
CALIBRATION = Calibration(method="temperature", temperature=1.0, threshold=0.6, target_error=0.5)


class Stage:
    """A device's local API with a router: `ask` is what an app asks. `line` is whether the fleet can be reached."""

    def __init__(self, folder: Any, router: Router, meter: WindowMeter, line: list[bool], api: LocalApi) -> None:
        self.client = Client(folder / "s")
        self.router, self.meter, self.line, self.api, self.service = router, meter, line, api, api._service

    async def infer(self, *texts: str, headers: dict[str, str] | None = None, **fields: object) -> tuple[int, Any]:
        tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
        body = {"inputs": [tensor], **fields}
        return await asyncio.to_thread(self.client.ask, "POST", "/v2/models/kitchen/infer", body, headers)

    async def label(self, text: str, headers: dict[str, str] | None = None) -> str:
        status, value = await self.infer(text, headers=headers)
        assert status == 200, value
        return value["outputs"][0]["data"][0]

    async def routed(self) -> dict[str, int]:
        _, view = await asyncio.to_thread(self.client.ask, "GET", "/shoal/routing")
        return view["decisions"]

    async def until(self, holds: Callable[[], bool]) -> None:
        await asyncio.to_thread(until, holds, what="the router")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_layout(tmp_path_factory.mktemp("layout"), rows=64, calibration=CALIBRATION)


@pytest.fixture
def stage(bundle, authority, short_folder):
    """Run a story against a served model and a recording gateway."""

    def run(story, *, online: bool = True, chance: float = 1.0, **settings: Any) -> None:
        async def body(cloud: Recording) -> None:
            line = [online]
            up = {"cloud_answer": 5.0, **settings}
            routing = routed(cloud.url, authority, short_folder, lambda: line[0], chance=lambda: chance, **up)
            async with served(short_folder, opened(bundle), routing=routing, online=lambda: line[0]) as local:
                await story(Stage(short_folder, local.router, local.meter, line, local.api), cloud)

        with recording(authority) as cloud:
            asyncio.run(body(cloud))

    return run


# --- up, and back -----------------------------------------------------------------------------------------------------


def test_an_unsure_answer_is_the_clouds_and_a_sure_one_stays(stage) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        cloud.says("music")
        assert await s.label(SURE) == "light-on"
        assert cloud.texts == []
        assert await s.label(UNSURE_TEXT) == "music"
        assert cloud.texts == [UNSURE_TEXT]
        assert cloud.questions[0]["model"] == "large"
        assert cloud.questions[0]["temperature"] == 0
        assert await s.routed() == {"cloud unsure": 1, "local sure": 1}

    stage(story)


def test_every_answer_says_in_a_header_where_it_came_from(stage) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        cloud.says("music")
        body = json.dumps({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [UNSURE_TEXT]}]})
        request = Request("POST", "/v2/models/kitchen/infer", {}, body.encode())
        served = s.router
        assert served.concerns({})
        head, _ = await asyncio.to_thread(raw_head, s.client, request)
        assert "shoal-route: cloud; reason=unsure" in head

    stage(story)


def raw_head(client: Client, request: Request) -> tuple[str, bytes]:
    import http.client  # noqa: PLC0415
    import socket  # noqa: PLC0415

    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(client.path))
    try:
        connection.request(request.method, request.path, request.body)
        answer = connection.getresponse()
        return str(answer.headers).lower(), answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("answered", [(429, ""), (500, "x"), (200, "no such label"), (200, '{"label": ["music"]}')])
def test_a_cloud_that_refuses_or_talks_nonsense_leaves_the_devices_answer(stage, answered) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        cloud.answer = lambda _question: answered
        assert await s.label(UNSURE_TEXT) in LABELS
        reason = "unclear" if answered[0] == 200 else "failed"
        assert await s.routed() == {f"local {reason}": 1}

    stage(story)


def test_a_cloud_that_is_too_late_leaves_the_devices_answer_within_the_deadline(stage) -> None:
    release = threading.Event()

    async def story(s: Stage, cloud: Recording) -> None:
        cloud.answer = lambda _question: (release.wait(20), (200, "music"))[1]
        started = time.perf_counter()
        try:
            assert await s.label(UNSURE_TEXT, {"Shoal-Deadline-Ms": "300"}) in LABELS
            assert time.perf_counter() - started < 2.0
            assert await s.routed() == {"local late": 1}
            # What is known of the cloud now: it would not make this deadline, so nothing goes up for it.
            await s.label(UNSURE_TEXT, {"Shoal-Deadline-Ms": "200"})
            assert await s.routed() == {"local deadline": 1, "local late": 1}
            assert len(cloud.questions) == 1
        finally:
            release.set()

    stage(story)


def test_a_request_for_the_cloud_gets_it_or_is_told_why_not(stage) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        cloud.says("music")
        assert await s.label(SURE, {"Shoal-Route": "cloud"}) == "music"
        cloud.answer = lambda _question: (500, "")
        status, value = await s.infer(SURE, headers={"Shoal-Route": "cloud"})
        assert (status, "answered 500" in value["error"]) == (503, True)
        status, value = await s.infer(SURE, headers={"Shoal-Route": "clod"})
        assert (status, "expected auto, local or cloud" in value["error"]) == (400, True)

    stage(story)


def test_several_texts_of_one_request_stay(stage) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        status, value = await s.infer(UNSURE_TEXT, UNSURE_TEXT)
        assert (status, len(value["outputs"][0]["data"])) == (200, 2)
        assert cloud.questions == []

    stage(story)


def test_a_request_is_answered_by_the_model_that_it_was_read_for(stage) -> None:
    """Accident: another model answers under the name while a request waits for the line."""

    async def story(s: Stage, cloud: Recording) -> None:
        cloud.says("music")
        served = s.service.answering("kitchen")
        served._largest = 0  # in the worker thread, which ends with the switch
        body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [SURE]}]}
        asked = [
            s.api.handle(Request("POST", "/v2/models/kitchen/infer", headers, json.dumps(body).encode()))
            for headers in ({}, {"shoal-route": "cloud", "shoal-queue": "20"})
        ]
        s.service.try_out("kitchen", SimpleNamespace(digest="sha256:other", retire=lambda: None))
        s.service.commit("kitchen")
        stays, waits = asked[0], asyncio.ensure_future(asked[1])
        values = [json.loads((await stays).body)]
        await s.until(lambda: s.router.view()["waiting"] == 1)
        s.line[0] = True
        s.router.line_is_up()
        values.append(json.loads((await waits).body))
        assert [v["model_version"] for v in values] == [served.digest] * 2
        assert [v["outputs"][0]["data"] for v in values] == [["light-on"], ["music"]]

    stage(story, online=False)


# --- private ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["request", "device"])
def test_nothing_private_ever_reaches_the_gateway(stage, by) -> None:
    """Every way up at once: unsure, checked, a chat, and a request that asks for the cloud."""
    headers = {"Shoal-Data": "private"} if by == "request" else {}

    async def story(s: Stage, cloud: Recording) -> None:
        for text in (SURE, UNSURE_TEXT) * 3:
            assert await s.label(text, headers) in LABELS
        status, _ = await s.infer(UNSURE_TEXT, headers={**headers, "Shoal-Route": "cloud"})
        assert status == 400
        body = {"model": "large", "messages": [{"role": "user", "content": "secret"}]}
        status, value = await asyncio.to_thread(s.client.ask, "POST", "/v1/chat/completions", body, headers)
        assert (status, value["error"]["code"]) == (403, "withheld")
        await s.router.stop()
        assert cloud.questions == []
        assert await s.routed() == {"local private": 6, "refuse private": 1}

    stage(story, chance=0.0, checked=100, **({"data": "private"} if by == "device" else {}))


def test_what_is_kept_of_decisions_holds_no_input(stage) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        cloud.says("music")
        await s.label(UNSURE_TEXT)
        _, view = await asyncio.to_thread(s.client.ask, "GET", "/shoal/routing")
        told = json.dumps([view, [stats.to_value() for stats in s.meter.close()]])
        assert "please" not in told
        assert view["newest"][0]["reason"] == "unsure"
        assert 0 < view["newest"][0]["confidence"] < 0.6

    stage(story)


# --- the cap ----------------------------------------------------------------------------------------------------------


def test_inputs_made_to_be_unsure_do_not_get_past_the_cap(stage) -> None:
    """Cascades can be forced to escalate by inputs alone (arXiv 2601.21380): 40 such, and the cap lets six up."""

    async def story(s: Stage, cloud: Recording) -> None:
        cloud.says("music")
        for _ in range(40):
            assert await s.label(UNSURE_TEXT) in LABELS
        assert len(cloud.questions) == 6
        assert await s.routed() == {"cloud unsure": 6, "local budget": 34}
        assert await s.label(SURE) == "light-on"

    stage(story, escalations=36)


# --- offline ----------------------------------------------------------------------------------------------------------


def test_offline_the_device_answers_or_refuses_at_once(stage) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        assert await s.label(UNSURE_TEXT) in LABELS
        for path, body, headers in (
            ("/v1/chat/completions", {"model": "large", "messages": []}, {}),
            ("/v2/models/kitchen/infer", None, {"Shoal-Route": "cloud"}),
        ):
            tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [SURE]}
            status, value = await asyncio.to_thread(s.client.ask, "POST", path, body or {"inputs": [tensor]}, headers)
            assert status == 503
            assert "this device is offline" in str(value["error"])
        assert cloud.questions == []

    stage(story, online=False)


def test_a_request_that_asks_to_wait_gets_its_answer_when_the_line_is_back(stage) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        cloud.says("music")
        waiting = asyncio.ensure_future(s.label(SURE, {"Shoal-Route": "cloud", "Shoal-Queue": "20"}))
        await s.until(lambda: s.router.view()["waiting"] == 1)
        s.line[0] = True
        s.router.line_is_up()
        assert await waiting == "music"
        assert s.router.view()["waiting"] == 0

    stage(story, online=False)


def test_a_request_that_waits_in_vain_is_refused_when_its_time_is_up(stage) -> None:
    async def story(s: Stage, _cloud: Recording) -> None:
        started = time.perf_counter()
        status, value = await s.infer(SURE, headers={"Shoal-Route": "cloud", "Shoal-Queue": "0.3"})
        assert 0.3 <= time.perf_counter() - started < 5.0
        assert (status, "did not come back within 0.3 s" in value["error"]) == (503, True)
        assert s.router.view()["waiting"] == 0

    stage(story, online=False)


def test_one_more_than_may_wait_is_refused_at_once(stage) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        cloud.says("music")
        asked = {"Shoal-Route": "cloud", "Shoal-Queue": "20"}
        waiting = asyncio.ensure_future(s.infer(SURE, headers=asked))
        await s.until(lambda: s.router.view()["waiting"] == 1)
        status, value = await s.infer(SURE, headers=asked)
        assert (status, "1 requests wait for the line" in value["error"]) == (503, True)
        s.line[0] = True
        s.router.line_is_up()
        assert (await waiting)[0] == 200

    stage(story, online=False, queue_requests=1)


def test_as_many_as_wait_get_their_answer_though_few_go_up_at_a_time(stage, monkeypatch) -> None:
    monkeypatch.setattr("agent.serving.cloud.AT_ONCE", 1)

    async def story(s: Stage, cloud: Recording) -> None:
        cloud.says("music")
        asked = {"Shoal-Route": "cloud", "Shoal-Queue": "20"}
        waiting = [
            asyncio.ensure_future(s.label(SURE, asked)) for _ in range(4)
        ]  # as many threads as a client of this test has
        await s.until(lambda: s.router.view()["waiting"] == 4)
        s.line[0] = True
        s.router.line_is_up()
        assert await asyncio.gather(*waiting) == ["music"] * 4

    stage(story, online=False)


# --- agreement --------------------------------------------------------------------------------------------------------


def test_answers_are_checked_in_the_cloud_and_labels_join_them(stage) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        cloud.says("light-on")
        assert (await s.infer(SURE, id="a"))[0] == 200  # checked, and agreed
        assert (await s.infer(UNSURE_TEXT, id="b"))[0] == 200  # went up: a check for nothing
        await s.until(lambda: len(cloud.questions) == 2)
        await s.until(lambda: not s.router._checks)
        told = {"request": "a", "label": "light-on"}
        assert (await asyncio.to_thread(s.client.ask, "POST", "/shoal/feedback", told))[1]["correct"]
        (stats,) = s.meter.close()
        sure, unsure = sorted(stats.agreement, key=lambda one: one.stratum)
        assert (sure.answers, sure.checked, sure.agreed, sure.right_agreed) == (1, 1, 1, 1)
        assert (unsure.stratum, unsure.answers, unsure.checked) == (UNSURE, 1, 1)
        assert stats.routes == {"local sure": 1, "cloud unsure": 1}

    stage(story, chance=0.0, checked=1)


def test_a_share_of_zero_checks_nothing(stage) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        for _ in range(5):
            await s.label(SURE)
        assert not s.router._checks
        assert cloud.questions == []

    stage(story, chance=0.0, checked=0)


# --- the question -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ('{"label": "music"}', "music"),
        ("music", "music"),
        (" light-on\n", "light-on"),
        ('"music"', "music"),
        ('{"label": "jazz"}', None),
        ('{"answer": "music"}', None),
        ("I think it is music", None),
        ("", None),
        (None, None),
        (["music"], None),
    ],
)
def test_only_a_label_is_an_answer(content: object, label: str | None) -> None:
    answer = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
    assert label_in(answer, LABELS) == label


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"choices": []}', b'{"choices": [1]}', b"\xff", b"[" * 100_000]
)
def test_an_answer_of_another_form_is_none(answer: bytes) -> None:
    assert label_in(answer, LABELS) is None


def test_the_question_constrains_the_answer_to_the_labels() -> None:
    value = json.loads(question("large", "turn it on", LABELS))
    schema = value["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["label"]["enum"] == list(LABELS)
    assert value["messages"][1] == {"role": "user", "content": "turn it on"}
