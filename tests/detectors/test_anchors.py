from math import sqrt

import pytest
import torch

from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.ssd.anchors import AnchorLayout, clip_shapes, dense_shapes, make_anchors, ssd_shapes

CPU = torch.device("cpu")
CELLS = (40, 20, 10, 5, 3, 1)


def centered(x, y, width, height):
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


@pytest.fixture(scope="module")
def layout():
    with torch.device("meta"):  # the layout alone: no weights are made
        return build_detector("ssd320_vgg16", 21).anchors


@pytest.fixture(scope="module")
def anchors(layout):
    return make_anchors(layout, (320, 320), tuple((n, n) for n in CELLS), CPU)


def test_numbers_of_the_paper(layout, anchors):
    assert layout.per_cell == (4, 6, 6, 6, 4, 4)
    assert len(anchors) == 4 * 1600 + 6 * 400 + 6 * 100 + 6 * 25 + 4 * 9 + 4


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # conv4_3: step 8, min_size 32 (10 %), max_size 64 (20 %), ratio 2
        (0, centered(4, 4, 32, 32)),
        (1, centered(4, 4, sqrt(32 * 64), sqrt(32 * 64))),
        (2, centered(4, 4, 32 * sqrt(2), 32 / sqrt(2))),
        (3, centered(4, 4, 32 / sqrt(2), 32 * sqrt(2))),
        (4 * (2 * 40 + 5), centered(44, 20, 32, 32)),  # row 2, column 5
        # fc7: step 16, min_size 64, max_size 118.4 (37 %), ratios 2 and 3
        (6400, centered(8, 8, 64, 64)),
        (6401, centered(8, 8, sqrt(64 * 118.4), sqrt(64 * 118.4))),
        (6405, centered(8, 8, 64 / sqrt(3), 64 * sqrt(3))),
        # conv8_2: step 100, min_size 227.2 (71 %)
        (9550 + 4, centered(150, 50, 227.2, 227.2)),
        # conv9_2: step 320, min_size 281.6 (88 %), max_size 336 (105 %)
        (9586, centered(160, 160, 281.6, 281.6)),
        (9587, centered(160, 160, sqrt(281.6 * 336), sqrt(281.6 * 336))),
    ],
)
def test_boxes_computed_by_hand_from_the_published_rule(anchors, row, expected):
    torch.testing.assert_close(anchors[row], torch.tensor(expected), rtol=1e-5, atol=1e-3)


def test_other_sizes_divide_the_image_evenly(layout):
    cells = ((50, 60), (25, 30), (13, 15), (7, 8), (5, 6), (3, 4))
    anchors = make_anchors(layout, (400, 480), cells, CPU)
    last = anchors[-4 * 12 :].view(3, 4, 4, 4)[:, :, 0]  # conv9_2's squares by row and column
    torch.testing.assert_close(last[1, 2], torch.tensor(centered(2.5 * 120, 200, 0.88 * 480, 0.88 * 400)))


def test_square_shapes_follow_the_image(layout):
    tall = make_anchors(AnchorLayout(ssd_shapes((0.5, 1.0), [()])), (200, 100), ((1, 1),), CPU)
    torch.testing.assert_close(tall[0], torch.tensor(centered(50, 100, 50, 100)))


def test_the_same_anchors_are_computed_once(layout):
    cells = tuple((n, n) for n in CELLS)
    assert make_anchors(layout, (320, 320), cells, CPU) is make_anchors(layout, (320, 320), cells, CPU)


def test_anchors_first_made_in_inference_mode_serve_training():
    layout = AnchorLayout(ssd_shapes((0.5, 1.0), [()]))
    with torch.inference_mode():
        anchors = make_anchors(layout, (31, 37), ((3, 3),), CPU)
    assert not anchors.is_inference()


def test_dense_shapes_are_a_square_a_wide_and_a_tall_box_for_each_scale():
    (shapes,) = dense_shapes([(0.2, 0.4)], ratio=4.0)
    assert [pytest.approx(shape) for shape in shapes] == [
        (0.2, 0.2),
        (0.4, 0.1),
        (0.1, 0.4),
        (0.4, 0.4),
        (0.8, 0.2),
        (0.2, 0.8),
    ]


def test_clipped_shapes_are_no_larger_than_the_image():
    assert clip_shapes([[(0.5, 1.25), (1.5, 0.25)], [(2.0, 2.0)]]) == (((0.5, 1.0), (1.0, 0.25)), ((1.0, 1.0),))
