"""The language runtimes of a worker process; `agent/serving/worker_program.py` loads this file and calls `serve`.

Needs Python 3.9, numpy and the runtime, and imports nothing of ours. A request is answered by itself alone: no part of
an earlier prompt is kept.
"""

from __future__ import annotations

import json
import os
import select
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Optional, Protocol

import numpy as np

_LONGEST_MESSAGE = 2000


class TooLong(Exception):
    """A prompt leaves no room for an answer; in tokens."""

    def __init__(self, prompt: int, limit: int) -> None:
        super().__init__(f"the prompt has {prompt} tokens, the model takes {limit} with its answer")
        self.prompt, self.limit = prompt, limit


@dataclass(frozen=True)
class Settings:
    """`context` in tokens, and the Jinja template of a chat, None for a model that only completes."""

    context: int
    template: Optional[str]  # noqa: UP045  a worker may run on Python 3.9
    threads: int


@dataclass(frozen=True)
class Asked:
    """One request. `seed` None takes another each time; `temperature` 0 always takes the likeliest token."""

    messages: Optional[list[dict[str, str]]]  # noqa: UP045  as above
    prompt: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: Optional[int]  # noqa: UP045
    stop: Sequence[str]


@dataclass
class Part:
    """What came next of an answer: text, and the tokens that were chosen meanwhile. Either may be empty."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class End:
    """How an answer ended, and how many tokens the prompt and the answer had."""

    finish: str
    prompt: int
    answer: int


Tell = Callable[[Part], bool]
"""Passes a part on; False once nobody wants the rest."""


class Runtime(Protocol):
    """A loaded model."""

    version: str

    def generate(self, asked: Asked, tell: Tell) -> End:
        """Answer one request. Raises `TooLong`, and whatever the runtime raises."""


def serve(frames: Any, runtime: str, model: str, settings: str) -> int:
    """Load, say so, answer until standard input ends; the exit code."""
    door = _Door(frames, runtime)
    try:
        loaded = RUNTIMES[runtime](model, Settings(**json.loads(settings)))
    except ImportError as e:
        door.refuse(f"is not in the environment of {sys.executable}: install it there ({e})")
        return 1
    except Exception as e:  # noqa: BLE001  runtimes raise anything; whatever it is, the model does not load here
        door.refuse(f"does not load it: {e}")
        return 1
    door.say("ready", version=loaded.version)
    while True:
        frame = door.hear()
        if frame is None:
            return 0
        if frame.kind == "generate":  # a `stop` that came after the end means nothing
            _answer(loaded, Asked(**frame.fields), door)


def _answer(loaded: Runtime, asked: Asked, door: _Door) -> None:
    try:
        end = loaded.generate(asked, door.tell)
    except TooLong as e:
        door.say("error", message=str(e), prompt=e.prompt, limit=e.limit)
    except Exception as e:  # noqa: BLE001  as above; the next request may fare better
        door.refuse(f"does not answer: {e}")
    else:
        door.say("end", finish=end.finish, prompt=end.prompt, answer=end.answer)


class _Door:
    """Frames in and out. They own the real standard output: what a runtime prints goes to standard error.

    Standard input is read without a buffer, so that the kernel can say whether something waits there.
    """

    def __init__(self, frames: Any, runtime: str) -> None:
        self._frames = frames
        self._runtime = runtime
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def hear(self) -> Any:
        """The next frame; None at the end."""
        return self._frames.read(_take)

    def say(self, kind: str, **fields: Any) -> None:
        """Send a frame."""
        self._out.write(self._frames.pack(self._frames.Frame(kind, [], fields)))
        self._out.flush()

    def tell(self, part: Part) -> bool:
        """Send a part of an answer. Whether the rest is wanted."""
        self.say("part", text=part.text, tokens=part.tokens, logprobs=part.logprobs, margins=part.margins)
        if not select.select([0], [], [], 0)[0]:
            return True
        frame = self.hear()
        return frame is not None and frame.kind != "stop"

    def refuse(self, words: str) -> None:
        """Say why the runtime does not do it."""
        self.say("error", message=f"{self._runtime} {words}"[:_LONGEST_MESSAGE])


def _take(n: int) -> bytes:
    found = bytearray()
    while len(found) < n:
        data = os.read(0, n - len(found))
        if not data:
            break
        found += data
    return bytes(found)


# --- GGUF, in llama.cpp -----------------------------------------------------------------------------------------------


class Gguf:
    """A GGUF file in xllamacpp, llama.cpp's own server in this process.

    That server listens, and can be told not to on no address at all: it gets a Unix socket in a folder of its own,
    which is gone before the model is said to be ready.
    """

    def __init__(self, model: str, settings: Settings) -> None:
        import xllamacpp  # noqa: PLC0415  the runtime of this process

        self._settings = settings
        params = xllamacpp.CommonParams()
        params.model.path = model
        params.n_ctx = settings.context
        params.n_parallel = 1
        params.n_batch = min(512, settings.context)
        params.n_ubatch = params.n_batch
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
        params.n_threads_http = 1
        params.cpuparams.poll = params.cpuparams_batch.poll = 0  # no spinning
        params.fit_params = params.ctx_shift = params.ui = params.endpoint_slots = False
        # What one app asked is kept for no other; and the cache alone may grow to 8 GiB.
        params.cache_prompt = params.cache_idle_slots = False
        params.cache_ram_mib = 0
        params.verbosity = 0
        if settings.template is not None:
            params.chat_template = settings.template
        params.use_jinja = params.force_pure_content_parser = True
        with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
            params.hostnames = [str(Path(folder, "s.sock"))]
            self._server = xllamacpp.Server(params)
        self.version = str(xllamacpp.__version__)

    def generate(self, asked: Asked, tell: Tell) -> End:
        """Answer one request; llama.cpp holds back what may become a stop sequence."""
        told = _Told(tell, self._settings.context)
        request = self._request(asked)
        if asked.messages is None:
            self._server.handle_completions(request, told.hear)
        else:
            self._server.handle_chat_completions(request, told.hear)
        if told.error is not None:
            raise told.error
        return told.end()

    def _request(self, asked: Asked) -> dict[str, Any]:
        request: dict[str, Any] = {
            "max_tokens": min(asked.max_tokens, self._settings.context),
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": 1 if asked.temperature == 0 else 0,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "samplers": ["top_k", "top_p", "temperature"],
            "stop": list(asked.stop),
            "stream": True,
            "stream_options": {"include_usage": True},
            "cache_prompt": False,
            "timings_per_token": True,  # with them the length of the prompt, which an answer broken off never tells
        }
        if asked.seed is not None:
            request["seed"] = asked.seed % (1 << 32)
        if asked.messages is None:
            return {**request, "prompt": asked.prompt, "logprobs": 2}
        return {**request, "messages": asked.messages, "logprobs": True, "top_logprobs": 2}


class _Told:
    """What llama.cpp's chunks, in OpenAI's form, came to. `hear` gives True where it shall stop.

    llama.cpp rounds its context up: the limit is held here.
    """

    def __init__(self, tell: Tell, context: int) -> None:
        self._tell = tell
        self._context = context
        self._finish = ""
        self._usage: dict[str, Any] = {}
        self._prompt = 0
        self._seen = 0
        self._stopped = False
        self.error: Optional[Exception] = None  # noqa: UP045

    def hear(self, chunk: Any) -> bool:
        value = json.loads(chunk) if isinstance(chunk, (str, bytes)) else chunk
        for one in value if isinstance(value, list) else [value]:
            self._take(one)
        return self._stopped

    def _take(self, value: dict[str, Any]) -> None:
        if "error" in value or "choices" not in value:
            self.error = _fault(value.get("error", value))
            return
        self._usage = value.get("usage") or self._usage
        self._prompt = int((value.get("timings") or {}).get("prompt_n", self._prompt))
        for choice in value["choices"]:
            self._finish = choice.get("finish_reason") or self._finish
            self._pass_on(_part(choice))

    def _pass_on(self, part: Part) -> None:
        if self._stopped or not (part.text or part.tokens):
            return
        if self._prompt >= self._context:
            # Kept: an exception would end in llama.cpp.
            self._stopped, self.error = True, TooLong(self._prompt, self._context)
            return
        self._seen += len(part.tokens)
        if not self._tell(part):
            self._stopped, self._finish = True, "stopped"
        elif self._prompt + self._seen >= self._context:
            self._stopped, self._finish = True, "length"

    def end(self) -> End:
        """The end, by llama.cpp's own count where it came so far."""
        finish = self._finish or "stop"
        answer = int(self._usage.get("completion_tokens", self._seen))
        return End(finish, int(self._usage.get("prompt_tokens", self._prompt)), answer)


def _part(choice: dict[str, Any]) -> Part:
    text = choice.get("text")
    if text is None:
        text = (choice.get("delta") or choice.get("message") or {}).get("content")
    part = Part(text or "")
    for token in (choice.get("logprobs") or {}).get("content") or []:
        part.tokens.append(int(token["id"]))
        part.logprobs.append(float(token["logprob"]))
        best = sorted((float(t["logprob"]) for t in token.get("top_logprobs", [])), reverse=True)
        part.margins.append(best[0] - best[1] if len(best) > 1 else 0.0)
    return part


def _fault(error: Any) -> Exception:
    if isinstance(error, dict) and error.get("type") == "exceed_context_size_error":
        return TooLong(int(error.get("n_prompt_tokens", 0)), int(error.get("n_ctx", 0)))
    return RuntimeError(str(error.get("message", error)) if isinstance(error, dict) else str(error))


# --- ONNX Runtime -----------------------------------------------------------------------------------------------------


class Genai:
    """A folder of onnxruntime-genai: its graph, cache and tokenizer; the next token is chosen here.

    So a seed gives the same answer with each version of the runtime, and every token its probability.
    """

    def __init__(self, model: str, settings: Settings) -> None:
        import onnxruntime_genai as genai  # noqa: PLC0415  the runtime of this process

        self._genai = genai
        self._words = _beside("language_words")
        self._settings = settings
        config = genai.Config(str(Path(model).parent))
        options = {"intra_op_num_threads": settings.threads, "session.intra_op.allow_spinning": "0"}
        search = {"max_length": settings.context}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}, "search": search}))
        self._model = genai.Model(config)
        self._tokenizer = genai.Tokenizer(self._model)
        self._ends = frozenset(map(int, self._tokenizer.eos_token_ids))
        self.version = _version("onnxruntime-genai")

    def generate(self, asked: Asked, tell: Tell) -> End:
        """Answer one request."""
        ids = [int(i) for i in self._tokenizer.encode(self._prompt(asked))]
        room = self._settings.context - len(ids)
        if room < 1 or not ids:
            raise TooLong(len(ids), self._settings.context)
        pieces, count, finish = self._words.Pieces(asked.stop), 0, "length"
        for token, logprob, margin, text in self._tokens(ids, min(room, asked.max_tokens), asked):
            count += 1
            if token in self._ends:
                finish = "stop"
                break
            said = pieces.more(text)
            if not tell(Part(said, [token], [logprob], [margin])):
                return End("stopped", len(ids), count)
            if pieces.over:
                return End("stop", len(ids), count)
        rest = pieces.rest()
        if rest:
            tell(Part(rest))
        return End(finish, len(ids), count)

    def _prompt(self, asked: Asked) -> str:
        if asked.messages is None:
            return asked.prompt
        told = json.dumps(asked.messages)
        return str(self._tokenizer.apply_chat_template(told, template_str=self._settings.template))

    def _tokens(self, ids: list[int], most: int, asked: Asked) -> Iterator[tuple[int, float, float, str]]:
        """Token, log probability, margin to the second and text, one after the other."""
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=self._settings.context, batch_size=1)
        generator = self._genai.Generator(self._model, params)
        stream, random = self._tokenizer.create_stream(), np.random.default_rng(asked.seed)
        following = ids
        for _ in range(most):
            generator.append_tokens(np.asarray([following], np.int32))
            logits = np.asarray(generator.get_logits(), np.float64).reshape(-1, generator.get_logits().shape[-1])[-1]
            logprobs = logits - logits.max()
            logprobs -= np.log(np.exp(logprobs).sum())
            token = self._words.choose(logprobs, asked.temperature, asked.top_p, random)
            second, best = np.partition(logprobs, -2)[-2:]
            yield token, float(logprobs[token]), float(best - second), stream.decode(token)
            following = [token]


def _beside(name: str) -> Any:
    """A file of ours beside this one: the process has no path to our packages."""
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _version(package: str) -> str:
    from importlib.metadata import version  # noqa: PLC0415

    return version(package)


RUNTIMES: dict[str, Callable[[str, Settings], Runtime]] = {"gguf": Gguf, "onnxruntime-genai": Genai}
