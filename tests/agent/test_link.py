"""What a hostile broker can do to the line."""

from __future__ import annotations

import socket
import threading

from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.link import PACKET_LIMIT, _Client

CONNACK = bytes([0x20, 3, 0, 0, 0])


def varint(n: int) -> bytes:
    """A remaining length of MQTT: seven bits a byte, lowest first."""
    found = bytearray()
    while True:
        n, low = divmod(n, 128)
        found.append(low | (0x80 if n else 0))
        if not n:
            return bytes(found)


def hostile_broker(server: socket.socket, size: int, taken: list[int]) -> None:
    """Accept one client, announce a packet of `size` bytes, and count how many of them it takes."""
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(CONNACK + b"\x30" + varint(size))
        try:
            while sum(taken) < size:
                taken.append(connection.send(b"\0" * 65536))
        except OSError:
            return


def run_against(size: int) -> tuple[int, bool]:
    """Bytes that the broker could send, and whether the client hung up."""
    taken: list[int] = []
    gone = threading.Event()
    client = _Client(CallbackAPIVersion.VERSION2, client_id="d", protocol=MQTTProtocolVersion.MQTTv5)
    client.on_disconnect = lambda *_: gone.set()
    with socket.create_server(("127.0.0.1", 0)) as server:
        broker = threading.Thread(target=hostile_broker, args=(server, size, taken))
        broker.start()
        client.connect("127.0.0.1", server.getsockname()[1])
        while not gone.is_set() and (broker.is_alive() or sum(taken) < size):
            client.loop(0.05)
        hung_up = gone.is_set()
        client.disconnect()
        broker.join(10)
    return sum(taken), hung_up


def test_the_line_is_cut_at_a_packet_over_the_limit_before_it_is_buffered() -> None:
    """Attack: a broker announces 200 MB; paho's own MaximumPacketSize would have taken all of it."""
    taken, hung_up = run_against(200_000_000)
    assert hung_up
    assert taken < PACKET_LIMIT


def test_a_large_packet_below_the_limit_is_taken() -> None:
    taken, _ = run_against(1_000_000)
    assert taken >= 1_000_000
