"""The local API over a real Unix socket, with a real model, and a cloud tier on a real TLS server."""

from __future__ import annotations

import asyncio
import http.server
import json
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_stage import api_of, listening
from raw_http import RawClient, post

from agent.errors import Incompatible, Unavailable
from agent.identity.identity import Identity, Joined
from agent.serving.cloud import Cloud
from agent.serving.router import Router
from agent.serving.runtimes import LoadedGraph
from agent.serving.server import LocalServer
from agent.settings import AgentSettings
from wire.profile import Detect, Hardware, Limits, Profile, ProfileRuntime

PROFILE = Profile(
    name="x86-64",
    title="PC",
    status="supported",
    hardware=Hardware(machine="x86_64", cpu="any", features=(), memory="1 GiB"),
    detect=Detect(machines=("x86_64",)),
    runtimes=(ProfileRuntime(name="onnxruntime", version="1"),),
    limits=Limits(disk="1 GiB", memory="1 GiB"),
    sources=(),
)


TEXT = b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["lamp on"]}]}'


def identity(folder, fleet: str, ca: str) -> Identity:
    (folder / "ca.pem").write_text(ca)
    return Identity(folder, Joined(device="kitchen-1", fleet=fleet, broker="localhost:1", profile=PROFILE))


@pytest.fixture
def serve(new_device, sim, bundles, authority, short_folder):
    """Run a story against a device that serves version 1 on a socket."""

    def run(story, *, model: bool = True, fleet: str = "https://localhost:1", online: bool = False) -> None:
        async def body() -> None:
            device = new_device(probation_time=0.1)
            if model:
                sim.release(bundles["one"])
                sim.desire(bundles["one"])
                device.connect()
                await device.until_phase("committed")
            authority.files("kitchen-1")[0].rename(short_folder / "cert.pem")
            (authority.folder / "kitchen-1-key.pem").rename(short_folder / "key.pem")
            router = Router(
                Cloud(fleet, identity(short_folder, fleet, authority.pem).tls, 5.0, device.clock.now),
                lambda: online,
                device.meter.agreement,
                AgentSettings(state=short_folder, socket=short_folder / "s"),
            )
            status = {"device": "kitchen-1"}
            api = api_of(device.service, device.meter, router, lambda: online, status=lambda: status)
            try:
                async with listening(api, short_folder) as client:
                    await story(device, client)
            finally:
                await device.stop()

        asyncio.run(body())

    return run


def test_text_goes_in_and_labels_scores_digest_and_id_come_out(serve, bundles) -> None:
    async def story(_device, client) -> None:
        status, value = await asyncio.to_thread(client.infer, "turn the light on", "play some music", id="mine")
        assert status == 200
        assert (value["model_name"], value["model_version"], value["id"]) == ("kitchen", bundles["one"].digest, "mine")
        label, score, scores = value["outputs"]
        assert (label["shape"], label["data"]) == ([2], ["light-on", "music"])
        assert scores["shape"] == [2, 3]
        assert score["data"] == [max(scores["data"][:3]), max(scores["data"][3:])]

    serve(story)


def test_a_text_is_answered_the_same_alone_and_beside_others(serve) -> None:
    async def story(_device, client) -> None:
        _, alone = await asyncio.to_thread(client.infer, "lamp on please")
        _, beside = await asyncio.to_thread(client.infer, "lamp on please", "play some music in the kitchen")
        assert beside["outputs"][2]["data"][:3] == alone["outputs"][2]["data"]

    serve(story)


def test_the_routes_of_the_protocol_answer(serve, bundles, short_folder) -> None:
    async def story(_device, client) -> None:
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/kitchen/ready", "/shoal/status"):
            assert (await asyncio.to_thread(client.ask, "GET", path))[0] == 200, path
        _, value = await asyncio.to_thread(client.ask, "GET", "/v2/models/kitchen")
        assert value["versions"] == [bundles["one"].digest]
        assert value["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        assert stat.S_IMODE((short_folder / "s").stat().st_mode) == 0o660

    serve(story)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[]", 400, "expected a JSON object"),
        (b"{}", 400, "expected a list of tensors, such as"),
        (b'{"inputs": [{"name": "text", "datatype": "FP32", "shape": [1], "data": [1]}]}', 400, "datatype BYTES"),
        (b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a"]}]}', 400, r"expected \[1\]"),
        (b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [0], "data": []}]}', 400, "expected 1 to 256"),
        (b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["\\ud800"]}]}', 400, "surrogate"),
        (TEXT.replace(b"lamp on", b"a" * 8193), 400, "over 8192 bytes"),
        (TEXT[:-1] + b', "id": "\\ud800"}', 400, "surrogate"),
        (TEXT[:-1] + b', "outputs": [{"name": "logits"}]}', 400, "of label, score, scores"),
        (b"x" * 65 * 1024, 413, "over the limit of 65536 bytes"),
    ],
)
def test_bad_input_is_refused_with_what_to_send_instead(serve, body, status, said) -> None:
    async def story(_device, client) -> None:
        found, value = await asyncio.to_thread(client.ask, "POST", "/v2/models/kitchen/infer", body)
        assert found == status
        with pytest.raises(ValueError, match=said):
            raise ValueError(value["error"])

    serve(story)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["text", "BYTES", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("text") | JSON,
        "datatype": st.just("BYTES") | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=2) | JSON,
        "data": st.lists(st.text(), max_size=3) | JSON,
        "parameters": JSON,
    },
)
REQUEST = JSON | st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=2) | JSON},
    optional={
        "id": st.text() | JSON,
        "outputs": st.lists(st.fixed_dictionaries({"name": st.just("label") | JSON}), max_size=2) | JSON,
    },
)
FEEDBACK = JSON | st.fixed_dictionaries({"request": JSON, "label": JSON})


def test_whatever_is_thrown_at_it_is_answered_or_refused_and_never_an_error_of_ours(serve) -> None:
    """Accident and attack: any JSON at all, near the form and far from it, and bytes that are none."""

    async def story(_device, client) -> None:
        @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
        @given(
            st.sampled_from(["/v2/models/kitchen/infer", "/shoal/feedback", "/v1/chat/completions"]),
            (REQUEST | FEEDBACK).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=50),
        )
        def throw(path: str, body: bytes) -> None:
            status, value = client.ask("POST", path, body)
            assert status in ({400, 503} if path.startswith("/v1") else {200, 400, 404}), value
            assert status == 200 or value["error"]

        await asyncio.to_thread(throw)

    serve(story)


def test_only_the_outputs_that_are_asked_for_are_sent(serve) -> None:
    async def story(_device, client) -> None:
        _, value = await asyncio.to_thread(client.infer, "lamp on", outputs=[{"name": "label"}])
        assert [output["name"] for output in value["outputs"]] == ["label"]

    serve(story)


def test_scores_that_are_no_numbers_are_a_failure_of_the_model_and_stop_no_telemetry(serve) -> None:
    """Accident: the golden set held, and another text makes the graph overflow."""

    async def story(device, client) -> None:
        model = device.service.answering("kitchen")._model
        run = model._graph.run
        model._graph = LoadedGraph(lambda feeds: {name: a * float("nan") for name, a in run(feeds).items()})
        status, value = await asyncio.to_thread(client.infer, "lamp on")
        assert (status, value) == (500, {"error": "the graph gave numbers that are none"})
        device.recorder.close_window()
        queued, _health = device.state.next_batch()
        assert json.loads(queued.record)["inference"][0]["errors"] == 1

    serve(story)


def test_a_failure_that_nobody_foresaw_counts_against_the_model_too(serve) -> None:
    async def story(device, client) -> None:
        def broken(_example: str) -> None:
            raise IndexError

        served = device.service.answering("kitchen")
        served._model.answer = broken
        heard: list[str | None] = []
        served.on_outcome = heard.append
        assert (await asyncio.to_thread(client.infer, "on"))[0] == 500
        assert (device.meter.close()[0].errors, heard) == (1, ["onnxruntime: IndexError"])

    serve(story)


def test_another_model_or_route_is_not_found(serve) -> None:
    async def story(_device, client) -> None:
        for method, path in (("POST", "/v2/models/lock/infer"), ("GET", "/v3"), ("DELETE", "/v2/models/kitchen")):
            assert (await asyncio.to_thread(client.ask, method, path, b"{}"))[0] == 404

    serve(story)


def test_before_the_first_model_the_api_says_that_it_is_not_ready(serve) -> None:
    async def story(_device, client) -> None:
        status, value = await asyncio.to_thread(client.infer, "turn the light on")
        assert status == 503
        assert "roll one out" in value["error"]
        assert (await asyncio.to_thread(client.ask, "GET", "/v2/health/ready"))[0] == 503
        assert (await asyncio.to_thread(client.ask, "GET", "/v2/health/live"))[0] == 200

    serve(story, model=False)


def test_feedback_on_an_answer_is_counted_for_the_model_that_gave_it(serve, bundles) -> None:
    async def story(device, client) -> None:
        _, value = await asyncio.to_thread(client.infer, "turn the light on")
        body = {"request": value["id"], "label": "music"}
        assert await asyncio.to_thread(client.ask, "POST", "/shoal/feedback", body) == (
            200,
            {"request": value["id"], "correct": False},
        )
        assert (await asyncio.to_thread(client.ask, "POST", "/shoal/feedback", body))[0] == 404
        (stats,) = device.meter.close()
        assert (stats.digest, stats.feedback_total, stats.feedback_correct) == (bundles["one"].digest, 1, 0)

    serve(story)


def test_a_switch_under_load_drops_no_request(serve, sim, bundles) -> None:
    async def story(device, client) -> None:
        answers = []

        async def load() -> None:
            while len({digest for _, digest in answers}) < 2 or len(answers) < 50:
                status, value = await asyncio.to_thread(client.infer, "turn the light on")
                answers.append((status, value.get("model_version")))

        asking = [asyncio.create_task(load()) for _ in range(3)]
        sim.release(bundles["two"])
        sim.desire(bundles["two"], rollout="r2")
        device.hear_retained()
        await asyncio.gather(*asking)
        assert {status for status, _ in answers} == {200}
        assert {digest for _, digest in answers} == {bundles["one"].digest, bundles["two"].digest}

    serve(story)


@contextmanager
def gateway(authority, seen: list[bytes], before_answer: Callable[[], None] = lambda: None, before_end=lambda: None):
    """A TLS server that asks for a client certificate and streams two events."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(dict(item[0] for item in self.connection.getpeercert()["subject"])["commonName"].encode())
            before_answer()
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.flush()
            before_end()
            for event in (b"data: one\n\n", b"data: [DONE]\n\n"):
                with suppress(OSError):  # the device may have hung up
                    self.wfile.write(event)
                    self.wfile.flush()

        def log_message(self, *_words: object) -> None:
            """Quiet."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.files("localhost"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority.pem)
    server = http.server.HTTPServer(("localhost", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_chat_is_forwarded_under_the_devices_certificate_and_streamed_back(serve, authority) -> None:
    seen: list[bytes] = []
    request = b'{"model": "large", "stream": true, "messages": []}'

    async def story(_device, client) -> None:
        answer = await asyncio.to_thread(client.ask, "POST", "/v1/chat/completions", request)
        assert answer == (200, b"data: one\n\ndata: [DONE]\n\n")
        assert seen == [request, b"kitchen-1"]

    with gateway(authority, seen) as url:
        serve(story, model=False, fleet=url, online=True)


def test_stalled_cloud_requests_are_bounded_and_hold_up_nothing_else(serve, authority, monkeypatch) -> None:
    """One request more than there may be at a time is refused at once, while the others wait for the cloud."""
    monkeypatch.setattr("agent.serving.cloud.AT_ONCE", 1)
    arrived, release = threading.Event(), threading.Event()

    def stall() -> None:
        arrived.set()
        assert release.wait(20)

    async def story(_device, client) -> None:
        first = asyncio.ensure_future(asyncio.to_thread(client.ask, "POST", "/v1/chat/completions", b"{}"))
        assert await asyncio.to_thread(arrived.wait, 20)
        status, value = await asyncio.to_thread(client.ask, "POST", "/v1/chat/completions", b"{}")
        assert (status, value["error"]["code"]) == (503, "unavailable")
        assert "are under way" in value["error"]["message"]
        release.set()
        assert (await first)[0] == 200
        assert (await asyncio.to_thread(client.ask, "POST", "/v1/chat/completions", b"{}"))[0] == 200

    with gateway(authority, [], stall) as url:
        serve(story, model=False, fleet=url, online=True)


def test_a_client_that_leaves_a_stalled_answer_holds_up_nothing_and_frees_its_place(
    serve, authority, monkeypatch
) -> None:
    """The thread sits in a read of the answer's body, which the cloud does not go on with."""
    monkeypatch.setattr("agent.serving.cloud.AT_ONCE", 1)
    release = threading.Event()

    async def story(_device, client) -> None:
        with RawClient(client.path) as leaving:
            leaving.socket.sendall(post("/v1/chat/completions", b"{}"))
            assert b"200 OK" in await asyncio.to_thread(leaving.socket.recv, 100)
            await asyncio.sleep(0.1)  # now it is in the read
        started = time.perf_counter()
        assert (await asyncio.to_thread(client.ask, "GET", "/v2/health/live"))[0] == 200
        release.set()
        while (await asyncio.to_thread(client.ask, "POST", "/v1/chat/completions", b"{}"))[0] != 200:
            assert time.perf_counter() - started < 2
        assert time.perf_counter() - started < 2

    with gateway(authority, [], before_end=lambda: release.wait(4)) as url:
        serve(story, model=False, fleet=url, online=True)


def test_offline_chat_is_refused_at_once_in_the_form_that_openai_clients_read(serve) -> None:
    async def story(_device, client) -> None:
        started = time.perf_counter()
        status, value = await asyncio.to_thread(client.ask, "POST", "/v1/chat/completions", b"{}")
        assert time.perf_counter() - started < 1.0
        assert status == 503
        assert value["error"]["code"] == "offline"
        assert "offline" in value["error"]["message"]

    serve(story, model=False)


def test_a_gateway_that_is_not_there_is_an_error_that_names_it(serve) -> None:
    async def story(_device, client) -> None:
        status, value = await asyncio.to_thread(client.ask, "POST", "/v1/chat/completions", b"{}")
        assert (status, value["error"]["code"]) == (503, "unavailable")
        assert "localhost:1 did not answer" in value["error"]["message"]

    serve(story, model=False, online=True)


def test_a_model_that_fails_gives_an_error_and_is_counted(serve) -> None:
    async def story(device, client) -> None:
        def broken(_example: str) -> None:
            raise Incompatible("the graph gave nothing")

        device.service.answering("kitchen")._model.answer = broken
        assert await asyncio.to_thread(client.infer, "on") == (500, {"error": "the graph gave nothing"})
        assert device.meter.close()[0].errors == 1

    serve(story)


def test_an_address_that_is_taken_is_named(short_folder) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"{address}: the local API cannot listen"):
            LocalServer(None, short_folder / "s", address)
