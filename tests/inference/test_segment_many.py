"""Many images in batches: equal to single calls, in order, each error at its image, threads that end."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dasnet_lightning.errors import ConfigError, DataError
from dasnet_lightning.inference import segmenter as inference
from dasnet_lightning.inference.segmentation import Segmentation

SIZES = [(64, 64), (90, 50), (33, 120), (120, 100), (64, 64), (71, 71), (48, 64)]


def make_images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def assert_equal(one: Segmentation, other: Segmentation) -> None:
    assert np.array_equal(one.image, other.image)
    torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=1e-5 * max(one.image.shape))
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-5)
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.masks, other.masks)
    assert torch.equal(one.semantic, other.semantic)


@pytest.mark.parametrize(
    ("task", "decoder", "options"),
    [
        ("instance", "zoom", {}),
        ("instance", "light", {"flip": True, "guided_filter": True}),
        ("semantic", "light", {"flip": True}),
    ],
)
def test_batches_answer_as_single_calls_do(make_segmenter, task: str, decoder: str, options: dict) -> None:
    segmenter, images = make_segmenter(task, decoder, **options), make_images()
    alone = [segmenter.segment(image) for image in images]
    assert sum(map(len, alone)) > len(images)
    together = list(segmenter.segment_many(images, batch_size=5, workers=2))
    assert len(together) == len(images)
    for one, other in zip(alone, together, strict=True):
        assert_equal(one, other)


def test_given_boxes_of_each_image(make_segmenter) -> None:
    segmenter, images = make_segmenter(), make_images()
    boxes = [[[2.0, 3.0, 20.0 + n, 30.0]] * (n % 3) for n in range(len(images))]
    labels = [["star", 1][: n % 3] for n in range(len(images))]
    together = list(segmenter.segment_many(iter(images), iter(boxes), labels, batch_size=4))
    assert [len(item) for item in together] == [0, 1, 2, 0, 1, 2, 0]
    for image, box, label, other in zip(images, boxes, labels, together, strict=True):
        assert_equal(segmenter.segment(image, box, label), other)


def test_an_error_comes_at_its_image_and_the_rest_follows(make_segmenter, tmp_path: Path) -> None:
    segmenter = make_segmenter()
    paths = []
    for number, image in enumerate(make_images()):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(paths[-1])
    paths[2].write_bytes(b"no image")
    paths[5].unlink()
    stream = segmenter.segment_many(paths, batch_size=2, workers=2)
    seen = []
    for _ in paths:
        try:
            seen.append(next(stream).image.shape[:2])
        except DataError as error:
            seen.append(str(error).partition(":")[0])
    assert seen == [*SIZES[:2], str(paths[2]), *SIZES[3:5], str(paths[5]), SIZES[6]]
    assert next(stream, None) is None


def test_wrong_boxes_name_their_image(make_segmenter) -> None:
    segmenter, images = make_segmenter(), make_images()[:2]
    fine = [[0.0, 0.0, 9.0, 9.0]]
    stream = segmenter.segment_many(images, [fine, [[0, 0, 9, 9], [70, 5, 80, 20]]], [[1], [1, 1]])
    assert len(next(stream)) == 1
    with pytest.raises(ConfigError, match=r"image 1: box 1: \[70.0, 5.0, 80.0, 20.0\] lies outside the image of 50x90"):
        next(stream)
    with pytest.raises(ConfigError, match="image 1: no boxes are left"):
        list(segmenter.segment_many(images, [fine], [[1]]))
    with pytest.raises(ConfigError, match="go on after the last of 1 images"):
        list(segmenter.segment_many(images[:1], [fine, fine], [[1]]))
    with pytest.raises(ConfigError, match="1 boxes need 1 labels, given: none"):
        list(segmenter.segment_many(images[:1], [fine]))
    with pytest.raises(ConfigError, match="labels are given without boxes"):
        list(segmenter.segment_many(images, labels=[[1], [1]]))
    with pytest.raises(ConfigError, match="batch_size=0"):
        segmenter.segment_many(images, batch_size=0)


def test_images_are_read_only_a_little_ahead_and_threads_end(make_segmenter) -> None:
    segmenter, read = make_segmenter(), []
    before = threading.active_count()

    def endless() -> Iterator[np.ndarray]:
        while True:
            read.append(1)
            yield make_images()[0]

    stream = segmenter.segment_many(endless(), batch_size=2, workers=2)
    for _ in range(5):
        next(stream)
    assert 5 <= len(read) <= 5 + 2 + 2 + 2 + 1
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before
    assert next(stream, None) is None


def test_an_error_of_the_images_themselves_comes_last(make_segmenter) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield make_images()[0]
        raise OSError("the disk is gone")

    stream = make_segmenter().segment_many(broken(), batch_size=8)
    assert next(stream).image.shape == (64, 64, 3)
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)


def test_large_images_make_small_batches(make_segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, images, batches = make_segmenter(), make_images(), []
    segment = segmenter._segment_batch
    monkeypatch.setattr(segmenter, "_segment_batch", lambda batch: batches.append(len(batch)) or segment(batch))
    monkeypatch.setattr(inference, "PIXELS_AT_ONCE", 10_000)
    assert [item.image.shape[:2] for item in segmenter.segment_many(images, batch_size=3)] == SIZES
    assert batches == [2, 1, 1, 2, 1]
