"""Many devices on one thread, each with an MQTT 5 connection of its own over mutual TLS: the load of `bench_ingest`.

    python tests/ingest_load.py < job.json

In: one line of JSON, a `Job`; then a line for each round: how many messages every device sends, and how many minutes
are in each. Out: a line of JSON when all are connected, and one after each round. Each device sends one signed message,
waits for the fleet's signed acknowledgement, and sends the next, as an agent does. Messages are signed before the clock
starts. The packets are made here by hand, because a client library would take more of the machine than what is
measured.
"""

from __future__ import annotations

import base64
import json
import random
import selectors
import socket
import ssl
import struct
import sys
import time
import zlib
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from wire import topics
from wire.dsse import seal
from wire.ledger import StreamLedger
from wire.life import LineState
from wire.messages import Health, InferenceStats, MachineState, TelemetryBatch, TelemetryRecord
from wire.sketch import Histogram, Sketch
from wire.units import show_instant

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 1, 2, 3, 4, 8, 9
AGAIN = 5.0
"""Seconds without any acknowledgement after which what is under way is sent again, as an agent does: a broker whose
queue was full dropped it."""
SILENT = 60.0
"""Seconds without any acknowledgement after which what is missing counts as lost."""


@dataclass
class Job:
    """`devices` with certificate and key in `folder`; the broker's port; the time of the records."""

    folder: str
    port: int
    ca: str
    devices: list[str]
    start: float
    digest: str


@dataclass
class Device:
    """One connection, and what it has to say."""

    name: str
    sock: ssl.SSLSocket
    waiting: deque[tuple[str, bytes]] = field(default_factory=deque)
    under_way: str = ""
    sent_last: bytes = b""
    answers: list[bytes] = field(default_factory=list)
    unread: bytearray = field(default_factory=bytearray)
    sent: int = 0
    minutes: int = 0
    """Those that were told."""


def text(value: str) -> bytes:
    return struct.pack("!H", len(value)) + value.encode()


def packet(kind: int, flags: int, body: bytes) -> bytes:
    size, n = b"", len(body)
    while True:
        n, digit = n >> 7, n & 127
        size += bytes([digit | (128 if n else 0)])
        if not n:
            return bytes([kind << 4 | flags]) + size + body


def connect(job: Job, name: str) -> Device:
    context = ssl.create_default_context(cafile=job.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    folder = Path(job.folder)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    raw = socket.create_connection(("127.0.0.1", job.port), timeout=30)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    device = Device(name, context.wrap_socket(raw, server_hostname="localhost"))
    # Clean start, keepalive 5 min, no properties.
    device.sock.sendall(packet(CONNECT, 0, text("MQTT") + b"\x05\x02" + struct.pack("!H", 300) + b"\0" + text(name)))
    expect(device, CONNACK)
    topic = topics.Ack(name).topic
    device.sock.sendall(packet(SUBSCRIBE, 2, struct.pack("!H", 1) + b"\0" + text(topic) + b"\x01"))
    expect(device, SUBACK)
    return device


def expect(device: Device, kind: int) -> None:
    """Wait for one packet: the broker refuses with a code of 128 or above in its end."""
    while not (found := packets(device)):
        data = device.sock.recv(65536)
        if not data:
            raise ConnectionError(f"{device.name}: the broker hung up")
        device.unread += data
    (got, _, body), *_ = found
    if got != kind or (kind == CONNACK and body[1] >= 128) or (kind == SUBACK and body[-1] >= 128):
        raise ConnectionError(f"{device.name}: the broker refused: {got} {body.hex()}")


def packets(device: Device) -> list[tuple[int, int, bytes]]:
    """Kind, flags and body of what came whole."""
    found, data = [], device.unread
    while len(data) >= 2:
        size = shift = 0
        at = 1
        while at < len(data):
            size |= (data[at] & 127) << shift
            shift += 7
            at += 1
            if not data[at - 1] & 128:
                break
        else:
            break
        if len(data) < at + size:
            break
        found.append((data[0] >> 4, data[0] & 15, bytes(data[at : at + size])))
        del data[: at + size]
    return found


def read(device: Device) -> bool:
    """Take what came; whether the fleet answered."""
    answered = False
    while True:
        try:
            data = device.sock.recv(65536)
        except ssl.SSLWantReadError:
            return answered
        if not data:
            raise ConnectionError(f"{device.name}: the broker hung up")
        device.unread += data
        for kind, flags, body in packets(device):
            if kind == PUBLISH:
                size = struct.unpack_from("!H", body)[0] + 2
                if flags & 6:
                    device.sock.send(packet(PUBACK, 0, body[size : size + 2]))
                    size += 2
                device.answers.append(body[size + 1 + body[size] :])
                answered = True


def messages(
    job: Job, device: Device, signer: CryptoSigner, stats: InferenceStats, count: int, together: int = 1
) -> None:
    """Sign what is sent in a round: minutes of one model, and the health of the device in each, as an agent sends them.

    What inputs and answers look like is told once an hour (`agent.life.shapes`), here by each in a minute of its own.
    """
    topic = topics.Telemetry(device.name).topic
    told_at = zlib.crc32(device.name.encode()) % 60
    minute = InferenceStats.from_value({k: v for k, v in stats.to_value().items() if k not in InferenceStats.LEAN})
    for _ in range(count):
        device.sent += 1
        records: list[TelemetryRecord] = []
        for n in range(device.minutes + 1, device.minutes + 1 + together):
            start, end = (show_instant_of(job.start + 60 * (n + i) / 10) for i in (0, 1))
            said = stats if n % 60 == told_at else minute
            records += [
                TelemetryRecord(seq=2 * n - 1, start=start, end=end, stream="inference", inference=(said,)),
                TelemetryRecord(seq=2 * n, start=start, end=end, stream="health", health=HEALTH),
            ]
        before, device.minutes = device.minutes, device.minutes + together
        nonce = f"{device.name}-{device.sent}"
        batch = TelemetryBatch(
            device=device.name,
            boot="bench",
            starts=1,
            sent=device.sent,
            nonce=nonce,
            records=tuple(records),
            memory="bench",
            ledger=tuple(
                StreamLedger(stream=stream, produced=device.minutes, delivered=before, waiting=together)
                for stream in ("inference", "health")
            ),
        )
        body = text(topic) + struct.pack("!H", 1) + b"\0" + seal(batch, signer)
        device.waiting.append((nonce, packet(PUBLISH, 2, body)))


HEALTH = Health(
    cpu_percent=12.5,
    memory_used=300 << 20,
    memory_total=1 << 30,
    agent_memory=80 << 20,
    disk_free=8 << 30,
    disk_total=16 << 30,
    temperature_c=48.5,
    machine=MachineState(
        at="2026-11-22T08:00:00.000Z",
        throttled=False,
        throttle_bits=0,
        temperature_c=48.5,
        cpu_mhz=600.0,
        cpu_max_mhz=1500.0,
        governor="ondemand",
        power="mains",
        load=0.42,
    ),
    line=LineState(rtt_ms=21.4, rtt_worst_ms=38.9, reconnects=1),
    restarts={"clean": 1},
    uptime_s=86_400.5,
    clock_offset_s=0.012,
    window_s=60.0,
    golden={"sha256:" + "0" * 64: True},
)
"""What a Raspberry Pi says (`agent.life.life`)."""


def show_instant_of(seconds: float) -> str:
    return show_instant(datetime.fromtimestamp(seconds, UTC))


def stats_of(job: Job, chance: Any) -> InferenceStats:
    latencies = [chance.lognormvariate(3.0, 0.15) for _ in range(60)]
    return InferenceStats(
        model="kitchen",
        digest=job.digest,
        requests=60,
        errors=1,
        latency_ms=Sketch.of(latencies),
        confidence=Histogram.of([min(1.0, chance.gauss(0.85, 0.08)) for _ in range(3600)]),
        labels={"light-on": 1500, "light-off": 1260, "dim": 840},
        feedback_total=2,
        feedback_correct=2,
        lengths=Sketch.of([chance.randint(4, 20) for _ in range(3600)]).coarse(),
        languages={"en": 3600},
    )


def send(device: Device) -> bool:
    """The next message, if there is one."""
    if not device.waiting:
        device.under_way = ""
        return False
    device.under_way, device.sent_last = device.waiting.popleft()
    send_out(device)
    return True


def send_out(device: Device) -> None:
    device.sock.setblocking(True)
    device.sock.sendall(device.sent_last)
    device.sock.setblocking(False)


def run(devices: list[Device]) -> dict[str, Any]:
    """Send everything that waits."""
    waits = selectors.EpollSelector()
    by_socket = {device.sock.fileno(): device for device in devices}
    for device in devices:
        device.sock.setblocking(False)
        waits.register(device.sock, selectors.EVENT_READ)
    began, cpu = time.monotonic(), time.process_time()
    open_ = sum(send(device) for device in devices)
    last = sent = time.monotonic()
    again = 0
    while open_ and time.monotonic() - last < SILENT:
        for key, _ in waits.select(1.0):
            device = by_socket[key.fd]
            if read(device) and device.under_way:
                last = sent = time.monotonic()
                open_ -= not send(device)
        if time.monotonic() - sent > AGAIN:
            unanswered = [device for device in devices if device.under_way]
            for device in unanswered:
                send_out(device)
            again, sent = again + len(unanswered), time.monotonic()
    seconds = last - began
    waits.close()
    return {"seconds": seconds, "cpu": time.process_time() - cpu, "again": again, **acknowledged(devices)}


def acknowledged(devices: list[Device]) -> dict[str, int]:
    """What the fleet says that it stored, by the nonces of its acknowledgements."""
    found = 0
    for device in devices:
        nonces = {json.loads(base64.b64decode(json.loads(data)["payload"]))["nonce"] for data in device.answers}
        found += len(nonces)
        device.answers.clear()
    return {"acknowledged": found}


def main() -> None:
    chance = random.Random(7)
    job = Job(**json.loads(sys.stdin.readline()))
    folder = Path(job.folder)
    devices = [connect(job, name) for name in job.devices]
    signers = [CryptoSigner(load_pem_private_key((folder / f"{d.name}.key").read_bytes(), None)) for d in devices]
    some = [stats_of(job, chance) for _ in range(50)]
    sys.stdout.write(json.dumps({"connected": len(devices)}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        count, together = map(int, line.split())
        for device, signer in zip(devices, signers, strict=True):
            messages(job, device, signer, chance.choice(some), count, together)
        sys.stdout.write(json.dumps({"ready": len(devices) * count}) + "\n")
        sys.stdout.flush()
        sys.stdin.readline()
        sys.stdout.write(json.dumps(run(devices)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
