"""What the libraries alone need to take telemetry: the floor of `scripts/bench ingest`.

    python tests/plain_intake.py DATA HOST PORT FOLDER

paho in the place of the fleet at the broker of the data folder `DATA`, with the fleet's own certificate. The signature
of every message is checked with the device's certificate in `FOLDER`, its JSON is parsed, and an answer is made, signed
and sent. Nothing is looked up, nothing is held against what came before, and nothing is stored. A line is printed once
it listens; it ends with its standard input.
"""

from __future__ import annotations

import base64
import sys
import threading
from pathlib import Path

import orjson
import paho.mqtt.client as mqtt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import load_pem_x509_certificate
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fleet.mqtt.link import AT_ONCE, tls_context
from fleet.trust.ca import KeyPair
from wire.topics import FLEET_CLIENT, Ack, Telemetry, every


def pae(kind: str, payload: bytes) -> bytes:
    """What a DSSE envelope signs."""
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)


def main(data: str, host: str, port: str, folder: str) -> None:
    keys = {path.stem: _key(path) for path in Path(folder).glob("bench-*.pem")}
    signer, hashed, listening = Ed25519PrivateKey.generate(), ec.ECDSA(SHA256()), threading.Event()
    topics = {Telemetry(name).topic: (key, Ack(name).topic) for name, key in keys.items()}

    def take(client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        key, topic = topics[message.topic]
        envelope = orjson.loads(message.payload)
        payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
        key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), pae(kind, payload), hashed)
        batch = orjson.loads(payload)
        answer = orjson.dumps({"nonce": batch["nonce"], "boot": batch["boot"], "stored": batch["records"][-1]["seq"]})
        signature = base64.b64encode(signer.sign(pae("ack", answer))).decode()
        signed = {"payload": base64.b64encode(answer).decode(), "signatures": [{"keyid": "", "sig": signature}]}
        client.publish(topic, orjson.dumps(signed), qos=1)

    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=FLEET_CLIENT, protocol=mqtt.MQTTv5)
    client.tls_set_context(tls_context(*_credentials(Path(data))))
    client.on_message = take
    client.on_connect = lambda *_: client.subscribe(every(Telemetry), qos=1)
    client.on_subscribe = lambda *_: listening.set()
    terms = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    terms.ReceiveMaximum = AT_ONCE
    client.connect(host, int(port), properties=terms)
    client.loop_start()
    assert listening.wait(30)
    print("listening", flush=True)
    sys.stdin.read()
    client.disconnect()
    client.loop_stop()


def _key(path: Path) -> ec.EllipticCurvePublicKey:
    key = load_pem_x509_certificate(path.read_bytes()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def _credentials(data: Path) -> tuple[KeyPair, Path]:
    return KeyPair(data / "ca" / "client.pem", data / "ca" / "client.key"), data / "ca" / "believed.pem"


if __name__ == "__main__":
    main(*sys.argv[1:])
