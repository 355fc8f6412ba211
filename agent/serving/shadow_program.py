"""A model in shadow, in a process of its own: `python -m agent.serving.shadow_program STORE DIGEST WORKERS`.

It runs when nobody else wants the processor, and is the first to go when memory is short; it ends when its standard
input does. It speaks frames (`wire/frames.py`):

    to it      run    one request: `text` or tensors `in:NAME`, and what the active model answered, `labels`, `out:NAME`
               go     run those that came, for `seconds` of CPU time and one of them at least
    from it    ready  the model is loaded
               error  it is not: `fault`; `again`: it may be when its files come again
               done   `outcomes`, one for each that was run; `cpu_s`, and `memory` in bytes

No outcome holds anything of an input but the label of the answer.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from agent.errors import AgentError, Unavailable
from agent.serving.selftest import be_a_child, resident
from wire import frames
from wire.errors import WireError

if TYPE_CHECKING:
    from agent.serving.bundles import Bundle, Loaded

IN: Final = "in:"
OUT: Final = "out:"


def main() -> int:
    """Load, say so, answer until the end."""
    be_a_child()
    yield_to_everybody()
    out, standard = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # what a runtime prints is no frame
    folder, digest, workers = sys.argv[1:]
    try:
        bundle, model = _load(Path(folder), digest, json.loads(workers))
    except (AgentError, WireError) as e:
        _say(out, "error", fault=str(e)[:400], again=isinstance(e, Unavailable))
        return 1
    _say(out, "ready", memory=resident())
    return _serve(bundle, model, standard, out)


def yield_to_everybody() -> None:
    """The lowest priority that this system has for a process."""
    with suppress(OSError, AttributeError):  # SCHED_IDLE is Linux's
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        return
    with suppress(OSError):
        os.nice(19)


def _load(folder: Path, digest: str, workers: dict[str, str]) -> tuple[Bundle, Loaded]:
    from agent.serving.bundles import Bundle, load_model, prepare  # noqa: PLC0415  as late as everywhere in the agent
    from agent.store.blobs import Blobs  # noqa: PLC0415

    bundle = Bundle.open(Blobs(folder, min_free=0), digest)
    if bundle.tokenizer is not None:
        prepare()
    model = load_model(bundle, workers)
    from wire.processing import example_of  # noqa: PLC0415  numpy came with the model

    model.answer(example_of(bundle.golden.cases[0]))  # the first request is no slower
    return bundle, model


def _serve(bundle: Bundle, model: Loaded, standard: BinaryIO, out: BinaryIO) -> int:
    from agent.settings import WORKERS  # noqa: PLC0415

    apart = bundle.manifest.runtime in WORKERS
    waiting: list[frames.Frame] = []
    while True:
        frame = frames.read(standard.read)
        if frame is None:
            model.close()
            return 0
        if frame.kind == "run":
            waiting.append(frame)
            continue
        began, outcomes = _cpu(apart=apart), []
        for asked in waiting:
            outcomes.append(_run(model, asked, apart=apart))
            if _cpu(apart=apart) - began >= frame.fields["seconds"]:
                break
        waiting.clear()
        _say(out, "done", outcomes=outcomes, cpu_s=_cpu(apart=apart) - began, memory=resident())


def _run(model: Loaded, asked: frames.Frame, *, apart: bool) -> dict[str, Any]:
    """One request. Its time is that of the processor where the model runs in this process: what else this machine
    does at a higher priority is none of the model's.
    """
    from agent.serving.comparing import agrees  # noqa: PLC0415  numpy came with the model
    from wire.pipeline import SCORES  # noqa: PLC0415

    given: dict[str, dict[str, Any]] = {IN: {}, OUT: {}}
    for tensor in asked.tensors:
        side, _, name = tensor.name.partition(":")
        given[side + ":"][name] = _array(tensor)
    text = asked.fields.get("text")
    clock = time.perf_counter if apart else time.thread_time
    began = clock()
    try:
        result = model.answer(text if text is not None else given[IN])
    except Exception as e:  # noqa: BLE001  runtimes raise anything; the active model answered this one
        return {"ms": (clock() - began) * 1000, "fault": type(e.__cause__ or e).__name__}
    taken = (clock() - began) * 1000
    scores = result.outputs.get(SCORES)
    return {
        "ms": taken,
        "agreed": agrees(asked.fields["labels"], given[OUT], result, asked.fields["turn"]),
        "labels": list(result.labels),
        "confidences": [] if scores is None else [float(s) for s in scores.max(axis=-1).reshape(-1)],
    }


def _cpu(*, apart: bool) -> float:
    """Seconds of CPU time of this process, and of a runtime's worker beside it."""
    own = time.process_time()
    if not apart:
        return own
    import psutil  # noqa: PLC0415

    children = psutil.Process().children(recursive=True)
    return own + sum(sum(child.cpu_times()[:2]) for child in children)


def _array(tensor: frames.Tensor) -> Any:
    import numpy as np  # noqa: PLC0415

    kind = np.dtype(tensor.dtype)
    return np.frombuffer(tensor.data, kind.newbyteorder("<")).reshape(tensor.shape).astype(kind)


def _say(out: BinaryIO, kind: str, **fields: Any) -> None:
    out.write(frames.pack(frames.Frame(kind, fields=fields)))
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
