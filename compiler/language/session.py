"""A language model in the worker process that serves it on a device (`agent/serving/worker_program.py`).

with Session(folder, "gguf", language, python=None) as session:
    session.complete("The capital of France is", 8).text
    session.golden("What is the capital of France?")
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from compiler.errors import Incompatible, Malformed, Unavailable
from compiler.plan.recipes import MODEL_FILES
from wire import frames
from wire.bundle import Runtime
from wire.pipeline import CONTINUATION, LOGPROBS, MARGINS, TOKENS, Language
from wire.processing import Array, Result


@dataclass(frozen=True)
class Completion:
    """How a model goes on with a text: greedily. `ms` are those from the first token on, for each token."""

    text: str
    outputs: dict[str, Array]
    ms: float


class Session:
    """One process with one model, on one thread, as on a device."""

    def __init__(self, folder: Path, runtime: Runtime, language: Language, python: str | None) -> None:
        """Raises `Incompatible` when the runtime refuses the model, `Unavailable` when its Python does not start."""
        self._language = language
        self._what = f"{runtime} {folder.name}"
        agent = find_spec("agent")
        program = Path((agent.submodule_search_locations or [""])[0] if agent else "", "serving", "worker_program.py")
        settings = {"context": language.context, "template": language.chat_template, "threads": 1}
        command = [
            *(python or sys.executable, "-I", str(program), "--frames", str(frames.__file__), "--runtime", runtime),
            *("--model", str(folder / MODEL_FILES[runtime]), "--settings", json.dumps(settings)),
        ]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as e:
            raise Unavailable(f"{command[0]}: the Python of {runtime} does not start: {e.strerror}") from e
        try:
            self.version = f"{runtime} {self._next().fields['version']}"
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    @property
    def memory(self) -> int:
        """Bytes that the process has in memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))

    def complete(self, prompt: str, tokens: int) -> Completion:
        """Go on with a text. Raises `Malformed` for one that is too long, `Incompatible` when the model fails."""
        return self._ask({"messages": None, "prompt": prompt}, tokens)

    def golden(self, text: str) -> Result:
        """What a golden case of this text holds; see `wire.pipeline.GoldenCase`."""
        if self._language.chat_template is None:
            found = self.complete(text, CONTINUATION)
        else:
            found = self._ask({"messages": [{"role": "user", "content": text}], "prompt": ""}, CONTINUATION)
        return Result({name: values[:CONTINUATION] for name, values in found.outputs.items()})

    def _ask(self, asked: dict[str, Any], tokens: int) -> Completion:
        greedy: dict[str, Any] = {"max_tokens": tokens, "temperature": 0.0, "top_p": 1.0, "seed": None, "stop": []}
        self._send(frames.Frame("generate", fields={**asked, **greedy}))
        parts, times = [], []
        for part in self._parts():
            parts.append(part)
            times.append(time.perf_counter())
        counts = [len(part["tokens"]) for part in parts]
        after = max(1, sum(counts[1:]))
        return Completion(
            "".join(part["text"] for part in parts),
            {
                TOKENS: _joined(parts, TOKENS, np.int64),
                LOGPROBS: _joined(parts, LOGPROBS, np.float32),
                MARGINS: _joined(parts, MARGINS, np.float32),
            },
            (times[-1] - times[0]) * 1000 / after if len(times) > 1 else 0.0,
        )

    def _parts(self) -> Iterator[dict[str, Any]]:
        while (frame := self._next()).kind == "part":
            yield frame.fields

    def _send(self, frame: frames.Frame) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frames.pack(frame))
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Incompatible(f"{self._what}: {self._death()}") from None

    def _next(self) -> frames.Frame:
        assert self._process.stdout is not None
        try:
            frame = frames.read(self._process.stdout.read)
        except frames.BadFrame as e:
            raise Incompatible(f"{self._what}: its worker speaks another language: {e}") from e
        if frame is None:
            raise Incompatible(f"{self._what}: {self._death()}")
        if frame.kind == "error" and "limit" in frame.fields:
            raise Malformed(f"{self._what}: {frame.fields['message']}: give shorter texts, or a larger max_length")
        if frame.kind == "error":
            raise Incompatible(f"{self._what}: {frame.fields.get('message')}")
        return frame

    def _death(self) -> str:
        code = self._process.wait()
        died = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"its worker {died}"


def _joined(parts: list[dict[str, Any]], name: str, kind: type[np.generic]) -> Array:
    return np.asarray([value for part in parts for value in part[name]], kind)
