"""The demo's data: spoken smart-home commands and what they mean.

The sentences come from the templates of the package `home-assistant-intents` (Apache-2.0), expanded at random with a
seed. Train and test are split by *template*, so that no test sentence is a variation of one that was trained on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from hassil.expression import Alternative, Expression, Group, ListReference, Permutation, RuleReference, TextChunk
from hassil.parse_expression import parse_sentence

# What a home would put into the open slots of the templates.
_SLOTS = {
    "name": "kitchen light;ceiling fan;front door;bedroom lamp;hallway lights;thermostat;garage door;tv;robot vacuum",
    "area": "kitchen;living room;bedroom;bathroom;garage;office;hallway;garden;dining room;nursery",
    "floor": "ground floor;first floor;upstairs;basement;attic",
    "message": "dinner is ready;time to go;the taxi is here;come downstairs please",
    "search_query": "some jazz;the beatles;relaxing music;the news;my morning playlist",
    "zone": "home;work;school",
    "timer_name": "pizza;laundry;tea;egg",
    "timer_command": "turn off the lights;open the blinds;close the garage door",
    "shopping_list_item": "milk;apples;bread;olive oil;two lemons",
    "todo_list_item": "call the plumber;water the plants;pay the rent",
}
_RANGE_DEFAULT = {"from": 0, "to": 100}
_TEST_SHARE = 0.3
_MIN_TEMPLATES = 4
_TRAIN_PER_CLASS = 110


@dataclass(frozen=True)
class Split:
    """Rows of text and label; no template stands behind both."""

    train: list[tuple[str, str]]
    test: list[tuple[str, str]]


def make_split(seed: int = 7, *, test_per_class: int = 30) -> Split:
    """Expand the templates; the training rows are the same however many test rows are asked for.

    Raises `ModuleNotFoundError` when the data packages are not installed.
    """
    data = json.loads(files("home_assistant_intents").joinpath("data", "en.json").read_text())
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    per_class = {"train": _TRAIN_PER_CLASS, "test": test_per_class}
    for intent, body in sorted(data["intents"].items()):
        templates = sorted({t for block in body["data"] for t in block["sentences"]})
        if len(templates) < _MIN_TEMPLATES:
            continue
        _rng(seed, intent).shuffle(templates)
        held_out = max(2, round(_TEST_SHARE * len(templates)))
        parts = {"test": templates[:held_out], "train": templates[held_out:]}
        texts = {part: set(_expand(t, per_class[part], data, _rng(seed, intent, part))) for part, t in parts.items()}
        texts["test"] -= texts["train"]
        for part, found in texts.items():
            rows[part] += [(text, intent) for text in sorted(found)]
    return Split(**rows)


def _rng(*words: object) -> random.Random:
    return random.Random(" ".join(map(str, words)))  # noqa: S311  data, not secrets


def write_jsonl(path: Path, rows: list[tuple[str, str]]) -> Path:
    """One `{"text", "label"}` object a line."""
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


def _expand(templates: list[str], count: int, data: Mapping[str, Any], rng: random.Random) -> Iterator[str]:
    """About `count` sentences, evenly over the templates."""
    trees = [parse_sentence(t, keep_text=True).expression for t in templates]
    for i in range(count):
        text = " ".join(_say(trees[i % len(trees)], data, rng).split())
        if text:
            yield text


def _say(node: Expression, data: Mapping[str, Any], rng: random.Random) -> str:
    if isinstance(node, TextChunk):
        return node.original_text
    if isinstance(node, Alternative):
        return _say(rng.choice(node.items), data, rng)
    if isinstance(node, Permutation):
        return " ".join(_say(item, data, rng) for item in rng.sample(node.items, len(node.items)))
    if isinstance(node, Group):
        return "".join(_say(item, data, rng) for item in node.items)
    if isinstance(node, RuleReference):
        return _say(parse_sentence(data["expansion_rules"][node.rule_name]).expression, data, rng)
    if isinstance(node, ListReference):
        return _slot(node.list_name, data, rng)
    raise TypeError(f"template: unexpected part {type(node).__name__}")


def _slot(name: str, data: Mapping[str, Any], rng: random.Random) -> str:
    if name in _SLOTS:
        return rng.choice(_SLOTS[name].split(";"))
    slot = data["lists"].get(name, {"range": _RANGE_DEFAULT})
    if "values" in slot:
        value = rng.choice(slot["values"])
        return _say(parse_sentence(value["in"] if isinstance(value, dict) else value).expression, data, rng)
    bounds = slot.get("range", _RANGE_DEFAULT)
    return str(rng.randrange(bounds["from"], bounds["to"] + 1, bounds.get("step", 1)))
