"""The agent's side of a runtime in a process of its own (`agent/serving/worker_program.py`, `wire/frames.py`).

    worker = Worker("/opt/tflite/bin/python", "tflite-runtime", path)
    worker.run({"input": ...}); worker.close()

A worker that dies or hangs fails the one request that it had, and is started again for the next.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import numpy as np

from agent.errors import AgentError, Incompatible, Unavailable
from wire import frames
from wire.processing import Array, Arrays

LOAD_TIME: Final = 120.0
"""Seconds until the model must be loaded."""
RUN_TIME: Final = 60.0
"""Seconds that one run may take."""
PROGRAM: Final = Path(__file__).with_name("worker_program.py")
PAUSE: Final = 1.0
"""Least seconds between two starts."""
GRACE: Final = 1.0
"""Seconds for a process that broke off to end by itself, and so to say what of."""
LAST_WORDS: Final = 2000
"""Bytes of standard error that are kept."""
AT_ONCE: Final = 1 << 20
"""Most bytes of one read."""


class Worker:
    """One process with one model. For one thread at a time, which lives on: the kernel ends the process with it."""

    def __init__(self, python: str, runtime: str, model: Path, *more: str) -> None:
        """Start and load. Raises `Incompatible` when the runtime refuses the model, `Unavailable` when it dies.

        `more`: further arguments of the worker's program.
        """
        self._command = [
            *(python, "-I", str(PROGRAM), "--frames", frames.__file__),
            *("--runtime", runtime, "--model", str(model), *more),
        ]
        self._runtime = runtime
        self._process: _Process | None = None
        self._started = -PAUSE
        self.version = ""
        self._start()

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Run the model once. Raises `Incompatible` when the runtime fails, `Unavailable` when the process died."""
        process = self._process or self._start()
        asked = frames.Frame("run", [_tensor(name, values) for name, values in feeds.items()])
        return {t.name: _array(t) for t in self._answer(process, asked, "result", RUN_TIME).tensors}

    def converse(
        self, asked: frames.Frame, *, first: float, following: float, last: Sequence[str]
    ) -> Iterator[frames.Frame]:
        """Ask, and give every frame of the answer, the first within `first` seconds, up to one of a `last` kind.

        Raises `Unavailable` when the process died or hung. Who does not take all of them ends the process.
        """
        process, seconds, kind = self._process or self._start(), first, ""
        try:
            self._send(process, asked, first)
            while kind not in last:
                frame = self._next(process, seconds)
                kind, seconds = frame.kind, following
                yield frame
        finally:
            if kind not in last:
                self.close()

    def tell(self, said: frames.Frame) -> None:
        """Say something in the middle of an answer."""
        if self._process is not None:
            self._send(self._process, said, RUN_TIME)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _start(self) -> _Process:
        wait = self._started + PAUSE - time.monotonic()
        if wait > 0:
            raise Unavailable(f"worker {self._runtime}: it ended a moment ago: ask again in {wait:.1f} s")
        self._started = time.monotonic()
        try:
            process = self._process = _Process(self._command)
        except OSError as e:
            raise Unavailable(
                f"worker {self._runtime}: {self._command[0]}: {e.strerror}: see the setting 'workers'"
            ) from e
        try:
            self.version = str(self._answer(process, None, "ready", LOAD_TIME).fields.get("version", ""))[:40]
        except AgentError:
            self.close()
            raise
        return process

    def _answer(self, process: _Process, asked: frames.Frame | None, wanted: str, seconds: float) -> frames.Frame:
        """Send a frame, if there is one, and wait for the next, which must be what is wanted."""
        if asked is not None:
            self._send(process, asked, seconds)
        answer = self._next(process, seconds)
        if answer.kind == "error":
            raise Incompatible(str(answer.fields.get("message", ""))[:500])
        if answer.kind != wanted:
            raise self._broken(process, f"it answered {answer.kind[:40]!r} where {wanted!r} was expected")
        return answer

    def _send(self, process: _Process, said: frames.Frame, seconds: float) -> None:
        """Raises `Unavailable` for a process that does not take it in time, and ends it."""
        try:
            process.write(frames.pack(said), time.monotonic() + seconds)
        except TimeoutError as e:
            raise self._silent(seconds) from e
        except OSError as e:
            raise self._broken(process, str(e)) from e

    def _next(self, process: _Process, seconds: float) -> frames.Frame:
        """The next frame; a process that gives none in time is ended."""
        deadline = time.monotonic() + seconds
        try:
            answer = frames.read(lambda n: process.read(n, deadline))
        except TimeoutError as e:
            raise self._silent(seconds) from e
        except (OSError, frames.BadFrame) as e:
            raise self._broken(process, str(e)) from e
        if answer is None:
            raise self._broken(process, "it closed its output")
        return answer

    def _silent(self, seconds: float) -> Unavailable:
        self.close()
        return Unavailable(f"worker {self._runtime}: no answer within {seconds:.0f} s: it was ended")

    def _broken(self, process: _Process, reason: str) -> Unavailable:
        """What to raise for a process that broke off, which is ended."""
        code = process.ended(GRACE)
        self.close()
        died = f"it died of {signal.Signals(-code).name}" if code is not None and code < 0 else reason
        return Unavailable(f"worker {self._runtime}: {': '.join([died, *process.last_words()])}")


class _Process:
    """A process whose pipes are read and written by a deadline.

    What it says on standard error is taken in while it is waited for, so that a talkative runtime never blocks for
    long, and only its end is kept.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """Raises `OSError` when it does not start."""
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the agent
            bufsize=0,
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._stdin, self._stdout, self._stderr = self._popen.stdin, self._popen.stdout, self._popen.stderr
        os.set_blocking(self._stdin.fileno(), False)
        self._said = b""
        self._talks = True

    def write(self, data: bytes, deadline: float) -> None:
        """Raises `TimeoutError` at the deadline, `BrokenPipeError` when it reads no more."""
        left = memoryview(data)
        while left:
            self._wait(self._stdin, select.POLLOUT, deadline)
            left = left[os.write(self._stdin.fileno(), left) :]

    def read(self, n: int, deadline: float) -> bytes:
        """`n` bytes, fewer at the end. Raises `TimeoutError` at the deadline."""
        found = bytearray()
        while len(found) < n:
            self._wait(self._stdout, select.POLLIN, deadline)
            data = os.read(self._stdout.fileno(), min(n - len(found), AT_ONCE))
            if not data:
                break
            found += data
        return bytes(found)

    def last_words(self) -> list[str]:
        """The last line on standard error, if there is one."""
        lines = self._said.decode(errors="replace").strip().splitlines()
        return [lines[-1][:200]] if lines else []

    def ended(self, seconds: float) -> int | None:
        """The code that it ends with by itself in this time, None if it does not."""
        with suppress(subprocess.TimeoutExpired):
            return self._popen.wait(seconds)
        return None

    def close(self) -> None:
        """End it, and listen to its last words."""
        self._popen.kill()
        self._popen.wait()
        if self._talks and select.select([self._stderr], [], [], 0)[0]:
            self._listen()
        for pipe in (self._stdin, self._stdout, self._stderr):
            pipe.close()

    def _wait(self, pipe: IO[bytes], event: int, deadline: float) -> None:
        """Until a pipe can be used."""
        poll = select.poll()
        poll.register(pipe.fileno(), event)
        if self._talks:
            poll.register(self._stderr.fileno(), select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            ready = {descriptor for descriptor, _ in poll.poll(max(0.0, left) * 1000)}
            if pipe.fileno() in ready:
                return
            if left <= 0:
                raise TimeoutError
            if ready and not self._listen():
                poll.unregister(self._stderr.fileno())

    def _listen(self) -> bool:
        """Take in what it says; False once it has closed standard error."""
        data = os.read(self._stderr.fileno(), AT_ONCE)
        self._said = (self._said + data)[-LAST_WORDS:]
        self._talks = bool(data)
        return self._talks


def _tensor(name: str, values: Array) -> frames.Tensor:
    data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return frames.Tensor(name, str(values.dtype), tuple(values.shape), data)


def _array(tensor: frames.Tensor) -> Array:
    kind = np.dtype(tensor.dtype)
    return np.frombuffer(tensor.data, kind.newbyteorder("<")).reshape(tensor.shape).astype(kind)
