import pytest
import torch
from torch import nn

from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.layers import L2Norm, LoneBatchNorm, PairedHead, parse_size
from dasnet_lightning.detectors.ssd.anchors import AnchorLayout, ssd_shapes
from dasnet_lightning.detectors.ssd.ssd import SSD
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.functional.boxes import encode_boxes
from dasnet_lightning.types import Pyramid


class OneLevel(nn.Module):
    """Returns the image itself, averaged over cells of 16 pixels."""

    strides: tuple[int, ...] = (16,)
    out_channels: tuple[int, ...] = (3,)

    def forward(self, images):
        return (nn.functional.avg_pool2d(images, 16),), None


def one_level(**options):
    """Build an SSD with 4 x 2 cells, two anchors each, three classes and a head that passes its input through."""
    layout = AnchorLayout(ssd_shapes((0.5, 1.0), [()]))
    return SSD(OneLevel(), [nn.Identity()], layout, (0,), 3, (64, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), **options)


def answer(detector, wanted):
    """Return a pyramid for which the head predicts box b of class c with a given logit at anchor a."""
    anchors = detector.predict(pyramid_of(torch.zeros(1, 14, 4, 2)))[2]
    head = torch.zeros(1, 16, 7)
    head[..., 0] = 20.0
    for anchor, label, logit, box in wanted:
        head[0, anchor, :3] = torch.tensor([0.0, -20.0, -20.0])
        head[0, anchor, label] = logit
        head[0, anchor, 3:] = encode_boxes(torch.tensor([box]), anchors[anchor][None])[0]
    return pyramid_of(head.view(1, 4, 2, 14).permute(0, 3, 1, 2))


def pyramid_of(level):
    return Pyramid(levels=(level,), strides=(16,), size=(64, 32))


def test_detect_decodes_clips_suppresses_and_sorts():
    detector = one_level()
    box, other = [2.0, 3.0, 20.0, 30.0], [4.0, 40.0, 28.0, 60.0]
    near = [2.0, 3.0, 20.0, 28.0]
    wanted = [
        (0, 1, 2.0, box),
        (3, 1, 3.0, near),
        (5, 2, 1.0, box),
        (9, 1, 4.0, other),
        (11, 2, 5.0, [-9.0, 50.0, 90.0, 90.0]),
    ]
    (found,) = detector.detect(answer(detector, wanted))
    assert found.labels.tolist() == [2, 1, 1, 2]  # `box` of class 1 gives way to `near`; class 2 is another class
    expected = torch.tensor([[0.0, 50.0, 32.0, 64.0], other, near, box])
    torch.testing.assert_close(found.boxes, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.scores, torch.tensor([5.0, 4.0, 3.0, 1.0]).sigmoid(), rtol=1e-4, atol=1e-4)


def test_a_box_outside_the_image_is_no_detection():
    detector = one_level()
    (found,) = detector.detect(answer(detector, [(0, 1, 3.0, [-30.0, -30.0, -1.0, -2.0])]))
    assert len(found.boxes) == 0


def test_options_of_detect():
    wanted = [
        (0, 1, 2.0, [0.0, 0.0, 10.0, 10.0]),
        (4, 1, 3.0, [15.0, 15.0, 30.0, 30.0]),
        (8, 2, 0.0, [0.0, 40.0, 9.0, 60.0]),
    ]
    for options, number in [
        ({}, 3),
        ({"score_threshold": 0.6}, 2),
        ({"top_k": 1}, 2),
        ({"detections_per_image": 1}, 1),
    ]:
        detector = one_level(**options)
        assert len(detector.detect(answer(detector, wanted))[0].boxes) == number


def test_features_normalize_the_images():
    pyramid = one_level().features(torch.full((1, 3, 64, 32), 0.75))
    torch.testing.assert_close(pyramid.levels[0], torch.ones(1, 3, 4, 2))


def test_parts_that_do_not_fit_together_are_refused():
    layout = AnchorLayout(ssd_shapes((0.5, 1.0), [()]))
    with pytest.raises(ConfigError, match="2 heads, 1 anchor levels and 1 head levels"):
        SSD(OneLevel(), [nn.Identity()] * 2, layout, (0,), 3, (64, 32), (0.5,) * 3, (0.25,) * 3)


def test_l2_norm_has_the_length_of_its_scale():
    out = L2Norm(8, scale=20.0)(torch.randn(2, 8, 3, 3))
    torch.testing.assert_close(out.norm(dim=1), torch.full((2, 3, 3), 20.0))


def test_paired_heads_stand_anchor_by_anchor():
    """For each of two anchors the logits of three classes come first, then its offsets."""
    classes, boxes = torch.nn.Conv2d(1, 6, 1), torch.nn.Conv2d(1, 8, 1)
    with torch.no_grad():
        for layer, first in ((classes, 0), (boxes, 100)):
            layer.weight.zero_()
            layer.bias.copy_(torch.arange(first, first + len(layer.bias)))
    answer = PairedHead(classes, boxes, anchors=2)(torch.zeros(1, 1, 1, 2))
    assert answer[0, :, 0, 1].tolist() == [0, 1, 2, 100, 101, 102, 103, 3, 4, 5, 104, 105, 106, 107]


def test_lone_batch_norm_learns_from_one_image_with_one_cell():
    norm, plain = LoneBatchNorm(4, eps=0.001), nn.BatchNorm2d(4, eps=0.001)
    batch = torch.randn(2, 4, 3, 3)
    assert torch.equal(norm(batch), plain(batch))
    assert torch.equal(norm.running_var, plain.running_var)
    before = norm.running_mean.clone()
    alone = torch.randn(1, 4, 1, 1)
    assert torch.equal(norm(alone), plain.eval()(alone))
    assert torch.equal(norm.running_mean, before)


def test_ssdlite_trains_on_one_image():
    detector = build_detector("ssdlite320_mobilenet_v3_large", 4).train()
    pyramid = detector.features(torch.rand(1, 3, 64, 64))
    assert pyramid.levels[-1].shape == (1, 128, 1, 1)
    assert len(detector.predict(pyramid)[2]) == 6 * (4 * 4 + 2 * 2 + 4)


@pytest.mark.parametrize("size", [0, (320,), [320, 0], (1, 2, 3)])
def test_an_impossible_image_size_is_refused(size):
    with pytest.raises(ConfigError, match="image_size"):
        parse_size(size)


def test_ssd320_vgg16_has_the_papers_levels():
    detector = build_detector("ssd320_vgg16", 21).eval()
    with torch.no_grad():
        pyramid = detector.features(torch.rand(1, 3, 320, 320))
    sizes = [(512, 40), (1024, 20), (512, 10), (256, 5), (256, 3), (256, 1)]
    assert [(level.shape[1], level.shape[-1]) for level in pyramid.levels] == sizes
    assert [level.shape[-2] for level in pyramid.levels] == [size for _, size in sizes]
    assert pyramid.switches is not None
    poolings = [(64, 160), (128, 80), (256, 40), (512, 20), (512, 20)]
    assert [tuple(places.shape) for places in pyramid.switches] == [(1, c, n, n) for c, n in poolings]
    assert [int(places.max()) for places in pyramid.switches] == [3, 3, 3, 3, 8]
    assert detector.heads[0][0].scale.shape == (512, 1, 1)
    assert (pyramid.levels[0] >= 0).all()
    assert pyramid.levels[0].norm(dim=1).std() > 0.1  # raw: the L2 norm is the head's
    parameters = sum(p.numel() for p in detector.parameters())
    assert parameters == 26_285_486  # SSD300-VGG16 of VOC: the same layers


def test_ssd320_vgg16_refuses_images_that_its_last_levels_cannot_see():
    with pytest.raises(ConfigError, match="at least 257"):
        build_detector("ssd320_vgg16", 4, image_size=200)


def test_ssd300_vgg16_refuses_images_that_its_last_levels_cannot_see():
    with pytest.raises(ConfigError, match="ssd300_vgg16 needs at least 257"):
        build_detector("ssd300_vgg16", 4, image_size=(300, 256))


def test_ssd_tiny_is_tiny():
    detector = build_detector("ssd_tiny", 7)
    assert 0.8e6 < sum(p.numel() for p in detector.parameters()) < 1.2e6
    assert detector.image_size == (128, 128)


def test_mobilenet_can_predict_at_stride_8():
    plain, fine = (build_detector("ssd320_mobilenet_v2", 4, head_stride8=fine) for fine in (False, True))
    assert [detector.strides[detector.head_levels[0]] for detector in (plain, fine)] == [16, 8]
    with torch.no_grad():
        shapes = [tuple(level.shape[-2:]) for level in fine.eval().features(torch.rand(1, 3, 320, 320)).levels]
    assert shapes == [(n, n) for n in (80, 40, 20, 10, 5, 3, 2, 1)]
