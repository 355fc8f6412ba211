"""MLServer with the same model in the same runtime, for the benchmark of the local API: a peer in its own environment.

address = start(folder, model, stack)      # None where it cannot be installed
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from fleet_process import until
from raw_http import RawClient, get

PACKAGES = ("mlserver==1.7.1", "onnxruntime==1.31.1")
PYTHON = "SHOAL_BENCH_MLSERVER"
"""Environment variable with the Python of an environment that has them; else one is made, if they can be installed."""
RUNTIME = """
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Onnx(MLModel):
    async def load(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        self._names = [tensor.name for tensor in self._session.get_outputs()]
        return True

    async def predict(self, payload):
        feeds = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        found = zip(self._names, self._session.run(self._names, feeds))
        outputs = [NumpyCodec.encode_output(name, values) for name, values in found]
        return InferenceResponse(model_name=self.name, outputs=outputs)
"""


def start(folder: Path, model: Path, stack: ExitStack) -> tuple[str, int] | None:
    """Address of a server that is ready; None where it cannot be installed."""
    python = _python(folder)
    if python is None:
        print("MLServer cannot be installed here: its figure is left out")
        return None
    home = folder / "mlserver"
    home.mkdir()
    (home / "onnx_runtime.py").write_text(RUNTIME)
    ports = _free_ports(3)
    (home / "settings.json").write_text(
        json.dumps(
            {
                "host": "127.0.0.1",
                **dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True)),
                "parallel_workers": 0,
                "debug": False,
            }
        )
    )
    (home / "model-settings.json").write_text(
        json.dumps({"name": "kitchen", "implementation": "onnx_runtime.Onnx", "parameters": {"uri": str(model)}})
    )
    with (home / "log").open("wb") as log:
        child = subprocess.Popen(
            [python, "-m", "mlserver.cli.main", "start", str(home)],
            cwd=home,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(home)},
        )
    stack.callback(child.wait)
    stack.callback(child.terminate)
    address = ("127.0.0.1", ports[0])
    until(lambda: _ready(address), what="MLServer", within=60)
    return address


def _ready(address: tuple[str, int]) -> bool:
    try:
        with RawClient(address) as client:
            return client.ask(get("/v2/models/kitchen/ready"))[0] == 200
    except OSError:
        return False


def _python(folder: Path) -> str | None:
    if PYTHON in os.environ:
        return os.environ[PYTHON]
    home = folder / "environment"
    commands = (
        [sys.executable, "-m", "venv", str(home)],
        [str(home / "bin/python"), "-m", "pip", "install", "--quiet", *PACKAGES],
    )
    for command in commands:
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
    return str(home / "bin/python")


def _free_ports(n: int) -> list[int]:
    """Ports that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
