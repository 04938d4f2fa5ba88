"""Inference of a decoder of boxes that returns fixed grids: masks, margins, quality, class map, refinement."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dasnet_lightning.detectors.frozen import FrozenDetector
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.boxes import scale_boxes
from dasnet_lightning.functional.mask_quality import estimate_iou
from dasnet_lightning.functional.regions import regions_by_class
from dasnet_lightning.models.box_scores import NO_REFINEMENT, Refinement
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.models.instance import InstanceOptions, segment_instances
from dasnet_lightning.models.semantic import SemanticOptions, segment_semantic
from dasnet_lightning.nn.decoder import BoxDecoder, build_decoder
from dasnet_lightning.nn.heads import SemanticHead, ShapeHead
from dasnet_lightning.types import Detections, Prediction, Pyramid, Regions
from toy import ToyDetector, make_batch, make_target

GRID = 16
EVERYTHING = InstanceOptions(score_threshold=0.0, lowest_score=0.0, weight_by_instance_score=False)
BOXES = [[4.0, 4, 14, 14], [12.0, 8, 28, 30], [0.0, 0, 7, 31]]


class FixedGrid(BoxDecoder):
    """Returns one grid for every box, plus an offset from the features of the image."""

    out_channels, margin = 1, 0.1

    def __init__(self, grid: Tensor, visible: float = 0.0) -> None:
        super().__init__()
        self.grid = grid
        self.visible = visible

    def forward(self, pyramid: Pyramid, regions: Regions, rounding: str) -> Tensor:
        shown = pyramid.levels[0].mean(dim=(1, 2, 3))[regions.image_index[regions.region_index]]
        return self.grid + self.visible * shown[:, None, None, None]


def build(grid: Tensor, visible: float = 0.0) -> DASNet:
    torch.manual_seed(0)
    head = ShapeHead(1)
    nn.init.dirac_(head.score.weight)
    model = DASNet(FrozenDetector(ToyDetector(4)), FixedGrid(grid[None], visible), head)
    return model.eval().requires_grad_(False)


def full(logit: float = 5.0) -> Tensor:
    return torch.full((GRID, GRID), logit)


def left_half() -> Tensor:
    grid = full()
    grid[:, GRID // 2 :] = -5
    return grid


def found(boxes, scores=None, labels=None) -> Detections:
    count = len(boxes)
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor([1] * count if labels is None else labels, dtype=torch.int64),
        torch.tensor([0.9 - 0.1 * index for index in range(count)] if scores is None else scores),
    )


def segment(model, detections, size=(32, 32), options=EVERYTHING, given=False, refinement=NO_REFINEMENT) -> Prediction:
    pyramid = model.detector.features(make_batch([make_target([], [])]).images)
    function = segment_instances if isinstance(options, InstanceOptions) else segment_semantic
    return function(model, pyramid, [detections], [size], options, given, refinement)[0]


def area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_given_boxes_are_hard_limits_and_detected_ones_have_a_margin(size):
    model, scale = build(full()), size[0] * size[1] / 32**2
    given = segment(model, found(BOXES), size, given=True)
    assert given.masks.flatten(1).sum(dim=1).tolist() == [area(box) * scale for box in BOXES]
    detected = segment(model, found(BOXES[:2]), size)
    clipped = segment(model, found(BOXES[:2]), size, replace(EVERYTHING, clip_to_boxes=True))
    assert torch.equal(clipped.masks, given.masks[:2])
    assert not (clipped.masks & ~detected.masks).any()
    rows, columns = detected.masks[0].any(dim=1).nonzero()[:, 0], detected.masks[0].any(dim=0).nonzero()[:, 0]
    x, y = size[1] / 32, size[0] / 32
    assert (columns.min(), columns.max() + 1) == (3 * x, 15 * x)  # a tenth of ten pixels on each side
    assert (rows.min(), rows.max() + 1) == (3 * y, 15 * y)


def test_masks_are_the_grid_brought_to_the_pixels_of_the_image():
    mask = segment(build(left_half()), found([[8.0, 8, 24, 24]]), (64, 64), given=True).masks[0]
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[16:48, 16:32] = True
    assert torch.equal(mask, expected)


def test_boxes_outside_the_image_have_empty_masks_and_none_is_none():
    model = build(full())
    assert not segment(model, found([[40.0, 3, 50, 9], [-9.0, -9, -2, -2]]), given=True).masks.any()
    for options in (EVERYTHING, SemanticOptions()):
        nothing = segment(model, found([]), (20, 30), options)
        assert nothing.masks.shape == (0, 20, 30)
        assert not nothing.semantic.any()


def test_the_expected_iou_weights_the_score():
    certain, unsure = build(full(9.0)), build(full(0.4))
    options = replace(EVERYTHING, weight_by_instance_score=True)
    for model, logit in ((certain, 9.0), (unsure, 0.4)):
        quality = estimate_iou(torch.full((1, 8, 8), logit).sigmoid())[0]
        scores = segment(model, found(BOXES), options=options).detections.scores
        assert torch.allclose(scores, found(BOXES).scores * quality, atol=1e-3)
    assert torch.equal(segment(unsure, found(BOXES)).detections.scores, found(BOXES).scores)


@pytest.mark.parametrize("options", [EVERYTHING, SemanticOptions(score_threshold=0.0)], ids=["instance", "semantic"])
def test_the_best_box_of_a_pixel_gives_its_class(options):
    semantic = segment(build(full()), found(BOXES, labels=[1, 2, 1]), options=options, given=True).semantic
    assert (semantic[5, 5], semantic[20, 20], semantic[30, 30]) == (1, 2, 0)
    assert semantic[10, 13] == 1  # in boxes 0 and 1; the first has the better score


def test_a_region_of_several_boxes_is_the_best_of_them():
    model = build(left_half())
    pyramid = model.detector.features(make_batch([make_target([], [])]).images)
    boxes = [[4.0, 4, 14, 14], [10.0, 10, 30, 30], [0.0, 0, 10, 30]]  # with windows of whole pixels
    regions = regions_by_class([found(boxes, labels=[1, 1, 2])])
    logits = model.decode(pyramid, regions)
    assert logits.shape == (2, 1, 32, 32)
    alone = [model.decode(pyramid, regions_by_class([found([box])]))[0] for box in boxes]
    assert torch.allclose(logits[0], torch.maximum(alone[0], alone[1]))
    assert torch.allclose(logits[1], alone[2])
    answer = segment(model, found(boxes[:2]), options=SemanticOptions(score_threshold=0.0), given=True)
    assert torch.equal(answer.semantic == 1, (logits[0, 0] > 0) & answer.masks.any(dim=0))


def test_boxes_of_several_images_come_back_in_their_order():
    """Decoded in chunks, images of different sizes, a box of two classes: as each image alone."""
    model = build(left_half(), visible=4.0)
    images = make_batch([make_target([], [])] * 3).images
    pyramid = model.detector.features(images)
    several = [found([*BOXES, BOXES[0]], labels=[1, 2, 1, 3]), found([]), found(BOXES[::-1], labels=[3, 1, 2])]
    sizes = [(57, 43), (32, 32), (20, 90)]
    for options in (replace(EVERYTHING, regions_at_once=1), SemanticOptions(score_threshold=0.0, regions_at_once=1)):
        function = segment_instances if isinstance(options, InstanceOptions) else segment_semantic
        answers = function(model, pyramid, several, sizes, options)
        for image, (answer, detections, size) in enumerate(zip(answers, several, sizes, strict=True)):
            one = Pyramid(tuple(level[image : image + 1] for level in pyramid.levels), pyramid.strides, pyramid.size)
            (alone,) = function(model, one, [detections], [size], replace(options, regions_at_once=16))
            assert torch.equal(answer.masks, alone.masks)
            assert torch.equal(answer.semantic, alone.semantic)


@pytest.mark.parametrize("decoder", ["light", "zoom"])
@pytest.mark.parametrize("kind", ["instance", "semantic"])
def test_the_flipped_image_has_the_flipped_answer(kind, decoder):
    """Averaged over both views, an image and its mirror image have mirrored probabilities, so mirrored masks."""
    torch.manual_seed(0)
    detector = FrozenDetector(ToyDetector(4))
    built = build_decoder(decoder, detector.out_channels, detector.strides)
    model = _network(detector, built, kind).eval()
    images = make_batch([make_target([], [])]).images
    pyramid, mirrored = model.detector.features(images), model.detector.features(images.flip(3))
    boxes = scale_boxes(torch.tensor(BOXES), (32, 32), (32, 32))
    flipped = torch.stack([32 - boxes[:, 2], boxes[:, 1], 32 - boxes[:, 0], boxes[:, 3]], dim=1)
    options = EVERYTHING if kind == "instance" else SemanticOptions(score_threshold=0.0)
    options = replace(options, foreground_threshold=0.495)
    with torch.no_grad():
        straight = _answer(model, pyramid, boxes, options, Refinement(mirrored))
        other = _answer(model, mirrored, flipped, options, Refinement(pyramid))
        plain = _answer(model, pyramid, boxes, options, NO_REFINEMENT)
    assert (straight.masks == other.masks.flip(2)).float().mean() > 0.995
    assert (straight.semantic == other.semantic.flip(1)).float().mean() > 0.995
    assert not torch.equal(plain.masks, straight.masks)


def _network(detector, decoder, kind) -> DASNet:
    from dasnet_lightning.nn.heads import PositionSensitiveHead

    if isinstance(decoder, BoxDecoder):
        head = ShapeHead(decoder.out_channels)
    else:
        head = (PositionSensitiveHead if kind == "instance" else SemanticHead)(decoder.out_channels)
    nn.init.normal_(head.score.weight, std=0.2)
    return DASNet(detector, decoder, head)


def _answer(model, pyramid, boxes, options, refinement) -> Prediction:
    function = segment_instances if isinstance(options, InstanceOptions) else segment_semantic
    detections = found(boxes.tolist(), labels=[1, 2, 3])
    return function(model, pyramid, [detections], [(64, 64)], options, True, refinement)[0]


@pytest.mark.parametrize("options", [EVERYTHING, SemanticOptions(score_threshold=0.0)], ids=["instance", "semantic"])
def test_the_guided_filter_moves_the_boundary_to_the_edge_of_the_image(options):
    ramp = torch.linspace(3, -3, GRID).expand(GRID, GRID)  # the boundary is at column 64 of 128
    image = torch.zeros(128, 128, 3, dtype=torch.uint8)
    image[:, 65:] = 255
    model, box, size = build(ramp), found([[4.0, 4, 28, 28]]), (128, 128)
    plain = segment(model, box, size, options, given=True)
    refined = segment(model, box, size, options, given=True, refinement=Refinement(guides=[image]))
    assert int(plain.masks[0].any(dim=0).nonzero().max()) == 63
    assert int(refined.masks[0, 60].nonzero().max()) == 64
    assert not refined.masks[0, :, 112:].any()


def test_head_and_decoder_must_fit():
    decoder = FixedGrid(full()[None])
    with pytest.raises(ConfigError, match="SemanticHead does not fit FixedGrid"):
        DASNet(FrozenDetector(ToyDetector(4)), decoder, SemanticHead(1))
    with pytest.raises(ConfigError, match="ShapeHead does not fit LightDecoder"):
        DASNet(FrozenDetector(ToyDetector(4)), build_decoder("light", (8, 12), (4, 8)), ShapeHead(48))


@pytest.mark.parametrize("options", [EVERYTHING, SemanticOptions(score_threshold=0.0)], ids=["instance", "semantic"])
def test_masks_under_bf16_autocast(options):
    plain = segment(build(left_half()), found(BOXES), options=options)
    with torch.autocast("cpu", torch.bfloat16):
        rough = segment(build(left_half()), found(BOXES), options=options)
    assert plain.masks.any()
    assert (plain.masks != rough.masks).float().mean() < 0.01
