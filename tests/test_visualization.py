"""Drawing: colors where the labels are, nothing outside, inputs untouched."""

import numpy as np
import pytest
import torch

from dasnet_lightning import visualization as draw
from dasnet_lightning.visualization import text

NAMES = ("background", "cat", "dog")


@pytest.fixture
def grey() -> np.ndarray:
    return np.full((60, 90, 3), 128, dtype=np.uint8)


def test_the_voc_palette_has_the_published_colors() -> None:
    palette = draw.voc_palette()
    assert palette.shape == (256, 3)
    assert palette[[0, 1, 8, 15, 20]].tolist() == [[0, 0, 0], [128, 0, 0], [64, 0, 0], [192, 128, 128], [0, 64, 128]]
    assert palette[255].tolist() == [224, 224, 192]


@pytest.mark.parametrize("count", [0, 1, 12, 60])
def test_instance_colors_are_distinct(count: int) -> None:
    palette = draw.instance_palette(count)
    assert palette.shape == (count, 3)
    assert len({tuple(colour) for colour in palette.tolist()}) == count
    assert np.array_equal(palette, draw.instance_palette(count + 5)[:count])


def test_a_mask_tints_its_pixels_and_no_others(grey: np.ndarray) -> None:
    mask = np.zeros((1, 60, 90), dtype=bool)
    mask[0, 20:40, 30:60] = True
    before = grey.copy()
    result = draw.draw_masks(grey, mask, [(255, 0, 0)], alpha=0.5)
    assert np.array_equal(grey, before)
    assert np.abs(result[30, 45].astype(int) - (192, 64, 64)).max() <= 1
    assert result[20, 45, 0] > 215  # the outline is nearly solid
    far = np.ones((60, 90), dtype=bool)
    far[16:44, 26:64] = False
    assert (result[far] == 128).all()
    flat = draw.draw_masks(grey, mask, [(255, 0, 0)], alpha=0.5, outline=False)
    assert (flat[~mask[0]] == 128).all()


def test_small_masks_are_drawn_over_large_ones(grey: np.ndarray) -> None:
    masks = np.zeros((2, 60, 90), dtype=bool)
    masks[0, 25:35, 40:50] = True
    masks[1] = True
    result = draw.draw_masks(grey, masks, [(255, 0, 0), (0, 0, 255)], alpha=1.0, outline=False)
    assert result[30, 45].tolist() == [255, 0, 0]
    assert result[0, 0].tolist() == [0, 0, 255]


def test_boxes_are_drawn_and_clipped_at_the_border(grey: np.ndarray) -> None:
    boxes = torch.tensor([[-20.0, 30.0, 40.0, 500.0]])
    result = draw.draw_boxes(grey, boxes, torch.tensor([1]), None, NAMES, colors=[(0, 255, 0)])
    for row, column in ((45, 0), (45, 40), (59, 20)):
        assert result[row, column].tolist() == [0, 255, 0]
    assert result[45, 20].tolist() == [128, 128, 128]


def test_labels_stay_inside_the_picture_and_apart() -> None:
    taken: list[text.PixelBox] = []
    for _ in range(4):
        place = text._free_place((5.0, 3.0, 85.0, 57.0), 40.0, 12.0, (90, 60), taken)
        assert place[0] >= 0
        assert place[1] >= 0
        assert place[2] <= 90
        assert place[3] <= 60
        assert sum(text._overlap(place, other) for other in taken) == 0
        taken.append(place)


def test_scores_labels_and_unknown_classes_are_written(grey: np.ndarray) -> None:
    boxes = [[10, 20, 60, 50]]
    plain = draw.draw_boxes(grey, boxes, [1], None, NAMES)
    assert not np.array_equal(plain, draw.draw_boxes(grey, boxes, [1], [0.5], NAMES))
    assert not np.array_equal(plain, draw.draw_boxes(grey, boxes, [2], None, NAMES))
    assert draw.draw_boxes(grey, boxes, [7], None, NAMES).shape == grey.shape


def test_nothing_to_draw_gives_a_copy(grey: np.ndarray) -> None:
    empty = np.zeros((0, 4))
    result = draw.draw_segmentation(grey, empty, [], [], np.zeros((0, 60, 90), dtype=bool), NAMES)
    assert np.array_equal(result, grey)
    assert result is not grey
    assert np.array_equal(draw.draw_semantic(grey, np.zeros((60, 90)), NAMES, legend=False), grey)


def test_a_segmentation_shows_box_and_mask_in_one_colour(grey: np.ndarray) -> None:
    masks = np.zeros((1, 60, 90), dtype=bool)
    masks[0, 30:50, 30:60] = True
    result = draw.draw_segmentation(grey, [[28, 28, 62, 52]], [2], [0.9], masks, NAMES, scale=2)
    colour = draw.instance_palette(1)[0]
    assert result.shape == (120, 180, 3)
    assert result[104, 90].tolist() == colour.tolist()  # box line at 2 x 52
    assert np.abs(result[80, 90] - (0.55 * 128 + 0.45 * colour)).max() <= 2
    boxes_only = draw.draw_segmentation(grey, [[28, 28, 62, 52]], [2], [0.9], None, NAMES, scale=2)
    assert boxes_only[80, 90].tolist() == [128, 128, 128]


def test_semantic_maps_use_voc_colors_and_hatch_void(grey: np.ndarray) -> None:
    classes = np.zeros((60, 90), dtype=np.int64)
    classes[10:30, 10:40] = 2
    classes[40:55, 50:80] = 255
    result = draw.draw_semantic(grey, torch.from_numpy(classes), NAMES, alpha=1.0)
    assert result.shape[0] > 60  # the legend
    assert result[20, 20].tolist() == [0, 128, 0]
    assert len(np.unique(result[40:55, 50:80], axis=None)) >= 2
    assert (result[35, :] == 128).all()
    assert draw.draw_semantic(grey, classes, NAMES, legend=False, scale=3).shape == (180, 270, 3)


def test_semantic_maps_hold_more_classes_than_a_byte(grey: np.ndarray) -> None:
    names = ["background", *(f"part {number}" for number in range(1, 301))]
    classes = np.zeros((60, 90), dtype=np.int16)
    classes[:10], classes[10:20], classes[20:30] = 255, 300, -1
    result = draw.draw_semantic(grey, classes, names, alpha=1.0, legend=False)
    palette = draw.voc_palette(301)
    assert result[5, 5].tolist() == palette[255].tolist()
    assert result[15, 5].tolist() == palette[300].tolist()
    assert len(np.unique(result[22:28, 5:85])) >= 2
    assert len({tuple(color) for color in palette.tolist()}) == 301


def test_pictures_stand_side_by_side_with_titles(grey: np.ndarray) -> None:
    low = np.zeros((20, 30, 3), dtype=np.uint8)
    plain = draw.side_by_side([grey, low])
    assert plain.shape[0] == 60
    assert plain.shape[1] > 120
    assert np.array_equal(plain[:60, :90], grey)
    assert (plain[:20, -30:] == 0).all()
    assert (plain[20:, -30:] == 255).all()
    titled = draw.side_by_side([grey, low], ["first", "a title that is far too long for the picture"])
    assert titled.shape[0] > 60
    with pytest.raises(ValueError, match="2 pictures but 1 titles"):
        draw.side_by_side([grey, low], ["one"])


@pytest.mark.parametrize(("size", "scale"), [((64, 64), 8), ((320, 320), 2), ((375, 500), 1), ((2000, 3000), 1)])
def test_small_pictures_are_enlarged_by_a_whole_number(size: tuple[int, int], scale: int) -> None:
    picture = np.zeros((*size, 3), dtype=np.uint8)
    assert draw.readable_scale(picture) == scale
    assert draw.enlarge(picture, 2).shape == (2 * size[0], 2 * size[1], 3)
