"""A language model: its worker process, and how it is asked.

    model = LanguageModel.load(bundle, workers)
    end = model.generate(Asked(messages=(Message("user", "Hello"),)), hear)     # hear(part) -> whether to go on

The runtime always has a process of its own: what it takes comes back with the model, and its crash is not the agent's.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from agent.errors import Incompatible, Malformed, TooLong
from agent.serving.generation import Asked, End, Hear, Message, Part
from agent.serving.runtimes import LANGUAGE_MODULES
from agent.serving.worker import Worker
from wire import frames
from wire.pipeline import CONTINUATION, LOGPROBS, MARGINS, TOKENS, Language
from wire.processing import Array, Result

if TYPE_CHECKING:
    from agent.serving.bundles import Bundle
    from wire.processing import Example

FIRST_TIME: Final = 120.0
"""Seconds until the first token of an answer: a long prompt on a small board."""
NEXT_TIME: Final = 30.0
"""Seconds between two tokens."""


class LanguageModel:
    """A loaded language model. Blocking, and for one thread at a time."""

    def __init__(
        self, worker: Worker, bundle: Bundle, language: Language, folder: tempfile.TemporaryDirectory[str]
    ) -> None:
        self._worker = worker
        self._runtime = bundle.manifest.runtime
        self._files = bundle.files
        self._language = language
        self._folder = folder

    @classmethod
    def load(cls, bundle: Bundle, workers: Mapping[str, str]) -> Self:
        """Start its process and load it. Raises `Incompatible`, and `Unavailable` when the process does not start."""
        language, runtime = bundle.pipeline.language, bundle.manifest.runtime
        assert language is not None
        folder = tempfile.TemporaryDirectory(prefix="shoal-model-")
        try:
            _link(Path(folder.name), bundle.files)
            model = Path(folder.name, bundle.manifest.file("model").path)
            settings = {"context": language.context, "template": language.chat_template, "threads": 1}
            worker = Worker(_python(runtime, workers), runtime, model, "--settings", json.dumps(settings))
        except BaseException:
            folder.cleanup()
            raise
        return cls(worker, bundle, language, folder)

    @property
    def runtime(self) -> str:
        """The runtime with its version."""
        return f"{self._runtime} {self._worker.version}"

    def generate(self, asked: Asked, hear: Hear) -> End:
        """Answer one request, part by part.

        Raises `TooLong` for a prompt that leaves no room, `Malformed` for messages to a model that only completes,
        `Incompatible` when the runtime fails, `Unavailable` when the process died or hung.
        """
        if asked.messages is not None and self._language.chat_template is None:
            raise Malformed("this model has no chat template, it only goes on with a text: ask /v1/completions")
        _link(Path(self._folder.name), self._files)
        frame = frames.Frame("generate", fields=self._fields(asked))
        wanted = True
        for answer in self._worker.converse(frame, first=FIRST_TIME, following=NEXT_TIME, last=("end", "error")):
            if answer.kind == "part" and wanted and not hear(_part(answer.fields)):
                wanted = False
                self._worker.tell(frames.Frame("stop"))
        return _end(answer)

    def answer(self, example: Example) -> Result:
        """How the model goes on with a text of its golden set. Raises as `generate`."""
        if not isinstance(example, str):
            raise Malformed("input: expected a text")
        found: list[Part] = []

        def hear(part: Part) -> bool:
            found.append(part)
            return True

        self.generate(self._golden(example), hear)
        outputs: dict[str, Array] = {
            TOKENS: np.asarray([t for part in found for t in part.tokens], np.int64),
            LOGPROBS: np.asarray([x for part in found for x in part.logprobs], np.float32),
            MARGINS: np.asarray([x for part in found for x in part.margins], np.float32),
        }
        return Result({name: values[:CONTINUATION] for name, values in outputs.items()})

    def close(self) -> None:
        """End the process."""
        self._worker.close()
        self._folder.cleanup()

    def _golden(self, text: str) -> Asked:
        chats = self._language.chat_template is not None
        messages = (Message("user", text),) if chats else None
        return Asked(messages=messages, prompt="" if chats else text, max_tokens=CONTINUATION, temperature=0.0)

    def _fields(self, asked: Asked) -> dict[str, Any]:
        messages = None if asked.messages is None else [{"role": m.role, "content": m.content} for m in asked.messages]
        return {
            "messages": messages,
            "prompt": asked.prompt,
            "max_tokens": min(asked.max_tokens or self._language.context, self._language.context),
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "seed": asked.seed,
            "stop": list(asked.stop),
        }


def _link(folder: Path, files: Mapping[str, Path]) -> None:
    """Files under the names that they have in the bundle: the store names them by digest.

    What is there stays. A system cleans its folder of temporary files, and a process may start again after that.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, path in files.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(path.absolute())


def _python(runtime: str, workers: Mapping[str, str]) -> str:
    """The Python of a runtime's process: the one that `workers` names, or else this one."""
    if runtime in workers:
        return workers[runtime]
    if runtime in LANGUAGE_MODULES and find_spec(LANGUAGE_MODULES[runtime]) is not None:
        return sys.executable
    raise Incompatible(
        f"runtime {runtime}: it is not installed here: add shoal's extra 'language' to this environment, or name the "
        f'Python of another with workers = "{runtime}=/that/bin/python"'
    )


def _part(fields: Mapping[str, Any]) -> Part:
    tokens, logprobs = tuple(fields["tokens"]), tuple(fields["logprobs"])
    return Part(str(fields["text"]), tokens, logprobs, tuple(fields["margins"]))


def _end(answer: frames.Frame) -> End:
    if answer.kind == "end":
        return End(str(answer.fields["finish"]), int(answer.fields["prompt"]), int(answer.fields["answer"]))
    message = str(answer.fields.get("message", ""))[:500]
    if "limit" in answer.fields:
        told = f"{message}: send less, or ask for a model with a longer context"
        raise TooLong(told, int(answer.fields["prompt"]), int(answer.fields["limit"]))
    raise Incompatible(message)
