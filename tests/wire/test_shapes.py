"""What inputs and answers look like: thinned evenly where it does not fit, in coarse buckets; languages of texts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from drift_device import answers
from hypothesis import example, given
from hypothesis import strategies as st

from wire.document import dump_json
from wire.language import LANGUAGES, language_of
from wire.messages import InferenceStats
from wire.processing import Result
from wire.shapes import ROOM, Shapes, thinned
from wire.sketch import COARSE, Sketch

tables = st.dictionaries(st.text(max_size=30), st.integers(1, 10**6), max_size=60)
DIGEST = "sha256:" + "1" * 64


@example({"a": 1000}, 3, 1e-308)
@given(tables, st.integers(0, 800), st.floats(0, 0.999))
def test_what_is_thinned_fits_and_what_fits_is_left_as_it_is(counts: dict[str, int], room: int, offset: float) -> None:
    found = thinned(counts, room, offset)
    assert len(dump_json(found)) <= max(room, 2)
    assert set(found) <= set(counts)
    if len(dump_json(counts)) <= room:
        assert found == counts


def test_of_a_thinned_table_the_expected_share_of_each_is_what_it_was() -> None:
    """The rare ones most of all: what is cut off at the end of a table is missing in a fleet of a million, too."""
    counts = {f"label-{i:03}": 1 + 2000 // (i + 1) for i in range(200)}
    total, rounds = Counter[str](), 1500
    for i in range(rounds):
        total.update(thinned(counts, 600, (i + 0.5) / rounds))
    for name, n in counts.items():
        assert total[name] / rounds == pytest.approx(n, rel=0.08, abs=0.3), name


@given(st.lists(st.floats(1, 1e7), min_size=1, max_size=50), st.lists(st.floats(1, 1e7), max_size=50))
def test_coarse_sketches_merge_as_fine_ones_and_say_quantiles_within_a_quarter(a: list[float], b: list[float]) -> None:
    fine = Sketch.of(a).merge(Sketch.of(b))
    assert fine.coarse() == Sketch.of(a).coarse().merge(Sketch.of(b).coarse())
    assert fine.coarse().coarse() == fine.coarse()
    assert all(int(key) % COARSE == 0 for key in fine.coarse().buckets)
    exact, told = fine.quantile(0.5), fine.coarse().quantile(0.5)
    assert exact is not None
    assert told is not None
    assert exact * 0.999 <= told <= exact * 1.04 ** (COARSE - 1) * 1.001


@given(st.integers(1, 5000), st.integers(1, 300), st.integers(0, 2**31))
def test_shapes_of_any_model_fit_into_their_room(n: int, labels: int, seed: int) -> None:
    names = [f"a-label-of-some-length-{i:04}" for i in range(labels)]
    shapes = Shapes()
    for result in answers(names, min(n, 300), seed=seed):
        shapes.add(result)
    for room in (ROOM, ROOM // 4, 100):
        stats = InferenceStats(model="m", digest=DIGEST, requests=n, errors=0, **shapes.fields(room=room))
        empty = InferenceStats(model="m", digest=DIGEST, requests=n, errors=0)
        assert len(stats.to_bytes()) - len(empty.to_bytes()) <= room
        assert InferenceStats.from_bytes(stats.to_bytes()) == stats


def test_what_is_counted_of_answers() -> None:
    shapes = Shapes()
    shapes.add(Result({"scores": np.float32([0.1, 0.9])}, ("on",), length=5, language="en"))
    shapes.add(Result({"scores": np.float32([[0.6, 0.4], [0.2, 0.8]])}, ("a", "b"), length=2, language="und"))
    shapes.add(Result({"embedding": np.float32([1.0])}))
    found = shapes.fields()
    assert found["labels"] == {"on": 1, "a": 1, "b": 1}
    assert found["languages"] == {"en": 1, "und": 1}
    assert (found["lengths"].count, sum(found["confidence"].bins), found["confidence"].bins[12]) == (2, 3, 1)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "turn on the kitchen light"),
        ("de", "mach das Licht in der Küche an"),
        ("fr", "allume la lumière dans la cuisine s'il te plaît"),
        ("es", "enciende la luz de la cocina por favor"),
        ("it", "accendi la luce della cucina per favore"),
        ("pt", "acende a luz da cozinha, não a da sala"),
        ("nl", "doe het licht in de keuken aan"),
        ("pl", "włącz światło w kuchni"),
        ("sv", "tänd lampan som är på bordet"),
        ("tr", "mutfak ışığını aç"),
        ("cs", "rozsviť světlo v kuchyni, prosím"),
        ("ru", "включи свет на кухне, пожалуйста, и не выключай его"),
        ("uk", "увімкни світло на кухні"),
        ("bg", "пусни лампата, която е на масата, аз ще чета"),
        ("ja", "台所の電気をつけて"),
        ("zh", "打开厨房的灯"),
        ("ko", "주방 불 켜줘"),
        ("ar", "أشعل ضوء المطبخ"),
        ("fa", "چراغ آشپزخانه را روشن کن"),
        ("hi", "रसोई की बत्ती जलाओ"),
        ("el", "άναψε το φως στην κουζίνα"),
        ("he", "תדליק את האור במטבח"),
        ("th", "เปิดไฟในครัว"),
        ("und", "12:30"),
        ("und", ""),
    ],
)
def test_the_language_of_a_text(language: str, text: str) -> None:
    assert language_of(text) == language


@given(st.text())
def test_any_text_has_one_of_the_known_languages(text: str) -> None:
    assert language_of(text) in LANGUAGES
