"""The floor under a served model: a process that loads the same file in the same runtime and calls it, nothing else.

`python floor_process.py MODEL` answers lines on standard input: `time N` with N seconds as JSON, `paced N` with those
of calls that come as requests do, with a pause before each, and `cpu N` with the CPU seconds of N calls. The input is
of the form of `quick_model.frame`, made here so that nothing else is imported.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime as ort

PAUSE = 0.0002
"""Seconds between two calls that come as requests: what the caches of a core held is no longer all there."""


def main() -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    chance = np.random.default_rng(1)
    feeds = {tensor.name: chance.normal(0, 0.1, tensor.shape).astype(np.float32) for tensor in session.get_inputs()}
    names = [tensor.name for tensor in session.get_outputs()]
    session.run(names, feeds)
    say(0)
    for line in sys.stdin:
        what, _, n = line.partition(" ")
        if what == "cpu":
            say(cpu(session, names, feeds, int(n)))
        else:
            say(timed(session, names, feeds, int(n), PAUSE if what == "paced" else 0))


def timed(
    session: ort.InferenceSession, names: list[str], feeds: dict[str, np.ndarray], n: int, pause: float
) -> list[float]:
    times = []
    for _ in range(n):
        if pause:
            time.sleep(pause)
        started = time.perf_counter()
        session.run(names, feeds)
        times.append(time.perf_counter() - started)
    return times


def cpu(session: ort.InferenceSession, names: list[str], feeds: dict[str, np.ndarray], n: int) -> float:
    started = time.process_time()
    for _ in range(n):
        session.run(names, feeds)
    return time.process_time() - started


def say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
