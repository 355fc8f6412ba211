"""A small program in the compiler's place: it reads a job as a compiler does, and does what the build's name says.

Sources and rows that go with it are well-formed and mean nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PROGRAM = """#!{python}
import json, os, subprocess, sys, time
job = json.load(sys.stdin)
def say(**line):
    print(json.dumps(line), flush=True)
say(event="step", message="starting", done=1, total=4, seconds_left=9.0)
print("chatter of a library", file=sys.stderr, flush=True)
def works():
    os.makedirs(job["output"] + "/blobs")
    for name in ("oci-layout", "blobs/model"):
        with open(job["output"] + "/" + name, "w") as file:
            json.dump({{"job": job, "name": name, "environment": dict(os.environ)}}, file)
    say(event="note", message="only few examples")
    say(event="variant", message="onnx-fp32: 1 MB", profile="x86-64", digest="sha256:" + 64 * "a")
    say(event="done", message="1 bundle")
def infeasible():
    say(event="failed", message="no variant holds 1.0 points", error="Infeasible")
    sys.exit(3)
def refuses():
    say(event="failed", message="source " + job["source"] + ": NaN weights", error="Malformed")
    sys.exit(1)
def crashes():
    os.abort()
def raises():
    raise ValueError("nobody knew this")
def hangs():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    time.sleep(600)
def eats():
    held = bytearray(400 << 20)
    time.sleep(600)
def fills():
    with open("filled", "wb") as file:
        for _ in range(40):
            file.write(os.urandom(1 << 20))
    time.sleep(600)
def hoards():
    with open(job["cache"] + "/hoard", "wb") as file:
        for _ in range(40):
            file.write(os.urandom(1 << 20))
    time.sleep(600)
def lies():
    print("no progress at all", flush=True)
    time.sleep(600)
def peeks():
    fleet = os.path.dirname(os.path.dirname(os.path.dirname(os.getcwd())))
    for name in ("operator-token", "fleet.db", "keys", "blobs", "builds"):
        try:
            (os.listdir if os.path.isdir(fleet + "/" + name) else open)(fleet + "/" + name)
            say(event="note", message="read " + name)
        except PermissionError:
            pass
    say(event="note", message="user %d of %s" % (os.getuid(), os.getgroups()))
    works()
def silent():
    pass
globals()[job["name"]]()
"""
ROWS = "".join(json.dumps({"text": f"turn {i}", "label": "on" if i % 2 else "off"}) + "\n" for i in range(8)).encode()


def safetensors(values: bytes = bytes(8)) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, len(values)]}}).encode()
    return len(header).to_bytes(8, "little") + header + values


SOURCE = {"config.json": b'{"model_type": "bert"}', "model.safetensors": safetensors(), "tokenizer.json": b"{}"}


def program(folder: Path, python: str = sys.executable) -> Path:
    path = folder / "python"
    path.write_text(PROGRAM.format(python=python))
    path.chmod(0o755)
    return path
