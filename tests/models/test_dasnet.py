import pytest
import torch

from dasnet_lightning.detectors.frozen import FrozenDetector
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.attention import attend
from dasnet_lightning.functional.boxes import pixel_windows
from dasnet_lightning.functional.position_sensitive import assemble
from dasnet_lightning.functional.regions import ground_truth_detections, regions_by_class, regions_by_instance
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.models.semantic import SemanticOptions, segment_semantic
from dasnet_lightning.nn.decoder import MapDecoder, build_decoder
from dasnet_lightning.nn.heads import PositionSensitiveHead, SemanticHead
from dasnet_lightning.types import Detections, Pyramid, Regions
from toy import ToyDetector, make_batch, make_target


@pytest.fixture
def model() -> DASNet:
    torch.manual_seed(0)
    detector = FrozenDetector(ToyDetector(4))
    decoder = build_decoder("light", detector.out_channels, detector.strides, widths=(8, 8, 8))
    return DASNet(detector, decoder, SemanticHead(decoder.out_channels)).eval()


class Foreground(MapDecoder):
    """Decoder and head in one; a pixel is foreground if the attended level of its region is not zero."""

    out_channels, out_stride = 1, 4

    def forward(self, pyramid: Pyramid) -> torch.Tensor:
        return (pyramid.levels[0].abs().sum(dim=1, keepdim=True) > 0).float()


class Score(SemanticHead):
    def __init__(self) -> None:
        super().__init__(in_channels=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([-20 * (features - 0.5), 20 * (features - 0.5)], dim=1)


def everywhere() -> DASNet:
    return DASNet(FrozenDetector(ToyDetector(4)), Foreground(), Score())


def found(boxes, labels, scores) -> Detections:
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), torch.tensor(scores))


TARGETS = [make_target([[4.0, 4, 20, 20], [16, 16, 30, 30]], [1, 2]), make_target([], [])]


def test_one_backbone_pass_and_one_decode_answer_for_all_regions(model):
    batch = make_batch(TARGETS)
    detections = [ground_truth_detections(target) for target in batch.targets]
    for regions in (regions_by_class(detections), regions_by_instance(detections)):
        assert model(batch.images, regions).shape == (2, 2, 32, 32)
    nothing = regions_by_class([found([], [], [])])
    assert model(batch.images, nothing).shape == (0, 2, 32, 32)


def test_what_lies_outside_the_boxes_changes_nothing(model):
    """Other features outside the boxes give the same logits."""
    images = make_batch(TARGETS[:1]).images
    pyramid = model.detector.features(images)
    regions = regions_by_class([found([[8.0, 8, 16, 16]], [1], [1.0])])
    before = model.decode(pyramid, regions)
    levels = [level.clone() for level in pyramid.levels]
    for level, stride in zip(levels, pyramid.strides, strict=True):
        level[:, :, 16 // stride :] += 5
        level[:, :, :, : 8 // stride] -= 3
    after = model.decode(Pyramid(tuple(levels), pyramid.strides, pyramid.size), regions)
    assert torch.equal(before, after)


def test_class_maps_fill_the_boxes_at_each_images_own_size():
    model, batch = everywhere(), make_batch(TARGETS)
    pyramid = model.detector.features(batch.images)
    boxes = [found([[0.0, 0, 16, 16]], [3], [0.9]), found([], [], [])]
    answers = segment_semantic(model, pyramid, boxes, [(64, 48), (10, 20)], SemanticOptions())
    first, second = (answer.semantic for answer in answers)
    assert first.shape == (64, 48)
    assert (first[:32, :24] == 3).float().mean() > 0.95
    assert not first[32:].any()
    assert not first[:, 24:].any()
    assert torch.equal(second, torch.zeros(10, 20, dtype=torch.int64))


def test_the_options_of_inference_do_what_they_say():
    model, batch = everywhere(), make_batch(TARGETS[:1])
    pyramid = model.detector.features(batch.images)
    # two classes around one object, a third elsewhere that the detector hardly believes in
    boxes = [found([[0.0, 0, 16, 16], [0, 0, 16, 16], [20, 20, 32, 32]], [1, 2, 3], [0.4, 0.8, 0.2])]

    def labels(**options) -> set[int]:
        answer = segment_semantic(model, pyramid, boxes, [(32, 32)], SemanticOptions(**options))[0]
        return set(answer.semantic.unique().tolist())

    assert labels() == {0, 2}
    assert labels(score_threshold=0.1) == {0, 2, 3}
    assert labels(score_threshold=0.1, max_classes=1) == {0, 2}
    assert labels(weight_by_score=False) == {0, 1}  # of equal probabilities the first region wins
    assert labels(regions_at_once=1, score_threshold=0.1) == {0, 2, 3}
    assert labels(foreground_threshold=1.1) == {0}
    narrow = segment_semantic(model, pyramid, boxes, [(32, 32)], SemanticOptions())[0].semantic
    wide = segment_semantic(model, pyramid, boxes, [(32, 32)], SemanticOptions(box_margin=4.0))[0].semantic
    assert (wide > 0).sum() >= (narrow > 0).sum()


def test_soft_attention_decodes_twice_and_its_zero_is_the_attention_by_boxes(model):
    pyramid = model.detector.features(make_batch(TARGETS).images)
    regions = regions_by_class([ground_truth_detections(target) for target in TARGETS])
    plain = model.score(pyramid, regions)
    assert len(model.passes(pyramid, regions)) == 1
    soft = DASNet(model.detector, model.decoder, model.head, soft_attention=1.0).eval()
    first, second = soft.passes(pyramid, regions)
    assert torch.equal(first, plain)
    assert torch.equal(second, soft.score(pyramid, regions))
    assert not torch.allclose(second, plain)
    seen = soft.head.foreground(plain, regions, pyramid.size)
    attended = attend(pyramid, regions, weights=seen)
    assert torch.allclose(second, model.head(model.decoder(attended)), atol=1e-6)
    with pytest.raises(ConfigError, match="soft_attention is 2"):
        DASNet(model.detector, model.decoder, model.head, soft_attention=2.0)


def test_the_second_decode_does_not_teach_the_first(model):
    """The foreground of the first decode is detached, so only its own loss trains it."""
    soft = DASNet(model.detector, model.decoder, model.head, soft_attention=1.0)
    pyramid = model.detector.features(make_batch(TARGETS).images)
    regions = regions_by_class([ground_truth_detections(target) for target in TARGETS])
    weight = model.head.score.weight
    second = torch.autograd.grad(soft.passes(pyramid, regions)[1].sum(), weight)[0]
    seen = soft.head.foreground(model.score(pyramid, regions).detach(), regions, pyramid.size)
    alone = model.head(model.decoder(attend(pyramid, regions, weights=seen)))
    assert torch.allclose(second, torch.autograd.grad(alone.sum(), weight)[0], atol=1e-5)


def test_the_foreground_of_position_sensitive_maps_is_the_best_of_all_boxes():
    torch.manual_seed(0)
    head, size = PositionSensitiveHead(4, cells=3), (32, 32)
    maps = torch.randn(2, 18, 8, 8)
    boxes = torch.tensor([[0.0, 0, 16, 16], [8, 8, 30, 30], [4, 0, 20, 12]])
    regions = Regions(boxes, torch.tensor([0, 0, 1]), torch.tensor([0, 0]), torch.tensor([1, 2]))
    expected = torch.zeros(2, 8, 8)
    for box, region in zip(boxes / 4, [0, 0, 1], strict=True):
        x0, y0, x1, y1 = pixel_windows(box[None], (8, 8))[0].tolist()
        inside = assemble(maps[region], box, 3).softmax(dim=0)[0]
        expected[region, y0:y1, x0:x1] = torch.maximum(expected[region, y0:y1, x0:x1], inside)
    assert torch.allclose(head.foreground(maps, regions, size), expected, atol=1e-6)


def test_given_boxes_are_segmented_whole_whatever_the_options_say():
    model, batch = everywhere(), make_batch(TARGETS[:1])
    pyramid = model.detector.features(batch.images)
    corners = [[4.0 * n, 4.0 * n, 4.0 * n + 4, 4.0 * n + 4] for n in range(8)]
    boxes = [found(corners, list(range(1, 9)), [0.1] * 8)]
    options = SemanticOptions(max_classes=5, score_threshold=0.5)
    answer = segment_semantic(model, pyramid, boxes, [(32, 32)], options, given=True)[0]
    assert answer.detections.labels.tolist() == list(range(1, 9))
    assert set(answer.semantic.unique().tolist()) == set(range(9))
    assert len(segment_semantic(model, pyramid, boxes, [(32, 32)], options)[0].masks) == 0
