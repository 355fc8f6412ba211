"""The real mosquitto, as the fleet sets it up."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from fleet_process import FleetProcess, initialise_trust, until

from fleet.errors import Unavailable
from fleet.mqtt.broker import Broker, BrokerAddress, end_left_behind, find_program
from fleet.mqtt.link import Link
from fleet.trust.ca import Authority
from wire import topics


def broker_of(fleet: FleetProcess) -> Any:
    return fleet.api("GET", "/api/v1/status")["broker"]


def test_a_device_reads_and_writes_its_own_topics_only(new_device: Any) -> None:
    """Attack: device A writes to B's topics and listens to them; asserted on delivery, as brokers grant silently."""
    a, b = new_device("a"), new_device("b")
    b.connect()
    a.connect(topics.every(topics.Desired), topics.every(topics.State), topics.every(topics.Telemetry), "#")
    a.next(topics.TrustRole)

    a.publish(topics.State("b").topic, b"forged")
    a.publish(topics.Desired("b").topic, b"forged", retain=True)
    a.publish(topics.Chunk("sha256:" + "0" * 64, 0).topic, b"forged")
    a.publish(topics.TrustRole("timestamp").topic, b"forged", retain=True)
    b.send(b.batch(1))
    b.next_ack()
    a.send(a.batch(1))
    seen = []
    while not seen or not isinstance(seen[-1][0], topics.Ack):
        topic, payload = a.inbox.get(timeout=10)
        seen.append((topics.parse(topic), payload))

    assert all(getattr(topic, "device", "a") == "a" for topic, _ in seen)
    assert not any(payload == b"forged" for _, payload in seen + list(b.inbox.queue))
    assert b.view()["security"] == []
    assert b.view()["status"] == "online"


def test_a_client_cannot_take_anothers_client_id(new_device: Any) -> None:
    """Attack: connecting with a victim's client id to end its session."""
    victim, attacker = new_device("victim"), new_device("attacker")
    victim.connect()
    assert attacker.id != victim.id
    attacker.connect(client_id=victim.id)
    victim.send(victim.batch(1))
    assert victim.next_ack().stored == 1
    assert victim.view()["status"] == "online"


def test_a_client_without_a_certificate_is_refused(fleet: FleetProcess) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        first_answer(fleet)


def first_answer(fleet: FleetProcess) -> bytes:
    """TLS 1.3 tells a client only on its first read that a certificate was needed."""
    host, port = fleet.broker.split(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as raw,
        fleet.tls().wrap_socket(raw, server_hostname=host) as secure,
    ):
        secure.sendall(b"\x10\x00")
        return secure.recv(1)


def test_a_device_whose_connection_breaks_is_offline_by_its_will(new_device: Any) -> None:
    device = new_device("cut")
    device.connect()
    device.until_status("online")
    device.cut()
    device.until_status("offline")


def test_an_old_will_buries_no_new_birth(new_device: Any) -> None:
    device = new_device("here")
    device.connect()
    state, birth, death = topics.State(device.id).topic, device.presence(online=True), device.presence(online=False)
    device.publish(state, birth.replace(b"boot-1", b"boot-2"))
    device.publish(state, death)
    device.send(device.batch(1))
    device.next_ack()
    assert device.view()["status"] == "online"
    device.publish(state, death.replace(b"boot-1", b"boot-2"))
    device.until_status("offline")


def test_a_broker_that_is_killed_comes_back_and_the_fleet_publishes_again(tmp_path: Path, enrolling: Any) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("a")
        device.connect()
        device.next_desired(seq=1)
        before = broker_of(fleet)
        os.kill(before["pid"], signal.SIGKILL)
        until(lambda: broker_of(fleet)["pid"] not in (None, before["pid"]), what="a new broker")
        assert device.next_desired(seq=1).device == "a"
        device.send(device.batch(1))
        assert device.next_ack().stored == 1
        assert broker_of(fleet)["port"] == before["port"]


def test_a_device_that_only_the_brokers_memory_calls_online_goes_offline(tmp_path: Path, enrolling: Any) -> None:
    with FleetProcess(tmp_path / "fleet", offline_after="300 ms") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("gone")
        device.connect()
        device.until_status("online")
        # The broker ends in order and keeps the birth; the device never comes back.
        os.kill(broker_of(fleet)["pid"], signal.SIGTERM)
        device.disconnect()
        device.until_status("offline")


def test_a_killed_fleet_leaves_no_broker_behind(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet:
        before = broker_of(fleet)
        fleet.kill()
        until(lambda: not psutil.pid_exists(before["pid"]), what="the broker's end")


def test_a_broker_that_was_left_behind_does_not_block_the_next_start(tmp_path: Path) -> None:
    """As on a system whose kernel does not end it: the same program on the same configuration, by nobody's child."""
    with FleetProcess(tmp_path / "fleet") as fleet:
        port = broker_of(fleet)["port"]
        fleet.stop()
        command = [find_program("mosquitto"), "-c", str(fleet.data / "broker" / "mosquitto.conf")]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as orphan:
            until(lambda: answers(port), what="the orphan's start")
            # Reaped as soon as it ends, as init does it.
            reaper = threading.Thread(target=orphan.wait)
            reaper.start()
            fleet.start()
            reaper.join()
            assert (orphan.returncode, broker_of(fleet)["port"]) == (0, port)


def test_an_editor_of_the_configuration_and_another_fleets_broker_are_left_alone(tmp_path: Path) -> None:
    """What is ended is a broker on this very file: not who reads it, nor one on the same relative path elsewhere."""
    config = tmp_path / "broker" / "mosquitto.conf"
    config.parent.mkdir()
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        subprocess.Popen([*sleep, str(config)]) as editor,
        subprocess.Popen([*sleep, "-c", "broker/mosquitto.conf"], cwd=tmp_path) as other,
    ):
        end_left_behind(config.parent)
        assert (editor.poll(), other.poll()) == (None, None)
        editor.kill()
        other.kill()


def test_a_memory_that_the_broker_cannot_read_is_put_aside(tmp_path: Path, enrolling: Any) -> None:
    """Accident: mosquitto.db is damaged. Everything in it is published again by those who own it."""
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("a")
        fleet.stop()
        (fleet.data / "broker" / "mosquitto.db").write_bytes(b"garbage")
        fleet.start()
        assert (fleet.data / "broker" / "mosquitto.unreadable").read_bytes() == b"garbage"
        device.connect()
        assert device.next_desired(seq=1).device == "a"


def test_a_port_that_was_taken_from_a_killed_broker_is_waited_for(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet:
        before = broker_of(fleet)
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            os.kill(before["pid"], signal.SIGKILL)
            until(lambda: bound(thief, before["port"]), what="the theft")
            until(lambda: "--broker ADDRESS:PORT" in fleet.log, within=30, what="a line that says so")
            assert fleet.request("GET", "/healthz")[0] == 200
        until(lambda: broker_of(fleet)["state"] == "running", within=30, what="a new broker")


def bound(thief: socket.socket, port: int) -> bool:
    try:
        thief.bind(("0.0.0.0", port))
        thief.listen()
    except OSError:
        return False
    return True


def test_what_many_devices_keep_retained_all_reaches_a_fleet_that_connects(tmp_path: Path) -> None:
    """A thousand devices said something before the fleet came: the broker's queue for one reader holds it."""
    many, now = 1000, datetime.now(UTC)
    authority = Authority.open(tmp_path / "ca", now)
    server, client = authority.server(["127.0.0.1"], now), authority.client(topics.FLEET_CLIENT, now)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = BrokerAddress("127.0.0.1", free.getsockname()[1])
    broker = Broker("mosquitto", tmp_path / "broker", address, server, client, authority.believed_path)
    broker.restrict(topics.access_rules(), authority.current.revocation_list([], now))

    def publish_and_read() -> None:
        for retained in (False, True):
            seen: set[str] = set()
            take = lambda message: seen.add(message.topic) if message.retained == retained else None  # noqa: E731, B023
            link = Link(client, authority.believed_path, session="s")
            link.start(address.local, address.port, receive=take, connected=lambda: None)
            link.wait_until_up(10)
            for i in range(0 if retained else many):
                link.publish(topics.State(f"d{i}").topic, b"birth", retain=True)
            until(lambda: len(seen) == many, what="every birth")  # noqa: B023
            link.stop()

    async def story() -> None:
        await broker.start()
        try:
            await asyncio.to_thread(publish_and_read)
        finally:
            await broker.stop()

    asyncio.run(story())


@pytest.mark.alone
def test_a_device_that_floods_neither_fills_the_broker_nor_keeps_others_waiting(tmp_path: Path, enrolling: Any) -> None:
    """Attack: a device sends large batches as fast as it can. Before it was shut out, others were not heard at all."""
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        attacker, other = new_device("attacker"), new_device("other")
        attacker.connect()
        other.connect()
        broker, service = psutil.Process(broker_of(fleet)["pid"]), psutil.Process(fleet.pid)
        before = broker.memory_info().rss + service.memory_info().rss
        ended, sent = threading.Event(), 0

        def flood() -> None:
            nonlocal sent
            topic = topics.Telemetry(attacker.id).topic
            while not ended.is_set() and attacker.client.is_connected():
                if len(attacker.client._out_messages) > 500:  # what waits there is the attacker's own memory
                    time.sleep(0.001)
                    continue
                attacker.client.publish(topic, b"x" * 60_000, qos=1)
                sent += 1

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            peak, slowest, seq = 0, 0.0, 0
            deadline = time.monotonic() + 8
            while time.monotonic() < deadline:
                seq += 1
                begun = time.monotonic()
                # Until the attacker is out, the broker's queue to the fleet may be full and lose what others say.
                other.send_until_stored(other.batch(seq), seq)
                slowest = max(slowest, time.monotonic() - begun)
                peak = max(peak, broker.memory_info().rss + service.memory_info().rss - before)
        finally:
            ended.set()
            thread.join()
        assert sent > 1000, "there was no flood"
        assert any("flood" in event["reason"] for event in attacker.view()["security"])
        assert peak < 100 * 2**20
        assert slowest < 5


def test_a_packet_over_the_limit_ends_its_connection_before_it_is_buffered(
    fleet: FleetProcess, new_device: Any
) -> None:
    """Attack: a device announces a packet of 200 MB and begins to send it."""
    device, broker = new_device("large"), psutil.Process(broker_of(fleet)["pid"])
    before = broker.memory_info().rss
    host, port = fleet.broker.split(":")
    hello = b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x02zz"
    announced = b"\x30\x80\x80\xb0\x5f"  # PUBLISH, remaining length 200 MB
    sent = 0
    with (
        socket.create_connection((host, int(port)), timeout=10) as raw,
        device.tls().wrap_socket(raw, server_hostname=host) as secure,
    ):
        secure.sendall(hello)
        assert secure.recv(100)[:1] == b"\x20"
        secure.sendall(announced)
        with suppress(OSError):
            while sent < 200:
                secure.sendall(b"x" * 2**20)
                sent += 1
    assert sent < 50
    assert broker.memory_info().rss - before < 32 * 2**20


def test_a_full_broker_refuses_the_next_connection_and_keeps_the_others(tmp_path: Path, enrolling: Any) -> None:
    """Attack: a device opens connections until nobody else gets one. Those that are there go on."""
    with (
        FleetProcess(tmp_path / "fleet", broker_connections=10) as fleet,
        enrolling(fleet, tmp_path) as new_device,
        ExitStack() as held,
    ):
        initialise_trust(fleet)
        device = new_device("a")
        device.connect()
        host, port = fleet.broker.split(":")
        tls = device.tls()

        def is_refused() -> bool:
            raw = held.enter_context(socket.create_connection((host, int(port)), timeout=10))
            try:
                held.enter_context(tls.wrap_socket(raw, server_hostname=host))
            except OSError:
                return True
            return False

        until(is_refused, what="a refusal")
        device.send(device.batch(1))
        assert device.next_ack().stored == 1


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_missing_broker_is_told_with_the_package_that_holds_it() -> None:
    with pytest.raises(Unavailable) as error:
        find_program("no-such-broker")
    for words in ("apt install mosquitto", "dnf install mosquitto", "brew install mosquitto"):
        assert words in str(error.value)
