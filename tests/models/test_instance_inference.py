"""Instance inference with a decoder that returns fixed maps: masks, boxes, scores, order, options and class map."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dasnet_lightning.detectors.frozen import FrozenDetector
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.boxes import pixel_windows, restore_boxes, scale_boxes
from dasnet_lightning.functional.position_sensitive import assemble
from dasnet_lightning.models import local_decoding
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.models.instance import BoxScores, ClassMap, InstanceOptions, segment_instances
from dasnet_lightning.models.semantic import SemanticOptions
from dasnet_lightning.nn.decoder import MapDecoder
from dasnet_lightning.nn.heads import PositionSensitiveHead
from dasnet_lightning.types import Detections, Prediction, Pyramid
from toy import ToyDetector, make_batch, make_target

K = 3
EVERYTHING = InstanceOptions(score_threshold=0.0, lowest_score=0.0, weight_by_instance_score=False)
FRACTIONAL = [[4.3, 3.4, 18.6, 20.7], [10.2, 8.7, 27.4, 30.9], [0.0, 0.0, 7.3, 31.4], [25.1, 22.2, 32.0, 32.0]]
SIZES = [(32, 32), (57, 43), (20, 90), (375, 500)]


class FixedMaps(MapDecoder):
    """Returns the same maps for every region plus an offset from the region's features, so that regions differ."""

    out_channels, out_stride = 2 * K * K, 4

    def __init__(self, maps: Tensor, visible: float = 0.0) -> None:
        super().__init__()
        self.maps = maps
        self.visible = visible

    def forward(self, pyramid: Pyramid) -> Tensor:
        shown = pyramid.levels[0].mean(dim=(1, 2, 3))[:, None, None, None]
        sign = torch.tensor([1.0, -1.0]).repeat(K * K)[:, None, None]
        return self.maps + self.visible * shown * sign


def build(maps: Tensor, visible: float = 0.0) -> DASNet:
    torch.manual_seed(0)
    head = PositionSensitiveHead(2 * K * K, K)
    nn.init.dirac_(head.score.weight)  # the maps themselves
    return DASNet(FrozenDetector(ToyDetector(4)), FixedMaps(maps, visible), head).eval().requires_grad_(False)


def random_maps() -> Tensor:
    return torch.randn(2 * K * K, 8, 8, generator=torch.Generator().manual_seed(3))


def constant_maps(inside: float, outside: float) -> Tensor:
    return torch.tensor([inside, outside]).repeat(K * K)[:, None, None].expand(-1, 8, 8)


def found(boxes, scores=None, labels=None) -> Detections:
    count = len(boxes)
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor([1] * count if labels is None else labels, dtype=torch.int64),
        torch.tensor([0.9 - 0.1 * index for index in range(count)] if scores is None else scores),
    )


def segment(model: DASNet, detections: Detections, size=(32, 32), options=EVERYTHING) -> Prediction:
    pyramid = model.detector.features(make_batch([make_target([], [])]).images)
    return segment_instances(model, pyramid, [detections], [size], options)[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grouping", ["instance", "class"])
def test_masks_are_assembled_from_maps_brought_to_the_images_size(size, grouping):
    maps = random_maps()
    answer = segment(build(maps), found(FRACTIONAL), size, replace(EVERYTHING, grouping=grouping))
    full = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
    boxes = scale_boxes(torch.tensor(FRACTIONAL), (32, 32), size)
    for mask, box in zip(answer.masks, boxes, strict=True):
        inside, outside = assemble(full, box, K)
        x0, y0, x1, y1 = pixel_windows(box[None], size)[0].tolist()
        expected = torch.zeros(size, dtype=torch.bool)
        expected[y0:y1, x0:x1] = inside > outside
        undecided = torch.zeros(size, dtype=torch.bool)
        undecided[y0:y1, x0:x1] = (inside - outside).abs() < 1e-4
        assert torch.equal(mask | undecided, expected | undecided)
        assert 0 < mask.float().mean() < 0.9


@pytest.mark.parametrize("size", SIZES)
def test_a_mask_never_leaves_its_box(size):
    """Every pixel is inside here, and boxes whose edges are whole pixels of the image are filled exactly."""
    model, (height, width) = build(constant_maps(5.0, -5.0)), size
    for x in range(1, width - 6, 7):
        box = torch.tensor([[x, x % (height - 4), x + 5, x % (height - 4) + 3]], dtype=torch.float32)
        given = scale_boxes(box, size, (32, 32))
        mask = segment(model, found(given.tolist()), size).masks[0]
        expected = torch.zeros(size, dtype=torch.bool)
        x0, y0, x1, y1 = box[0].int().tolist()
        expected[y0:y1, x0:x1] = True
        assert torch.equal(mask, expected), box
    for box in [*FRACTIONAL, [-5.0, -3, 6.5, 40], [30.0, 30, 50, 50], [31.9, 0, 32, 32]]:
        mask = segment(model, found([box]), size).masks[0]
        x0, y0, x1, y1 = restore_boxes(torch.tensor([box]), (32, 32), size)[0].tolist()
        rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
        assert x0 < columns.min() + 1
        assert columns.max() < x1
        assert y0 < rows.min() + 1
        assert rows.max() < y1


def test_boxes_outside_the_image_have_empty_masks():
    answer = segment(build(constant_maps(5.0, -5.0)), found([[40.0, 3, 50, 9], [-9.0, -9, -2, -2]]))
    assert answer.masks.shape == (2, 32, 32)
    assert not answer.masks.any()
    assert not answer.semantic.any()


def test_no_detections():
    answer = segment(build(random_maps()), found([]), (20, 30))
    assert answer.masks.shape == (0, 20, 30)
    assert answer.detections.boxes.shape == (0, 4)
    assert torch.equal(answer.semantic, torch.zeros(20, 30, dtype=torch.int64))


def test_images_without_and_with_detections_keep_theirs():
    model = build(constant_maps(5.0, -5.0))
    pyramid = model.detector.features(make_batch([make_target([], [])] * 3).images)
    boxes = [found([]), found(FRACTIONAL[:2], labels=[3, 2]), found(FRACTIONAL[2:3])]
    for grouping in ("instance", "class"):
        options = replace(EVERYTHING, grouping=grouping)
        answers = segment_instances(model, pyramid, boxes, [(32, 32), (64, 64), (9, 9)], options)
        assert [len(answer.masks) for answer in answers] == [0, 2, 1]
        assert answers[1].detections.labels.tolist() == [3, 2]
        assert answers[1].masks[0].nonzero().float().mean() < answers[1].masks[1].nonzero().float().mean()


def test_detections_come_in_the_order_of_the_detectors_scores():
    answer = segment(build(random_maps()), found(FRACTIONAL, [0.2, 0.8, 0.5, 0.8], [1, 2, 3, 1]))
    assert answer.detections.scores.tolist() == pytest.approx([0.8, 0.8, 0.5, 0.2])
    assert answer.detections.labels.tolist() == [2, 1, 3, 1]
    assert torch.equal(answer.detections.boxes, torch.tensor(FRACTIONAL)[[1, 3, 2, 0]])


def test_the_instance_score_weighs_the_detectors():
    maps, boxes = random_maps(), found(FRACTIONAL)
    weighted = segment(build(maps), boxes, options=replace(EVERYTHING, weight_by_instance_score=True))
    full = F.interpolate(maps[None], size=(32, 32), mode="bilinear", align_corners=False)[0]
    for box, score, result in zip(boxes.boxes, boxes.scores, weighted.detections.scores, strict=True):
        logit = assemble(full, box, K).amax(dim=0).mean()
        assert result == pytest.approx(float(score * logit.sigmoid()), abs=1e-5)
    assert torch.equal(segment(build(maps), boxes).detections.scores, boxes.scores)


def test_thresholds_and_numbers_are_options():
    model, boxes = build(constant_maps(5.0, -5.0)), found(FRACTIONAL, [0.9, 0.5, 0.2, 0.04], [1, 2, 3, 1])

    def answer(**options) -> Prediction:
        return segment(model, boxes, options=InstanceOptions(**options))

    assert len(answer().masks) == 3  # lowest_score leaves one out
    assert len(answer(lowest_score=0.04).masks) == 4
    assert len(answer(lowest_score=0.5).masks) == 2  # at least that score
    assert answer(max_detections=2).detections.labels.tolist() == [1, 2]
    assert len(answer(max_detections=0).masks) == 0
    # score_threshold is about the class map, not about the masks
    assert set(answer().semantic.unique().tolist()) == {0, 1, 2}
    assert set(answer(score_threshold=0.2).semantic.unique().tolist()) == {0, 1, 2, 3}
    assert set(answer(score_threshold=0.6).semantic.unique().tolist()) == {0, 1}
    assert len(answer(score_threshold=0.6).masks) == 3


def test_the_foreground_threshold_is_a_probability():
    model = build(constant_maps(0.25, -0.25))  # softmax: 0.622
    areas = [
        int(segment(model, found(FRACTIONAL[:1]), options=replace(EVERYTHING, foreground_threshold=value)).masks.sum())
        for value in (0.4, 0.5, 0.62, 0.63)
    ]
    assert areas == [15 * 18, 15 * 18, 15 * 18, 0]
    even = build(constant_maps(1.0, 1.0))
    assert not segment(even, found(FRACTIONAL[:1])).masks.any()  # inside must be more than outside
    shown = segment(even, found(FRACTIONAL[:1]), options=replace(EVERYTHING, foreground_threshold=0.4))
    assert shown.masks.sum() == shown.semantic.sum() == 15 * 18


def test_grouping_chooses_what_a_decode_sees(monkeypatch):
    model, boxes = build(random_maps(), visible=5.0), found(FRACTIONAL, labels=[1, 1, 2, 1])
    decodes, forward = [], model.decoder.forward
    monkeypatch.setattr(model.decoder, "forward", lambda pyramid: decodes.append(pyramid) or forward(pyramid))
    alone = segment(model, boxes)
    assert [len(pyramid.levels[0]) for pyramid in decodes] == [4]
    decodes.clear()
    together = segment(model, boxes, options=replace(EVERYTHING, grouping="class"))
    assert [len(pyramid.levels[0]) for pyramid in decodes] == [2]
    assert not torch.equal(alone.masks[0], together.masks[0])  # its region shows two other boxes too
    assert torch.equal(alone.masks[2], together.masks[2])  # alone in its class
    # each box alone: another box in the image changes nothing
    assert torch.equal(segment(model, found(FRACTIONAL[:1])).masks[0], alone.masks[0])


@pytest.mark.parametrize("grouping", ["instance", "class"])
def test_regions_at_once_bound_the_memory_and_nothing_else(grouping):
    model, boxes = build(random_maps(), visible=5.0), found(FRACTIONAL, labels=[1, 2, 1, 3])
    answers = [
        segment(model, boxes, (57, 43), replace(EVERYTHING, grouping=grouping, regions_at_once=number))
        for number in (1, 2, 3, 16)
    ]
    for answer in answers[1:]:
        assert torch.equal(answer.masks, answers[0].masks)
        assert torch.equal(answer.semantic, answers[0].semantic)


def test_the_class_map_is_the_best_instance_of_each_pixel():
    maps, size = random_maps() * 2, (57, 43)
    boxes = found(FRACTIONAL, [0.9, 0.8, 0.7, 0.1], [2, 1, 3, 3])
    answer = segment(build(maps), boxes, size, replace(EVERYTHING, score_threshold=0.3))
    full = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
    strength = torch.zeros(5, *size)
    for index, box in enumerate(scale_boxes(boxes.boxes[:3], (32, 32), size)):
        inside, outside = assemble(full, box, K)
        probability = (inside - outside).sigmoid()
        x0, y0, x1, y1 = pixel_windows(box[None], size)[0].tolist()
        strength[index + 1, y0:y1, x0:x1] = probability * boxes.scores[index] * (probability > 0.5)
    expected = torch.tensor([0, 2, 1, 3, 0])[strength.argmax(dim=0)]
    assert (answer.semantic == expected).float().mean() > 0.999
    assert set(answer.semantic.unique().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", [InstanceOptions, SemanticOptions])
def test_options_that_cannot_work_are_refused(kind):
    with pytest.raises(ConfigError, match="regions_at_once=0 must be at least 1"):
        kind(regions_at_once=0)
    most = "max_detections" if kind is InstanceOptions else "max_classes"
    with pytest.raises(ConfigError, match=f"{most}=-1"):
        kind(**{most: -1})


def test_a_box_of_several_classes_is_decoded_once_and_answers_are_those_of_each_alone(monkeypatch):
    model, decoded = build(random_maps(), visible=1.0), []
    pyramid = model.detector.features(make_batch([make_target([], [])] * 3).images)
    several = [
        found([FRACTIONAL[0], FRACTIONAL[1], FRACTIONAL[0], FRACTIONAL[0]], labels=[1, 1, 2, 3]),
        found([]),
        found([FRACTIONAL[2], FRACTIONAL[0], FRACTIONAL[2]], labels=[3, 1, 2]),
    ]
    sizes = [(57, 43), (32, 32), (57, 43)]
    whole = local_decoding._decode_whole

    def count(model, pyramid, regions, at_once):
        decoded.append(len(regions))
        return whole(model, pyramid, regions, at_once)

    monkeypatch.setattr(local_decoding, "_decode_whole", count)
    options = replace(EVERYTHING, weight_by_instance_score=True)
    answers = segment_instances(model, pyramid, several, sizes, options)
    assert decoded == [2 + 0 + 2]
    for image, (detections, answer) in enumerate(zip(several, answers, strict=True)):
        assert answer.detections.labels.tolist() == detections.labels.tolist()
        one = Pyramid(tuple(level[image : image + 1] for level in pyramid.levels), pyramid.strides, pyramid.size)
        for k in range(len(detections.labels)):
            alone = Detections(*(part[k : k + 1] for part in (detections.boxes, detections.labels, detections.scores)))
            (expected,) = segment_instances(model, one, [alone], [sizes[image]], options)
            assert torch.equal(answer.masks[k], expected.masks[0])
            assert answer.detections.scores[k] == pytest.approx(float(expected.detections.scores[0]), rel=1e-6)


def test_given_boxes_are_segmented_whole_whatever_the_options_say():
    model = build(random_maps(), visible=1.0)
    pyramid = model.detector.features(make_batch([make_target([], [])]).images)
    boxes = [found([FRACTIONAL[0], FRACTIONAL[1], FRACTIONAL[2]], labels=[3, 1, 2], scores=[0.1, 0.3, 0.2])]
    options = replace(EVERYTHING, lowest_score=0.25, score_threshold=0.9, max_detections=1)
    answer = segment_instances(model, pyramid, boxes, [(32, 32)], options, given=True)[0]
    assert answer.detections.labels.tolist() == [3, 1, 2]
    assert answer.masks.flatten(1).any(dim=1).tolist() == [True] * 3
    assert answer.semantic.any()
    assert len(segment_instances(model, pyramid, boxes, [(32, 32)], options)[0].masks) == 1


def test_the_class_map_does_not_depend_on_the_order_of_the_boxes() -> None:
    """Boxes are scored in buckets of any order; the result is that of comparing the detections one after the other."""
    generator = torch.Generator().manual_seed(3)
    size, options = (20, 30), InstanceOptions(score_threshold=0.2)
    windows = [(0, 0, 20, 15), (5, 3, 30, 20), (5, 3, 30, 20), (10, 0, 25, 20)]
    scores = [0.9, 0.5, 0.5, 0.1]
    boxes = []
    for x0, y0, x1, y1 in windows:
        inside = (torch.rand(y1 - y0, x1 - x0, generator=generator) * 4).round() / 4  # many ties
        boxes.append(BoxScores((x0, y0, x1, y1), inside, torch.tensor(1.0)))
    boxes[2] = boxes[1]
    expected, best = torch.zeros(size, dtype=torch.int64), torch.zeros(size)
    for label, (item, score) in enumerate(zip(boxes, scores, strict=True), start=1):
        if score >= options.score_threshold:
            weighted = (item.inside * score).masked_fill(item.inside <= options.foreground_threshold, 0)
            wins = weighted > best[item.slices]
            best[item.slices] = torch.where(wins, weighted, best[item.slices])
            expected[item.slices] = torch.where(wins, torch.tensor(label), expected[item.slices])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        result = ClassMap(size, options, torch.device("cpu"))
        for place in order:
            result.add(place, boxes[place], place + 1, scores[place])
        assert torch.equal(result.semantic, expected), order
    assert 3 not in expected  # equal to the second, which comes first
