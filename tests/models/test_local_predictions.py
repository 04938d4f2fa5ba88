"""Decoding in windows gives the predictions and the loss of whole maps, at the sizes of the images."""

from functools import partial

import pytest
import torch

from dasnet_lightning.functional.attention import box_attention
from dasnet_lightning.functional.losses import mean_over_ranks, semantic_loss
from dasnet_lightning.functional.regions import regions_by_class
from dasnet_lightning.functional.windows import box_windows
from dasnet_lightning.models import local_decoding
from dasnet_lightning.models.dasnet import DASNet, build_dasnet
from dasnet_lightning.models.instance import InstanceOptions, segment_instances
from dasnet_lightning.models.local_decoding import decodes_locally
from dasnet_lightning.models.semantic import SemanticOptions, decode_foreground, segment_semantic, window_loss
from dasnet_lightning.nn.heads import PositionSensitiveHead, SemanticHead
from dasnet_lightning.types import Detections, Prediction, Pyramid

SIZES = ((128, 128), (375, 250), (60, 90))


def build(decoder: str, head) -> tuple[DASNet, Pyramid]:
    torch.manual_seed(0)
    widths = (8, 8, 8) if decoder == "light" else (6, 6, 8, 8)
    model = build_dasnet(5, "ssd_tiny", decoder=decoder, decoder_options={"widths": widths}, head=head).eval()
    torch.nn.init.normal_(model.head.score.weight, std=1.0)
    return model, model.detector.features(torch.rand(3, 3, 128, 128))


def detect() -> list[Detections]:
    """Return many boxes of four classes and all sizes; the second image has none."""
    low, extent = torch.rand(40, 2) * 110, torch.rand(40, 2) ** 2 * 100 + 2
    boxes = torch.cat([low, low + extent], dim=1).clamp(max=128)
    labels, scores = torch.randint(1, 5, (40,)), torch.rand(40) * 0.7 + 0.3
    places = (slice(0, 25), slice(0, 0), slice(25, 40))
    return [Detections(boxes[place], labels[place], scores[place]) for place in places]


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_decoding, "decodes_locally", lambda model: False)


def compare(local: tuple[Prediction, ...], plain: tuple[Prediction, ...], atol: float = 1e-5) -> None:
    for one, other in zip(local, plain, strict=True):
        assert torch.equal(one.detections.boxes, other.detections.boxes)
        assert torch.allclose(one.detections.scores, other.detections.scores, atol=atol)
        # a pixel exactly between two answers may fall to either side
        assert (one.masks != other.masks).sum() <= 2
        assert (one.semantic != other.semantic).sum() <= 2
    assert any(answer.masks.any() for answer in local)


@pytest.mark.parametrize("grouping", ["instance", "class"])
@pytest.mark.parametrize("decoder", ["light", "paper"])
def test_instances(decoder, grouping, monkeypatch):
    model, pyramid = build(decoder, partial(PositionSensitiveHead, cells=3))
    detections, options = detect(), InstanceOptions(grouping=grouping, regions_at_once=6)
    model.requires_grad_(False)
    run = partial(segment_instances, model, pyramid, detections, SIZES, options)
    assert decodes_locally(model)
    local = run()
    plainly(monkeypatch)
    compare(local, run())


@pytest.mark.parametrize("margin", [0.0, 5.0])
@pytest.mark.parametrize("decoder", ["light", "paper"])
def test_class_maps(decoder, margin, monkeypatch):
    model, pyramid = build(decoder, SemanticHead)
    detections, options = detect(), SemanticOptions(box_margin=margin, regions_at_once=3)
    model.requires_grad_(False)
    run = partial(segment_semantic, model, pyramid, detections, SIZES, options)
    local = run()
    plainly(monkeypatch)
    compare(local, run())


@pytest.mark.parametrize("decoder", ["light", "paper"])
def test_foreground_is_that_of_the_whole_decode_inside_of_the_boxes(decoder):
    model, pyramid = build(decoder, SemanticHead)
    model.requires_grad_(False)
    regions = regions_by_class(detect())
    windows = box_windows(regions.boxes, pyramid.size)
    foreground = decode_foreground(model, pyramid, regions, windows, 4)
    expected = model.decode(pyramid, regions).softmax(dim=1)[:, 1]
    assert expected.std() > 0.05
    for owner, (y0, x0), (y1, x1) in zip(
        regions.region_index.tolist(), windows.start.tolist(), windows.stop.tolist(), strict=True
    ):
        difference = foreground[owner, y0:y1, x0:x1] - expected[owner, y0:y1, x0:x1]
        assert difference.abs().max() <= 1e-5
    assert (foreground == 0).any()  # elsewhere nothing was decoded


@pytest.mark.parametrize("decoder", ["light", "paper"])
def test_the_semantic_loss_and_its_gradients_are_those_of_whole_maps(decoder):
    """In training mode, with regions of many overlapping boxes and one region that covers the image."""
    model, pyramid = build(decoder, SemanticHead)
    model.train()
    first, _, second = detect()
    cover = Detections(torch.tensor([[0.0, 0, 128, 90], [0, 60, 128, 128]]), torch.tensor([1, 1]), torch.ones(2))
    regions = regions_by_class([first, cover, second])
    owners, size = regions.region_index, pyramid.size
    inside = box_attention(regions.boxes, owners, len(regions), size, size) > 0
    labels = torch.randint(0, 2, inside.shape).masked_fill(~inside | (torch.rand(inside.shape) < 0.1), 255)
    sums = {
        "whole": semantic_loss(model.decode(pyramid, regions), labels),
        "local": window_loss(model, pyramid, regions, labels),
    }
    losses = tuple(mean_over_ranks(sums).values())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    whole, local = (torch.autograd.grad(loss, parameters) for loss in losses)
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in whole)
    for one, other in zip(whole, local, strict=True):
        assert (one - other).abs().max() <= 1e-5 * scale
