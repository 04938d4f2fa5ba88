"""The quality of masks: what their probabilities let expect, whatever ranks the objects."""

import numpy as np
import pytest
import torch

from dasnet_lightning.inference.tiles import segment_tiled

BOXES, LABELS = [[5.0, 5, 60, 50], [40.0, 20, 100, 80], [10.2, 60.1, 10.6, 60.4]], [1, 2, 3]


def make_image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("task", "decoder"), [("instance", "zoom"), ("instance", "light"), ("semantic", "zoom"), ("semantic", "light")]
)
def test_every_mask_has_a_quality(make_segmenter, task: str, decoder: str) -> None:
    segmenter = make_segmenter(task, decoder)
    given = segmenter.segment(make_image(), BOXES, LABELS)
    assert given.quality.shape == (3,)
    assert ((given.quality >= 0) & (given.quality <= 1)).all()
    assert len(set(given.quality[:2].tolist())) == 2  # of each mask, not of the image
    found = segmenter.segment(make_image())
    assert found.quality.shape == found.scores.shape


def test_the_quality_does_not_depend_on_what_ranks_the_objects(make_segmenter) -> None:
    weighted = make_segmenter("instance", "zoom").segment(make_image(), BOXES, LABELS)
    plain = make_segmenter("instance", "zoom", weight_by_instance_score=False).segment(make_image(), BOXES, LABELS)
    assert torch.equal(plain.scores, torch.ones(3))
    assert torch.equal(plain.quality, weighted.quality)


def test_a_mask_that_is_certain_has_a_higher_quality(make_segmenter) -> None:
    segmenter = make_segmenter("instance", "zoom")
    before = segmenter.segment(make_image(), BOXES, LABELS).quality
    with torch.no_grad():
        segmenter.model.head.score.weight.zero_()
        segmenter.model.head.score.bias.fill_(8.0)
    after = segmenter.segment(make_image(), BOXES, LABELS).quality
    assert (after[:2] > 0.99).all()
    assert (after >= before).all()


def test_tiles_keep_the_quality_of_their_masks(make_segmenter) -> None:
    segmenter, image = make_segmenter("instance", "zoom"), make_image()
    tiled = segment_tiled(segmenter, image, BOXES, LABELS, tile=128)
    assert ((tiled.quality > 0) & (tiled.quality <= 1))[:2].all()
    assert segment_tiled(segmenter, image, tile=64).quality is not None
