from __future__ import annotations

from typing import Any

from fleet_process import Publisher, tiny_bundle
from hypothesis import given
from hypothesis import strategies as st

from fleet.mqtt.transfer import Wishes
from wire import topics
from wire.chunks import digest


def test_a_chunk_that_two_devices_want_is_published_once(publisher: Publisher, new_device: Any) -> None:
    manifest, blobs = tiny_bundle()
    publisher.release(manifest, blobs)
    model = manifest.file("model").digest
    a, b = new_device("a"), new_device("b")
    for device in (a, b):
        device.connect(topics.every(topics.Chunk))
    for device in (a, b):
        device.want(model, range(5), 5)

    for device in (a, b):
        pieces = [device.next(topics.Chunk) for _ in range(5)]
        assert [topic.index for topic, _ in pieces] == [0, 1, 2, 3, 4]
        assert digest(b"".join(data for _, data in pieces)) == model
    # The labels come after everything that was asked for before them: nothing came twice.
    labels = manifest.file("labels").digest
    a.want(labels, range(1), 1)
    assert a.next(topics.Chunk)[0] == topics.Chunk(labels, 0)


def test_a_blob_that_no_release_lists_is_not_sent(publisher: Publisher, new_device: Any) -> None:
    manifest, blobs = tiny_bundle()
    publisher.release(manifest, blobs)
    secret = b"uploaded and never released"
    publisher.upload([secret])
    a = new_device("curious")
    a.connect(topics.every(topics.Chunk))
    a.want(digest(secret), range(1), 1)
    a.want(manifest.file("labels").digest, range(1), 1)
    assert a.next(topics.Chunk)[0] == topics.Chunk(manifest.file("labels").digest, 0)
    assert "no release lists" in a.view()["security"][-1]["reason"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.frozensets(st.integers(0, 9)))))
def test_every_wish_is_taken_exactly_once(asked: list[tuple[str, frozenset[int]]]) -> None:
    wishes, taken = Wishes(), []
    for blob, indexes in asked:
        wishes.add(blob, indexes)
    while (wish := wishes.take()) is not None:
        taken.append(wish)
    assert sorted(taken) == sorted({(blob, i) for blob, indexes in asked for i in indexes})
    assert not wishes
